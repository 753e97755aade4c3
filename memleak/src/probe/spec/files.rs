//! Files of resources: those that are named, and those of the configuration's folder.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    UserResource,
    toml::{FileError, parse_file},
};

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Why a file of resources cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error("{0}: cannot be read: {1}; name a file that can")]
    Io(String, io::Error),
    /// It is too large to be one.
    #[error("{0}: is larger than 1 MiB; a file of resources is a short text")]
    TooLarge(String),
    /// It is no text.
    #[error("{0}: is not UTF-8 text; name a file of resources")]
    NotText(String),
    /// Others could have written it.
    #[error(
        "{0}: ignored: writable by other users; run chmod go-w (and chown) on it, or name it with \
         --resources-file"
    )]
    NotTrusted(String),
    /// It is not a regular file.
    #[error("{0}: ignored: it is not a regular file; take it out of the folder")]
    NotRegular(String),
    /// It is wrong.
    #[error(transparent)]
    Wrong(#[from] FileError),
}

/// Reads a file that the user has named. It may be a pipe, and anybody's.
pub fn read_named(path: &Path) -> Result<Vec<UserResource>, ReadError> {
    let name = path.display().to_string();
    match File::open(path) {
        Ok(file) => read(file, name),
        Err(error) => Err(ReadError::Io(name, error)),
    }
}

/// Reads all `*.toml` of `folder` in the order of their names, each with its resources or why it has none. A folder that
/// is not there has no files.
///
/// Nobody has named these files, and we may be root with another user's environment: only what root or we ourselves own,
/// and nobody else can write to, is taken.
pub fn read_folder(folder: &Path) -> Vec<Result<Vec<UserResource>, ReadError>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![Err(ReadError::Io(folder.display().to_string(), error))],
    };
    let is_toml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "toml");
    let mut paths: Vec<PathBuf> =
        entries.filter_map(Result::ok).map(|entry| entry.path()).filter(is_toml).collect();
    paths.sort();
    paths.iter().map(|path| read_trusted(path)).collect()
}

fn read_trusted(path: &Path) -> Result<Vec<UserResource>, ReadError> {
    let name = path.display().to_string();
    // A pipe must not hold us up.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let opened = opened.and_then(|file| file.metadata().map(|metadata| (file, metadata)));
    let (file, metadata) = match opened {
        Ok(opened) => opened,
        Err(error) => return Err(ReadError::Io(name, error)),
    };
    if !metadata.is_file() {
        return Err(ReadError::NotRegular(name));
    }
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    let ours = unsafe { libc::geteuid() };
    if !is_trusted(ours, metadata.uid(), metadata.mode()) {
        return Err(ReadError::NotTrusted(name));
    }
    read(file, name)
}

/// A file of `owner` with this mode says what user `ours` or root has written.
fn is_trusted(ours: u32, owner: u32, mode: u32) -> bool {
    (owner == 0 || owner == ours) && mode & (libc::S_IWGRP | libc::S_IWOTH) == 0
}

fn read(file: File, name: String) -> Result<Vec<UserResource>, ReadError> {
    let mut bytes = Vec::new();
    if let Err(error) = file.take(MAX_FILE + 1).read_to_end(&mut bytes) {
        return Err(ReadError::Io(name, error));
    }
    if bytes.len() as u64 > MAX_FILE {
        return Err(ReadError::TooLarge(name));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(parse_file(&name, &text)?),
        Err(_) => Err(ReadError::NotText(name)),
    }
}

/// The folder of the configuration: `$XDG_CONFIG_HOME/memleak/resources.d`, or below `~/.config`. `None` where neither
/// is set to an absolute path (XDG Base Directory Specification). Under sudo it is what sudo's environment says: root's,
/// unless it was told to keep the user's.
pub fn configured_folder() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(config.join("memleak/resources.d"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const FOO: &str =
        "[[resource]]\nname = 'foo'\nacquire = ['foo_open -> ret']\nrelease = ['foo_close(arg1)']\n";

    #[test]
    fn reads_a_folder_in_order_and_says_what_is_wrong() {
        let folder = tempfile::tempdir().expect("a folder");
        let put = |name: &str, text: &str, mode: u32| {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        };
        put("b.toml", FOO, 0o644);
        put("a.toml", "[[resource", 0o644);
        put("c.toml", FOO, 0o664);
        put("d.txt", "no", 0o644);
        fs::create_dir(folder.path().join("e.toml")).expect("a folder");
        std::os::unix::fs::symlink(folder.path().join("gone"), folder.path().join("f.toml")).expect("a link");
        let lines: Vec<String> = read_folder(folder.path())
            .into_iter()
            .map(|read| read.map_or_else(|error| error.to_string(), |found| found[0].name.clone()))
            .collect();
        assert_eq!(lines.len(), 5, "{lines:?}");
        assert!(lines[0].contains("a.toml:1:"), "{lines:?}");
        assert_eq!(lines[1], "foo");
        assert!(lines[2].contains("c.toml: ignored: writable by other users"), "{lines:?}");
        assert!(lines[3].contains("e.toml: ignored: it is not a regular file"), "{lines:?}");
        assert!(lines[4].contains("f.toml: cannot be read: No such file"), "{lines:?}");
        assert!(read_folder(&folder.path().join("none")).is_empty());
    }

    #[test]
    fn trusts_root_and_ourselves_alone() {
        for (owner, mode, expected) in
            [(0, 0o644, true), (7, 0o600, true), (8, 0o644, false), (0, 0o664, false), (7, 0o646, false)]
        {
            assert_eq!(is_trusted(7, owner, mode), expected, "{owner} {mode:o}");
        }
    }

    #[test]
    fn a_named_file_may_be_anybodys_but_no_monster() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x");
        fs::write(&path, FOO).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("mode");
        assert_eq!(read_named(&path).expect("is read").len(), 1);
        fs::write(&path, vec![b'#'; 1 + (1 << 20)]).expect("written");
        assert!(matches!(read_named(&path), Err(ReadError::TooLarge(_))));
        fs::write(&path, b"\xff").expect("written");
        assert!(matches!(read_named(&path), Err(ReadError::NotText(_))));
        assert!(matches!(read_named(Path::new("/dev/zero")), Err(ReadError::TooLarge(_))));
        let line = read_named(&folder.path().join("gone")).expect_err("is gone").to_string();
        assert!(line.contains("gone: cannot be read: No such file"), "{line}");
    }
}
