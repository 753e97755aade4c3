//! Files of resources: those that are named, and those of the configuration's folder.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
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
pub(crate) enum ReadError {
    /// It cannot be read.
    #[error("{0}: cannot be read: {1}; name a file that can")]
    Io(String, io::Error),
    /// It is too large to be one.
    #[error("{0}: is larger than 1 MiB; a file of resources is a short text")]
    TooLarge(String),
    /// It is not text.
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
pub(crate) fn read_named(path: &Path) -> Result<Vec<UserResource>, ReadError> {
    let name = path.display().to_string();
    match File::open(path) {
        Ok(file) => read(file, name),
        Err(error) => Err(ReadError::Io(name, error)),
    }
}

/// Reads all `*.toml` of `folder` in the order of their names, each with its resources or why it
/// has none. A folder that is not there has no files.
///
/// Nobody has named these files, and we may be root with another user's environment: only what root
/// or we ourselves own, and nobody else can write to, is taken, and that of a folder of which the
/// same holds: else a file that is trusted could be put there, or taken away.
pub(crate) fn read_folder(folder: &Path) -> Vec<Result<Vec<UserResource>, ReadError>> {
    let name = |path: &Path| path.display().to_string();
    let opened = look_at(folder).and_then(|(held, metadata)| {
        // The folder that was looked at, whatever its name leads to by now.
        let names = fs::read_dir(within_proc(&held))?.filter_map(Result::ok).map(|entry| entry.file_name());
        Ok((names.collect::<Vec<_>>(), held, metadata))
    });
    let (mut names, held, metadata) = match opened {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![Err(ReadError::Io(name(folder), error))],
    };
    names.retain(|file| Path::new(file).extension().is_some_and(|extension| extension == "toml"));
    if !names.is_empty() && !is_trusted(&metadata) {
        return vec![Err(ReadError::NotTrusted(name(folder)))];
    }
    names.sort();
    let read = |file| read_trusted(&within_proc(&held).join(&file), name(&folder.join(&file)));
    names.into_iter().map(read).collect()
}

/// What is at `path`, held and not opened: opening alone can block, or act (a pipe, a device, a
/// lease).
fn look_at(path: &Path) -> io::Result<(File, Metadata)> {
    let held = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    let metadata = held.metadata()?;
    Ok((held, metadata))
}

/// A path to what is held (proc_pid_fd(5)).
fn within_proc(held: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()))
}

fn read_trusted(path: &Path, name: String) -> Result<Vec<UserResource>, ReadError> {
    let (held, metadata) = match look_at(path) {
        Ok(found) => found,
        Err(error) => return Err(ReadError::Io(name, error)),
    };
    if !metadata.is_file() {
        return Err(ReadError::NotRegular(name));
    }
    if !is_trusted(&metadata) {
        return Err(ReadError::NotTrusted(name));
    }
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(within_proc(&held));
    match opened {
        Ok(file) => read(file, name),
        Err(error) => Err(ReadError::Io(name, error)),
    }
}

/// Root or we ourselves have written it, and nobody else can.
fn is_trusted(metadata: &Metadata) -> bool {
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    let ours = unsafe { libc::geteuid() };
    is_trusted_of(ours, metadata.uid(), metadata.mode())
}

/// A file of `owner` with this mode says what user `ours` or root has written.
fn is_trusted_of(ours: u32, owner: u32, mode: u32) -> bool {
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

/// The folder of the configuration: `$XDG_CONFIG_HOME/memleak/resources.d`, or below `~/.config`.
/// `None` if neither is set to an absolute path (XDG Base Directory Specification). Under sudo
/// it is what sudo's environment says: root's, unless it was told to keep the user's.
pub(crate) fn configured_folder() -> Option<PathBuf> {
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
        // A folder that all can write to, with files that only we can.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("mode");
        let refused = read_folder(folder.path());
        let lines: Vec<String> =
            refused.into_iter().filter_map(Result::err).map(|it| it.to_string()).collect();
        assert!(lines.len() == 1 && lines[0].contains("ignored: writable by other users"), "{lines:?}");
    }

    #[test]
    fn what_would_block_is_not_opened() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = std::ffi::CString::new(format!("{}/pipe.toml", folder.path().display())).expect("a name");
        // SAFETY: `path` is NUL-terminated and lives through the call.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        let read = read_folder(folder.path());
        assert!(matches!(&read[..], [Err(ReadError::NotRegular(_))]), "{read:?}");
    }

    #[test]
    fn trusts_root_and_ourselves_alone() {
        for (owner, mode, expected) in
            [(0, 0o644, true), (7, 0o600, true), (8, 0o644, false), (0, 0o664, false), (7, 0o646, false)]
        {
            assert_eq!(is_trusted_of(7, owner, mode), expected, "{owner} {mode:o}");
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
