//! `cargo xtask build-ebpf`: compiles memleak-ebpf for the BPF virtual machine and writes the
//! object that the tool embeds, with the list of what it was built from.
//!
//! Two toolchains can do it: Debian's `rustc-web` with its compiled `core` for BPF, or rustup's
//! nightly, which compiles `core` itself. Both link with bpf-linker, which is built against LLVM
//! 22, reads what compilers with LLVM 22 or older write, and is kept in a cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use xtask::{
    packages::{self, Package},
    privilege, run,
};

use crate::sources;

/// Architectures that have an object: BPF programs read arguments from registers, which differ.
pub(crate) const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

const TARGET: &str = "bpfel-unknown-none";
pub(crate) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
pub(crate) const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// rustup's toolchains that will do, if `core`'s source is with them: the first is known to, the
/// other changes.
const NIGHTLIES: [&str; 2] = ["nightly-2026-05-20", "nightly"];
const LLVM_MAJOR: u32 = 22;
const LLVM: &str = "/usr/lib/llvm-22";
const BPF_LINKER_VERSION: &str = "0.13.0";

const DEBIAN_PACKAGES: [Package; 4] = [
    Package { names: &["rustc-web"], purpose: "a Rust compiler with the BPF target" },
    Package { names: &["cargo-web"], purpose: "the cargo that goes with it" },
    Package { names: &["libstd-rust-web-dev-bpf"], purpose: "Rust's core library, compiled for BPF" },
    LLVM_PACKAGE,
];
const LLVM_PACKAGE: Package =
    Package { names: &["llvm-22-dev"], purpose: "LLVM, which bpf-linker is built on" };

/// Options of `build-ebpf`.
#[derive(Args)]
pub(crate) struct Options {
    /// Build nothing: fail if the committed object was not built from the sources as they are
    #[arg(long)]
    check: bool,
    /// Build a second time, in another folder, and fail if that gives other bytes
    #[arg(long, conflicts_with = "check")]
    twice: bool,
}

/// Builds the objects of all architectures, or checks them.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.check {
        return check();
    }
    let toolchain = Toolchain::find_or_install()?;
    let linker = bpf_linker()?;
    for arch in ARCHITECTURES {
        build(&toolchain, &linker, run::root(), arch)?;
        if options.twice {
            build_elsewhere(&toolchain, &linker, arch)?;
        }
    }
    Ok(())
}

/// Builds the object from a copy of the sources, in a folder whose path is longer, and fails if its
/// bytes differ.
fn build_elsewhere(toolchain: &Toolchain, linker: &Path, arch: &str) -> Result<()> {
    let elsewhere = run::root().join("target/ebpf/elsewhere");
    if elsewhere.exists() {
        fs::remove_dir_all(&elsewhere).with_context(|| format!("cannot remove {}", elsewhere.display()))?;
    }
    sources::copy(run::root(), &elsewhere)?;
    build(toolchain, linker, &elsewhere, arch)?;
    let object = sources::object_path(arch);
    let (here, there) = (sources::sum(&run::root().join(&object))?, sources::sum(&elsewhere.join(&object))?);
    ensure!(here == there, "{}: built in {} it has other bytes", object.display(), elsewhere.display());
    eprintln!("the same bytes from {}", elsewhere.display());
    Ok(())
}

/// Fails if a committed object was not built from the sources as they are.
pub(crate) fn check() -> Result<()> {
    for arch in ARCHITECTURES {
        sources::check(run::root(), arch)?;
        eprintln!("{} is built from these sources", sources::object_path(arch).display());
    }
    Ok(())
}

/// A compiler that knows BPF.
enum Toolchain {
    /// Debian's rustc, with `core` compiled.
    Debian,
    /// A nightly of rustup with rust-src: compiles `core` itself.
    Rustup(&'static str),
}

impl Toolchain {
    fn find_or_install() -> Result<Self> {
        if let Some(toolchain) = Self::find() {
            return Ok(toolchain);
        }
        if privilege::is_root() && run::find_program("apt-get").is_some() {
            if DEBIAN_PACKAGES[0].available().is_none() {
                packages::update_lists()?;
            }
            if DEBIAN_PACKAGES[0].available().is_some() {
                packages::ensure(&DEBIAN_PACKAGES)?;
            }
            if let Some(toolchain) = Self::find() {
                return Ok(toolchain);
            }
        }
        bail!(
            "no compiler for BPF here. On Debian: sudo apt-get install {}. Elsewhere: rustup toolchain install {} \
             --profile minimal --component rust-src",
            packages::names(&DEBIAN_PACKAGES),
            NIGHTLIES[0]
        )
    }

    fn find() -> Option<Self> {
        let nightly = || NIGHTLIES.into_iter().find(|nightly| compiles_core(nightly)).map(Self::Rustup);
        has_compiled_core().then_some(Self::Debian).or_else(nightly)
    }

    /// This toolchain's cargo, in memleak-ebpf below `root`.
    fn cargo(&self, root: &Path) -> Command {
        let mut command = match self {
            Self::Debian => {
                let mut cargo = Command::new(DEBIAN_CARGO);
                // A stable compiler: the BPF target's assembler syntax and aya's macros are not
                // stable yet.
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Self::Rustup(nightly) => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", nightly, "cargo"]).env_remove("RUSTC");
                rustup
            }
        };
        without_ours(command.current_dir(root.join("memleak-ebpf")));
        command
    }
}

/// Takes out what `cargo run` and rustup set for this program: it is about another toolchain.
pub(crate) fn without_ours(command: &mut Command) {
    for name in ["CARGO", "RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH", "RUSTFLAGS", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET"] {
        command.env_remove(name);
    }
}

/// Whether Debian's compiler is here together with `core` for BPF.
fn has_compiled_core() -> bool {
    let mut rustc = Command::new(DEBIAN_RUSTC);
    rustc.args(["--print", "target-libdir", "--target", TARGET]).env_remove("LD_LIBRARY_PATH");
    let Ok(output) = rustc.output() else { return false };
    let directory = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let Ok(entries) = fs::read_dir(directory) else { return false };
    Path::new(DEBIAN_CARGO).is_file()
        && entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

/// Whether rustup has this nightly, with the source of `core`, and an LLVM that bpf-linker can
/// follow.
fn compiles_core(nightly: &str) -> bool {
    let rustc = |argument: &[&str]| {
        let output = Command::new("rustup").args(["run", nightly, "rustc"]).args(argument).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let Some(sysroot) = rustc(&["--print", "sysroot"]) else { return false };
    let Some(version) = rustc(&["--version", "--verbose"]) else { return false };
    Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir()
        && llvm_major(&version).is_some_and(|major| major <= LLVM_MAJOR)
}

/// The number before the first dot of `LLVM version: 22.1.4`, in what `rustc -vV` says.
fn llvm_major(version: &str) -> Option<u32> {
    version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.split('.').next()?.parse().ok()
}

/// The linker: the one in the cache, which is built first if it is missing.
fn bpf_linker() -> Result<PathBuf> {
    let cache = cache_directory()?.join("bpf-linker");
    let linker = cache.join("bin/bpf-linker");
    if has_version(&linker) {
        return Ok(linker);
    }
    if let Some(installed) = run::find_program("bpf-linker").filter(|path| has_version(path)) {
        return Ok(installed);
    }
    if !Path::new(LLVM).join("bin/llvm-config").is_file() {
        packages::ensure(&[LLVM_PACKAGE])?;
    }
    run::run(
        run::cargo()
            .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--force"])
            .args(["--no-default-features", "--features", "llvm-22", "--root"])
            .arg(&cache)
            .env("LLVM_SYS_221_PREFIX", LLVM)
            .env("LIBRARY_PATH", Path::new(LLVM).join("lib")),
    )?;
    Ok(linker)
}

fn has_version(linker: &Path) -> bool {
    let output = Command::new(linker).arg("--version").output();
    output.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).trim() == format!("bpf-linker {BPF_LINKER_VERSION}")
    })
}

/// Where this project keeps what is slow to make.
pub(crate) fn cache_directory() -> Result<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    Ok(base.context("neither XDG_CACHE_HOME nor HOME is set")?.join("memleak"))
}

/// Builds one object and its list from the sources below `root`.
fn build(toolchain: &Toolchain, linker: &Path, root: &Path, arch: &str) -> Result<()> {
    // Before the compiler reads them: an edit during the build must make the list stale, not the
    // object.
    run::run(toolchain.cargo(root).args(["fetch", "--locked", "--target", TARGET]))?;
    let sums = sources::sums_of_sources(root)?;
    let target_directory = root.join("target/ebpf").join(arch);
    let mut cargo = toolchain.cargo(root);
    cargo.args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"]).arg(&target_directory);
    if matches!(toolchain, Toolchain::Rustup(_)) {
        cargo.args(["-Z", "build-std=core"]);
    }
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(root, arch)?.join("\u{1f}"))
        .env("RUSTC_WRAPPER", std::env::current_exe().context("cannot tell where this program is")?)
        .env(AS_RUSTC, "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    let built = run::executables(&mut cargo)?;
    let [built] = built.as_slice() else { bail!("memleak-ebpf must have one binary, and has {built:?}") };
    let object = root.join(sources::object_path(arch));
    if let Some(directory) = object.parent() {
        fs::create_dir_all(directory)?;
    }
    // DWARF goes; .BTF and .BTF.ext, which the kernel's verifier shows source lines from, stay.
    run::run(Command::new(strip_program()?).arg("--strip-debug").arg("-o").arg(&object).arg(&built.path))?;
    sources::write_list(root, arch, sums)?;
    eprintln!("wrote {} ({} bytes)", sources::object_path(arch).display(), fs::metadata(&object)?.len());
    Ok(())
}

/// Set for the compiler that cargo calls: this program, which passes the call on ([`as_rustc`]).
const AS_RUSTC: &str = "MEMLEAK_XTASK_AS_RUSTC";

/// If cargo has called this program as its compiler, calls the real one, and gives its status.
///
/// Cargo tells crates apart by a number in `-C metadata`, which it makes of the folder too if a
/// crate is outside of the workspace's, as memleak-common is. It gets into symbols, and so into the
/// object. A crate's name and version serve as well.
pub(crate) fn as_rustc() -> Option<Result<ExitCode>> {
    std::env::var_os(AS_RUSTC)?;
    let mut arguments = std::env::args_os().skip(1);
    let rustc = arguments.next()?;
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let identity = format!("{}-{}", variable("CARGO_PKG_NAME"), variable("CARGO_PKG_VERSION"));
    let arguments = arguments.map(|argument| match argument.to_str() {
        Some(text) if text.starts_with("metadata=") => format!("metadata={identity}").into(),
        _ => argument,
    });
    let status = Command::new(&rustc).args(arguments).status();
    let status = status.with_context(|| format!("cannot start {}", rustc.display()));
    Some(status.map(|status| if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

/// Compiler flags; no path of this machine gets into the object.
fn rust_flags(root: &Path, arch: &str) -> Result<Vec<String>> {
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Compare-and-swap (Linux 5.12; on arm64 5.18).
        "-Ctarget-cpu=v3".to_owned(),
        format!("--remap-path-prefix={}=.", root.display()),
    ];
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home);
    let registry = cargo_home.context("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    // The folder below is named after the registry (or its mirror), so that it differs from machine
    // to machine.
    for entry in fs::read_dir(&registry).with_context(|| format!("cannot list {}", registry.display()))? {
        flags.push(format!("--remap-path-prefix={}=crates", entry?.path().display()));
    }
    Ok(flags)
}

/// An llvm-strip: GNU strip does not know BPF.
fn strip_program() -> Result<PathBuf> {
    let of_llvm = Path::new(LLVM).join("bin/llvm-strip");
    if of_llvm.is_file() {
        return Ok(of_llvm);
    }
    ["llvm-strip", "llvm-strip-22", "rust-strip"]
        .iter()
        .find_map(|name| run::find_program(name))
        .context("no llvm-strip here: install LLVM (Debian: llvm-22-dev)")
}

#[cfg(test)]
mod tests {
    use super::llvm_major;

    #[test]
    fn llvm_version_is_read() {
        assert_eq!(
            llvm_major("rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nLLVM version: 22.1.4\n"),
            Some(22)
        );
        assert_eq!(llvm_major("rustc 1.97.0\n"), None);
    }
}
