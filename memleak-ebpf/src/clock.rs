//! What time it is.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};
use memleak_common::clock::BUSY;

use crate::{
    arch::{publish, read_after},
    maps::{CLOCK, change},
};

/// CLOCK_MONOTONIC, ns.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

/// The same, some milliseconds ago at most (`memleak_common::clock`). A tenth of the price.
#[inline(always)]
pub fn coarse_now() -> u64 {
    let Some(tick) = CLOCK.get_ptr_mut(0) else { return now() };
    // SAFETY: the helper takes nothing.
    let jiffies = unsafe { bpf_jiffies64() };
    // SAFETY: aligned words of a map value. Whoever writes the time does so before the tick's
    // number; a later time does no harm.
    unsafe {
        if (&raw const (*tick).jiffies).read_volatile() == jiffies {
            return read_after(&raw mut (*tick).time_ns);
        }
    }
    next_tick(jiffies)
}

/// The first look at a tick.
#[inline(always)]
fn next_tick(jiffies: u64) -> u64 {
    let time_ns = now();
    let Some(tick) = CLOCK.get_ptr_mut(0) else { return time_ns };
    // SAFETY: aligned words of a map value; the time is ours while the number is busy.
    unsafe {
        let number = &raw mut (*tick).jiffies;
        let last = number.read_volatile();
        if last != BUSY && change(number, last, BUSY) {
            (&raw mut (*tick).time_ns).write_volatile(time_ns);
            publish(number, jiffies);
        }
    }
    time_ns
}
