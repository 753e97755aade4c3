//! Slab caches (mm/slab.h, `struct kmem_cache`) and words of the kernel's memory.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::{bpf_probe_read_kernel, generated::bpf_probe_read_kernel_str},
};
use memleak_common::kernel::{CACHE_NAME_LEN, CACHE_NAME_WORDS};

use crate::maps::{CACHES, kernel_setting};

/// The 8 bytes at an address of the kernel; 0 if it has none.
#[inline(always)]
pub fn word(address: u64) -> u64 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address as *const u64) }.unwrap_or(0)
}

/// Bytes of a cache's objects (`struct kmem_cache::size`); `otherwise` where they cannot be read.
#[inline(always)]
pub fn cache_size(cache: u64, otherwise: u64) -> u64 {
    let offset = kernel_setting!(cache_size_offset) as u64;
    if offset == 0 {
        return otherwise;
    }
    // SAFETY: the helper checks the address; the offset is the running kernel's own (BTF).
    unsafe { bpf_probe_read_kernel((cache + offset) as *const u32) }.map_or(otherwise, u64::from)
}

/// The cache has this name: the bytes of the name, then zeroes.
#[inline(always)]
pub fn has_name(cache: u64, wanted: &[u64; CACHE_NAME_WORDS]) -> bool {
    learn_name(cache);
    let Some(name) = CACHES.get_ptr(&cache) else { return false };
    // SAFETY: an aligned map value, written once.
    let name = unsafe { &*name };
    let mut differs = 0;
    for word in 0..CACHE_NAME_WORDS {
        differs |= name[word] ^ wanted[word];
    }
    differs == 0
}

/// Enters a cache's name, unless it is known.
#[inline(always)]
pub fn learn_name(cache: u64) {
    if CACHES.get_ptr(&cache).is_some() {
        return;
    }
    let mut name = [0u64; CACHE_NAME_WORDS];
    let offset = kernel_setting!(cache_name_offset) as u64;
    // SAFETY: `name` has room for what is read; the helper checks the address.
    unsafe {
        bpf_probe_read_kernel_str(
            name.as_mut_ptr().cast(),
            CACHE_NAME_LEN as u32,
            word(cache + offset) as *const c_void,
        );
    }
    // A name that finds no room is not shown; nothing else depends on it.
    let _ = CACHES.insert(&cache, &name, BPF_ANY as u64);
}
