//! Any bytes as code without unwind information.
#![no_main]

use memleak::unwind::UnwindTable;
use memleak_fuzz::{TEXT, check_table, elf_with_frames};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    // An aarch64 file would have no code to read; without the bit it is x86_64.
    let Some(mut file) = elf_with_frames(&[0, 0, 0]) else { return };
    let text = &mut file[TEXT.start as usize..TEXT.end as usize];
    let len = input.len().min(text.len());
    text[..len].copy_from_slice(&input[..len]);
    check_table(&UnwindTable::from_code(&file).expect("the file around it is sound"));
});
