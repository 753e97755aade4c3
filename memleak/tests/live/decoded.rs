//! Profiles and traces, read by a library for protocol buffers that nobody here wrote: Python's,
//! with classes that protoc makes of the formats' definitions.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use serde_json::Value;

use crate::{
    guard::alone,
    programs::{Link, build, scratch_dir, text},
    report::{Report, Stack},
    tracer::{NEVER, Tracer},
};

/// Debian's Python has Debian's library; another one may be first on the PATH.
const PYTHON: &str = "/usr/bin/python3";
/// pprof's own definition.
const PROFILE_PROTO: &str = "/usr/share/gocode/src/github.com/google/pprof/proto/profile.proto";

/// What is in a profile of pprof's.
pub(crate) fn decode_profile(file: &Path) -> Value {
    decode("profile", Path::new(PROFILE_PROTO), file)
}

/// What is in a trace of Perfetto's.
pub(crate) fn decode_trace(file: &Path) -> Value {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    decode("trace", &programs.join("heap_trace.proto"), file)
}

fn decode(kind: &str, definition: &Path, file: &Path) -> Value {
    let decoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/decode.py");
    let folder = scratch_dir();
    let output = Command::new(PYTHON)
        .args([text(&decoder), kind, text(definition), text(&folder), text(file)])
        .output()
        .unwrap_or_else(|error| panic!("{PYTHON}: {error}"));
    assert!(output.status.success(), "{kind}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Sums by function, each counted once for a stack; of frames with a name.
fn by_function<const N: usize>(
    report: &Report,
    numbers: impl Fn(&Stack) -> [u64; N],
) -> BTreeMap<String, Vec<u64>> {
    let mut sums: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for stack in &report.stacks {
        let functions: BTreeSet<&String> =
            stack.frames.iter().filter_map(|frame| frame.function.as_ref()).collect();
        for function in functions {
            let sum = sums.entry(function.clone()).or_insert_with(|| vec![0; N]);
            sum.iter_mut().zip(numbers(stack)).for_each(|(sum, number)| *sum += number);
        }
    }
    sums
}

/// The same of what was decoded.
fn decoded_functions(file: &Value) -> BTreeMap<String, Vec<u64>> {
    let mut sums: BTreeMap<String, Vec<u64>> =
        serde_json::from_value(file["functions"].clone()).expect("numbers by function");
    // `[object]+0x...`: of these the report has no name.
    sums.retain(|function, _| !function.starts_with('['));
    sums
}

/// All of it by function as the report says, what is inlined and what it is inlined into as well;
/// and Perfetto's heap graph has all blocks, each to be reached from a root.
#[test]
fn a_library_reads_profile_trace_and_graph() {
    let _alone = alone();
    let program = build("holders.c", Link::Dynamic, &[]);
    let at = |name: &str| scratch_dir().join(format!("decoded-{}{name}", std::process::id()));
    let (profile, trace) = (at(".pb.gz"), at(".pftrace"));
    let files = ["--pprof", text(&profile), "--perfetto", text(&trace)];
    let options = ["--json", "--why", "-o", "0", "-T", "100", NEVER, "--", text(&program)];
    let mut tracer = Tracer::start(&[&files[..], &options[..]].concat());
    tracer.running().expect("READY");
    let report = tracer.stop_with_report();
    let [read, trace_read] = [decode_profile(&profile), decode_trace(&trace)];
    [profile, trace].iter().for_each(|file| fs::remove_file(file).expect("removing"));

    assert!(report.stacks.iter().flat_map(|stack| &stack.frames).any(|frame| frame.inlined), "none inlined");
    let types = ["alloc_objects/count", "alloc_space/bytes", "inuse_objects/count", "inuse_space/bytes"];
    assert_eq!((&read["types"], &read["default"]), (&types.as_slice().into(), &"inuse_space".into()));
    assert_eq!((&read["period"], &read["labels"]["resource=heap"]), (&1.into(), &report.stacks.len().into()));
    let all = |stack: &Stack| {
        let acquired = [stack.acquired, stack.bytes_acquired].map(|number| number.expect("counted"));
        [acquired[0], acquired[1], stack.count, stack.bytes]
    };
    let functions = decoded_functions(&read);
    assert_eq!(functions, by_function(&report, all));
    assert_eq!(functions["inlined_calloc"], [16, 1600, 16, 1600]);
    let totals = &report.totals;
    assert_eq!([&read["total"][2], &read["total"][3]], [totals.count, totals.bytes]);

    let held = |stack: &Stack| [stack.count, stack.bytes];
    assert_eq!(decoded_functions(&trace_read), by_function(&report, held));
    assert_eq!(trace_read["total"], Value::from([totals.count, totals.bytes].as_slice()));

    let graph = &trace_read["graph"];
    let types: BTreeMap<String, [u64; 2]> = serde_json::from_value(graph["types"].clone()).expect("types");
    let sums = types.values().fold([0, 0], |sum, of_type| [sum[0] + of_type[0], sum[1] + of_type[1]]);
    let (bytes, count) = report.sum("heap");
    assert_eq!((sums, &graph["reached"]), ([count, bytes], &count.into()), "{graph}");
    // As many as the table of entries has.
    assert!(types.values().any(|of_type| *of_type == [16, 1600]), "{graph}");
}
