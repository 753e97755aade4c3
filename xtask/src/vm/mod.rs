//! `cargo xtask vm`: the live tests on other kernels, each booted in a virtual machine under
//! software emulation.
//!
//! The guest runs this machine's own programs: one disk has the installed packages that the tests
//! need, another what was just built, at the same paths as here. So the live tests run in it
//! unchanged.

mod disks;
mod emulated;
mod foreign;
mod initramfs;
mod kernels;
mod machine;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use xtask::{
    packages::{self, Package},
    run,
};

use crate::{
    build_ebpf,
    cross::{self, Builder},
    test,
};
use emulated::Emulated;
use kernels::{Expected, Kernel, MATRIX, Series};
use machine::{Ended, Machine};

/// What the host needs to make and boot a machine.
const HOST_PACKAGES: [Package; 4] = [
    Package { names: &["busybox-static"], purpose: "the initramfs" },
    Package { names: &["e2fsprogs"], purpose: "mke2fs, for the disks" },
    Package { names: &["kmod"], purpose: "depmod, for the kernels' modules" },
    Package { names: &["xz-utils"], purpose: "decompresses kernel modules" },
];

/// What `--systemd` needs.
const SYSTEMD: [Package; 2] = [
    Package { names: &["systemd"], purpose: "process 1 of the guest" },
    Package { names: &["dbus"], purpose: "what systemd-run talks to systemd by" },
];

/// What the guest needs beside the programs of the live tests: names of packages, left out if
/// they are not installed.
const GUEST_PACKAGES: [&str; 19] = [
    "bash",
    "binutils",
    "busybox-static",
    "coreutils",
    "dash",
    "dbus",
    "findutils",
    "git",
    "grep",
    "iproute2",
    "libc6-dbg",
    "mount",
    "procps",
    "python3-minimal",
    "sed",
    "sqlite3",
    "systemd",
    "util-linux",
    "valgrind",
];

/// The live tests that say something about a kernel, as the beginnings of their names, and what
/// they show. A run of all would take too long under emulation; what is left out is much the same
/// on every kernel, or has gdb single-step.
const TESTS: [(&str, &str); 14] = [
    ("commands::a_short_program_is_seen_whole", "ptrace, exec, constructors"),
    ("ends::the_tracer_is_killed", "nothing stays in the kernel or the target, whoever is killed when"),
    ("errors::no_rights", "refusals of the kernel's"),
    ("exact::each_function_alone_with_shared_glibc", "every kind of row, its probes at entry and return"),
    ("exact::eight_threads_and_two_million_calls", "threads of a process, exact to the byte"),
    ("exact::ranges_are_split_moved_and_replaced", "ranges, MAP_FIXED"),
    ("fallback::", "frame pointers, if the verifier refuses the unwinder"),
    ("kernel::", "kernel mode: tracepoints and kprobes"),
    ("kernel_facts::", "what BTF says of the kernel"),
    ("losses::", "full tables, counted"),
    ("stack_storage::", "stacks that come and go, short and long"),
    ("unwinding::the_direct_caller_of_operator_new_is_there", "the unwinder"),
    ("usdt::samples_without_counters", "programs that are loaded late"),
    ("unwinding::wordcounts_stacks_name_word_count_and_main", "the unwinder"),
];

/// Of those, the soak and the ends of kernel mode, which take minutes here and are much the same on
/// every kernel.
const LEFT_OUT: [&str; 1] = ["kernel_ends::"];

/// The tests that want systemd.
const SYSTEMD_TESTS: [&str; 3] = ["units::", "--ignored", "--test-threads=1"];

/// Options of `vm`.
#[derive(Args)]
pub(crate) struct Options {
    /// The kind of machine to emulate
    #[arg(long = "arch", value_enum, default_value_t)]
    emulated: Emulated,
    /// Only kernels of this series: 5.10, 6.1, 6.12, or any newer one that Debian's backports have
    #[arg(long, value_name = "SERIES")]
    kernel: Vec<String>,
    /// Only this kernel, a file vmlinuz-VERSION with its modules in ../lib/modules/VERSION
    #[arg(long, value_name = "PATH", conflicts_with = "kernel")]
    kernel_image: Option<PathBuf>,
    /// Run this command (bash, as root, memleak on the PATH) in place of tests
    #[arg(long, value_name = "COMMAND", conflicts_with = "tests")]
    shell: Option<String>,
    /// Put this file or folder on the machine's disk too, at the same path
    #[arg(long, value_name = "PATH")]
    with: Vec<PathBuf>,
    /// Boot systemd, and run the tests that want it, or the command, as a unit of it
    #[arg(long)]
    systemd: bool,
    /// Build memleak optimized for the command, as it always is for the tests
    #[arg(long)]
    release: bool,
    /// How long each machine may take
    #[arg(long, value_name = "SECONDS", default_value_t = 2100)]
    limit: u64,
    /// How long live tests wait for a single event
    #[arg(long, value_name = "SECONDS", default_value_t = 400)]
    patience: u64,
    /// Only live tests whose names have one of these in them, and what libtest takes
    #[arg(last = true, value_name = "TEST-FILTER")]
    tests: Vec<String>,
}

/// Boots each kernel and runs the tests, or the command, in it.
pub(crate) fn run(options: &Options) -> Result<()> {
    packages::ensure(&[options.emulated.package()])?;
    packages::ensure(&HOST_PACKAGES)?;
    if options.systemd {
        ensure!(options.emulated == Emulated::X86_64, "--systemd: there is none among arm64's packages here");
        packages::ensure(&SYSTEMD)?;
    }
    if options.shell.is_none() && options.emulated == Emulated::X86_64 {
        packages::ensure(&test::LIVE_PACKAGES)?;
    }
    let cache = build_ebpf::cache_directory()?.join("vm");
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let kernels = kernels(options, &cache)?;
    let guest = Guest::of(options.emulated, &cache)?;
    let built = Built::new(options)?;
    let outcomes = thread::scope(|scope| {
        // All at once: most of the time each waits for its kernel's grace periods.
        let runs: Vec<_> =
            kernels.iter().map(|kernel| scope.spawn(|| built.report_on(kernel, &guest, options))).collect();
        runs.into_iter()
            .map(|run| run.join().unwrap_or_else(|_| Err("it panicked".to_owned())))
            .collect::<Vec<_>>()
    });
    println!();
    for (kernel, outcome) in kernels.iter().zip(&outcomes) {
        let (Ok(text) | Err(text)) = outcome;
        println!("{}: {text}", kernel.name);
    }
    let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    ensure!(failed == 0, "{failed} of {} virtual machines failed", kernels.len());
    Ok(())
}

/// What the options name: kernels that are there.
fn kernels(options: &Options, cache: &Path) -> Result<Vec<Kernel>> {
    if let Some(image) = &options.kernel_image {
        return Ok(vec![Kernel::of_image(image)?]);
    }
    // On arm64 programs can compare and swap from 5.18 on: nothing older is worth a machine.
    let refuses = options.emulated == Emulated::X86_64 && !options.systemd;
    let is_wanted = |row: &&Series| refuses || row.expected == Expected::Traces;
    let whole = || MATRIX.iter().filter(is_wanted).map(|row| row.name.to_owned()).collect();
    let series: Vec<String> = if options.kernel.is_empty() { whole() } else { options.kernel.clone() };
    series.iter().map(|series| Kernel::of_series(series, options.emulated, cache)).collect()
}

/// What all guests of a kind have.
struct Guest {
    /// The disk of packages.
    disk: PathBuf,
    /// For the initramfs.
    busybox: PathBuf,
}

impl Guest {
    fn of(emulated: Emulated, cache: &Path) -> Result<Self> {
        if emulated == Emulated::Aarch64 {
            let foreign::Foreign { disk, busybox } = foreign::of_machine(emulated.debian(), cache)?;
            return Ok(Self { disk, busybox });
        }
        let live = test::LIVE_PACKAGES.iter().flat_map(|package| package.names.iter().copied());
        let wanted: Vec<&str> = live.chain(GUEST_PACKAGES).collect();
        let busybox = run::find_program("busybox").context("busybox is missing")?;
        Ok(Self { disk: disks::of_packages(&wanted, cache)?, busybox })
    }
}

/// What was built for the guest.
struct Built {
    memleak: PathBuf,
    /// The live tests; none if a command is run.
    live: Option<PathBuf>,
    /// Where it all goes into the guest.
    paths: Vec<PathBuf>,
    /// Where the live tests keep the programs that they compile.
    programs: PathBuf,
    /// For images and logs: a folder for each kernel.
    work: PathBuf,
    /// Held, so that another run waits.
    _lock: File,
}

impl Built {
    fn new(options: &Options) -> Result<Self> {
        let foreign =
            (options.emulated == Emulated::Aarch64).then(|| Builder::of(cross::AARCH64)).transpose()?;
        let cargo = |subcommand: &str| match &foreign {
            Some(builder) => builder.cargo(subcommand, &[]),
            None => {
                let mut cargo = run::cargo();
                cargo.arg(subcommand);
                cargo
            }
        };
        let mut cargo = match options.shell {
            Some(_) => cargo("build"),
            None => cargo("test"),
        };
        match options.shell {
            Some(_) => cargo.args(["-p", "memleak", "--bin", "memleak"]),
            None => cargo.args(["--no-run", "-p", "memleak", "--test", "live"]),
        };
        if foreign.is_some() {
            // Under emulation nothing is timed, and to optimize all of it in full takes longer than
            // the tests.
            cargo.args(["--config", "profile.release.opt-level=1"]);
            // A slow build has more time for names once a signal has come (`hurry`).
            cargo.args(["--config", "profile.release.debug-assertions=true"]);
        }
        // Without any optimization a tracer that is emulated takes too long.
        if options.release || options.shell.is_none() || foreign.is_some() {
            cargo.arg("--release");
        }
        let executables = run::executables(&mut cargo)?;
        let find = |name: &str| {
            let found = executables.iter().find(|executable| executable.target == name);
            found.map(|executable| executable.path.clone())
        };
        let memleak = find("memleak").context("cargo built no `memleak`")?;
        let live = find("live");
        // target/release/memleak
        let target = match &foreign {
            Some(builder) => builder.target_directory(),
            None => memleak.ancestors().nth(2).context("cargo's target folder")?.to_owned(),
        };
        let programs = target.join("tmp/live");
        let mut paths = vec![memleak.clone()];
        if let Some(live) = &live {
            paths.extend([live.clone(), run::root().join("memleak/tests"), run::root().join("examples")]);
            paths.push(run::root().join("contrib"));
            fs::create_dir_all(&programs)?;
            paths.push(programs.clone());
        }
        for path in &options.with {
            paths.push(path.canonicalize().with_context(|| format!("--with {}", path.display()))?);
        }
        let work = target.join("vm");
        fs::create_dir_all(&work)?;
        let lock = File::create(work.join("lock"))?;
        lock.lock().context("cannot lock the folder of another run")?;
        Ok(Self { memleak, live, paths, programs, work, _lock: lock })
    }

    /// [`Self::run_on`] with the time it took; the error as text that begins with FAILED.
    fn report_on(&self, kernel: &Kernel, guest: &Guest, options: &Options) -> Result<String, String> {
        let started = Instant::now();
        let outcome = self.run_on(kernel, guest, options);
        let seconds = started.elapsed().as_secs();
        match outcome {
            Ok(what) => Ok(format!("{what}, {seconds} s")),
            Err(error) => Err(format!("FAILED after {seconds} s: {error:#}")),
        }
    }

    /// Boots the kernel and does what is to be done there; says in a few words what came of it.
    fn run_on(&self, kernel: &Kernel, guest: &Guest, options: &Options) -> Result<String> {
        let folder = self.memleak.parent().unwrap_or(Path::new("/"));
        let path = format!("export PATH={}:$PATH\n", folder.display());
        if let Some(command) = &options.shell {
            let ended = self.boot(kernel, guest, options, &(path + command))?;
            ensure!(ended.status == 0, "the command ended with status {}", ended.status);
            return Ok("the command ended with status 0".to_owned());
        }
        if kernel.expected == Expected::Refuses {
            let ended = self.boot(kernel, guest, options, &(path + REFUSAL))?;
            return check_refusal(&ended);
        }
        let live = self.live.as_deref().context("cargo built no live tests")?;
        let filters: Vec<&str> = match &options.tests[..] {
            [] if options.systemd => SYSTEMD_TESTS.to_vec(),
            [] => {
                let left_out = LEFT_OUT.iter().flat_map(|name| ["--skip", name]);
                TESTS.iter().map(|(name, _)| *name).chain(left_out).chain(["--test-threads=1"]).collect()
            }
            tests => tests.iter().map(String::as_str).collect(),
        };
        let command = format!(
            "cd {}/memleak && MEMLEAK_LIVE=1 MEMLEAK_LIVE_PATIENCE={} MEMLEAK_LIVE_ROUNDS=5 exec {} {}",
            run::root().display(),
            options.patience,
            live.display(),
            filters.join(" ")
        );
        let ended = self.boot(kernel, guest, options, &command)?;
        self.keep_programs(&ended, kernel)?;
        check_tests(&ended)
    }

    fn boot(&self, kernel: &Kernel, guest: &Guest, options: &Options, command: &str) -> Result<Ended> {
        let machine = Machine {
            emulated: options.emulated,
            kernel,
            packages: &guest.disk,
            paths: &self.paths,
            command,
            has_systemd: options.systemd,
            limit: Duration::from_secs(options.limit),
            work: &self.work_of(kernel)?,
        };
        let started = Instant::now();
        machine.run(&guest.busybox, |line| {
            let prefix = if options.shell.is_some() { String::new() } else { format!("{} | ", kernel.name) };
            let time = if line.starts_with("test ") {
                format!("{} s: ", started.elapsed().as_secs())
            } else {
                String::new()
            };
            println!("{prefix}{time}{line}");
        })
    }

    /// The folder for a kernel's images and logs.
    fn work_of(&self, kernel: &Kernel) -> Result<PathBuf> {
        let work = self.work.join(&kernel.name);
        fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        Ok(work)
    }

    /// Keeps the programs that the tests compiled in the guest, so that the next run does not
    /// compile them again.
    fn keep_programs(&self, ended: &Ended, kernel: &Kernel) -> Result<()> {
        let copies = self.work_of(kernel)?.join("programs");
        fs::create_dir_all(&copies)?;
        let request = format!("rdump {} {}", self.programs.display(), copies.display());
        let debugfs = run::find_program("debugfs").context("debugfs is missing (e2fsprogs)")?;
        run::output(Command::new(debugfs).args(["-R", &request]).arg(&ended.built))?;
        for entry in fs::read_dir(copies.join("live"))? {
            let entry = entry?;
            let kept = self.programs.join(entry.file_name());
            if is_program(&entry.file_name().to_string_lossy()) && !kept.exists() {
                fs::rename(entry.path(), &kept)?;
            }
        }
        fs::remove_dir_all(&copies)?;
        Ok(())
    }
}

/// Whether the live tests gave a file this name for the sources and flags that it was compiled
/// from: `NAME-HASH`.
fn is_program(name: &str) -> bool {
    let hash = name.rsplit_once('-').map(|(_, hash)| hash).unwrap_or_default();
    hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Asks for the trace of a process, on a kernel that cannot.
const REFUSAL: &str = "sleep 600 & memleak -p $! 1; status=$?; kill $!; exit $status";

/// One line that says what is missing, and status 1.
fn check_refusal(ended: &Ended) -> Result<String> {
    let [line] = &ended.lines[..] else { bail!("not one line but {}", ended.lines.len()) };
    ensure!(line.starts_with("memleak: ") && line.contains("5.15"), "the line does not name 5.15: {line}");
    ensure!(ended.status == 1, "it refused with status {}, not 1", ended.status);
    Ok("refuses with one line and status 1, as it should".to_owned())
}

/// The tests' own last line, and their status.
fn check_tests(ended: &Ended) -> Result<String> {
    let result = ended.lines.iter().rev().find_map(|line| line.strip_prefix("test result: "));
    let result = result.context("the tests gave no result")?;
    ensure!(ended.status == 0, "live tests failed with status {}: {result}", ended.status);
    ensure!(!result.contains(" 0 passed"), "no test has such a name: {result}");
    Ok(result.split("; ").take(2).collect::<Vec<_>>().join(", "))
}
