//! The clock that the kernel's programs and we share.

use std::{fs, sync::LazyLock, time::Duration};

/// Nanoseconds of the clock of `bpf_ktime_get_ns`: CLOCK_MONOTONIC as the machine has it, whatever
/// our time namespace adds to it (time_namespaces(7)).
pub(crate) fn monotonic_ns() -> u64 {
    static ADDED: LazyLock<i128> = LazyLock::new(added_ns);
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let ours = Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_nanos();
    u64::try_from(i128::try_from(ours).unwrap_or(0) - *ADDED).unwrap_or(0)
}

/// What our time namespace adds. The file tells of the one that our children will be in: ours,
/// unless we have made one for them, which we never do.
fn added_ns() -> i128 {
    fs::read_to_string("/proc/self/timens_offsets").ok().and_then(|text| added(&text)).unwrap_or(0)
}

/// From lines like `monotonic 864000 0`: seconds, which may be less than 0, and nanoseconds.
fn added(offsets: &str) -> Option<i128> {
    let line = offsets.lines().find_map(|line| line.strip_prefix("monotonic"))?;
    let mut numbers = line.split_ascii_whitespace().map(str::parse::<i128>);
    let (seconds, nanoseconds) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_time_namespace_adds() {
        assert_eq!(added("monotonic           0         0\nboottime  5  0\n"), Some(0));
        assert_eq!(added("monotonic      100000       250\n"), Some(100_000_000_000_250));
        assert_eq!(added("boottime 1 0\nmonotonic  -100  500000000"), Some(-99_500_000_000));
        assert_eq!(added("boottime 1 0\n"), None);
    }
}
