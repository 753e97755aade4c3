//! The JSON form: one object a line.
//!
//! Addresses are strings in hexadecimal, since JSON's numbers lose bits above 2^53. In a frame, a
//! value that is not known is null; in a stack, ages are null with `-C`. `sampled` and
//! `allocations` are there only with `-s` and `-a`, `sample_bytes` and `margin_bytes` (the bytes
//! are that much more or less, in 19 of 20 cases) with `--sample-bytes`, and `memory` if the
//! targets' memory was accounted for (resident bytes; `allocator_free` is null if it cannot be
//! read), `processes` if some have come (`joined`: children that are followed) or ended (`left`)
//! since the beginning. The address of what has a number for a handle (a descriptor) is that
//! number; if a resource has no size, `bytes` and `size` are 0. `now` says what descriptors are at
//! the time of the report. A stack has `stack_id` (null if it is not known), `pid` (0 for the
//! kernel's; if several processes hold it, the one that holds most, and then `process_counts` says
//! what each holds, and each of `allocations` has a `pid`), `growth_bytes` and `growth_count`
//! (since the report before), `verdict` and `verdict_reason`, what was counted of it if that was
//! (`acquired`, `released`, `bytes_acquired`, `bytes_released`, `lifetime`), one of whole pages
//! `order` (2^order pages each), and a frame `no_symbol`, which says why it has no function, else
//! null.

use std::{
    io::{self, Write},
    time::SystemTime,
};

use jiff::{Timestamp, tz::TimeZone};
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::ser::Formatter;

use super::{
    Format, Kind, Options,
    why::{JsonAsked, JsonClasses, JsonCycle, JsonHeld, JsonWhy, asked, cycles, places},
};
use crate::{
    account::Memory,
    escape::acts_on_terminal,
    kernel_labels::Tag,
    report::{
        model::{
            AllocationLine, OomKilled, OtherProcesses, ProcessCount, Processes, Report, ResourceTotal,
            StackReport, Suppressed, TargetInfo, TemporaryStack, Totals,
        },
        trace::EventLine,
    },
    snapshot::{Cut, Lost},
    symbolize::{Frame, NoSymbol},
    verdict::Calls,
};

/// `--format json`.
pub const KIND: Kind = Kind { name: "json", has_events: true, new };

fn new(options: &Options) -> Box<dyn Format> {
    Box::new(Json { top: options.top })
}

/// See the module.
#[derive(Debug)]
struct Json {
    top: usize,
}

impl Format for Json {
    fn report(&self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        write_json(report, self.top, out)
    }

    fn event(&self, event: &EventLine, out: &mut dyn Write) -> io::Result<()> {
        write_event(event, out)
    }
}

/// Version of the form: grows when a field changes its meaning, not when one is added.
const SCHEMA: u32 = 1;

/// Writes a report with the first `top` stacks of each table: one line.
pub fn write_json(report: &Report, top: usize, out: &mut dyn Write) -> io::Result<()> {
    let why = report.why.as_deref();
    write_line(
        &JsonReport {
            schema: SCHEMA,
            time: rfc3339(report.time),
            target: JsonTarget::from(&report.target),
            processes: (report.processes != Processes::default()).then_some(report.processes),
            elapsed_ms: report.elapsed_ms,
            cut_ns: report.cut_ns,
            cut_within_ns: report.cut_within_ns,
            is_final: report.is_final,
            sampled: (report.sampling.rate() > 1).then(|| report.sampling.rate()),
            sample_bytes: (report.sampling.bytes() > 0).then(|| report.sampling.bytes()),
            margin_bytes: report.margin,
            totals: JsonTotals { all: report.totals, by_resource: ByResource(&report.by_resource) },
            lost: report.lost,
            suppressed: report.suppressed,
            oom_killed: report.oom_killed.iter().map(JsonOomKilled::from).collect(),
            temporary: report.temporary.iter().map(|stack| JsonTemporary::new(report, stack)).collect(),
            memory: report.memory,
            why: why.map(JsonWhy::from),
            cycles: why.map(|why| cycles(why, &places(report, top))),
            held: why.map(|why| why.held.iter().map(JsonHeld::from).collect()),
            why_of: why.and_then(asked),
            stacks: report.top(top).map(|stack| JsonStack::new(report, stack)).collect(),
        },
        out,
    )
}

/// Writes an event, one line: `{"event":"acquire","schema":1,"time":...}`. A report has no field
/// `event`.
pub fn write_event(event: &EventLine, out: &mut dyn Write) -> io::Result<()> {
    write_line(
        &JsonEvent {
            event: event.kind.name(),
            schema: SCHEMA,
            time: rfc3339(event.time),
            pid: event.pid,
            tid: event.tid,
            resource: &event.resource.name,
            address: Hex(event.address),
            size: event.size,
            tag: JsonTag::from(event.tag.as_ref()),
            comm: event.comm.as_deref(),
        },
        out,
    )
}

/// Writes `value` and a newline.
fn write_line(value: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(&mut *out, OneLine);
    value.serialize(&mut serializer).map_err(io::Error::from)?;
    out.write_all(b"\n")
}

/// `time` in UTC with milliseconds (RFC 3339).
fn rfc3339(time: SystemTime) -> String {
    // As in the text form: a clock set outside of jiff's years shows as 1970.
    let time = Timestamp::try_from(time).unwrap_or_default();
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// serde_json's compact form, with those characters escaped as well that a terminal would act on;
/// JSON itself asks for those below U+0020 only.
struct OneLine;

impl Formatter for OneLine {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| acts_on_terminal(*c)) {
            out.write_all(&rest.as_bytes()[..at])?;
            write!(out, "\\u{:04x}", u32::from(c))?; // all of them are below U+10000
            rest = &rest[at + c.len_utf8()..];
        }
        out.write_all(rest.as_bytes())
    }
}

/// An address or offset: `"0x55fca0"`.
struct Hex(u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

// The fields stand in the order in which they are written.
#[derive(Serialize)]
struct JsonReport<'a> {
    schema: u32,
    time: String,
    target: JsonTarget<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    processes: Option<Processes>,
    elapsed_ms: u64,
    cut_ns: u64,
    cut_within_ns: u64,
    #[serde(rename = "final")]
    is_final: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    sampled: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sample_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    margin_bytes: Option<u64>,
    totals: JsonTotals<'a>,
    lost: Lost,
    #[serde(skip_serializing_if = "Option::is_none")]
    suppressed: Option<Suppressed>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    oom_killed: Vec<JsonOomKilled>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    temporary: Vec<JsonTemporary<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<JsonWhy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cycles: Option<Vec<JsonCycle<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<Vec<JsonHeld<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why_of: Option<Vec<JsonAsked<'a>>>,
    stacks: Vec<JsonStack<'a>>,
}

#[derive(Serialize)]
struct JsonTarget<'a> {
    kind: &'a str,
    pids: &'a [u32],
    comm: &'a str,
}

impl<'a> From<&'a TargetInfo> for JsonTarget<'a> {
    fn from(target: &'a TargetInfo) -> Self {
        Self { kind: &target.kind, pids: &target.pids, comm: &target.comm }
    }
}

#[derive(Serialize)]
struct JsonTotals<'a> {
    #[serde(flatten)]
    all: Totals,
    by_resource: ByResource<'a>,
}

/// `{"heap":{"bytes":80,"count":5},"fd":{"bytes":0,"count":3}}`
struct ByResource<'a>(&'a [ResourceTotal]);

impl Serialize for ByResource<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Amount {
            bytes: u64,
            count: u64,
        }
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for ResourceTotal { resource, bytes, count } in self.0 {
            map.serialize_entry(&resource.name, &Amount { bytes: *bytes, count: *count })?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct JsonOomKilled {
    pid: u32,
    time: String,
}

impl From<&OomKilled> for JsonOomKilled {
    fn from(killed: &OomKilled) -> Self {
        Self { pid: killed.pid, time: rfc3339(killed.time) }
    }
}

#[derive(Serialize)]
struct JsonTemporary<'a> {
    released: u64,
    at_once: u64,
    bytes: u64,
    frames: Vec<JsonFrame<'a>>,
}

impl<'a> JsonTemporary<'a> {
    fn new(report: &'a Report, stack: &TemporaryStack) -> Self {
        let TemporaryStack { released, at_once, bytes, ref frames } = *stack;
        let frames = frames.iter().filter_map(|id| report.frames.get(*id)).map(JsonFrame::from).collect();
        Self { released, at_once, bytes, frames }
    }
}

#[derive(Serialize)]
struct JsonStack<'a> {
    resource: &'a str,
    bytes: u64,
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    margin_bytes: Option<u64>,
    oldest_ms: Option<u64>,
    newest_ms: Option<u64>,
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<&'static str>,
    stack_id: Option<String>,
    growth_bytes: i64,
    growth_count: i64,
    verdict: &'static str,
    verdict_reason: &'a str,
    #[serde(flatten)]
    calls: Option<JsonCalls>,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    process_counts: Option<&'a [ProcessCount]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    other_processes: Option<OtherProcesses>,
    #[serde(flatten)]
    tag: JsonTag<'a>,
    frames: Vec<JsonFrame<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<JsonClasses>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocations: Option<Vec<JsonAllocation<'a>>>,
}

impl<'a> JsonStack<'a> {
    fn new(report: &'a Report, stack: &'a StackReport) -> Self {
        let cut = stack.cut();
        let merged = stack.is_merged();
        let list = |list: &'a Vec<AllocationLine>| {
            list.iter().map(|allocation| JsonAllocation::new(report, allocation, merged)).collect()
        };
        Self {
            resource: &stack.resource.name,
            bytes: stack.bytes,
            count: stack.count,
            margin_bytes: stack.margin,
            oldest_ms: stack.oldest_ms,
            newest_ms: stack.newest_ms,
            truncated: cut.is_some(),
            cut: cut.map(cut_name),
            stack_id: stack.stack_id.map(|id| format!("{id:016x}")),
            growth_bytes: stack.growth_bytes,
            growth_count: stack.growth_count,
            verdict: stack.verdict.kind.name(),
            verdict_reason: &stack.verdict.reason,
            calls: stack.history.calls.as_ref().map(JsonCalls::from),
            pid: stack.pid(),
            process_counts: merged.then_some(&stack.processes),
            other_processes: (stack.others.processes > 0).then_some(stack.others),
            tag: JsonTag::from(stack.tag.as_ref()),
            frames: report.frames_of(stack).map(JsonFrame::from).collect(),
            now: stack.now(),
            why: stack.why.as_ref().map(JsonClasses::from),
            allocations: stack.allocations.as_ref().map(list),
        }
    }
}

/// What was counted of a stack since tracing began.
#[derive(Serialize)]
struct JsonCalls {
    acquired: u64,
    released: u64,
    bytes_acquired: u64,
    bytes_released: u64,
    lifetime: Lifetime,
}

/// How long what was released had been held; null if nothing was. Upper ends of the buckets in
/// which it was counted.
#[derive(Serialize)]
struct Lifetime {
    released_p50_ms: Option<u64>,
    released_p99_ms: Option<u64>,
    released_max_ms: Option<u64>,
}

impl From<&Calls> for JsonCalls {
    fn from(calls: &Calls) -> Self {
        Self {
            acquired: calls.acquired,
            released: calls.released,
            bytes_acquired: calls.bytes_acquired,
            bytes_released: calls.bytes_released,
            lifetime: Lifetime {
                released_p50_ms: calls.lifetime_ms(0.5),
                released_p99_ms: calls.lifetime_ms(0.99),
                released_max_ms: (calls.released > 0).then_some(calls.longest_ms),
            },
        }
    }
}

/// What the objects of a stack of the kernel's are, if it is known.
#[derive(Serialize)]
struct JsonTag<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<u8>,
}

impl<'a> From<Option<&'a Tag>> for JsonTag<'a> {
    fn from(tag: Option<&'a Tag>) -> Self {
        match tag {
            Some(Tag::Cache(name)) => Self { cache: Some(name), order: None },
            Some(Tag::Pages(order)) => Self { cache: None, order: Some(*order) },
            None => Self { cache: None, order: None },
        }
    }
}

fn cut_name(cut: Cut) -> &'static str {
    match cut {
        Cut::TooDeep => "too_deep",
        Cut::NoUnwindInformation => "no_unwind_information",
        Cut::Unsupported => "unsupported",
        Cut::Unreadable => "unreadable",
        Cut::NoProgress => "no_progress",
        Cut::UnknownStackPointer => "unknown_stack_pointer",
    }
}

#[derive(Serialize)]
struct JsonAllocation<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    address: Hex,
    size: u64,
    age_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'static str>,
}

impl<'a> JsonAllocation<'a> {
    fn new(report: &Report, allocation: &'a AllocationLine, names_process: bool) -> Self {
        let place = (allocation.pid, allocation.address);
        Self {
            pid: names_process.then_some(allocation.pid),
            address: Hex(allocation.address),
            size: allocation.size,
            age_ms: allocation.age_ms,
            now: allocation.now.as_deref(),
            why: report.why.as_deref().and_then(|why| why.allocations.get(&place)).map(|class| class.name()),
        }
    }
}

#[derive(Serialize)]
struct JsonFrame<'a> {
    ip: Hex,
    module: Option<&'a str>,
    offset: Option<Hex>,
    function: Option<&'a str>,
    symbol: Option<&'a str>,
    function_offset: Option<u64>,
    file: Option<&'a str>,
    line: Option<u32>,
    inlined: bool,
    no_symbol: Option<&'static str>,
}

impl<'a> From<&'a Frame> for JsonFrame<'a> {
    fn from(frame: &'a Frame) -> Self {
        Self {
            ip: Hex(frame.ip),
            module: frame.module.as_deref(),
            offset: frame.offset.map(Hex),
            function: frame.function.as_deref(),
            symbol: frame.symbol.as_deref(),
            function_offset: frame.function_offset,
            file: frame.file.as_deref(),
            line: frame.line,
            inlined: frame.inlined,
            no_symbol: frame.no_symbol.map(reason_name),
        }
    }
}

fn reason_name(reason: NoSymbol) -> &'static str {
    match reason {
        NoSymbol::Unmapped => "unmapped",
        NoSymbol::Anonymous => "anonymous",
        NoSymbol::Uncertain => "uncertain",
        NoSymbol::UnreadableObject => "unreadable_object",
        NoSymbol::NotInSymbolTable => "not_in_symbol_table",
    }
}

// The fields stand in the order in which they are written.
#[derive(Serialize)]
struct JsonEvent<'a> {
    event: &'static str,
    schema: u32,
    time: String,
    pid: u32,
    tid: u32,
    resource: &'a str,
    address: Hex,
    size: u64,
    #[serde(flatten)]
    tag: JsonTag<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comm: Option<&'a str>,
}
