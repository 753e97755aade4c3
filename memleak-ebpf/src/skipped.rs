//! Calls that are not captured ([`crate::sampling`]). Of a call of malloc's kind this is known at
//! its entry: then its return is not probed, which is half of what a call costs. So nobody learns
//! when it has returned, and calls that it makes itself (`operator new` calls malloc) are told by
//! the stack.

use aya_ebpf::{helpers::bpf_probe_read_user, programs::ProbeContext};
use memleak_common::thread::ThreadRecord;

use crate::{sampling::may_skip, unwind};

/// A call is not to be captured: its return is not probed.
#[inline(always)]
pub fn skip(thread: &mut ThreadRecord, sp: u64, row: u32) {
    thread.skipped_row = row as u64;
    // SAFETY: the helper checks the address.
    thread.skipped_return = unsafe { bpf_probe_read_user(sp as *const u64) }.unwrap_or(0);
    thread.skipped_sp = sp;
}

/// The function of this row that is entered with this stack pointer was called, by others or not,
/// from the call that was skipped last, or was jumped to.
#[inline(always)]
pub fn is_within_skipped(ctx: &ProbeContext, thread: &mut ThreadRecord, sp: u64, row: u32) -> bool {
    if !may_skip() || thread.skipped_sp == 0 {
        return false;
    }
    if sp <= thread.skipped_sp {
        // SAFETY: the helper checks the address.
        let found = unsafe { bpf_probe_read_user(thread.skipped_sp as *const u64) }.unwrap_or(0);
        if found == thread.skipped_return {
            // The same place calls the same function again; or the function that it has called
            // jumps to another one (pvalloc to memalign).
            let is_within = match sp == thread.skipped_sp {
                true => row as u64 != thread.skipped_row,
                // What is left there of a call that has returned says nothing: so the callers are
                // looked for. Where they cannot be found, it is taken for that call's.
                false => unwind::search_callers(ctx, thread, 0) != unwind::NOT_CALLED,
            };
            if is_within {
                return true;
            }
        }
    }
    thread.skipped_sp = 0;
    false
}
