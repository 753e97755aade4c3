//! The program for both ends of calls (uprobe session, Linux 6.13).
//!
//! A session that is attached for one process has the kernel probe returns in any other one in
//! which its breakpoints are: a child of the target's, another target on the same library
//! (kernel/trace/bpf_trace.c, `uprobe_prog_run`: what is not for it is answered with 0). So places
//! at which no return address may be replaced (`returns`) have a program of their own.

use aya_ebpf::{
    helpers::generated::{bpf_get_attach_cookie, bpf_get_func_ip},
    programs::{ProbeContext, RetProbeContext},
};
use memleak_common::probe::row_of;

use crate::{
    arch::instruction_pointer,
    plain::{enter_plain, exit_plain},
    track::{ReturnMode, acquire_enter, acquire_exit},
};

/// Both ends of a call, where one program serves them. At the entry: whether the return is wanted.
#[inline(always)]
pub fn acquire_session(ctx: &ProbeContext) -> bool {
    // SAFETY: the helper takes the program's context. It gives the place of the probe at both ends,
    // which is where the thread is at the entry.
    let is_entry = unsafe { bpf_get_func_ip(ctx.regs.cast()) } == instruction_pointer(ctx);
    if is_entry {
        // SAFETY: the helper takes the program's context.
        let number = row_of(unsafe { bpf_get_attach_cookie(ctx.regs.cast()) });
        return enter_plain(ctx, number)
            .unwrap_or_else(|| acquire_enter(ctx, ReturnMode::Session).is_some());
    }
    let ctx = RetProbeContext::new(ctx.regs.cast());
    if exit_plain(&ctx).is_none() {
        let _ = acquire_exit(&ctx);
    }
    true
}
