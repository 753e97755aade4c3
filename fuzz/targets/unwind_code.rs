//! Any bytes as code without unwind information. The last one says of which machine.
#![no_main]

use memleak::unwind::UnwindTable;
use memleak_fuzz::{TEXT, check_table, elf_with_frames};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((machine, code)) = input.split_last() else { return };
    let Some(mut file) = elf_with_frames(&[machine & 4, 0, 0]) else { return };
    let text = &mut file[TEXT.start as usize..TEXT.end as usize];
    let len = code.len().min(text.len());
    text[..len].copy_from_slice(&code[..len]);
    check_table(&UnwindTable::from_code(&file).expect("the file around it is sound"));
});
