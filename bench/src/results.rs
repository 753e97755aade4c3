//! What is measured of a pair of malloc and free, and what came of it.

use crate::{processes::Pace, reports::Outcome, series::Series};

/// Frames of the traced program on its stack.
pub(crate) const DEPTHS: [u32; 3] = [5, 20, 60];

/// A way to run the traced program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    Untraced,
    /// memleak's attach points with empty programs: what the kernel takes for the traps alone.
    Traps,
    Memleak,
    /// memleak, not counting what each stack has released.
    NoLifetimes,
    /// memleak, of samples by bytes.
    Sampled,
    /// memleak, of page faults.
    Growth,
    /// memleak, walking by frame pointers.
    Pointers,
    /// memleak, having the kernel walk: `bpf_get_stackid`.
    Kernel,
    Bcc,
    Heaptrack,
    Memcheck,
    Dhat,
}

impl Variant {
    /// Those of the table of all depths.
    pub(crate) const PAIRS: [Self; 7] = [
        Self::Untraced,
        Self::Traps,
        Self::Memleak,
        Self::NoLifetimes,
        Self::Pointers,
        Self::Kernel,
        Self::Bcc,
    ];

    /// Those that start what they look into.
    pub(crate) const STARTERS: [Self; 3] = [Self::Heaptrack, Self::Memcheck, Self::Dhat];

    /// Whether it is another program, which may be missing.
    pub(crate) fn is_peer(self) -> bool {
        self == Self::Bcc || Self::STARTERS.contains(&self)
    }

    /// memleak's options for it.
    pub(crate) fn options(self) -> &'static [&'static str] {
        match self {
            Self::Traps => &["--traps-only"],
            Self::NoLifetimes => &["--no-lifetimes"],
            Self::Sampled => &["--sample-bytes", "512K"],
            Self::Growth => &["--growth"],
            Self::Pointers => &["--unwind", "fp"],
            Self::Kernel => &["--unwind", "kernel"],
            _ => &[],
        }
    }

    /// What it is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::Traps => "traps alone",
            Self::Memleak => "memleak",
            Self::NoLifetimes => "memleak --no-lifetimes",
            Self::Sampled => "memleak --sample-bytes 512K",
            Self::Growth => "memleak --growth",
            Self::Pointers => "memleak --unwind fp",
            Self::Kernel => "memleak with bpf_get_stackid",
            Self::Bcc => "memleak-bpfcc",
            Self::Heaptrack => "heaptrack",
            Self::Memcheck => "valgrind, memcheck",
            Self::Dhat => "valgrind, DHAT",
        }
    }
}

/// One way to count time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The program's own clock.
    Clock,
    /// Its CPU time.
    Cpu,
}

/// Of memleak, once in a run: milliseconds.
pub(crate) struct Once {
    pub load_ms: f64,
    pub attach_ms: f64,
    pub detach_ms: f64,
}

/// Everything that was measured.
#[derive(Default)]
pub(crate) struct Results {
    /// Nanoseconds for a pair of malloc and free at so many frames, in each turn.
    pub pair_ns: Series<(Variant, u32, Way)>,
    /// Of a CPU, that the traced program had in each measurement.
    pub cpu_shares: Vec<f64>,
    pub once: Vec<Once>,
    pub reports: Vec<Outcome>,
    /// Who was not measured, and why.
    pub missing: Vec<(Variant, String)>,
}

impl Results {
    /// How fast the program was.
    pub(crate) fn add(&mut self, variant: Variant, depth: u32, pace: Pace) {
        self.pair_ns.add((variant, depth, Way::Clock), pace.turn_ns);
        self.pair_ns.add((variant, depth, Way::Cpu), pace.cpu_ns());
        self.cpu_shares.push(pace.cpu_share);
    }

    /// Shows what has come so far.
    pub(crate) fn tell(&self, variant: Variant, depth: u32) {
        let key = |variant| (variant, depth, Way::Cpu);
        if let Some(pair_ns) = self.pair_ns.median(&key(variant)) {
            let traps = self.pair_ns.ratio(&key(variant), &key(Variant::Traps)).unwrap_or(f64::NAN);
            eprintln!(
                "  depth {depth:2}, {}: {pair_ns:.1} ns of CPU time, {traps:.3} of the traps",
                variant.name()
            );
        }
    }

    /// Whether it has been found missing.
    pub(crate) fn is_missing(&self, variant: Variant) -> bool {
        self.missing.iter().any(|(known, _)| *known == variant)
    }

    /// Notes why it is left out from here on.
    pub(crate) fn leave_out(&mut self, variant: Variant, error: &anyhow::Error) {
        eprintln!("  {} is left out: {error:#}", variant.name());
        self.missing.push((variant, format!("{error:#}")));
    }
}
