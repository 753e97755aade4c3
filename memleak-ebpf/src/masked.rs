//! Bounds of an index that the verifier is to see.

/// These bits of a value. In the machine's own words, since the compiler would leave out a mask
/// that it knows to change nothing, and the verifier asks for it.
#[inline(always)]
pub fn masked<const MASK: u64>(value: u64) -> usize {
    let mut bits = value;
    // SAFETY: it changes this register alone.
    unsafe {
        core::arch::asm!("{0} &= {mask}", inout(reg) bits, mask = const MASK, options(pure, nomem, nostack));
    }
    bits as usize
}
