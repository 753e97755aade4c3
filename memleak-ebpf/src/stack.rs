//! Walking the stack and storing it.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_probe_read_user, programs::RetProbeContext};
use memleak_common::{
    stack::{MAX_STACK_DEPTH, NO_STACK, StackRecord},
    stats::Stat,
};

use crate::{
    args::caller,
    maps::{STACKS, count, settings},
};

/// Keeps an index within `ips` where the verifier can see it.
const MASK: u32 = 127;

/// Nothing is mapped below (`vm.mmap_min_addr`).
const LOWEST_ADDRESS: u64 = 65_536;

/// Stacks that may share a hash before one is given up (and counted).
const MAX_PROBING: u64 = 4;

/// Walks the thread's stack into `record` and stores it. Returns its id, or [`NO_STACK`] (counted).
#[inline(always)]
pub fn capture(ctx: &RetProbeContext, record: &mut StackRecord) -> u64 {
    let hash = walk(ctx, record);
    let id = store(hash, record);
    if id == NO_STACK {
        count(Stat::LostStacks);
    }
    id
}

/// Fills `record` by frame pointers and gives its hash, never [`NO_STACK`]. At a return the instruction pointer and
/// the frame pointer already are the caller's, so that the caller of the probed function comes first. It is walked
/// here and not by `bpf_get_stack`, whose fixed cost is that of many frames.
///
/// A frame's first word is the caller's frame pointer, its second the return address into the caller (System V ABI,
/// AMD64, section 3.2.2).
#[inline(always)]
fn walk(ctx: &RetProbeContext, record: &mut StackRecord) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 / golden ratio, odd
    let max_depth = settings().max_depth.min(MAX_STACK_DEPTH as u32);
    let (mut ip, mut frame) = caller(ctx);
    let mut hash = 0u64;
    record.truncated = 0;
    for depth in 0..MAX_STACK_DEPTH as u32 {
        if depth >= max_depth {
            record.truncated = 1;
            break;
        }
        record.ips[(depth & MASK) as usize] = ip;
        record.len = depth + 1;
        hash = (hash.rotate_left(23) ^ ip).wrapping_mul(K);
        // The C library's start code, built without frame pointers, leaves a small number (argc) in the register. To read
        // there would be a page fault that costs more than all the rest.
        if frame < LOWEST_ADDRESS || frame & 7 != 0 {
            break;
        }
        // SAFETY: the helper checks the address.
        let Ok([next, return_address]) = (unsafe { bpf_probe_read_user(frame as *const [u64; 2]) }) else { break };
        // Zero ends a chain; a frame that is its own caller would never end.
        if return_address == 0 || next == frame {
            break;
        }
        (ip, frame) = (return_address, next);
    }
    (hash ^ (hash >> 32)) | 1
}

/// Finds the stack's id, or gives it one. Two stacks never share an id: where a hash is taken by another stack, the
/// next one is tried.
#[inline(always)]
fn store(hash: u64, record: &StackRecord) -> u64 {
    let mut id = hash;
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

#[inline(always)]
fn same(a: &StackRecord, b: &StackRecord) -> bool {
    if a.len != b.len {
        return false;
    }
    for i in 0..MAX_STACK_DEPTH as u32 {
        if i >= b.len {
            break;
        }
        if a.ips[i as usize] != b.ips[i as usize] {
            return false;
        }
    }
    true
}
