//! What threads that do not run have in their registers (`--why`). The kernel goes through the
//! threads of a process for us (kernel/bpf/task_iter.c), and whoever reads the iterator gets a
//! record of each.

use core::{ffi::c_void, mem::size_of};

use aya_ebpf::{
    bindings::{seq_file, task_struct},
    helpers::generated::{bpf_probe_read_kernel, bpf_seq_write, bpf_task_pt_regs},
};
use memleak_common::registers::SavedRegisters;

use crate::{
    arch::TaskRegisters,
    maps::{REGISTERS, register_offset},
    thread::member,
};

/// `struct bpf_iter__task`.
#[repr(C)]
pub struct TaskContext {
    meta: *const IteratorMeta,
    task: *mut task_struct,
}

/// The beginning of `struct bpf_iter_meta`.
#[repr(C)]
struct IteratorMeta {
    seq: *mut seq_file,
}

/// Writes down one thread. `None`: there is none, or no room for it.
///
/// # Safety
/// `context` is that of a program of type `iter/task`.
#[inline(always)]
pub unsafe fn write_thread(context: *const TaskContext) -> Option<()> {
    // SAFETY: the caller's promise; the verifier knows what these pointers are.
    let (task, seq) = unsafe { ((*context).task, (*(*context).meta).seq) };
    if task.is_null() {
        return None; // the last call has none
    }
    let record = REGISTERS.get_ptr_mut(0)?;
    // SAFETY: an entry of this CPU's; nobody else reads this iterator here meanwhile.
    let record = unsafe { &mut *record };
    let at = task.cast::<u8>().cast_const();
    let before = Moment::of(at);
    record.tid = member(at, register_offset!(pid));
    // SAFETY: a task that the iterator has given; the helper checks what it reads.
    unsafe {
        let registers = bpf_task_pt_regs(task);
        let size = size_of::<TaskRegisters>() as u32;
        bpf_probe_read_kernel(record.general.as_mut_ptr().cast(), size, registers as *const c_void);
    }
    record.vector_bytes = read_vectors(at, record);
    let after = Moment::of(at);
    record.switches = after.switches;
    record.runs = u32::from(before.runs || after.runs || before.switches != after.switches);
    // SAFETY: the iterator's own file, and a record of that size.
    unsafe {
        let size = size_of::<SavedRegisters>() as u32;
        bpf_seq_write(seq, (&raw const *record).cast(), size);
    }
    Some(())
}

/// Whether a thread runs, and how often it has stopped to.
struct Moment {
    runs: bool,
    switches: u64,
}

impl Moment {
    #[inline(always)]
    fn of(task: *const u8) -> Self {
        let runs: u32 = member(task, register_offset!(on_cpu));
        let (waited, lost): (u64, u64) =
            (member(task, register_offset!(nvcsw)), member(task, register_offset!(nivcsw)));
        Self { runs: runs != 0, switches: waited.wrapping_add(lost) }
    }
}

/// Reads the state of the vector unit, which is in memory while a thread does not run
/// (arch/x86/include/asm/fpu/sched.h, `switch_fpu`). Gives how many bytes.
#[inline(always)]
fn read_vectors(task: *const u8, record: &mut SavedRegisters) -> u64 {
    if register_offset!(fpstate) == 0 {
        return 0;
    }
    let state: u64 = member(task, register_offset!(fpstate));
    let size: u32 = member(state as *const u8, register_offset!(fpstate_size));
    let most = size_of_val(&record.vectors) as u32;
    let size = if size > most { most } else { size };
    let from = state.wrapping_add(u64::from(register_offset!(fpstate_regs)));
    // SAFETY: no more than there is room for; the helper checks what it reads.
    let result = unsafe {
        bpf_probe_read_kernel(record.vectors.as_mut_ptr().cast(), size, from as *const c_void)
    };
    if result == 0 { u64::from(size) } else { 0 }
}
