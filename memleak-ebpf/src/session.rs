//! The program for all places of calls that acquire (uprobe session, Linux 6.13).

use aya_ebpf::{
    helpers::generated::{bpf_get_attach_cookie, bpf_get_func_ip},
    programs::{ProbeContext, RetProbeContext},
};
use memleak_common::probe::place;

use crate::{
    arch::instruction_pointer,
    plain::{enter_plain, exit_plain},
    returns,
    track::{ReturnMode, acquire_enter, acquire_exit},
};

/// All places of calls that acquire, where one program serves them (uprobe session): so what they
/// share is verified once. At an entry: whether the return is wanted.
#[inline(always)]
pub fn acquire_session(ctx: &ProbeContext) -> bool {
    // SAFETY: the helper takes the program's context. It gives the place of the probe at both ends,
    // which is where the thread is at the entry.
    let is_entry = unsafe { bpf_get_func_ip(ctx.regs.cast()) } == instruction_pointer(ctx);
    if is_entry {
        // SAFETY: the helper takes the program's context.
        let what = unsafe { bpf_get_attach_cookie(ctx.regs.cast()) } as u32;
        if what & (place::CALL | place::RET) != 0 {
            let _ = if what & place::CALL != 0 { returns::call_enter(ctx) } else { returns::call_exit(ctx) };
            return false;
        }
        return enter_plain(ctx, what) || acquire_enter(ctx, ReturnMode::Session).is_some();
    }
    let ctx = RetProbeContext::new(ctx.regs.cast());
    if exit_plain(&ctx).is_none() {
        let _ = acquire_exit(&ctx);
    }
    true
}
