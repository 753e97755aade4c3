//! aarch64's rules (the equations are in the module above).

use super::{
    Apart, Kind, MAX_FP_DISTANCE, Reads, Regs, Row, SLOT_AT_FP, SLOT_AT_SP, State, Step, Tables,
    enter_caller, enter_interrupted, find_row, slot_address, step_by_record, step_without_row,
};

/// From a frame of an aarch64 thread to its caller.
#[inline(always)]
pub fn step_aarch64<R: Reads, T: Tables>(state: &mut State, reads: &R, tables: &T) -> Step {
    let row = find_row(state, tables);
    let kind = row.kind();
    let mut regs = state.regs;
    let (base, layout) = if kind.0 >= Kind::SP_LEAF.0 && kind.0 <= Kind::SP_RA.0 {
        if state.sp_is_bound != 0 {
            let Some(sp) = stack_pointer_by_record(row, regs) else { return Step::UnknownStackPointer };
            regs.sp = sp;
        }
        (regs.sp, kind.0 - Kind::SP_LEAF.0)
    } else if kind.0 >= Kind::FP_LEAF.0 && kind.0 <= Kind::FP_RA.0 {
        (regs.fp, kind.0 - Kind::FP_LEAF.0)
    } else if kind.is_apart() {
        return step_apart(state, reads, Apart::of(row));
    } else if kind == Kind::SIGNAL {
        if state.sp_is_bound != 0 {
            return Step::UnknownStackPointer;
        }
        return step_signal_aarch64(state, reads);
    } else if kind == Kind::RECORD {
        let step = step_by_record(state, reads);
        return reached_by_record(state, step);
    } else if kind == Kind::END {
        return Step::Complete;
    } else if kind == Kind::NONE {
        let step = step_without_row(state, reads, tables);
        return reached_by_record(state, step);
    } else {
        return Step::Unsupported;
    };
    let cfa = base.wrapping_add(row.cfa_offset() as u64);
    let slot = row.slot();
    let saved_at = slot_address(slot, if is_above_base(slot) { base } else { cfa }, &regs);
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
        return enter_by_cfa(state, reads.return_address(cfa, regs.lr), cfa, fp);
    }
    if cfa <= regs.sp {
        return Step::NoProgress;
    }
    if layout == 1 {
        let Some([fp, ip]) = reads.read2(saved_at) else { return Step::Unreadable };
        return enter_by_cfa(state, reads.return_address(cfa, ip), cfa, fp);
    }
    let Some(ip) = reads.read(saved_at) else { return Step::Unreadable };
    enter_by_cfa(state, reads.return_address(cfa, ip), cfa, regs.fp)
}

/// Out of a frame that has `x29` and `x30` apart: there is no frame record in it.
#[inline(always)]
fn step_apart<R: Reads>(state: &mut State, reads: &R, apart: Apart) -> Step {
    if !apart.by_fp && state.sp_is_bound != 0 {
        return Step::UnknownStackPointer;
    }
    let base = if apart.by_fp { state.regs.fp } else { state.regs.sp };
    let cfa = base.wrapping_add(apart.cfa_offset as u64);
    if cfa <= state.regs.sp {
        return Step::NoProgress;
    }
    // The lower address first: a driver that reads ahead has the other one by then.
    let is_fp_first = apart.fp_at < apart.ra_at;
    let (low, high) = if is_fp_first { (apart.fp_at, apart.ra_at) } else { (apart.ra_at, apart.fp_at) };
    let Some(low) = reads.read(cfa.wrapping_add(low as u64)) else { return Step::Unreadable };
    let Some(high) = reads.read(cfa.wrapping_add(high as u64)) else { return Step::Unreadable };
    let (fp, ip) = if is_fp_first { (low, high) } else { (high, low) };
    enter_by_cfa(state, reads.return_address(cfa, ip), cfa, fp)
}

/// Whether the slot field counts from the register that the CFA is found by, and not from the CFA:
/// gcc saves registers at the bottom of a frame, which can be a large one.
#[inline(always)]
const fn is_above_base(slot: i8) -> bool {
    slot > 0 && slot < SLOT_AT_FP
}

/// [`enter_caller`], whose stack pointer is known.
#[inline(always)]
fn enter_by_cfa(state: &mut State, ip: u64, cfa: u64, fp: u64) -> Step {
    let step = enter_caller(state, ip, cfa, fp);
    if step.is_frame() {
        state.sp_is_bound = 0;
    }
    step
}

/// What was found by a frame record has its stack pointer above the record.
#[inline(always)]
fn reached_by_record(state: &mut State, step: Step) -> Step {
    if step.is_frame() {
        state.sp_is_bound = 1;
    }
    step
}

/// The stack pointer of a frame of which a bound is known, by the place of its own record: the
/// frame pointer is there at each call. It is aligned to 16 bytes then (AAPCS64, 6.4.5.1). `None`
/// if the row saves no record, or the frame pointer is not where one can be: then it is used for
/// something else.
#[inline(always)]
fn stack_pointer_by_record(row: Row, regs: Regs) -> Option<u64> {
    let slot = row.slot();
    if row.kind() != Kind::SP_PAIR || slot == SLOT_AT_FP {
        return None;
    }
    let from_sp = if slot == SLOT_AT_SP {
        0
    } else if is_above_base(slot) {
        8 * slot as i64
    } else {
        row.cfa_offset() + 8 * slot as i64
    };
    let sp = regs.fp.wrapping_sub(from_sp as u64);
    if sp & 15 == 0 && sp.wrapping_sub(regs.sp) <= MAX_FP_DISTANCE { Some(sp) } else { None }
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
