//! ELF files as names are read from them: headers, symbols, compressed and split DWARF,
//! MiniDebugInfo.
#![no_main]

use memleak::symbolize::{Symbolizer, SymbolizerOptions};
use memleak_fuzz::{FakeTarget, MAPPED_AT, mapping};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let options = SymbolizerOptions { debug_directory: "/nonexistent".into(), memory: 256 << 20 };
    let mut symbolizer = Symbolizer::with_options(&options);
    symbolizer.observe_mappings(1, 0, vec![mapping()], &FakeTarget { object: input, perf_map: None });
    let ips = [0, 0x1001, 0x1020, 0x1100, 0x1140, 0x1160, 0x1200, 0xf_ffff].map(|offset| MAPPED_AT + offset);
    for frame in symbolizer.symbolize(1, 0, &ips) {
        let texts = [frame.function, frame.symbol, frame.file];
        assert!(texts.iter().flatten().all(|text| !text.contains(char::is_control)), "{texts:?}");
    }
});
