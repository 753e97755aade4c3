//! What is measured of a pair of malloc and free, and what came of it.

use crate::processes::BigReport;

/// Frames of the traced program on its stack.
pub(crate) const DEPTHS: [u32; 3] = [5, 20, 60];

/// A way to run the traced program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    Untraced,
    /// memleak's attach points with empty programs: what the kernel takes for the traps alone.
    Traps,
    Memleak,
    /// memleak, walking by frame pointers.
    Pointers,
    /// memleak, having the kernel walk: `bpf_get_stackid`.
    Kernel,
    Bcc,
}

impl Variant {
    pub(crate) const ALL: [Self; 6] =
        [Self::Untraced, Self::Traps, Self::Memleak, Self::Pointers, Self::Kernel, Self::Bcc];

    /// memleak's options for it.
    pub(crate) fn options(self) -> &'static [&'static str] {
        match self {
            Self::Traps => &["--traps-only"],
            Self::Pointers => &["--unwind", "fp"],
            Self::Kernel => &["--unwind", "kernel"],
            Self::Memleak | Self::Untraced | Self::Bcc => &[],
        }
    }

    /// What it is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::Traps => "traps alone",
            Self::Memleak => "memleak",
            Self::Pointers => "memleak --unwind fp",
            Self::Kernel => "memleak with bpf_get_stackid",
            Self::Bcc => "memleak-bpfcc",
        }
    }
}

/// Measured in all rounds for one variant at one depth.
pub(crate) struct Series {
    pub variant: Variant,
    pub depth: u32,
    /// Nanoseconds for a pair of malloc and free, one for each round.
    pub pair_ns: Vec<f64>,
}

/// Everything that was measured.
#[derive(Default)]
pub(crate) struct Results {
    pub series: Vec<Series>,
    /// Of a CPU, that the traced program had in each measurement.
    pub cpu_shares: Vec<f64>,
    /// Of memleak: milliseconds.
    pub attach_ms: Vec<f64>,
    pub detach_ms: Vec<f64>,
    pub reports: Vec<BigReport>,
    /// Why bcc's memleak is not in it.
    pub without_bcc: Option<String>,
}
