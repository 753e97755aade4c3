//! The kernel's type information: from a file that root alone writes, and large, so read with care
//! all the same.
#![no_main]

use memleak::proc::btf::Btf;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some(btf) = Btf::parse(input.to_vec()) else { return };
    let _ = (btf.member_offset("Event", "kind"), btf.member_offset("task_struct", "pid"));
    let _ = (
        btf.function_parameters("acquire_enter"),
        btf.tracepoint_arguments("kmalloc"),
        btf.has_function("f"),
    );
});
