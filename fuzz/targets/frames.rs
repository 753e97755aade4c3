//! `.eh_frame`, found by its section or by `.eh_frame_hdr`, and `.debug_frame`: within a sound ELF
//! file.
#![no_main]

use memleak::unwind::UnwindTable;
use memleak_fuzz::{check_table, elf_with_frames};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some(file) = elf_with_frames(input) {
        let table = UnwindTable::from_bytes(&file).expect("the file around it is sound");
        check_table(&table);
    }
});
