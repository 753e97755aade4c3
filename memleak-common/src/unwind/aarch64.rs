//! aarch64's rules (the equations are in the module above).

use super::{
    Kind, Reads, Regs, State, Step, Tables, enter_caller, enter_interrupted, find_row, slot_address,
    step_by_record, step_without_row,
};

/// From a frame of an aarch64 thread to its caller.
#[inline(always)]
pub fn step_aarch64<R: Reads, T: Tables>(state: &mut State, reads: &R, tables: &T) -> Step {
    let row = find_row(state, tables);
    let kind = row.kind();
    let regs = state.regs;
    let (base, layout) = if kind.0 >= Kind::SP_LEAF.0 && kind.0 <= Kind::SP_RA.0 {
        (regs.sp, kind.0 - Kind::SP_LEAF.0)
    } else if kind.0 >= Kind::FP_LEAF.0 && kind.0 <= Kind::FP_RA.0 {
        (regs.fp, kind.0 - Kind::FP_LEAF.0)
    } else if kind == Kind::SIGNAL {
        return step_signal_aarch64(state, reads);
    } else if kind == Kind::RECORD {
        return step_by_record(state, reads);
    } else if kind == Kind::END {
        return Step::Complete;
    } else if kind == Kind::NONE {
        return step_without_row(state, reads, tables);
    } else {
        return Step::Unsupported;
    };
    let cfa = base.wrapping_add(row.cfa_offset() as u64);
    let slot = row.slot();
    let saved_at = slot_address(slot, cfa, &regs);
    if layout == 0 {
        // Only a frame that made no call can have its return address in the register, and its stack
        // may be empty. One that has called the kernel still has it there.
        if state.exact == 0 && regs.lr == 0 {
            return Step::Unsupported;
        }
        if cfa < regs.sp {
            return Step::NoProgress;
        }
        let mut fp = regs.fp;
        if slot != 0 {
            let Some(saved) = reads.read(saved_at) else { return Step::Unreadable };
            fp = saved;
        }
        return enter_caller(state, reads.return_address(cfa, regs.lr), cfa, fp);
    }
    if cfa <= regs.sp {
        return Step::NoProgress;
    }
    if layout == 1 {
        let Some([fp, ip]) = reads.read2(saved_at) else { return Step::Unreadable };
        return enter_caller(state, reads.return_address(cfa, ip), cfa, fp);
    }
    let Some(ip) = reads.read(saved_at) else { return Step::Unreadable };
    enter_caller(state, reads.return_address(cfa, ip), cfa, regs.fp)
}

/// Out of a signal handler's frame: `sp` points to struct rt_sigframe (arch/arm64/kernel/signal.c):
/// 128 bytes of siginfo, then the `ucontext`, whose `uc_mcontext` is at 176 and has its registers
/// at 8.
#[inline(always)]
fn step_signal_aarch64<R: Reads>(state: &mut State, reads: &R) -> Step {
    const REGISTERS: u64 = 128 + 176 + 8;
    let sp = state.regs.sp;
    let Some([fp, lr]) = reads.read2(sp.wrapping_add(REGISTERS + 29 * 8)) else { return Step::Unreadable };
    let Some([sp, ip]) = reads.read2(sp.wrapping_add(REGISTERS + 31 * 8)) else { return Step::Unreadable };
    enter_interrupted(state, Regs { ip, sp, fp, lr })
}
