//! `cargo xtask bench --attach`: the time until a process that maps a great deal of code is traced,
//! and the memory that it takes: until then, and for a first report.

use std::{
    fmt::{self, Write as _},
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use xtask::run;

use crate::{
    cpu, document,
    median::median,
    memory::{Memory, tracer},
    options::Options,
    processes::{self, Target, Tracer, memleak_command},
};

/// Bytes of text of the first process: what the issue asks for.
const TEXT: RangeInclusive<u64> = 150_000_000..=160_000_000;
/// Stacks that the report shows.
const STACKS: usize = 10;
/// Title of the section in BENCHMARKS.md.
pub(crate) const TITLE: &str = "Attaching to a process of much code";

/// Measured in one round.
struct Round {
    /// From the start of the tracer to the message that its probes are in, milliseconds.
    attach_ms: f64,
    /// CPU time that it took, milliseconds: other work on the machine changes it less.
    cpu_ms: f64,
    /// Of the time by the clock, building unwind tables.
    tables_ms: f64,
    rows: f64,
    /// When its probes are in.
    attached: Memory,
    /// After the first report.
    reported: Memory,
    /// What that took, milliseconds.
    report_ms: f64,
}

/// A process to attach to.
struct Case {
    /// Arguments of maps.c.
    arguments: Vec<PathBuf>,
    /// What it has mapped: the bytes of text, and the files with the most of it.
    text: Text,
    /// Of each memleak.
    rounds: Vec<Vec<Round>>,
}

/// Executable mappings.
#[derive(Default)]
struct Text {
    bytes: u64,
    /// Of more than 1 MB, the largest first.
    files: Vec<(u64, String)>,
}

/// Measures; gives the section.
pub(crate) fn section(options: &Options, memleak: &Path) -> Result<String> {
    let program = processes::compile("maps.c", &[])?;
    let mut cases = [Case::some_libraries()?, Case::the_compiler()?];
    let tracers: Vec<&Path> = std::iter::once(memleak).chain(options.beside.as_deref()).collect();
    for case in &mut cases {
        case.rounds.resize_with(tracers.len(), Vec::new);
    }
    for round in 1..=options.rounds {
        for case in &mut cases {
            // Each is the first in turn: what a file's first reader pays is nobody's alone.
            for place in 0..tracers.len() {
                let at = (place + round as usize) % tracers.len();
                let one = case.measure(&program, tracers[at])?;
                eprintln!("  round {round}, {:.0} MB, {}: {one}", case.megabytes(), tracers[at].display());
                case.rounds[at].push(one);
            }
        }
    }
    let text = cases[0].text.bytes;
    ensure!(TEXT.contains(&text), "the first process maps {text} bytes of text: there are too few libraries");
    markdown(options, &cases)
}

impl fmt::Display for Round {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            to,
            "{:.0} ms (CPU {:.0} ms), of which tables {:.0} ms; peak {}, then {}, kernel {}; \
             a report {:.0} ms, then {}, peak {}",
            self.attach_ms,
            self.cpu_ms,
            self.tables_ms,
            megabytes(self.attached.peak),
            megabytes(self.attached.resident()),
            megabytes(self.attached.maps()),
            self.report_ms,
            megabytes(self.reported.resident()),
            megabytes(self.reported.peak),
        )
    }
}

fn megabytes(bytes: f64) -> String {
    format!("{:.1} MB", bytes / 1e6)
}

fn markdown(options: &Options, cases: &[Case]) -> Result<String> {
    type Value = fn(&Round) -> f64;
    type Shown = fn(f64) -> String;
    let ms: Shown = |value| format!("{value:.0} ms");
    let rows: [(&str, Value, Shown); 17] = [
        ("from memleak's start until its probes are in", |round| round.attach_ms, ms),
        ("of which unwind tables", |round| round.tables_ms, ms),
        ("CPU time until then, user and system, on all CPUs", |round| round.cpu_ms, ms),
        ("their rows", |round| round.rows, |value| format!("{value:.0}")),
        ("peak of resident memory until then (VmHWM)", |round| round.attached.peak, megabytes),
        ("resident when its probes are in", |round| round.attached.resident(), megabytes),
        ("of which its own (RssAnon)", |round| round.attached.anonymous, megabytes),
        ("of which files: its own program (RssFile)", |round| round.attached.file, megabytes),
        ("of which shared (RssShmem)", |round| round.attached.shared, megabytes),
        ("in the kernel: unwind tables and room for more", |round| round.attached.unwind_maps, megabytes),
        ("in the kernel: all other maps", |round| round.attached.other_maps, megabytes),
        (
            "**resident and in the kernel, together**",
            |round| round.attached.resident() + round.attached.maps(),
            megabytes,
        ),
        ("the first report, of ten stacks through LLVM", |round| round.report_ms, ms),
        ("peak of resident memory by then", |round| round.reported.peak, megabytes),
        ("resident after it", |round| round.reported.resident(), megabytes),
        ("of which its own (RssAnon)", |round| round.reported.anonymous, megabytes),
        (
            "**resident and in the kernel, together, after it**",
            |round| round.reported.resident() + round.reported.maps(),
            megabytes,
        ),
    ];
    let mut text = format!(
        "## {TITLE}\n\n{}\n\nMedians over {} rounds: `cargo xtask bench --attach`. Text is the sum of executable \
         mappings; MB are 10^6 bytes. The kernel's memory for BPF maps is as bpftool says (memlock); it is not part of \
         what is resident, since memleak maps no more of it than it is writing.\n\n",
        document::machine()?,
        options.rounds,
    );
    for case in cases {
        let files = case.text.files.iter().map(|(bytes, name)| format!("{name} {:.1}", *bytes as f64 / 1e6));
        let files = files.collect::<Vec<_>>().join(", ");
        writeln!(text, "- {:.1} MB: {files}, and less than 1 MB each", case.megabytes())?;
    }
    let columns = || cases.iter().flat_map(|case| case.rounds.iter().enumerate().map(move |of| (case, of)));
    text += "\n| text |";
    for (case, (at, _)) in columns() {
        let whose = if at == 0 { "" } else { ", the other memleak" };
        write!(text, " {:.0} MB{whose} |", case.megabytes())?;
    }
    text += "\n| --- |";
    text += &" ---: |".repeat(columns().count());
    for (name, value, shown) in rows {
        write!(text, "\n| {name} |")?;
        for (_, (_, rounds)) in columns() {
            write!(text, " {} |", shown(median(rounds.iter().map(value)).context("no rounds")?))?;
        }
    }
    text.push('\n');
    Ok(text)
}

impl Case {
    /// LLVM as rustc brings it along, and as many of the machine's libraries as make 150 MB of
    /// text.
    fn some_libraries() -> Result<Self> {
        let libraries = run::rust_sysroot()?.join("lib");
        let llvm = largest_first(&[libraries])?
            .into_iter()
            .find(|path| name_of(path).starts_with("libLLVM"))
            .context("this rustc has no LLVM library: use rustup's")?;
        // The system's libraries, and gcc's own programs.
        let folder_of = |option: &str| -> Result<PathBuf> {
            let path = PathBuf::from(run::output(Command::new("gcc").arg(option))?.trim());
            let folder = path.parent().with_context(|| format!("gcc knows no {option}"))?;
            Ok(folder.canonicalize()?)
        };
        let folders = [folder_of("-print-file-name=libc.so.6")?, folder_of("-print-prog-name=cc1")?];
        let limits = [TEXT.start().to_string().into(), TEXT.end().to_string().into(), llvm];
        let arguments = limits.into_iter().chain(largest_first(&folders)?).collect();
        Ok(Self { arguments, text: Text::default(), rounds: Vec::new() })
    }

    /// rustc's own library, with the LLVM that it needs.
    fn the_compiler() -> Result<Self> {
        let folder = run::rust_sysroot()?.join("lib");
        let files = largest_first(std::slice::from_ref(&folder))?;
        let driver = files.into_iter().find(|path| name_of(path).starts_with("librustc_driver-"));
        let driver = driver.with_context(|| format!("no librustc_driver in {}", folder.display()))?;
        Ok(Self {
            arguments: vec!["0".into(), "0".into(), driver],
            text: Text::default(),
            rounds: Vec::new(),
        })
    }

    fn megabytes(&self) -> f64 {
        self.text.bytes as f64 / 1e6
    }

    fn measure(&mut self, program: &Path, memleak: &Path) -> Result<Round> {
        let mut command = Command::new(program);
        command
            .args(&self.arguments)
            // librustc_driver's own libraries are beside it.
            .env("LD_LIBRARY_PATH", run::rust_sysroot()?.join("lib"))
            // It wants more thread-local storage than dlopen has at hand (ld.so(8)).
            .env("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=65536");
        let mut target = Target::start(&mut command)?;
        target.expect("mapped")?;
        self.text = Text::of(target.pid())?;

        let mut command = memleak_command(memleak)?;
        command.args(["-o", "0", "-p", &target.pid().to_string(), "1", "2"]);
        let (mut attached, mut reported, mut cpu_ms) = (None, None, 0.0);
        const ATTACHED: &str = "memleak: attached ";
        const REPORT: &str = "memleak: report over ";
        let start = processes::now();
        let run = Tracer { command, mark: ATTACHED };
        let traced = run.run_watched(Duration::from_secs(2), |pid, line| {
            if line.starts_with(ATTACHED) && attached.is_none() {
                attached = Some(Memory::with_maps(pid)?);
                let [own, _] = cpu::of(tracer(pid)?)?;
                cpu_ms = own.sum() * 1e3;
                target.go()?;
                target.expect("made")?;
            } else if line.starts_with(REPORT) && reported.is_none() {
                reported = Some(Memory::with_maps(pid)?);
            }
            Ok(())
        })?;
        const HEADING: &str = " allocations from stack";
        let stacks = traced.count(HEADING);
        ensure!(stacks >= STACKS, "two reports show {stacks} stacks with more than one allocation");
        const TABLES: &str = "memleak: unwind tables: ";
        Ok(Round {
            attach_ms: traced.marked.saturating_sub(start).as_secs_f64() * 1e3,
            cpu_ms,
            tables_ms: traced.number(TABLES, "built in ")?,
            rows: traced.number(TABLES, " with ")?,
            attached: attached.context("memleak -v did not say that it is attached")?,
            reported: reported.context("memleak -v did not say that it has reported")?,
            report_ms: traced.number(REPORT, "took ")?,
        })
    }
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The regular files of folders, the largest first.
fn largest_first(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for folder in folders {
        for entry in folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            // Of the file itself: links would bring it a second time.
            let metadata = entry.metadata()?;
            if metadata.is_file() {
                files.push((metadata.len(), entry.path()));
            }
        }
    }
    files.sort_by(|one, other| other.cmp(one));
    // The rest is small; a command line has room for so many.
    Ok(files.into_iter().take(300).map(|(_, path)| path).collect())
}

impl Text {
    fn of(pid: u32) -> Result<Self> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let mut text = Self::default();
        for line in maps.lines() {
            let Some((bytes, path)) = executable(line) else { continue };
            text.bytes += bytes;
            let name = name_of(Path::new(path));
            match text.files.iter_mut().find(|(_, other)| other == name) {
                Some((sum, _)) => *sum += bytes,
                None => text.files.push((bytes, name.to_owned())),
            }
        }
        text.files.retain(|(bytes, _)| *bytes >= 1_000_000);
        text.files.sort_by(|one, other| other.cmp(one));
        Ok(text)
    }
}

/// Bytes and path of a line of /proc/PID/maps (proc_pid_maps(5)) that can be executed.
fn executable(line: &str) -> Option<(u64, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let bytes = u64::from_str_radix(end, 16).ok()?.checked_sub(u64::from_str_radix(start, 16).ok()?)?;
    let path = rest.split_whitespace().nth(4).unwrap_or_default();
    (rest.as_bytes().get(2) == Some(&b'x')).then_some((bytes, path))
}

#[cfg(test)]
mod tests {
    use super::executable;

    #[test]
    fn executable_mappings_are_told() {
        let line =
            "7f8ea0426000-7f8ea057c000 r-xp 00026000 fe:00 326279                     /usr/lib/libc.so.6";
        assert_eq!(executable(line), Some((0x15_6000, "/usr/lib/libc.so.6")));
        assert_eq!(executable(&line.replace("r-xp", "r--p")), None);
        assert_eq!(executable("1000-3000 rwxp 00000000 00:00 0"), Some((0x2000, "")));
        assert_eq!(executable(""), None);
    }
}
