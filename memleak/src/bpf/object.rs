//! The embedded object, and whether this kernel can run it.

use std::{io::Read as _, sync::OnceLock};

use aya::{VerifierLogLevel, util::KernelVersion};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use super::error::BpfError;
use crate::{arch::OLDEST_LINUX, proc::PAGE_SIZE};

/// The BPF programs and maps for this machine, built from memleak-ebpf by `cargo xtask build-ebpf`
/// and packed by build.rs (gzip).
static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/memleak.bpf.o.gz"));

/// The object, unpacked once: memory from the allocator is aligned as its readers want it.
pub(super) fn object_bytes() -> Result<&'static [u8], BpfError> {
    static UNPACKED: OnceLock<Vec<u8>> = OnceLock::new();
    if let Some(bytes) = UNPACKED.get() {
        return Ok(bytes);
    }
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(PACKED).read_to_end(&mut bytes).map_err(|error| {
        BpfError::Load(format!("the embedded BPF object is damaged: {error}; rebuild memleak"))
    })?;
    Ok(UNPACKED.get_or_init(|| bytes))
}

/// No log at first: aya would retry a failed load with ever larger ones, which takes long. With -v
/// -v the user wants the words.
pub(super) fn log_level(verbosity: u8) -> VerifierLogLevel {
    if verbosity >= 2 { VerifierLogLevel::DEBUG | VerifierLogLevel::STATS } else { VerifierLogLevel::DISABLE }
}

/// What the programs themselves say.
pub(super) fn bpf_log_level(verbosity: u8) -> u8 {
    if verbosity > 0 { aya_log::Level::Debug as u8 } else { 0 }
}

pub(super) fn check_kernel() -> Result<(), BpfError> {
    let version = KernelVersion::current().map_err(|error| BpfError::Load(error.to_string()))?;
    let (major, minor, _) = OLDEST_LINUX;
    if version < KernelVersion::new(major, minor, 0) {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        return Err(BpfError::KernelTooOld(release.trim().to_owned()));
    }
    let page_size = rustix::param::page_size();
    if page_size as u64 != PAGE_SIZE {
        return Err(BpfError::PageSize(page_size));
    }
    Ok(())
}

/// A copy of the object in which these maps' entries are made in advance: `map_flags` (the fifth of
/// the 32-bit words of `struct bpf_map_def`) without BPF_F_NO_PREALLOC.
pub(super) fn preallocate(object: &[u8], names: &[&str]) -> Option<Vec<u8>> {
    const FLAGS_OFFSET: usize = 16;
    let mut copy = object.to_vec();
    let file = object::File::parse(object).ok()?;
    let section = file.section_by_name("maps")?;
    let (section_offset, _) = section.file_range()?;
    let mut patched = 0;
    for symbol in file.symbols() {
        if symbol.section_index() == Some(section.index()) && names.contains(&symbol.name().ok()?) {
            let at = usize::try_from(section_offset + symbol.address()).ok()? + FLAGS_OFFSET;
            copy.get_mut(at..at + 4)?.fill(0);
            patched += 1;
        }
    }
    (patched == names.len()).then_some(copy)
}
