//! Which instruction of a function to probe: any bytes may be code.
#![no_main]

use memleak::arch::x86_64::placement::{is_emulated, place};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&arguments, code)) = input.split_first() else { return };
    let placement = place(code, 0x40_1000, arguments & 63);
    assert!(placement.offset == 0 || (placement.offset as usize) < code.len());
    is_emulated(code.get(placement.offset as usize..).unwrap_or_default());
});
