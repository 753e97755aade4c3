//! What of all that is acquired is captured: by size, and by chance.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use memleak_common::{
    probe::{ProbeRow, Resource, size},
    sampling::{WEIGHT_ONE, gap, weight},
    thread::ThreadRecord,
};

use crate::maps::setting;

/// Some calls are of no interest.
#[inline(always)]
pub fn may_skip() -> bool {
    setting!(sample_rate) > 1
        || setting!(sample_bytes) != 0
        || setting!(min_size) > 0
        || setting!(max_size) < u64::MAX
}

/// Something of this size, acquired by a function of this row, is to be captured.
#[inline(always)]
pub fn is_wanted(thread: &mut ThreadRecord, row: &ProbeRow, size: u64) -> bool {
    if row.size != size::NONE && (size < setting!(min_size) || size > setting!(max_size)) {
        return false;
    }
    let (rate, mean) = (setting!(sample_rate), setting!(sample_bytes));
    if mean != 0 && row.resource == Resource::Heap.number() {
        return reaches_sample(thread, mean, size);
    }
    rate <= 1 || sampled(thread, rate)
}

/// As how many a captured thing counts: with samples by bytes in units of 2^-10, else as 1.
#[inline(always)]
pub fn number_of(resource: u32, size: u64) -> u64 {
    match setting!(sample_bytes) {
        0 => 1,
        mean if resource == Resource::Heap.number() => weight_of(mean, size),
        _ => WEIGHT_ONE,
    }
}

/// [`weight`]. A global function, which the verifier checks once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weight_of(mean: u64, size: u64) -> u64 {
    weight(mean, size)
}

/// Whether a sample begins in one of `size` bytes: with probability 1 - exp(-`size` / `mean`).
#[inline(always)]
fn reaches_sample(thread: &mut ThreadRecord, mean: u64, size: u64) -> bool {
    if thread.sample_countdown == 0 {
        thread.sample_countdown = random_gap(mean);
    }
    // A block without bytes has a place of its own all the same.
    let size = size.max(1);
    if thread.sample_countdown > size {
        thread.sample_countdown -= size;
        return false;
    }
    thread.sample_countdown = random_gap(mean);
    true
}

/// [`gap`]. A global function, which the verifier checks once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn random_gap(mean: u64) -> u64 {
    // SAFETY: the helper takes nothing.
    gap(mean, unsafe { bpf_get_prandom_u32() })
}

/// One in `rate`: counted for each thread, the gaps drawn evenly from 1 to 2 `rate` - 1, so that a
/// pattern in the program's own calls cannot keep step with the sampling. A thread's first gap is
/// what is left of one that began before it did: of length k with probability (2 `rate` - k) /
/// (`rate` (2 `rate` - 1)), the smaller of two even draws.
#[inline(always)]
fn sampled(thread: &mut ThreadRecord, rate: u64) -> bool {
    if thread.sample_countdown == 0 {
        thread.sample_countdown = up_to(2 * rate - 1).min(up_to(2 * rate));
    }
    thread.sample_countdown -= 1;
    if thread.sample_countdown > 0 {
        return false;
    }
    thread.sample_countdown = up_to(2 * rate - 1);
    true
}

/// An even draw from 1 to `limit`, which must not be 0.
#[inline(always)]
fn up_to(limit: u64) -> u64 {
    // SAFETY: the helper takes nothing.
    1 + unsafe { bpf_get_prandom_u32() } as u64 % limit.max(1)
}

