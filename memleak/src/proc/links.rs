//! What a process's descriptors lead to.

/// What descriptor `fd` of process `pid` is (readlink(2) of /proc/PID/fd/N): a path, `socket:[123]`, `pipe:[45]`,
/// `anon_inode:[eventpoll]` (proc_pid_fd(5)). At most a page of text, which is the target's to choose. `None` where the
/// process has ended or has closed it.
pub fn descriptor_target(pid: u32, fd: u64) -> Option<String> {
    let target = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    Some(target.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd as _};

    use super::*;

    #[test]
    fn follows_no_link_but_says_where_it_leads() {
        let of = |fd: i32| descriptor_target(std::process::id(), fd as u64);
        let file = File::open("/dev/null").expect("a file");
        assert_eq!(of(file.as_raw_fd()).as_deref(), Some("/dev/null"));
        let (reader, _writer) = std::io::pipe().expect("a pipe");
        assert!(of(reader.as_raw_fd()).is_some_and(|target| target.starts_with("pipe:[")));
        assert_eq!(of(-1), None);
    }
}
