//! `cargo xtask dist --check`: what is handed out is unpacked, installed and removed, and a process
//! is traced with it: where there is no file but the program, and on bare Debian systems.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use xtask::{
    packages::{self, Package},
    privilege, run,
};

use super::{
    crates::Installed,
    release::{self, Release, released},
};

const PACKAGES: [Package; 3] = [
    Package { names: &["debootstrap"], purpose: "makes bare Debian systems" },
    Package { names: &["rpm"], purpose: "reads and installs the .rpm" },
    Package { names: &["skopeo"], purpose: "reads the container image" },
];
const COMPILER: [Package; 2] = [
    Package { names: &["gcc"], purpose: "compiles the program that is traced" },
    Package { names: &["libc6-dev"], purpose: "compiles the program that is traced" },
];

/// The releases of Debian that the .deb is installed on.
const SUITES: [&str; 2] = ["bookworm", "trixie"];

/// What a package owns besides its documents. Debian's bpfcc-tools has `memleak-bpfcc`.
const OWNED: [&str; 5] = [
    "/usr/bin/memleak",
    "/usr/share/bash-completion/completions/memleak",
    "/usr/share/fish/vendor_completions.d/memleak.fish",
    "/usr/share/man/man1/memleak.1.gz",
    "/usr/share/zsh/vendor-completions/_memleak",
];
/// Where Fedora has what others have at the last of these places.
const FEDORA_ZSH: &str = "/usr/share/zsh/site-functions/_memleak";

/// `memleak --version` starts and ends in less, in the middle of several runs.
const START: Duration = Duration::from_millis(20);
const STARTS: usize = 21;

/// What is traced: 1000 bytes a millisecond, from one place.
const LEAK: &str = "\
#include <stdlib.h>
#include <unistd.h>
void *volatile last;
__attribute__((noinline)) void leak(void) { last = malloc(1000); }
int main(void) { for (;;) { leak(); usleep(1000); } }
";

/// Sees to it, before anything is built, that all can be tried out.
pub(super) fn prepare() -> Result<()> {
    ensure!(privilege::is_root(), "this changes roots and traces a process: run it as root");
    packages::ensure(&PACKAGES)?;
    packages::ensure(&COMPILER)
}

/// Tries out all files of the release.
pub(super) fn run(release: &Release) -> Result<()> {
    let folder = run::root().join("target/dist-check");
    empty(&folder)?;
    run::run(Command::new("sha256sum").current_dir(released()).args(["--check", "--strict", "SHA256SUMS"]))?;
    let leaker = Leaker::start(&folder)?;
    check_archive(release, &folder, &leaker).context("the archive")?;
    check_image(release, &folder, &leaker).context("the container image")?;
    check_rpm(release, &folder, &leaker).context("the .rpm")?;
    for suite in SUITES {
        check_deb(release, suite, &folder.join(suite), &leaker)
            .with_context(|| format!("the .deb on Debian's {suite}"))?;
    }
    check_crates(release, &leaker)?;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
}

/// Tries out the crates alone.
pub(super) fn run_on_crates(release: &Release) -> Result<()> {
    ensure!(privilege::is_root(), "this traces a process: run it as root");
    packages::ensure(&COMPILER)?;
    let folder = run::root().join("target/dist-check");
    empty(&folder)?;
    check_crates(release, &Leaker::start(&folder)?)?;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
}

/// An empty folder.
fn empty(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// Unpacks the archive and its debug information, compares the sums, and runs the program where
/// there is no other file.
fn check_archive(release: &Release, folder: &Path, leaker: &Leaker) -> Result<()> {
    for archive in [release.archive(), release.debug_archive()] {
        run::run(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(folder))?;
    }
    let unpacked = folder.join(release.name());
    run::run(Command::new("sha256sum").current_dir(&unpacked).args(["--check", "--strict", "SHA256SUMS"]))?;
    ensure!(unpacked.join("memleak.debug").is_file(), "its debug information is not beside the program");
    let root = folder.join("nothing-else");
    empty(&root)?;
    fs::copy(unpacked.join("memleak"), root.join("memleak"))?;
    check_program(&root, "/memleak", release, leaker)
}

/// Installs the program from the crates and runs it where it is, since it is no static one.
fn check_crates(release: &Release, leaker: &Leaker) -> Result<()> {
    let installed = Installed::new(release).context("`cargo install memleak` from its crates")?;
    let program = installed.program().display().to_string();
    check_program(Path::new("/"), &program, release, leaker).context("the crates")
}

/// Has skopeo read the image and check its sums, and runs the program in what its layer holds.
fn check_image(release: &Release, folder: &Path, leaker: &Leaker) -> Result<()> {
    let archive = format!("oci-archive:{}", release.image().display());
    let config = run::output(Command::new("skopeo").args(["inspect", "--config", &archive]))?;
    let config: serde_json::Value = serde_json::from_str(&config)?;
    let entry = &config["config"]["Entrypoint"][0];
    let program = entry.as_str().context("it has no entry point")?;
    let copied = folder.join("image");
    let copy = format!("dir:{}", copied.display());
    run::run(Command::new("skopeo").args(["copy", "--quiet", "--insecure-policy", &archive, &copy]))?;
    let manifest: serde_json::Value = serde_json::from_slice(&release::read(&copied.join("manifest.json"))?)?;
    let layer = manifest["layers"][0]["digest"].as_str().context("it has no layer")?;
    let root = folder.join("image-root");
    empty(&root)?;
    let layer = copied.join(layer.trim_start_matches("sha256:"));
    run::run(Command::new("tar").arg("-xzf").arg(layer).arg("-C").arg(&root))?;
    check_program(&root, program, release, leaker)
}

/// Installs the .rpm into a root that holds nothing else, runs it there, and removes it.
fn check_rpm(release: &Release, folder: &Path, leaker: &Leaker) -> Result<()> {
    let rpm = release.rpm();
    let list = run::output(Command::new("rpm").args(["--query", "--list", "--package"]).arg(&rpm))?;
    let zsh = |path: &'static str| if path.ends_with("/_memleak") { FEDORA_ZSH } else { path };
    owns(&list, OWNED.map(zsh))?;
    let required = run::output(Command::new("rpm").args(["--query", "--requires", "--package"]).arg(&rpm))?;
    if let Some(line) = required.lines().find(|line| !line.starts_with("rpmlib(")) {
        bail!("it requires {line}, and should need nothing");
    }
    let root = folder.join("rpm-root");
    empty(&root)?;
    let of_root = || {
        let mut command = Command::new("rpm");
        command.arg("--root").arg(&root);
        command
    };
    run::run(of_root().arg("--install").arg(&rpm))?;
    check_program(&root, "/usr/bin/memleak", release, leaker)?;
    run::run(of_root().args(["--erase", "memleak"]))?;
    gone(&root, &list)
}

/// Installs the .deb on a bare system, runs it there, and removes it.
fn check_deb(release: &Release, suite: &str, root: &Path, leaker: &Leaker) -> Result<()> {
    let mut debootstrap = Command::new("debootstrap");
    run::run(debootstrap.args(["--variant=minbase", suite]).arg(root).stdout(Stdio::null()))?;
    fs::copy(release.deb(), root.join("memleak.deb"))?;
    let within = |arguments: &[&str]| {
        let mut command = Command::new("chroot");
        command.arg(root).args(arguments).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    };
    run::run(&mut within(&["dpkg", "--install", "/memleak.deb"]))?;
    let list = run::output(&mut within(&["dpkg", "--listfiles", "memleak"]))?;
    owns(&list, OWNED)?;
    check_program(root, "/usr/bin/memleak", release, leaker)?;
    run::run(&mut within(&["dpkg", "--remove", "memleak"]))?;
    let list: Vec<&str> = list.lines().filter(|path| path.contains("memleak")).collect();
    gone(root, &list.join("\n"))
}

/// Whether a package's list of files has those, and no other program.
fn owns(list: &str, files: [&str; 5]) -> Result<()> {
    let listed: BTreeSet<&str> = list.lines().collect();
    for file in files {
        ensure!(listed.contains(file), "it lacks {file}");
    }
    let programs: Vec<&&str> = listed.iter().filter(|path| path.contains("bin/")).collect();
    ensure!(programs == [&files[0]], "it has other programs: {programs:?}");
    Ok(())
}

/// Whether none of the files is there any more.
fn gone(root: &Path, list: &str) -> Result<()> {
    match list.lines().find(|path| root.join(path.trim_start_matches('/')).exists()) {
        Some(path) => bail!("{path} is still there after it was removed"),
        None => Ok(()),
    }
}

/// Starts the program in a root: soon enough, and to the same end as anywhere else.
fn check_program(root: &Path, program: &str, release: &Release, leaker: &Leaker) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let begin = Instant::now();
        let version = run::output(Command::new("chroot").arg(root).args([program, "--version"]))?;
        times.push(begin.elapsed());
        let expected = format!("memleak {}", release.version);
        ensure!(version.trim() == expected, "--version says {version:?}, not {expected:?}");
    }
    times.sort();
    let middle = times.get(STARTS / 2).copied().unwrap_or_default();
    ensure!(middle < START, "--version took {middle:?}: it must take less than {START:?}");
    let report = trace(root, program, &leaker.child.id().to_string())?;
    let (bytes, count) = traced(&report).with_context(|| format!("no report of the leak:\n{report}"))?;
    ensure!(count > 0 && bytes == 1000 * count, "{bytes} bytes in {count} blocks of 1000 bytes:\n{report}");
    eprintln!("{}{program}: started in {middle:?}; traced {bytes} bytes in {count} blocks", root.display());
    Ok(())
}

/// One report of a process, by the program in a root which has /proc and /sys for so long.
fn trace(root: &Path, program: &str, pid: &str) -> Result<String> {
    let script = "mkdir -p $0/proc $0/sys && mount --rbind /proc $0/proc && mount --rbind /sys $0/sys \
                  && exec chroot $0 \"$@\"";
    let mut command = Command::new("unshare");
    // A mount namespace of its own, so that nothing stays mounted whatever ends it.
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(root);
    run::output(command.args([program, "-p", pid, "-o", "0", "1", "1"]))
}

/// Bytes and number of the blocks that a report has of `leak`.
fn traced(report: &str) -> Option<(u64, u64)> {
    let mut found = None;
    for line in report.lines() {
        if let Some((bytes, count)) = heading(line) {
            found = Some((bytes, count));
        } else if line.split_whitespace().any(|word| word.starts_with("leak+")) {
            return found;
        }
    }
    None
}

/// The numbers of `N bytes in M allocations from stack`.
fn heading(line: &str) -> Option<(u64, u64)> {
    let (bytes, rest) = line.trim().split_once(" bytes in ")?;
    let (count, _) = rest.split_once(" allocations from stack")?;
    Some((bytes.parse().ok()?, count.parse().ok()?))
}

/// A process that leaks, until it is dropped.
struct Leaker {
    child: Child,
}

impl Leaker {
    fn start(folder: &Path) -> Result<Self> {
        let (source, program): (PathBuf, PathBuf) = (folder.join("leak.c"), folder.join("leak"));
        release::write(&source, LEAK)?;
        run::run(Command::new("cc").args(["-O1", "-o"]).arg(&program).arg(&source))?;
        let child = Command::new(&program).spawn();
        Ok(Self { child: child.with_context(|| format!("cannot start {}", program.display()))? })
    }
}

impl Drop for Leaker {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leak_is_found_in_a_report() {
        let report = "[11:25:34] Top 10 stacks with outstanding allocations:\n\
                      \t40 bytes in 2 allocations from stack\n\
                      \t\t0x1\tmain+0x1 [leak]\n\
                      \t5000 bytes in 5 allocations from stack\n\
                      \t\t0x2\tleak+0x9 [leak]\n";
        assert_eq!(traced(report), Some((5000, 5)));
        assert_eq!(traced(&report.replace("leak+", "other+")), None);
    }

    #[test]
    fn a_package_must_own_the_program_and_no_other() {
        let mut list = OWNED.join("\n");
        assert!(owns(&list, OWNED).is_ok());
        list += "\n/usr/sbin/memleak-bpfcc";
        assert!(owns(&list, OWNED).is_err());
        assert!(owns(&OWNED[1..].join("\n"), OWNED).is_err());
    }
}
