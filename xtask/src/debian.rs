//! Debian's packages of other releases and machines: downloaded and unpacked, never installed.
//!
//! apt gets folders of its own, and a list of sources made from the machine's: the same mirrors,
//! another release, perhaps for another machine. Nothing is added to the machine's own dpkg.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use xtask::run;

/// Packages of one release, for one machine.
pub(crate) struct Archive {
    work: PathBuf,
    /// As Debian calls it: `arm64`.
    machine: String,
}

impl Archive {
    /// Fetches the lists of a release for a machine. apt works in this folder, which is made.
    pub(crate) fn open(work: &Path, release: &str, machine: &str) -> Result<Self> {
        for folder in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(work.join(folder))
                .with_context(|| format!("cannot make {}", work.display()))?;
        }
        fs::write(work.join("status"), "")?;
        fs::write(work.join("sources.list"), sources(release)?)?;
        let archive = Self { work: work.to_owned(), machine: machine.to_owned() };
        run::run(archive.apt("apt-get").args(["-qq", "update"])).context("cannot fetch package lists")?;
        Ok(archive)
    }

    /// apt with folders of its own and no part in what the machine has installed.
    pub(crate) fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let work = &self.work;
        let settings: [(&str, PathBuf); 8] = [
            ("APT::Architecture", self.machine.clone().into()),
            ("Dir::Etc::sourcelist", work.join("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::Etc::preferencesparts", "/dev/null".into()),
            ("Dir::State", work.clone()),
            ("Dir::State::status", work.join("status")),
            ("Dir::Cache", work.clone()),
            // The user that apt would drop to cannot write into our cache.
            ("APT::Sandbox::User", "root".into()),
        ];
        for (name, value) in settings {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        }
        // The list replaces the machine's, to which foreign ones may have been added.
        command.args(["-o", "APT::Architectures::=", "-o"]);
        command.arg(format!("APT::Architectures::={}", self.machine));
        command.current_dir(work);
        command
    }

    /// Downloads these packages alone, and unpacks them.
    pub(crate) fn unpack<'a>(&self, packages: impl IntoIterator<Item = &'a str>, into: &Path) -> Result<()> {
        run::run(self.apt("apt-get").args(["-qq", "download"]).args(packages))?;
        unpack_all(&self.work, into)
    }

    /// Downloads these packages and all that they depend on, and unpacks them.
    pub(crate) fn unpack_with_dependencies(&self, packages: &[&str], into: &Path) -> Result<()> {
        let mut apt = self.apt("apt-get");
        apt.args(["-qq", "install", "--yes", "--no-install-recommends", "--download-only"]);
        run::run(apt.args(packages))?;
        unpack_all(&self.work.join("archives"), into)
    }
}

fn unpack_all(folder: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            unpack_one(&path, into)?;
        }
    }
    Ok(())
}

/// Unpacks a package. Not by `dpkg-deb -x`, which puts folders in the place of links to folders.
fn unpack_one(package: &Path, into: &Path) -> Result<()> {
    let mut contents = Command::new("dpkg-deb");
    let mut contents =
        contents.arg("--fsys-tarfile").arg(package).stdout(Stdio::piped()).spawn().context("dpkg-deb")?;
    let pipe = contents.stdout.take().context("no pipe")?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "--keep-directory-symlink", "-C"]).arg(into).stdin(pipe);
    run::quietly(&mut tar)?;
    ensure!(contents.wait()?.success(), "dpkg-deb cannot read {}", package.display());
    Ok(())
}

/// The release of Debian that this machine runs, by its name.
pub(crate) fn own_release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release names no release of Debian")?.trim_matches('"').to_owned())
}

/// A list of sources for a release of Debian: from the mirrors that this machine uses.
fn sources(release: &str) -> Result<String> {
    let format = "$(ORIGIN) $(RELEASE) $(REPO_URI)";
    let indexes = run::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    sources_from(&indexes, release).context("the package sources of this machine name no mirror of Debian")
}

/// `indexes`: lines of origin, release and mirror.
fn sources_from(indexes: &str, release: &str) -> Option<String> {
    const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let options = if Path::new(KEYS).is_file() {
        format!("target=Packages signed-by={KEYS}")
    } else {
        "target=Packages".to_owned()
    };
    let mut main = None;
    let mut security = None;
    for line in indexes.lines() {
        let ["Debian", name, mirror] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
        let place = if name.ends_with("-security") { &mut security } else { &mut main };
        place.get_or_insert(mirror);
    }
    let mut text = format!("deb [{options}] {} {release} main\n", main?);
    if let Some(security) = security.filter(|_| !release.contains('-')) {
        text += &format!("deb [{options}] {security} {release}-security main\n");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_the_machines_mirrors_with_another_release() {
        let indexes = "Other stable http://o.invalid/\nDebian bookworm http://m.invalid/debian/\n\
                       Debian bookworm-updates http://m.invalid/debian/\nDebian bookworm-security http://s.invalid/\n";
        let text = sources_from(indexes, "trixie").unwrap_or_default();
        let places: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once("] ")?.1)).collect();
        assert_eq!(
            places,
            ["http://m.invalid/debian/ trixie main", "http://s.invalid/ trixie-security main"]
        );
        let text = sources_from(indexes, "trixie-backports").unwrap_or_default();
        assert_eq!(text.lines().count(), 1, "backports have no security archive: {text}");
        assert_eq!(sources_from("Ubuntu noble http://u.invalid/", "trixie"), None);
    }
}
