//! heaptrack's data file (`heaptrack_print`, `heaptrack_gui`), version 2: what is still held, in
//! the order in which it was acquired, so that its chart shows how that has grown.
//!
//! Numbers are hexadecimal. What is listed of a stack are its blocks; what its numbers have beyond
//! (with sampling, or of processes that ended long ago) is written as blocks of equal sizes.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use super::{Format, Kind, Options, blocks::blocks_of, kind::FileForm};
use crate::{
    proc::PAGE_SIZE,
    report::{
        model::{FrameId, Report},
        names::without_symbol,
    },
    symbolize::Frame,
};

/// `--heaptrack`.
pub const KIND: Kind = Kind { name: "heaptrack", has_events: false, new };

fn new(options: &Options) -> Box<dyn Format> {
    FileForm::boxed(options, true, |report, _, out| write_heaptrack(report, out))
}

/// What has a number in the file; numbers begin at 1.
#[derive(Debug, Default)]
struct HeaptrackTables<'a> {
    strings: HashMap<String, usize>,
    frames: HashMap<&'a [FrameId], usize>,
    /// By frame and caller.
    traces: HashMap<(usize, usize), usize>,
    /// By size and trace; from 0.
    allocations: HashMap<(u64, usize), usize>,
}

/// Writes a report.
pub fn write_heaptrack(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    // The version of heaptrack that the form is of, and the form's.
    writeln!(out, "v 10400 2")?;
    writeln!(out, "X {}", one_line(&report.target.all()))?;
    writeln!(out, "I 1000 {:x}", 0)?;
    let mut tables = HeaptrackTables::default();
    let mut births = Vec::new();
    for stack in report.stacks.iter().filter(|stack| stack.resource.has_size) {
        let trace = tables.trace(report, &stack.frames, out)?;
        for block in blocks_of(stack) {
            births.push((report.elapsed_ms.saturating_sub(block.age_ms), trace, block.size));
        }
    }
    births.sort_unstable();
    // Attached: what was counted so far does not count.
    writeln!(out, "A")?;
    let mut last_ms = 0;
    for (at_ms, trace, size) in births {
        let next = tables.allocations.len();
        let allocation = *tables.allocations.entry((size, trace)).or_insert(next);
        if allocation == next {
            writeln!(out, "a {size:x} {trace:x}")?;
        }
        if at_ms > last_ms {
            writeln!(out, "c {at_ms:x}")?;
            last_ms = at_ms;
        }
        writeln!(out, "+ {allocation:x}")?;
    }
    writeln!(out, "c {:x}", report.elapsed_ms.max(last_ms))?;
    let rss = report.memory.map_or(0, |memory| memory.rss);
    writeln!(out, "R {:x}", rss / PAGE_SIZE)
}

/// A text that ends with its line.
fn one_line(text: &str) -> String {
    crate::escape::printable(text).into_owned()
}

impl<'a> HeaptrackTables<'a> {
    /// The number of a stack, callers first; what is new of it is written.
    fn trace(&mut self, report: &Report, frames: &'a [FrameId], out: &mut dyn Write) -> io::Result<usize> {
        let mut calls: Vec<&[FrameId]> = Vec::new();
        let mut rest = frames;
        while !rest.is_empty() {
            let is_last = |id: &FrameId| !report.frames.get(*id).is_some_and(|frame| frame.inlined);
            let (one, more) = rest.split_at(rest.iter().position(is_last).map_or(rest.len(), |at| at + 1));
            calls.push(one);
            rest = more;
        }
        if calls.is_empty() {
            calls.push(&[]);
        }
        let mut parent = 0;
        for call in calls.into_iter().rev() {
            let frame = self.frame(report, call, out)?;
            let next = self.traces.len() + 1;
            let trace = *self.traces.entry((frame, parent)).or_insert(next);
            if trace == next {
                writeln!(out, "t {frame:x} {parent:x}")?;
            }
            parent = trace;
        }
        Ok(parent)
    }

    /// The number of a call with what is inlined there, innermost first.
    fn frame(&mut self, report: &Report, call: &'a [FrameId], out: &mut dyn Write) -> io::Result<usize> {
        if let Some(id) = self.frames.get(call) {
            return Ok(*id);
        }
        let frames: Vec<&Frame> = call.iter().filter_map(|id| report.frames.get(*id)).collect();
        let last = frames.last();
        let module = self.string(last.and_then(|frame| frame.module.as_deref()).unwrap_or_default(), out)?;
        let mut line = format!("i {:x} {module:x}", last.map_or(0, |frame| frame.ip));
        if frames.is_empty() {
            line += &format!(" {:x}", self.string("[unknown stack]", out)?);
        }
        for frame in &frames {
            let name = frame.function.clone().unwrap_or_else(|| without_symbol(frame));
            line += &format!(" {:x}", self.string(&name, out)?);
            let place = frame.file.as_deref().zip(frame.line);
            // Of those within others each has all three.
            if place.is_some() || frames.len() > 1 {
                let (file, number) = place.unwrap_or_default();
                line += &format!(" {:x} {number:x}", self.string(file, out)?);
            }
        }
        writeln!(out, "{line}")?;
        let id = self.frames.len() + 1;
        self.frames.insert(call, id);
        Ok(id)
    }

    /// The number of a text; 0 of none.
    fn string(&mut self, text: &str, out: &mut dyn Write) -> io::Result<usize> {
        let text = one_line(text);
        if text.is_empty() {
            return Ok(0);
        }
        let next = self.strings.len() + 1;
        if let Some(id) = self.strings.get(&text) {
            return Ok(*id);
        }
        writeln!(out, "s {text}")?;
        self.strings.insert(text, next);
        Ok(next)
    }
}
