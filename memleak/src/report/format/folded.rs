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

use super::{Format, Kind, Measure, Options, kind::FileForm};
use crate::{
    escape::printable,
    report::{
        model::{Report, StackReport},
        names::name,
    },
};

/// `--format folded`.
pub const KIND: Kind = Kind { name: "folded", has_events: false, new };

/// What stands for the frames of a stack that is not known.
const UNKNOWN: &str = "[unknown stack]";

/// What stands for the callers that are missing.
const CUT: &str = "[cut]";

fn new(options: &Options) -> Box<dyn Format> {
    FileForm::boxed(options, false, |report, _, out| write_folded(report, out))
}

/// Writes a report.
pub fn write_folded(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    fold_report(report, Measure::Bytes, true)
        .iter()
        .try_for_each(|(line, number)| writeln!(out, "{line} {number}"))
}

/// The lines of a report with their numbers, without those that are nothing.
pub fn fold_report(report: &Report, measure: Measure, full_names: bool) -> BTreeMap<String, u64> {
    let several_tables = report.tables().count() > 1;
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for stack in &report.stacks {
        let sum = lines.entry(fold(report, stack, several_tables, full_names)).or_default();
        *sum = sum.saturating_add(measure.of(stack));
    }
    lines.retain(|_, number| *number > 0);
    // Who draws them adds them up; a saved report may say anything.
    let most = u64::MAX / (lines.len() as u64).max(1);
    lines.values_mut().for_each(|number| *number = (*number).min(most));
    lines
}

/// The line without its number.
fn fold(report: &Report, stack: &StackReport, names_resource: bool, full_names: bool) -> String {
    let mut frames: Vec<Cow<'_, str>> = Vec::with_capacity(stack.frames.len() + 2);
    if names_resource {
        frames.push(printable(&stack.resource.name));
    }
    if stack.cut().is_some() {
        frames.push(CUT.into());
    }
    frames.extend(report.frames_of(stack).rev().map(|frame| name(frame, full_names)));
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
