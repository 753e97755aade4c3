//! The registers of threads that are not stopped, as far as the kernel can be asked for them: those
//! of a thread that does not run are in memory, and do not change until it does.

use std::{fmt, io, sync::Arc};

use log::debug;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::proc::stacks::ThreadRegisters;

type Read = dyn Fn(u32) -> io::Result<Vec<ThreadRegisters>> + Send + Sync;

/// Who can be asked for registers.
#[derive(Clone, Default)]
pub struct RegisterSource(Option<Arc<Read>>);

impl fmt::Debug for RegisterSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("RegisterSource").field(&self.0.is_some()).finish()
    }
}

impl RegisterSource {
    /// `read` gives those of all threads of a process, at one moment.
    pub(crate) fn new(
        read: impl Fn(u32) -> io::Result<Vec<ThreadRegisters>> + Send + Sync + 'static,
    ) -> Self {
        Self(Some(Arc::new(read)))
    }

    /// Those of `pid`; none if they cannot be had.
    pub(super) fn read(&self, pid: u32) -> Vec<ThreadRegisters> {
        let read = self.0.as_ref().map_or(Ok(Vec::new()), |read| read(pid));
        read.inspect_err(|error| debug!("process {pid}: registers: {error}")).unwrap_or_default()
    }
}

/// Threads of which two readings are the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asleep {
    /// Their stack pointers.
    pub(super) stack_pointers: FxHashSet<u64>,
    /// How many others there were; `None`: no thread is known.
    pub(super) others: Option<u64>,
}

impl Asleep {
    /// Those that have not run from the one reading to the other.
    pub(super) fn of(before: &[ThreadRegisters], after: &[ThreadRegisters]) -> Self {
        let then: FxHashMap<u32, &ThreadRegisters> = before.iter().map(|it| (it.tid, it)).collect();
        let has_slept = |now: &&ThreadRegisters| {
            let is_same = |then: &&ThreadRegisters| !then.runs && then.switches == now.switches;
            !now.runs && then.get(&now.tid).is_some_and(is_same)
        };
        let stack_pointers: FxHashSet<u64> =
            after.iter().filter(has_slept).map(|thread| thread.stack_pointer).collect();
        let others = after.len().saturating_sub(stack_pointers.len()) as u64;
        Self { stack_pointers, others: (!after.is_empty()).then_some(others) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_run_is_another() {
        let thread = |tid: u32, switches, runs| ThreadRegisters {
            tid,
            runs,
            switches,
            stack_pointer: u64::from(tid) * 0x1000,
            words: Vec::new(),
        };
        let before = [thread(1, 5, false), thread(2, 5, false), thread(3, 5, true), thread(4, 5, false)];
        let after = [thread(1, 5, false), thread(2, 6, false), thread(3, 5, false), thread(4, 5, true)];
        let asleep = Asleep::of(&before, &after);
        assert_eq!(asleep.stack_pointers.into_iter().collect::<Vec<_>>(), [0x1000]);
        assert_eq!(asleep.others, Some(3));
        assert_eq!(Asleep::of(&before, &[]), Asleep::default());
    }
}
