//! Folded stacks: a line for each, `outermost;...;innermost NUMBER`, as flame graphs are made of
//! (flamegraph.pl, inferno, speedscope; <https://github.com/brendangregg/FlameGraph>).
//!
//! The number is bytes, or how many, if a resource has no size. Several tables are told apart by
//! a first frame, the resource's name. Only the last report is written, since readers add up lines
//! that are equal.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io::{self, Write},
};

use super::{Format, Kind, Occasion, Options, Scope};
use crate::{
    escape::printable,
    report::{
        model::{Report, StackReport},
        names::without_symbol,
    },
    symbolize::Frame,
};

/// `--format folded`.
pub const KIND: Kind = Kind { name: "folded", has_events: false, new };

/// What stands for the frames of a stack that is not known.
const UNKNOWN: &str = "[unknown stack]";

/// What stands for the callers that are missing.
const CUT: &str = "[cut]";

fn new(_: &Options) -> Box<dyn Format> {
    Box::new(FoldedFormat)
}

/// See the module.
#[derive(Debug)]
struct FoldedFormat;

impl Format for FoldedFormat {
    fn scope(&self) -> Scope {
        Scope::All
    }

    fn occasion(&self) -> Occasion {
        Occasion::Last
    }

    fn report(&self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        write_folded(report, out)
    }
}

/// Writes a report.
pub fn write_folded(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let several_tables = report.tables().count() > 1;
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for stack in &report.stacks {
        let number = if stack.resource.has_size { stack.bytes } else { stack.count };
        let sum = lines.entry(fold(report, stack, several_tables)).or_default();
        *sum = sum.saturating_add(number);
    }
    lines
        .iter()
        .filter(|(_, number)| **number > 0)
        .try_for_each(|(line, number)| writeln!(out, "{line} {number}"))
}

/// The line without its number.
fn fold(report: &Report, stack: &StackReport, names_resource: bool) -> String {
    let mut frames: Vec<Cow<'_, str>> = Vec::with_capacity(stack.frames.len() + 2);
    if names_resource {
        frames.push(printable(&stack.resource.name));
    }
    if stack.cut().is_some() {
        frames.push(CUT.into());
    }
    frames.extend(report.frames_of(stack).rev().map(name));
    if stack.frames.is_empty() {
        frames.push(UNKNOWN.into());
    }
    if let Some(tag) = &stack.tag {
        frames.push(printable(&tag.to_string()).into_owned().into());
    }
    // A semicolon is what separates frames; C++ has none in its names, but a file may be called
    // anything.
    let frames: Vec<String> = frames.iter().map(|frame| frame.replace(';', ":")).collect();
    frames.join(";")
}

/// A frame's function, or the place where one would be.
fn name(frame: &Frame) -> Cow<'_, str> {
    match &frame.function {
        Some(function) => printable(function),
        None => without_symbol(frame).into(),
    }
}
