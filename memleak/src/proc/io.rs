//! How often processes read and write.

use std::fs;

/// How often a process has read and written so far, by system calls on files, pipes and sockets
/// (not recv and send; proc(5), /proc/PID/io: `syscr`, `syscw`). `None` if the kernel does not
/// count it or the process is gone.
pub(crate) fn reads_and_writes(pid: u32) -> Option<u64> {
    counts(&fs::read_to_string(format!("/proc/{pid}/io")).ok()?)
}

fn counts(text: &str) -> Option<u64> {
    let of = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    Some(of("syscr:")? + of("syscw:")?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn reads_and_writes_of_this_process_are_counted() {
        let (mut reader, mut writer) = std::io::pipe().expect("pipe");
        let before = reads_and_writes(std::process::id()).expect("counts");
        for _ in 0..1000 {
            writer.write_all(b"x").expect("write");
            reader.read_exact(&mut [0]).expect("read");
        }
        assert!(reads_and_writes(std::process::id()).expect("counts") >= before + 2000);
    }

    #[test]
    fn a_kernel_that_does_not_count_says_nothing() {
        assert_eq!(counts("rchar: 1\nwchar: 2\n"), None);
        assert_eq!(counts("rchar: 1\nsyscr: 2\nsyscw: 40\n"), Some(42));
    }
}
