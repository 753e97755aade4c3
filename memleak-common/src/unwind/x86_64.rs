//! x86_64's rules (the equations are in the module above).

use super::{
    Kind, Reads, Regs, State, Step, Tables, enter_caller, enter_interrupted, find_row, slot_address,
    step_by_record, step_without_row,
};

/// From a frame of an x86_64 thread to its caller.
#[inline(always)]
pub fn step_x86_64<R: Reads, T: Tables>(state: &mut State, reads: &R, tables: &T) -> Step {
    let row = find_row(state, tables);
    let kind = row.kind();
    let offset = row.cfa_offset() as u64;
    let regs = state.regs;
    let mut slot = row.slot();
    let cfa = if kind == Kind::SP {
        regs.sp.wrapping_add(offset)
    } else if kind == Kind::FP {
        regs.fp.wrapping_add(offset)
    } else if kind == Kind::DEREF_FP {
        let Some(cfa) = reads.read(regs.fp.wrapping_add(offset)) else { return Step::Unreadable };
        cfa
    } else if kind == Kind::PLT {
        let pushed = if (regs.ip & 15) >= slot as u64 { 8 } else { 0 };
        slot = 0;
        regs.sp.wrapping_add(offset).wrapping_add(pushed)
    } else if kind == Kind::SIGNAL {
        return step_signal_x86_64(state, reads);
    } else if kind == Kind::RECORD {
        return step_by_record(state, reads);
    } else if kind == Kind::END {
        return Step::Complete;
    } else if kind == Kind::NONE {
        return step_without_row(state, reads, tables);
    } else {
        return Step::Unsupported;
    };
    if cfa <= regs.sp {
        return Step::NoProgress;
    }
    if slot == -2 {
        let Some([fp, ip]) = reads.read2(cfa.wrapping_sub(16)) else { return Step::Unreadable };
        return enter_caller(state, reads.return_address(cfa, ip), cfa, fp);
    }
    // The lower address first: a driver that reads ahead has the other one by then.
    let mut fp = regs.fp;
    if slot != 0 {
        let Some(saved) = reads.read(slot_address(slot, cfa, &regs)) else { return Step::Unreadable };
        fp = saved;
    }
    let Some(ip) = reads.read(cfa.wrapping_sub(8)) else { return Step::Unreadable };
    enter_caller(state, reads.return_address(cfa, ip), cfa, fp)
}

/// Out of a signal handler's frame: `rsp` points to the `ucontext`
/// (arch/x86/include/asm/sigframe.h, struct rt_sigframe after its return address; `uc_mcontext` is
/// at 40, its `rbp` at 80, `rsp` at 120, `rip` at 128).
#[inline(always)]
fn step_signal_x86_64<R: Reads>(state: &mut State, reads: &R) -> Step {
    let sp = state.regs.sp;
    let Some(fp) = reads.read(sp.wrapping_add(120)) else { return Step::Unreadable };
    let Some([sp, ip]) = reads.read2(sp.wrapping_add(160)) else { return Step::Unreadable };
    enter_interrupted(state, Regs { ip, sp, fp, lr: 0 })
}
