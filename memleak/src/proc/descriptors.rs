//! Descriptors that a process has open.

use std::{collections::BTreeMap, io};

/// What process `pid` has open, and each one's file as the kernel names it: a path, `socket:[123]`
/// (/proc/PID/fd, see proc_pid_fd(5)). One that is closed meanwhile may be there or not.
pub(crate) fn open_descriptors(pid: u32) -> io::Result<BTreeMap<u32, String>> {
    let entries = std::fs::read_dir(super::living::path_of(pid, "fd"))?;
    let descriptor = |entry: io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        let file = std::fs::read_link(entry.path()).ok()?;
        Some((number, file.to_string_lossy().into_owned()))
    };
    Ok(entries.filter_map(descriptor).collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn lists_what_is_open() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        let open = open_descriptors(std::process::id()).unwrap();
        assert_eq!(open[&(file.as_raw_fd() as u32)], "/dev/null");
        assert!(open[&(reader.as_raw_fd() as u32)].starts_with("pipe:["));
        assert!(!open.contains_key(&u32::MAX));
        assert!(open_descriptors(u32::MAX).is_err(), "no such process");
    }
}
