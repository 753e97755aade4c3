//! One site in full: its stack with lines of sources, who holds it, and how long its blocks lived.

use ratatui::style::{Modifier, Style};

use super::{
    canvas::{BOLD, Canvas, DIM, PLAIN},
    rows::{Row, thread_name},
};
use crate::{
    escape::printable,
    report::{
        format::{
            html::stacks_in_processes,
            line::{columns, cut, wrap},
        },
        model::{ProcessCount, Report, ThreadCount},
        names::{is_library, module_name, name, place},
        source::lines_of,
    },
    symbolize::Frame,
    verdict::{Calls, VerdictKind},
    words::{BinaryBytes, Grouped, Span, counted},
};

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Bold,
    Dim,
    Verdict(VerdictKind),
}

/// A line.
#[derive(Clone, Debug)]
pub(super) struct DetailLine {
    pub(super) text: String,
    kind: Kind,
}

impl DetailLine {
    pub(super) fn style(&self, canvas: &Canvas<'_>) -> Style {
        match self.kind {
            Kind::Plain => PLAIN,
            Kind::Bold => BOLD,
            Kind::Dim => DIM,
            Kind::Verdict(verdict) => canvas.of_verdict(verdict).add_modifier(Modifier::BOLD),
        }
    }
}

/// Processes, and threads, that are listed.
const PARTS: usize = 8;

/// All lines of a row.
pub(super) fn detail(
    report: &Report,
    row: &Row,
    with_source: bool,
    full_names: bool,
    width: usize,
) -> Vec<DetailLine> {
    let mut lines = Vec::new();
    let mut line = |kind: Kind, text: String| lines.push(DetailLine { text, kind });
    let held = match row.has_size {
        true => format!("{} bytes in {}", Grouped(row.bytes), counted(row.count, "allocation")),
        false => format!("{} outstanding", Grouped(row.count)),
    };
    let resource = row.resource.as_ref().map_or_else(String::new, |name| format!("{}, ", printable(name)));
    line(Kind::Bold, format!("{}  {}", row.name, row.place));
    let stacks = stacks_in_processes(row.stacks as u64, row.processes.len() as u64);
    line(Kind::Plain, format!("{resource}{held}; {stacks}"));
    let verdict = format!("{}: {}", row.verdict.words(), row.reason);
    for part in wrap(&verdict, width.saturating_sub(2)) {
        line(Kind::Verdict(row.verdict), part);
    }
    line(Kind::Plain, String::new());
    let frame_at = |at: usize| row.frames.get(at).and_then(|id| report.frames.get(*id));
    // What is to be looked at first, above all that libraries do.
    let source = frame_at(row.own).filter(|_| with_source).map(source_lines).unwrap_or_default();
    if row.own > 0 && !source.is_empty() {
        source.into_iter().for_each(|text| line(Kind::Plain, text));
        line(Kind::Plain, String::new());
    }
    line(Kind::Bold, if row.stacks > 1 { "The largest of its stacks" } else { "Stack" }.to_owned());
    for (at, frame) in row.frames.iter().filter_map(|id| report.frames.get(*id)).enumerate() {
        line(frame_kind(frame, at == row.own), frame_line(frame, at == row.own, full_names, width));
        if with_source && !is_library(frame) {
            source_lines(frame).into_iter().for_each(|text| line(Kind::Dim, text));
        }
    }
    if row.frames.is_empty() {
        line(Kind::Dim, "  not known".to_owned());
    }
    parts(report, row).into_iter().for_each(|(kind, text)| line(kind, text));
    if let Some(calls) = &row.calls {
        lifetimes(calls, width).into_iter().for_each(|(kind, text)| line(kind, text));
    }
    lines
}

/// Which processes hold it, and which threads have acquired it, if there are several.
fn parts(report: &Report, row: &Row) -> Vec<(Kind, String)> {
    let process = |part: &ProcessCount| (part.pid.to_string(), part.bytes, part.count);
    let processes: Vec<_> = row.processes.iter().map(process).collect();
    let thread = |part: &ThreadCount| (thread_name(report, part.tid), part.bytes, part.count);
    let threads: Vec<_> = row.threads.iter().map(thread).collect();
    let mut lines = Vec::new();
    for (heading, parts) in [("Processes", processes), ("Threads", threads)] {
        if parts.len() < 2 {
            continue;
        }
        lines.extend([(Kind::Plain, String::new()), (Kind::Bold, heading.to_owned())]);
        for (name, bytes, count) in parts.iter().take(PARTS) {
            let held = format!("{} in {}", BinaryBytes(*bytes), counted(*count, "block"));
            lines.push((Kind::Plain, format!("  {name:>8}  {held}")));
        }
        let others = parts.len().saturating_sub(PARTS);
        lines.extend((others > 0).then(|| (Kind::Dim, format!("  and {} more", Grouped(others as u64)))));
    }
    lines
}

/// The line of a frame, marked, and those around it.
fn source_lines(frame: &Frame) -> Vec<String> {
    let line = |(number, text): (u32, String)| {
        let arrow = if Some(number) == frame.line { '>' } else { ' ' };
        format!("      {arrow}{number:5}  {}", printable(&text))
    };
    lines_of(frame).into_iter().map(line).collect()
}

fn frame_kind(frame: &Frame, is_own: bool) -> Kind {
    match (is_own, is_library(frame)) {
        (true, _) => Kind::Bold,
        (false, true) => Kind::Dim,
        (false, false) => Kind::Plain,
    }
}

fn frame_line(frame: &Frame, is_own: bool, full_names: bool, width: usize) -> String {
    let arrow = if is_own { "->" } else { "  " };
    let (shown, place) = (name(frame, full_names), place(frame));
    let module = match (&frame.module, place.starts_with('[')) {
        (Some(module), false) if frame.function.is_some() => format!("  {}", module_name(module)),
        _ => String::new(),
    };
    let inlined = if frame.inlined { " (inlined)" } else { "" };
    let room = width.saturating_sub(columns(&place) + 10);
    format!("{arrow} {}{inlined}  {place}{module}", cut(&shown, room.max(20)))
}

/// How many were released, and how soon.
fn lifetimes(calls: &Calls, width: usize) -> Vec<(Kind, String)> {
    let mut lines = vec![(Kind::Plain, String::new())];
    let (acquired, released) = (Grouped(calls.acquired), Grouped(calls.released));
    let longest = match calls.longest_ms {
        0 => String::new(),
        ms => format!(", the longest after {}", Span(ms)),
    };
    lines.push((Kind::Bold, format!("Lifetimes: {acquired} acquired, {released} released{longest}")));
    let (Some(first), Some(last)) = (
        calls.lifetimes.iter().position(|number| *number > 0),
        calls.lifetimes.iter().rposition(|number| *number > 0),
    ) else {
        return lines;
    };
    let most = calls.lifetimes.iter().copied().max().unwrap_or(0).max(1);
    let room = width.saturating_sub(34).min(60);
    for bucket in first..=last {
        let number = calls.lifetimes.get(bucket).copied().unwrap_or(0);
        let cells = u128::from(number) * room as u128 / u128::from(most);
        let bar = "█".repeat(usize::try_from(cells).unwrap_or(0).max(usize::from(number > 0)));
        let end = format!("< {}", Span(1 << bucket));
        lines.push((Kind::Plain, format!("  {end:>10}  {:>14}  {bar}", Grouped(number))));
    }
    lines
}
