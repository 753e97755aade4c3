//! The uprobe programs: loaded by aya or by us, as they are to be attached.

use aya::{Ebpf, programs::UProbe, util::KernelVersion};

use super::{
    access::program,
    error::{BpfError, load_error},
    multi::{Ends, MultiPrograms},
};
use crate::arch::OBJECT;

/// Uprobe programs at one end of calls.
const UPROBES: &[&str] = &["release_enter", "mappings_enter", "call_exit", "call_enter"];
/// Mends the stack for an unwinder; and the same without, for kernels that forbid to write to a
/// process.
pub(super) const ABANDON: [&str; 2] = ["abandon_enter", "abandon_enter_plain"];
/// Of both ends of calls; and the two programs where the kernel has none for both.
const ACQUIRE: BothEnds = (SESSION, ["acquire_exit", "acquire_enter"]);
/// The same on kernels that forbid to write to a process.
const ACQUIRE_WITHOUT_MENDING: BothEnds = (SESSION, ["acquire_exit", ACQUIRE_PLAIN]);
/// One program for both ends of a call.
pub(super) const SESSION: &str = "acquire_session";
/// In place of `acquire_enter`.
pub(super) const ACQUIRE_PLAIN: &str = "acquire_enter_plain";
/// The uprobe programs that `--traps-only` attaches in their place.
const EMPTY_UPROBES: &[&str] = &[EMPTY_ENTER];
const EMPTY_ACQUIRE: BothEnds = (EMPTY_SESSION, ["empty_exit", EMPTY_ENTER]);
/// Serves releases as well, and is loaded for these.
const EMPTY_ENTER: &str = "empty_enter";
pub(super) const EMPTY_SESSION: &str = "empty_session";

/// A program for both ends of calls, and those for each end.
type BothEnds = (&'static str, [&'static str; 2]);

/// How uprobe programs are loaded, and so attached.
pub(super) enum Uprobes {
    /// By aya: one link for each place.
    Single,
    /// One link for all places of a file.
    Multi(Box<MultiPrograms>),
}

impl Uprobes {
    /// Links for many places came with 6.6; up to 6.10 one for a process fires in its first thread
    /// alone.
    pub(super) fn choose(ebpf: &Ebpf) -> Self {
        if KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 11, 0)) {
            return Self::Single;
        }
        match MultiPrograms::prepare(OBJECT, ebpf) {
            Ok(programs) => Self::Multi(Box::new(programs)),
            Err(error) => {
                log::debug!("one link for each probe: {error}");
                Self::Single
            }
        }
    }

    /// Loads a program.
    pub(super) fn load(&mut self, ebpf: &mut Ebpf, name: &'static str) -> Result<(), BpfError> {
        match self {
            Self::Single => program::<UProbe>(ebpf, name)?.load().map_err(|error| load_error(&error)),
            Self::Multi(programs) => programs.load(name, Ends::One).map_err(|error| load_error(&error)),
        }
    }

    /// Loads what will be attached. Gives whether the kernel lets us mend a stack: not where it is
    /// locked down (integrity), nor without CAP_SYS_ADMIN (kernel/trace/bpf_trace.c,
    /// `bpf_get_probe_write_proto`).
    pub(super) fn load_all(&mut self, ebpf: &mut Ebpf, traps_only: bool) -> Result<bool, BpfError> {
        if traps_only {
            EMPTY_UPROBES.iter().try_for_each(|name| self.load(ebpf, name))?;
            self.load_both_ends(ebpf, EMPTY_ACQUIRE)?;
            return Ok(true);
        }
        self.load_large(ebpf)?;
        let [mending, plain] = ABANDON;
        let mends = self.load(ebpf, mending);
        if let Err(error) = &mends {
            log::debug!("{mending} is not available here: {error}");
            self.load(ebpf, plain)?;
        }
        let acquire = if mends.is_ok() { ACQUIRE } else { ACQUIRE_WITHOUT_MENDING };
        self.load_both_ends(ebpf, acquire)?;
        if let Self::Multi(programs) = self {
            programs.start_maker();
        }
        Ok(mends.is_ok())
    }

    /// Loads the programs that are always loaded, and the one for both ends of calls if the kernel
    /// has a kind for it: at once, if aya need not know of them.
    fn load_large(&mut self, ebpf: &mut Ebpf) -> Result<(), BpfError> {
        let Self::Multi(programs) = self else {
            return UPROBES.iter().try_for_each(|name| self.load(ebpf, name));
        };
        let mut wanted: Vec<(&'static str, Ends)> = UPROBES.iter().map(|name| (*name, Ends::One)).collect();
        if may_serve_both_ends() {
            wanted.push((SESSION, Ends::Both));
        }
        // That of a session is told where it is asked for.
        let results = programs.load_at_once(&wanted).into_iter().take(UPROBES.len());
        let mut results = results.map(|result| result.map_err(|error| load_error(&error)));
        results.try_for_each(std::convert::identity)
    }

    /// Loads a program for both ends of calls, or else one for each end.
    fn load_both_ends(&mut self, ebpf: &mut Ebpf, (both, each): BothEnds) -> Result<(), BpfError> {
        if let Self::Multi(programs) = self
            && may_serve_both_ends()
        {
            if programs.serves_both_ends() {
                return Ok(());
            }
            match programs.load(both, Ends::Both) {
                Ok(()) => return Ok(()),
                Err(error) => log::debug!("a program for each end of a call: {}", load_error(&error)),
            }
        }
        each.into_iter().filter(|name| *name != EMPTY_ENTER).try_for_each(|name| self.load(ebpf, name))
    }
}

/// Uprobe sessions came with 6.13.
fn may_serve_both_ends() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 13, 0))
}
