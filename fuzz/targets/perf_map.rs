//! `/tmp/perf-PID.map`, in two pieces, as it grows.
#![no_main]

use memleak::symbolize::Symbolizer;
use memleak_fuzz::{FakeTarget, MAPPED_AT};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut symbolizer = Symbolizer::new();
    symbolizer.observe_mappings(1, 0, Vec::new(), &FakeTarget { object: &[], perf_map: Some(input) });
    for frame in symbolizer.symbolize(1, 0, &[1, 0x1001, 0x1fff, 0x2000, MAPPED_AT, u64::MAX]) {
        assert!(frame.function.is_none_or(|name| !name.contains(char::is_control)));
    }
});
