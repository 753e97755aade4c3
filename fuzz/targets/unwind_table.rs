//! A whole file: ELF headers, notes, compressed sections, all that a table is made of.
#![no_main]

use memleak::unwind::UnwindTable;
use memleak_fuzz::check_table;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Ok(table) = UnwindTable::from_bytes(input) {
        check_table(&table);
    }
});
