//! A Perfetto trace as its heap profiler writes it (ui.perfetto.dev): a dump for each report that
//! is remembered, so that its time line shows growth.
//!
//! A trace is packets; names and stacks are interned, with numbers from 1. Stacks that have gone by
//! the last report are not in the earlier dumps. With `--why` the heap's blocks follow, as a heap
//! graph.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::{Format, Kind, Options, heap_graph::heap_graphs, kind::FileForm, protobuf::Message};
use crate::report::{
    model::{Report, StackReport},
    names::name,
};

/// `--perfetto`.
pub const KIND: Kind = Kind { name: "perfetto", has_events: false, new };

fn new(options: &Options) -> Box<dyn Format> {
    FileForm::boxed(options, false, |report, options, out| {
        write_perfetto(report, options.style.full_names, out)
    })
}

/// Clocks: what dumps are timed by, and what the trace's time is.
const MONOTONIC_COARSE: u64 = 4;
const BOOTTIME: u64 = 6;
/// All packets are of one writer.
const SEQUENCE: u64 = 1;

/// Writes a report.
pub fn write_perfetto(report: &Report, full_names: bool, out: &mut dyn Write) -> io::Result<()> {
    let began = report.cut_ns.saturating_sub(report.elapsed_ms.saturating_mul(1_000_000));
    let mut trace = Message::default();
    let mut clocks = Message::default();
    for clock in [MONOTONIC_COARSE, BOOTTIME] {
        let mut reading = Message::default();
        reading.number(1, clock).number(2, began);
        clocks.message(1, &reading);
    }
    let mut first = Message::default();
    first.message(6, &clocks).number(10, SEQUENCE).number(8, began);
    trace.message(1, &first);
    let mut second = Message::default();
    // 1: what was interned before is void.
    second.number(10, SEQUENCE).number(13, 1).number(8, began).message(12, &interned(report, full_names));
    trace.message(1, &second);
    // A report without a past is a moment as well.
    let mut moments: Vec<u64> = report
        .stacks
        .iter()
        .flat_map(|stack| stack.history.points.iter().map(|point| point.at_ms))
        .chain([report.elapsed_ms])
        .collect();
    moments.sort_unstable();
    moments.dedup();
    for (number, at_ms) in moments.iter().enumerate() {
        let time = began.saturating_add(at_ms.saturating_mul(1_000_000));
        let mut packet = Message::default();
        packet.number(10, SEQUENCE).number(8, time).message(37, &dump(report, *at_ms, began, number as u64));
        trace.message(1, &packet);
    }
    let time = began.saturating_add(report.elapsed_ms.saturating_mul(1_000_000));
    let graphs = report.why.iter().flat_map(|why| &why.objects);
    for graph in graphs.flat_map(heap_graphs) {
        let mut packet = Message::default();
        packet.number(10, SEQUENCE).number(8, time).message(56, &graph);
        trace.message(1, &packet);
    }
    out.write_all(trace.bytes())
}

/// All frames and stacks of the report.
fn interned(report: &Report, full_names: bool) -> Message {
    let mut message = Message::default();
    let mut text = |field: u64, iid: u64, text: &str| {
        let mut string = Message::default();
        string.number(1, iid).text(2, text);
        message.message(field, &string);
    };
    let mut modules: BTreeMap<&str, u64> = BTreeMap::new();
    for (number, frame) in report.frames.iter().enumerate() {
        text(5, number as u64 + 1, &name(frame, full_names));
        if let Some(file) = &frame.file {
            text(18, number as u64 + 1, file);
        }
        let next = modules.len() as u64 + 1;
        modules.entry(frame.module.as_deref().unwrap_or_default()).or_insert(next);
    }
    for (module, iid) in &modules {
        text(17, *iid, module);
        text(16, *iid, "");
    }
    for iid in modules.values() {
        let mut mapping = Message::default();
        mapping.number(1, *iid).number(2, *iid).numbers(7, [*iid]);
        message.message(19, &mapping);
    }
    for (number, frame) in report.frames.iter().enumerate() {
        let iid = number as u64 + 1;
        let module = modules.get(frame.module.as_deref().unwrap_or_default()).copied().unwrap_or(0);
        let mut place = Message::default();
        place.number(1, iid).number(2, iid).number(3, module).always(4, frame.offset.unwrap_or(frame.ip));
        if frame.file.is_some() {
            place.number(5, iid).number(6, frame.line.unwrap_or(0).into());
        }
        message.message(6, &place);
    }
    for (number, stack) in report.stacks.iter().enumerate() {
        let mut callstack = Message::default();
        callstack.number(1, number as u64 + 1);
        stack.frames.iter().rev().for_each(|id| {
            callstack.number(2, id.index() as u64 + 1);
        });
        message.message(7, &callstack);
    }
    message
}

/// What was outstanding at one moment: a heap for each resource.
fn dump(report: &Report, at_ms: u64, began: u64, index: u64) -> Message {
    let mut heaps: BTreeMap<&str, Vec<(u64, &StackReport)>> = BTreeMap::new();
    for (number, stack) in report.stacks.iter().enumerate() {
        heaps.entry(&stack.resource.name).or_default().push((number as u64 + 1, stack));
    }
    let mut packet = Message::default();
    for (resource, stacks) in heaps {
        let mut process = Message::default();
        process.number(1, report.target.pids.first().copied().unwrap_or(0).into());
        for (number, stack) in stacks {
            let point = stack.history.points.iter().find(|point| point.at_ms == at_ms);
            let now = (at_ms == report.elapsed_ms).then_some((stack.bytes, stack.count));
            let Some((bytes, count)) = now.or(point.map(|point| (point.bytes, point.count))) else {
                continue;
            };
            let mut sample = Message::default();
            sample.number(1, number).number(2, bytes).number(5, count);
            process.message(2, &sample);
        }
        let heap = if resource == "heap" { "libc.malloc" } else { resource };
        process.text(11, heap).number(9, began.saturating_add(at_ms.saturating_mul(1_000_000)));
        process.number(12, report.sampling.rate().max(report.sampling.bytes())).number(15, began);
        packet.message(5, &process);
    }
    packet.number(7, index);
    packet
}
