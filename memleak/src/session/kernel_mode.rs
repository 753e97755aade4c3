//! Kernel mode: what is probed in the kernel.

use std::{
    ops::Range,
    path::Path,
    time::{Duration, Instant},
};

use log::{debug, info, warn};
use memleak_common::kernel::{CACHE_NAME_WORDS, COMM_WORDS, KernelSettings, Tracepoint};

use super::{SessionError, config::config, wait::millis};
use crate::{
    bpf::{BpfError, Tracer},
    kernel_labels::tag_of,
    probe::kernel::{KernelFacts, plan},
    proc::{btf::Btf, slab::SlabCaches},
    settings::{KernelOptions, Settings},
    symbolize::KernelSymbols,
    target::kernel::{CacheFilter, check_only_pid, find_cache},
};

/// The running kernel.
struct Running<'a>(&'a KernelSymbols);

impl KernelFacts for Running<'_> {
    fn function(&self, name: &str) -> Option<(String, u64)> {
        self.0.function(name)
    }

    fn code(&self, names: &[&str]) -> Vec<Range<u64>> {
        self.0.address_ranges(names)
    }

    fn has_kprobes(&self) -> bool {
        // Where the kernel says how to make one (perf_event_open(2), dynamic PMUs).
        Path::new("/sys/bus/event_source/devices/kprobe/type").exists()
    }
}

/// What kernel mode begins with.
pub(super) struct KernelStart {
    /// With everything attached.
    pub(super) tracer: Tracer,
    /// The kernel's symbols.
    pub(super) symbols: KernelSymbols,
    /// How long attaching took.
    pub(super) took: Duration,
}

/// Loads and attaches what the settings ask for.
pub(super) fn load(settings: &Settings, options: &KernelOptions) -> Result<KernelStart, SessionError> {
    let cache = options.slab.as_deref().map(|name| find_cache(name, &SlabCaches::read())).transpose()?;
    if let Some(pid) = options.only_pid {
        // Not within info!, which asks for nothing if it says nothing.
        let comm = check_only_pid(pid)?;
        info!("what process {pid} ({comm}) allocates");
    }
    let begin = Instant::now();
    let btf = Btf::kernel().map_err(|error| BpfError::NoKernelTypes(error.to_string()))?;
    let symbols = KernelSymbols::read()?;
    let mut plan = plan(&btf, &Running(&symbols), options.probes, options.percpu)?;
    plan.settings.checks_stacks = options.check_stacks.into();
    set_filters(&mut plan.settings, options, cache.as_ref());
    if let Some(cache) = &cache {
        plan.tracepoints.retain(|row| may_tell_of(row.tracepoint, cache));
    }
    info!("read the kernel's types and symbols in {} ms", millis(begin.elapsed()));
    for unseen in &plan.unseen {
        warn!("not seen: {unseen}");
    }
    let begin = Instant::now();
    let (tracer, failed) = Tracer::of_kernel(&config(settings), &plan)?;
    for row in &plan.tracepoints {
        debug!("{} at the tracepoint {}", row.program, row.name);
    }
    for function in &plan.functions {
        debug!("kprobe at {} ({:#x})", function.name, function.address);
    }
    for error in &failed {
        warn!("{error}");
    }
    info!("{} tracepoints, kprobes at {} functions", plan.tracepoints.len(), plan.functions.len());
    Ok(KernelStart { tracer, symbols, took: begin.elapsed() })
}

/// Whether a tracepoint may report objects of a cache: what cannot need not cost anything.
fn may_tell_of(tracepoint: Tracepoint, cache: &CacheFilter) -> bool {
    match tracepoint {
        Tracepoint::Kfree | Tracepoint::CacheFree | Tracepoint::CacheAlloc | Tracepoint::CacheAllocNode => {
            true
        }
        Tracepoint::Kmalloc | Tracepoint::KmallocNode => matches!(cache, CacheFilter::Kmalloc(_)),
        Tracepoint::PageAlloc | Tracepoint::PageFree | Tracepoint::PercpuAlloc | Tracepoint::PercpuFree => {
            false
        }
    }
}

/// What the programs are to leave out.
fn set_filters(settings: &mut KernelSettings, options: &KernelOptions, cache: Option<&CacheFilter>) {
    settings.own_tgid = std::process::id();
    settings.only_tgid = options.only_pid.unwrap_or(0);
    if let Some(comm) = &options.only_comm {
        settings.only_comm = words::<COMM_WORDS>(comm);
    }
    match cache {
        None => {}
        Some(CacheFilter::Kmalloc(label)) => {
            // A kprobe is told the cache, a tracepoint the size alone.
            settings.only_label = label.encode();
            let name = tag_of(*label, |_| None).map(|tag| tag.to_string()).unwrap_or_default();
            settings.only_cache = words::<CACHE_NAME_WORDS>(&name);
        }
        Some(CacheFilter::Named(cache)) => {
            if !cache.aliases.is_empty() {
                warn!(
                    "{} is one cache with {}: their objects are shown together",
                    cache.name,
                    cache.aliases.join(", ")
                );
            }
            settings.only_cache = words::<CACHE_NAME_WORDS>(&cache.name);
        }
    }
}

/// A text as the BPF side compares it: its bytes, a zero, and zeroes up to the end.
fn words<const N: usize>(text: &str) -> [u64; N] {
    let mut words = [0; N];
    for (index, byte) in text.bytes().take(8 * N - 1).enumerate() {
        words[index / 8] |= u64::from(byte) << (8 * (index % 8));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_compared_as_the_kernel_has_them() {
        let [first, second] = words::<2>("kworker/0:1");
        let bytes: Vec<u8> = first.to_le_bytes().into_iter().chain(second.to_le_bytes()).collect();
        assert_eq!(bytes, b"kworker/0:1\0\0\0\0\0");
        assert_eq!(words::<2>("a name of more than 15 bytes")[1] >> 56, 0, "the last byte stays a zero");
    }
}
