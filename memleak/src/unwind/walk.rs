//! Walks on the host: the step function of the BPF programs, fed from another process's memory.

use memleak_common::unwind::{MappingList, Reads, Regs, State, Step, Tables, step_aarch64, step_x86_64};

use crate::{arch::Machine, proc::memory::ReadMemory};

/// One frame of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its instruction pointer.
    pub ip: u64,
    /// `ip` is an instruction about to run, not a return address: symbols are looked up at `ip`,
    /// not one byte before.
    pub exact: bool,
    /// It was found by the frame pointer, for want of a row for its callee.
    pub by_pointer: bool,
}

/// A walked stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Callee first.
    pub frames: Vec<Frame>,
    /// Why it ended: [`Step::Complete`] if nothing is missing.
    pub end: Step,
}

/// [`Reads`] from any [`ReadMemory`].
pub struct ReadsFrom<'m, M: ?Sized>(pub &'m M);

impl<M: ReadMemory + ?Sized> Reads for ReadsFrom<'_, M> {
    fn read(&self, address: u64) -> Option<u64> {
        self.0.read_u64(address).ok()
    }

    fn read2(&self, address: u64) -> Option<[u64; 2]> {
        let mut bytes = [0; 16];
        self.0.read_exact_at(address, &mut bytes).ok()?;
        let value = u128::from_ne_bytes(bytes);
        let words = [value as u64, (value >> 64) as u64];
        Some(if cfg!(target_endian = "little") { words } else { [words[1], words[0]] })
    }
}

/// Walks from `regs`, whose `ip` is the first frame, over the mappings of `list`. `address_mask` as
/// in [`State`].
pub fn walk<T: Tables>(
    machine: Machine,
    regs: Regs,
    address_mask: u64,
    list: MappingList,
    tables: &T,
    memory: &dyn ReadMemory,
    max_depth: usize,
) -> Walk {
    let reads = ReadsFrom(memory);
    let mut state = State::new(regs, list, address_mask);
    let mut frames = vec![Frame { ip: regs.ip, exact: true, by_pointer: false }];
    while frames.len() < max_depth {
        let step = match machine {
            Machine::X86_64 => step_x86_64(&mut state, &reads, tables),
            Machine::Aarch64 => step_aarch64(&mut state, &reads, tables),
        };
        if !step.is_frame() {
            return Walk { frames, end: step };
        }
        let by_pointer = step == Step::FrameByPointer;
        frames.push(Frame { ip: state.regs.ip, exact: state.exact != 0, by_pointer });
    }
    Walk { frames, end: Step::TooDeep }
}
