//! bcc's packaged memleak, to compare with. It compiles its programs as it starts, against the
//! headers of the running kernel, which a machine with a kernel of its own has none of; any
//! kernel's that are near will do.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use xtask::run;

/// Debian's and Ubuntu's name of it.
const PROGRAM: &str = "memleak-bpfcc";

/// What it says when it has begun to trace the kernel.
pub(crate) const KERNEL_MARK: &str = "Attaching to kernel allocators";

/// What it says before it attaches to a process.
pub(crate) const PROCESS_MARK: &str = "Attaching to pid";

/// In the heading of its reports.
pub(crate) const HEADING: &str = "stacks with outstanding allocations";

/// How to run it.
pub(crate) struct Bcc {
    program: PathBuf,
    /// For BCC_KERNEL_SOURCE, if the running kernel has no headers where bcc looks for them.
    headers: Option<PathBuf>,
}

impl Bcc {
    /// Finds it, and headers for it; the error says what is missing.
    pub(crate) fn find() -> Result<Self> {
        let program = run::find_program(PROGRAM).with_context(|| {
            format!("{PROGRAM} is not installed (Debian: bpfcc-tools, linux-headers-amd64)")
        })?;
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        if Path::new("/lib/modules").join(release.trim()).join("build").exists() {
            return Ok(Self { program, headers: None });
        }
        let headers = merge_headers(Path::new("/usr/src"), &run::root().join("target/bench/headers"))?;
        Ok(Self { program, headers: Some(headers) })
    }

    /// The words that begin its command line. It wants tracefs, which may not be mounted: that is
    /// done where nobody else sees it.
    pub(crate) fn words(&self) -> Vec<OsString> {
        const SCRIPT: &str = "test -e /sys/kernel/tracing/events || mount -t tracefs tracefs /sys/kernel/tracing; \
                              exec \"$@\"";
        let own = ["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"];
        // By env, since sudo drops variables.
        let env = "/usr/bin/env".into();
        let headers = self.headers.iter().map(|headers| {
            let mut word = OsString::from("BCC_KERNEL_SOURCE=");
            word.push(headers);
            word
        });
        // Unbuffered, so that its lines come when it writes them.
        let program = ["PYTHONUNBUFFERED=1".into(), self.program.clone().into()];
        own.map(Into::into).into_iter().chain([env]).chain(headers).chain(program).collect()
    }

    /// Words of a command that traces a process and makes no report for an hour. It says
    /// [`PROCESS_MARK`] before its probes are in.
    pub(crate) fn process_words(&self, pid: u32) -> Vec<OsString> {
        let options = ["-p".into(), pid.to_string().into(), "3600".into(), "1".into()];
        self.words().into_iter().chain(options).collect()
    }

    /// Words of a command that traces the kernel and makes no report for an hour. It says
    /// [`KERNEL_MARK`] when it has begun.
    pub(crate) fn kernel_words(&self) -> Vec<OsString> {
        self.words().into_iter().chain(["3600".into(), "1".into()]).collect()
    }
}

/// Makes one tree of links from Debian's two header packages (`linux-headers-V-amd64` and
/// `linux-headers-V-common`), as bcc wants it in BCC_KERNEL_SOURCE.
fn merge_headers(sources: &Path, tree: &Path) -> Result<PathBuf> {
    let Some((common, own)) = newest_headers(sources)? else {
        bail!("{PROGRAM} needs kernel headers (Debian: linux-headers-amd64)");
    };
    if tree.exists() {
        fs::remove_dir_all(tree)?;
    }
    for folder in ["include", "arch/x86/include"] {
        fs::create_dir_all(tree.join(folder))?;
        for package in [&common, &own] {
            for entry in fs::read_dir(package.join(folder))? {
                let entry = entry?;
                let link = tree.join(folder).join(entry.file_name());
                if !link.exists() {
                    symlink(entry.path(), link)?;
                }
            }
        }
    }
    Ok(tree.to_owned())
}

/// The pair of header folders (shared by all flavours, of this flavour) of the newest version
/// installed.
fn newest_headers(sources: &Path) -> Result<Option<(PathBuf, PathBuf)>> {
    let mut pairs = Vec::new();
    for entry in fs::read_dir(sources)? {
        let own = entry?.path();
        let name = own.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(version) = name.strip_suffix("-amd64") else { continue };
        let common = own.with_file_name(format!("{version}-common"));
        if common.is_dir() {
            pairs.push((version_numbers(version), common, own));
        }
    }
    pairs.sort();
    Ok(pairs.pop().map(|(_, common, own)| (common, own)))
}

/// The numbers in a version, so that 6.12 comes after 6.1.
fn version_numbers(version: &str) -> Vec<u64> {
    version
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_version_is_by_number() -> Result<()> {
        let sources = std::env::temp_dir().join(format!("memleak-headers-{}", std::process::id()));
        for name in ["6.1.0-9-amd64", "6.1.0-9-common", "6.12.3-amd64", "6.12.3-common", "6.99.0-amd64"] {
            fs::create_dir_all(sources.join(format!("linux-headers-{name}")))?;
        }
        let newest = newest_headers(&sources);
        fs::remove_dir_all(&sources)?;
        let (common, own) = newest?.context("found none")?;
        assert!(
            common.ends_with("linux-headers-6.12.3-common") && own.ends_with("linux-headers-6.12.3-amd64")
        );
        Ok(())
    }
}
