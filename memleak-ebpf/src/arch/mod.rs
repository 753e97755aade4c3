//! What differs from machine to machine: registers, the C ABI, the kernel's layout. Each machine
//! has a file with the same names in it.

#[cfg(bpf_target_arch = "aarch64")]
mod aarch64;
#[cfg(bpf_target_arch = "x86_64")]
mod x86_64;

use aya_ebpf::helpers::bpf_probe_read_kernel;

#[cfg(bpf_target_arch = "aarch64")]
pub use aarch64::*;
#[cfg(bpf_target_arch = "x86_64")]
pub use x86_64::*;

/// The registers with which a thread has entered the kernel: the address of a `struct pt_regs`.
pub struct Registers(pub u64);

impl Registers {
    #[inline(always)]
    fn read<T: Copy + Default>(&self, offset: usize) -> T {
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_kernel((self.0 + offset as u64) as *const T) }.unwrap_or_default()
    }
}
