//! Segments of System V's shared memory: shmat says which one it attaches, and not how long it is.
//!
//! That is read where the kernel keeps it when the call returns, since it may be marked for
//! removal, or be of another namespace than the tool's: shmctl(2) would not tell then. While it is
//! attached it is there.

use aya_ebpf::helpers::generated::bpf_get_current_task;

use crate::{maps::setting, thread::member};

/// Bytes of the segment with this number in the current task's namespace; 0 if it is not found.
#[inline(always)]
pub fn size_of(number: u32) -> u64 {
    segment_size(number as u64)
}

/// [`size_of`]. A global function, which the verifier checks once and not for each way to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn segment_size(number: u64) -> u64 {
    if setting!(segments.root) == 0 {
        return 0;
    }
    // SAFETY: the helper takes nothing.
    let task = unsafe { bpf_get_current_task() } as *const u8;
    let namespaces: u64 = member(task, setting!(segments.nsproxy));
    let namespace: u64 = member(namespaces as *const u8, setting!(segments.ipc_ns));
    let root: u64 = member(namespace as *const u8, setting!(segments.root));
    // ipc/util.h, `ipc_mni_shift`: as the kernel was started (`ipcmni_extend`), so that its own
    // number tells whether it is the one.
    for bits in [15, 24] {
        let segment = entry(root, number & ((1 << bits) - 1));
        if segment != 0 && member::<u32>(segment as *const u8, setting!(segments.id)) == number as u32 {
            return member(segment as *const u8, setting!(segments.size));
        }
    }
    0
}

/// What is at `index` in the tree (include/linux/xarray.h); 0 for nothing.
#[inline(always)]
fn entry(root: u64, index: u64) -> u64 {
    const KIND: u64 = 3;
    const NODE: u64 = 2;
    /// As many as 24 bits need, and one.
    const LEVELS: usize = 5;
    const SLOT: u64 = 63;
    let mut entry = root;
    for _ in 0..LEVELS {
        if entry & KIND != NODE {
            break;
        }
        let node = entry - NODE;
        let shift: u8 = member(node as *const u8, setting!(segments.node_shift));
        let slot = index >> (shift & 31) & SLOT;
        entry = member((node + slot * 8) as *const u8, setting!(segments.node_slots));
    }
    if entry & KIND == 0 { entry } else { 0 }
}
