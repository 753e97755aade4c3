//! Descriptors that a process has open.

use std::{collections::BTreeSet, io};

/// Numbers of the descriptors that process `pid` has open (/proc/PID/fd). None, where it has ended.
pub fn open_descriptors(pid: u32) -> io::Result<BTreeSet<u32>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn lists_what_is_open() {
        let (reader, writer) = io::pipe().unwrap();
        let ours = [reader.as_raw_fd() as u32, writer.as_raw_fd() as u32];
        let open = open_descriptors(std::process::id()).unwrap();
        assert!(ours.iter().all(|fd| open.contains(fd)), "{open:?}");
        assert!(!open.contains(&u32::MAX));
        assert!(open_descriptors(u32::MAX).is_err(), "no such process");
    }
}
