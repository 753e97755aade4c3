//! What both walks of a stack are made of: the window that it is read through, the return addresses
//! that belong there, the hash.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use memleak_common::thread::{MAX_PENDING, PendingCall, STACK_WINDOW};

/// What a walk gives beside the record.
pub struct WalkResult {
    /// Hash of the stack, never [`NO_STACK`].
    pub hash: u64,
    /// The record held this very stack before.
    pub unchanged: bool,
}

/// The hash of a stack, made while it is walked.
#[derive(Clone, Copy, Default)]
pub struct Hash(pub u64);

impl Hash {
    /// Takes in the next frame.
    #[inline(always)]
    pub fn add(&mut self, ip: u64) {
        const K: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 / golden ratio, odd
        self.0 = (self.0.rotate_left(23) ^ ip).wrapping_mul(K);
    }

    /// Never [`NO_STACK`].
    #[inline(always)]
    pub fn finish(self) -> u64 {
        (self.0 ^ (self.0 >> 32)) | 1
    }
}

/// The return address that belongs at `place` on the stack, where `found` is: that of a pending
/// call the kernel has replaced.
#[inline(always)]
pub fn replaced(depth: u32, pending: &[PendingCall; MAX_PENDING], place: u64, found: u64) -> u64 {
    let mut real = found;
    if depth > 0 {
        for (i, call) in (0..).zip(pending) {
            if i >= depth {
                break;
            }
            if call.sp == place && call.return_address != 0 {
                real = call.return_address;
            }
        }
    }
    real
}

/// Reads the stack from `address` on: `words` of it or, near the end of what is mapped, one frame.
/// Gives the number of words read.
///
/// To read costs more than what is read: the first time half a window, which many stacks fit into,
/// then whole ones.
#[inline(always)]
pub fn read_window(address: u64, window: &mut [u64; STACK_WINDOW], is_first: bool) -> u64 {
    const WORDS: usize = 128;
    // SAFETY: the window has room for what is read; the helper checks the address.
    let mut read = |words: usize| unsafe {
        bpf_probe_read_user(window.as_mut_ptr().cast(), 8 * words as u32, address as *const _) == 0
    };
    if is_first && read(WORDS / 2) {
        WORDS as u64 / 2
    } else if !is_first && read(WORDS) {
        WORDS as u64
    } else if read(2) {
        2
    } else {
        0
    }
}
