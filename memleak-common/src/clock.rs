//! A clock that is read in no time (map `CLOCK`): the monotonic time at the beginning of the
//! current tick (`jiffies`, 1 to 10 ms), about. For ages of what is acquired by the million; never
//! for what came first.

/// The current tick, as far as anybody has looked at it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Tick {
    /// Its number (`bpf_jiffies64`), or [`BUSY`]; 0: nobody has looked yet.
    pub jiffies: u64,
    /// `bpf_ktime_get_ns` when it was first looked at.
    pub time_ns: u64,
}

/// [`Tick::jiffies`] while somebody writes the time.
pub const BUSY: u64 = u64::MAX;
