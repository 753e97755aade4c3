//! Walking the stack and storing it.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_USER_STACK, BPF_NOEXIST},
    helpers::generated::bpf_get_stack,
};
use memleak_common::{
    stack::{MAX_STACK_DEPTH, NO_STACK, StackRecord},
    stats::Stat,
};

use crate::maps::{STACKS, count, settings};

/// Stacks that may share a hash before one is given up (and counted).
const MAX_PROBING: u64 = 4;

/// Walks the thread's stack into `record` and stores it. Returns its id, or [`NO_STACK`] (counted).
#[inline(always)]
pub fn capture(ctx: &impl EbpfContext, record: &mut StackRecord) -> u64 {
    let id = if walk(ctx, record) { store(record) } else { NO_STACK };
    if id == NO_STACK {
        count(Stat::LostStacks);
    }
    id
}

/// Fills `record` by frame pointers. At a return the instruction pointer already is the caller's, so that the caller
/// of the probed function comes first.
#[inline(always)]
fn walk(ctx: &impl EbpfContext, record: &mut StackRecord) -> bool {
    let max_depth = settings().max_depth.min(MAX_STACK_DEPTH as u32);
    // SAFETY: `ips` has room for MAX_STACK_DEPTH entries of 8 bytes.
    let bytes = unsafe {
        bpf_get_stack(ctx.as_ptr(), record.ips.as_mut_ptr().cast(), max_depth * 8, BPF_F_USER_STACK as u64)
    };
    if bytes <= 0 {
        return false;
    }
    record.len = (bytes as u32) / 8;
    record.truncated = (record.len >= max_depth) as u32;
    true
}

/// Finds the stack's id, or gives it one. Two stacks never share an id: where a hash is taken by another stack, the
/// next one is tried.
#[inline(always)]
fn store(record: &StackRecord) -> u64 {
    let mut id = hash(record);
    for _ in 0..MAX_PROBING {
        if let Some(stored) = STACKS.get_ptr(&id) {
            // SAFETY: a stored stack is never changed or removed while programs run.
            if same(unsafe { &*stored }, record) {
                return id;
            }
            id = id.wrapping_add(1) | 1;
            continue;
        }
        match STACKS.insert(&id, record, BPF_NOEXIST as u64) {
            Ok(()) => return id,
            // Another CPU was faster: look again.
            Err(-17) => {}
            Err(_) => return NO_STACK,
        }
    }
    NO_STACK
}

/// Never [`NO_STACK`].
#[inline(always)]
fn hash(record: &StackRecord) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 / golden ratio, odd
    let mut hash = record.len as u64;
    for i in 0..MAX_STACK_DEPTH {
        if i as u32 >= record.len {
            break;
        }
        hash = (hash.rotate_left(23) ^ record.ips[i]).wrapping_mul(K);
    }
    (hash ^ (hash >> 32)) | 1
}

#[inline(always)]
fn same(a: &StackRecord, b: &StackRecord) -> bool {
    if a.len != b.len {
        return false;
    }
    for i in 0..MAX_STACK_DEPTH {
        if i as u32 >= b.len {
            break;
        }
        if a.ips[i] != b.ips[i] {
            return false;
        }
    }
    true
}
