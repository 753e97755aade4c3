//! The uprobe programs: loaded by aya or by us, as they are to be attached.

use std::io;

use aya::{Ebpf, programs::UProbe, util::KernelVersion};

use super::{
    access::program,
    error::{BpfError, load_error},
    multi::{Ends, MultiPrograms},
    object::object_bytes,
};
use crate::arch::HOST;

/// Uprobe programs of one kind of place.
const UPROBES: &[&str] = &["release_enter", "mappings_enter", "call_exit", "call_enter"];
/// The programs for calls whose `ret` instructions are probed, where all are so.
const FOLLOWED: &[&str] = &["followed_exit", "followed_enter"];
/// Mends the stack for an unwinder; and the same without, for kernels that forbid to write to a
/// process.
pub(super) const ABANDON: [&str; 2] = ["abandon_enter", "abandon_enter_plain"];
/// Of both ends of calls; and the programs for each end where the kernel has none for both.
const ACQUIRE: BothEnds = (SESSION, &["acquire_exit", "acquire_enter"]);
/// The same on kernels that forbid to write to a process.
const ACQUIRE_WITHOUT_MENDING: BothEnds = (SESSION, &["acquire_exit", ACQUIRE_PLAIN]);
/// One program for both ends of a call.
pub(super) const SESSION: &str = "acquire_session";
/// In place of `acquire_enter`.
pub(super) const ACQUIRE_PLAIN: &str = "acquire_enter_plain";
/// The uprobe programs that `--traps-only` attaches in their place.
const EMPTY_UPROBES: &[&str] = &[EMPTY_ENTER];
const EMPTY_ACQUIRE: BothEnds = (EMPTY_SESSION, &["empty_exit"]);
/// Serves releases as well.
const EMPTY_ENTER: &str = "empty_enter";
pub(super) const EMPTY_SESSION: &str = "empty_session";

/// A program for both ends of calls, and those for each end.
type BothEnds = (&'static str, &'static [&'static str]);

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
        match object_bytes().and_then(|object| MultiPrograms::prepare(object, ebpf)) {
            Ok(programs) => Self::Multi(Box::new(programs)),
            Err(error) => {
                log::debug!("one link for each probe: {error}");
                Self::Single
            }
        }
    }

    /// Loads a program of one kind of place.
    fn load(&mut self, ebpf: &mut Ebpf, name: &'static str) -> Result<(), BpfError> {
        self.load_each(ebpf, &[name])
    }

    /// Loads such programs: at once, if aya need not know of them.
    fn load_each(&mut self, ebpf: &mut Ebpf, names: &[&'static str]) -> Result<(), BpfError> {
        match self {
            Self::Single => names.iter().try_for_each(|name| {
                program::<UProbe>(ebpf, name)?.load().map_err(|error| load_error(&error))
            }),
            Self::Multi(programs) => {
                let wanted: Vec<_> = names.iter().map(|name| (*name, Ends::One)).collect();
                all_loaded(programs.load_at_once(&wanted))
            }
        }
    }

    /// Loads a program that few targets need, before it is attached for the first time.
    pub(super) fn load_late(&mut self, ebpf: &mut Ebpf, name: &'static str) -> Result<(), BpfError> {
        match self {
            Self::Single => {
                let program: &mut UProbe = program(ebpf, name)?;
                if program.fd().is_ok() { Ok(()) } else { program.load().map_err(|error| load_error(&error)) }
            }
            Self::Multi(programs) => programs.load_late(name).map_err(|error| load_error(&error)),
        }
    }

    /// Loads what will be attached. Gives whether the kernel lets us mend a stack: not where it is
    /// locked down (integrity), nor without CAP_SYS_ADMIN (kernel/trace/bpf_trace.c,
    /// `bpf_get_probe_write_proto`).
    pub(super) fn load_all(&mut self, ebpf: &mut Ebpf, traps_only: bool) -> Result<bool, BpfError> {
        if traps_only {
            self.load_places(ebpf, EMPTY_UPROBES, EMPTY_ACQUIRE)?;
            return Ok(true);
        }
        let [mending, plain] = ABANDON;
        if !HOST.replaces_returns() {
            // Nothing is to be mended.
            self.load_each(ebpf, &[&[mending], UPROBES, FOLLOWED].concat())?;
            self.start_maker();
            return Ok(true);
        }
        let mends = self.load(ebpf, mending);
        if let Err(error) = &mends {
            log::debug!("{mending} is not available here: {error}");
            self.load(ebpf, plain)?;
        }
        let acquire = if mends.is_ok() { ACQUIRE } else { ACQUIRE_WITHOUT_MENDING };
        self.load_places(ebpf, UPROBES, acquire)?;
        self.start_maker();
        Ok(mends.is_ok())
    }

    fn start_maker(&mut self) {
        if let Self::Multi(programs) = self {
            programs.start_maker();
        }
    }

    /// Loads programs of one kind of place, and the one for both ends of calls if the kernel has a
    /// kind for it, or else those for each end.
    fn load_places(
        &mut self,
        ebpf: &mut Ebpf,
        names: &[&'static str],
        (both, each): BothEnds,
    ) -> Result<(), BpfError> {
        if let Self::Multi(programs) = self
            && may_serve_both_ends()
        {
            let of_one = names.iter().map(|name| (*name, Ends::One));
            let wanted: Vec<_> = of_one.chain([(both, Ends::Both)]).collect();
            let mut results = programs.load_at_once(&wanted);
            let session = results.pop().unwrap_or(Ok(()));
            all_loaded(results)?;
            return match session {
                Ok(()) => Ok(()),
                Err(error) => {
                    log::debug!("a program for each end of a call: {}", load_error(&error));
                    self.load_each(ebpf, each)
                }
            };
        }
        self.load_each(ebpf, &[names, each].concat())
    }
}

fn all_loaded(results: Vec<io::Result<()>>) -> Result<(), BpfError> {
    results.into_iter().collect::<io::Result<()>>().map_err(|error| load_error(&error))
}

/// Uprobe sessions came with 6.13.
fn may_serve_both_ends() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 13, 0))
}
