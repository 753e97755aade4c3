//! ELF files as probing reads them: function symbols, code, relocation slots, which allocator it
//! is.
#![no_main]

use std::{os::fd::AsRawFd as _, path::PathBuf};

use memleak::{
    arch::{Machine, x86_64::placement::place},
    target::{
        allocator::{identify, marker_names},
        object::{Object, SymbolNames},
        slots::RelocationSlots,
    },
};
use memleak_fuzz::{mapping, memory_file};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let file = memory_file(input);
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let names: SymbolNames =
        ["malloc", "free", "main", "keep", "memcpy"].into_iter().chain(marker_names()).collect();
    let object = Object::open(&path, &names).expect("the file is there");
    let Ok(elf) = object.elf else { return };
    identify(&elf);
    let _ = elf.functions_by_slot();
    let _ = (elf.is_static(), elf.is_go(), elf.file_offset_of(mapping().file_offset));
    for place in elf.usdt_places("libstdcxx", "throw") {
        let _ = place.arguments.split(' ').map(|text| Machine::X86_64.probe_argument(text)).count();
    }
    let _ = std::str::from_utf8(input).map(|text| Machine::X86_64.probe_argument(text));
    for symbol in elf.symbols() {
        let size = elf.function_size_at(symbol.vaddr);
        let _ = (elf.slots(RelocationSlots::OfResolver(symbol.vaddr)), elf.slots(RelocationSlots::OfSymbol(&symbol.name)));
        assert!(elf.code(symbol.vaddr, size).len() as u64 <= size.max(symbol.size));
        if let Some(code) = elf.whole_function(symbol.vaddr, size) {
            let placement = place(&code, symbol.vaddr, 3);
            assert!(placement.offset == 0 || (placement.offset as usize) < code.len());
        }
    }
});
