//! `cargo xtask dist`: the tool as it is shipped. One static program and its debug information, in
//! archives, packages for Debian and Fedora, and a container image.

mod archive;
mod check;
mod crates;
mod image;
mod licences;
mod native;
mod release;

use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use xtask::{
    packages::{self, Package},
    run,
};

use crate::{cross::Builder, sources};
use archive::Entry;
use release::{Release, parts, released};

const BINUTILS: Package = Package { names: &["binutils"], purpose: "takes debug information apart" };

/// What is shipped is smaller than this.
const MAX_BYTES: u64 = 8_000_000;

/// What `docs/` has of the program, and the licences: copied to the parts as they are.
const COPIED: [&str; 5] = [
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "docs/completions/memleak.bash",
    "docs/completions/_memleak",
    "docs/completions/memleak.fish",
];

/// Options of `dist`.
#[derive(Args)]
pub(crate) struct Options {
    /// Build for this target, not for this machine with its own C library:
    /// x86_64-unknown-linux-musl, aarch64-unknown-linux-gnu
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// Make the program and its debug information alone: no archives, packages or image
    #[arg(long, conflicts_with = "check")]
    program_only: bool,
    /// Try out what was made, as root: on bare Debian systems, and where there is no other file
    #[arg(long)]
    check: bool,
    /// Make the two crates of a release alone, and try out `cargo install memleak` from them, as
    /// root
    #[arg(long, conflicts_with_all = ["target", "program_only", "check"])]
    crates: bool,
}

/// Builds the program with the profile `dist`, and makes of it what is handed out.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.crates {
        return check::run_on_crates(&Release::new(&run::host_target()?)?);
    }
    packages::ensure(&[BINUTILS])?;
    if options.check {
        check::prepare()?;
    }
    let target = match &options.target {
        Some(target) => target.clone(),
        None => run::host_target()?,
    };
    let is_run = target.starts_with(ARCH);
    ensure!(is_run || !options.check, "--check runs the program, and this machine runs no {target}");
    let builder = Builder::of(&target)?;
    take_apart(&build(&builder, &target)?, &builder)?;
    if is_run {
        // A C library that is too old for such relocations fails here, and not at a user's.
        run::run(Command::new(parts().join("memleak")).arg("--version"))?;
    }
    if options.program_only {
        return Ok(());
    }
    let release = Release::new(&target)?;
    fs::create_dir_all(released()).with_context(|| format!("cannot make {}", released().display()))?;
    write_parts(&release)?;
    write_archives(&release)?;
    native::write(&release)?;
    image::write(&release)?;
    write_sums(&release)?;
    if options.check { check::run(&release) } else { Ok(()) }
}

/// The program, linked statically: it runs on any Linux of its kind of machine.
fn build(builder: &Builder, target: &str) -> Result<PathBuf> {
    // With a named target the flags are the program's alone: a procedural macro cannot be static.
    let mut flags = vec!["-C", "target-feature=+crt-static"];
    if target.starts_with("x86_64") {
        // Relocations as a bit map have a tenth of their size; Debian 12's linker has them for this
        // machine.
        flags.extend(["-C", "link-arg=-Wl,-z,pack-relative-relocs"]);
    }
    let mut cargo = builder.cargo("build", &flags);
    cargo.args(["--profile", "dist", "--locked", "-p", "memleak", "--bin", "memleak"]);
    let built = run::executables(&mut cargo)?.into_iter().find(|executable| executable.target == "memleak");
    Ok(built.context("cargo built no `memleak`")?.path)
}

/// Takes the program apart: `memleak` and `memleak.debug`, which it names. A panic tells its place
/// in the sources without the other file; with it beside the program, its backtrace has names.
fn take_apart(built: &Path, builder: &Builder) -> Result<()> {
    let folder = parts();
    fs::create_dir_all(&folder)?;
    let (program, debug) = (folder.join("memleak"), folder.join("memleak.debug"));
    let objcopy = |arguments: &[&str], from: &Path, to: &Path| {
        // In the folder, since the link is to a file that objcopy reads.
        run::run(
            Command::new(builder.binutils("objcopy")).current_dir(&folder).args(arguments).arg(from).arg(to),
        )
    };
    objcopy(&["--only-keep-debug", "--compress-debug-sections"], built, &debug)?;
    objcopy(&["--strip-all", "--add-gnu-debuglink=memleak.debug"], built, &program)?;
    let (bytes, debug_bytes) = (fs::metadata(&program)?.len(), fs::metadata(&debug)?.len());
    ensure!(bytes < MAX_BYTES, "{} has {bytes} bytes: it must have less than {MAX_BYTES}", program.display());
    eprintln!("wrote {} ({bytes} bytes) and memleak.debug ({debug_bytes} bytes)", program.display());
    Ok(())
}

/// Puts what goes with the program beside it.
fn write_parts(release: &Release) -> Result<()> {
    for file in COPIED {
        let file = run::root().join(file);
        release::write(&parts().join(file.file_name().unwrap_or_default()), release::read(&file)?)?;
    }
    let page = release::read(&run::root().join("docs/memleak.1"))?;
    release::write(&parts().join("memleak.1.gz"), archive::gzip(&page)?)?;
    release::write(&parts().join("THIRD-PARTY-LICENSES"), licences::third_party(release)?)
}

/// The program with its manual page, completions, licences and sums; and its debug information,
/// which unpacks to beside it.
fn write_archives(release: &Release) -> Result<()> {
    let name = release.name();
    let files = [
        ("memleak", "memleak"),
        ("memleak.1.gz", "memleak.1.gz"),
        ("memleak.bash", "completions/memleak.bash"),
        ("_memleak", "completions/_memleak"),
        ("memleak.fish", "completions/memleak.fish"),
    ];
    let files = files.into_iter().chain(release::LICENCES.map(|licence| (licence, licence)));
    let mut entries =
        vec![Entry::folder(format!("{name}/"), 0o755), Entry::folder(format!("{name}/completions/"), 0o755)];
    let mut sums = String::new();
    for (part, path) in files {
        let content = release::read(&parts().join(part))?;
        sums += &format!("{}  {path}\n", sources::sum_of(&content));
        let path = format!("{name}/{path}");
        entries.push(match part {
            "memleak" => Entry::program(path, content),
            _ => Entry::file(path, content),
        });
    }
    entries.push(Entry::file(format!("{name}/SHA256SUMS"), sums));
    let packed = |entries: &[Entry]| archive::gzip(&archive::tar(entries, release.time)?);
    release::write(&release.archive(), packed(&entries)?)?;
    let debug = release::read(&parts().join("memleak.debug"))?;
    release::write(&release.debug_archive(), packed(&[Entry::file(format!("{name}/memleak.debug"), debug)])?)
}

/// The sums of all that is handed out, beside it.
fn write_sums(release: &Release) -> Result<()> {
    let mut sums = String::new();
    for file in release.files() {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        eprintln!("wrote {} ({} bytes)", file.display(), fs::metadata(&file)?.len());
        sums += &format!("{}  {name}\n", sources::sum(&file)?);
    }
    release::write(&released().join("SHA256SUMS"), sums)
}
