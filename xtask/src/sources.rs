//! What the committed BPF object was built from: a list of SHA-256 sums in `sha256sum`'s format
//! beside the object, of every source file and of the object itself.
//! `sha256sum -c memleak/ebpf/memleak-x86_64.sources` checks it by hand.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// Files and folders that decide what the object holds, relative to the repository's root.
const SOURCES: [&str; 5] = [
    "memleak-common/Cargo.toml",
    "memleak-common/src",
    "memleak-ebpf/Cargo.lock",
    "memleak-ebpf/Cargo.toml",
    "memleak-ebpf/src",
];

/// Path of a file, relative to the root, and the SHA-256 sum of its bytes in hex.
pub(crate) type Sums = BTreeMap<String, String>;

/// Sums of all sources under `root`.
pub(crate) fn sums_of_sources(root: &Path) -> Result<Sums> {
    let mut sums = Sums::new();
    for source in SOURCES {
        add(root, Path::new(source), &mut sums)?;
    }
    Ok(sums)
}

/// Adds the file at `root`/`relative`, or all files below it.
fn add(root: &Path, relative: &Path, sums: &mut Sums) -> Result<()> {
    let path = root.join(relative);
    if path.is_dir() {
        for entry in fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))? {
            add(root, &relative.join(entry?.file_name()), sums)?;
        }
    } else {
        sums.insert(relative.display().to_string(), sum(&path)?);
    }
    Ok(())
}

/// Copies what the object is built from to another root.
pub(crate) fn copy(root: &Path, to: &Path) -> Result<()> {
    // The workspace's Cargo.toml has what memleak-common's takes from there.
    for relative in sums_of_sources(root)?.into_keys().chain(["Cargo.toml".to_owned()]) {
        let (from, to) = (root.join(&relative), to.join(&relative));
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(&from, &to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

/// SHA-256 sum of a file, in hex.
pub(crate) fn sum(path: &Path) -> Result<String> {
    Ok(sum_of(&fs::read(path).with_context(|| format!("cannot read {}", path.display()))?))
}

/// SHA-256 sum of bytes, in hex.
pub(crate) fn sum_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The object of an architecture, relative to the root.
pub(crate) fn object_path(arch: &str) -> PathBuf {
    PathBuf::from(format!("memleak/ebpf/memleak-{arch}.bpf.o"))
}

/// The list beside the object, relative to the root.
fn list_path(arch: &str) -> PathBuf {
    PathBuf::from(format!("memleak/ebpf/memleak-{arch}.sources"))
}

/// Writes the list for an object that was just built from `sources`.
pub(crate) fn write_list(root: &Path, arch: &str, mut sources: Sums) -> Result<()> {
    let object = object_path(arch);
    sources.insert(object.display().to_string(), sum(&root.join(&object))?);
    let mut text = String::new();
    for (path, sum) in &sources {
        writeln!(text, "{sum}  {path}")?;
    }
    let path = root.join(list_path(arch));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Fails, naming the files, if the sources or the object are not those of the list.
pub(crate) fn check(root: &Path, arch: &str) -> Result<()> {
    let list = list_path(arch);
    let text = fs::read_to_string(root.join(&list))
        .with_context(|| format!("cannot read {}: run `cargo xtask build-ebpf`", list.display()))?;
    let listed: Sums = text
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(sum, path)| (path.to_owned(), sum.to_owned()))
        .collect();
    let mut found = sums_of_sources(root)?;
    let object = object_path(arch);
    found.insert(object.display().to_string(), sum(&root.join(&object))?);
    let changed: Vec<&str> = differing(&listed, &found);
    if !changed.is_empty() {
        bail!(
            "{} was not built from these sources: run `cargo xtask build-ebpf` and commit what it writes (differing: {})",
            object.display(),
            changed.join(", ")
        );
    }
    Ok(())
}

/// Paths that are in one list only, or have another sum in each.
fn differing<'a>(listed: &'a Sums, found: &'a Sums) -> Vec<&'a str> {
    let of_found = found.iter().filter(|(path, sum)| listed.get(*path) != Some(sum));
    let gone = listed.keys().filter(|path| !found.contains_key(*path));
    of_found.map(|(path, _)| path).chain(gone).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use xtask::run;

    use crate::build_ebpf::ARCHITECTURES;

    #[test]
    fn committed_object_is_built_from_these_sources() -> Result<()> {
        ARCHITECTURES.iter().try_for_each(|arch| check(run::root(), arch))
    }

    /// A root with the sources and an object of which the list is written.
    fn fixture(name: &str) -> Result<PathBuf> {
        let root = std::env::temp_dir().join(format!("memleak-sources-{}-{name}", std::process::id()));
        for source in SOURCES {
            let path = root.join(source);
            let file = if source.ends_with("src") { path.join("lib.rs") } else { path };
            fs::create_dir_all(file.parent().context("no parent")?)?;
            fs::write(file, source)?;
        }
        fs::create_dir_all(root.join("memleak/ebpf"))?;
        fs::write(root.join(object_path("toy")), "object")?;
        write_list(&root, "toy", sums_of_sources(&root)?)?;
        Ok(root)
    }

    #[test]
    fn list_is_accepted_until_something_moves_on() -> Result<()> {
        type Change = fn(&Path) -> std::io::Result<()>;
        let changes: [(&str, Change); 5] = [
            ("memleak-ebpf/src/lib.rs", |root| fs::write(root.join("memleak-ebpf/src/lib.rs"), "x")),
            ("memleak-common/src/new.rs", |root| fs::write(root.join("memleak-common/src/new.rs"), "")),
            ("memleak-ebpf/Cargo.lock", |root| fs::write(root.join("memleak-ebpf/Cargo.lock"), "x")),
            ("memleak-common/src/lib.rs", |root| fs::remove_file(root.join("memleak-common/src/lib.rs"))),
            ("memleak/ebpf/memleak-toy.bpf.o", |root| fs::write(root.join(object_path("toy")), "x")),
        ];
        for (index, (path, change)) in changes.into_iter().enumerate() {
            let root = fixture(&index.to_string())?;
            check(&root, "toy")?;
            change(&root)?;
            let outcome = check(&root, "toy");
            fs::remove_dir_all(&root)?;
            let Err(error) = outcome else { bail!("a change of {path} went unseen") };
            let message = error.to_string();
            assert!(message.ends_with(&format!("(differing: {path})")), "{message}");
        }
        Ok(())
    }

    #[test]
    fn sum_is_sha256() -> Result<()> {
        let path = std::env::temp_dir().join(format!("memleak-sum-{}", std::process::id()));
        fs::write(&path, "abc")?;
        let sum = sum(&path);
        fs::remove_file(&path)?;
        // FIPS 180-2, appendix B.1.
        assert_eq!(sum?, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        Ok(())
    }
}
