//! Two reports compared by the stable ids of their stacks: over restarts and machines.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
};

use serde::Serialize;

use crate::report::{
    condition::Facts,
    format::{
        Measure, Style, flamegraph::draw_difference, folded::fold_report, line::wrap, path::write_path,
    },
    model::{Report, StackReport},
};
use crate::words::{BinaryBytes, Grouped, GroupedChange, Span, counted};

/// Where what belongs to a heading begins.
const INDENT: usize = 4;

fn write_wrapped(text: &str, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let mut indent = 0;
    wrap(text, style.columns().saturating_sub(INDENT)).iter().try_for_each(|line| {
        let blanks = std::mem::replace(&mut indent, INDENT);
        writeln!(out, "{:blanks$}{line}", "")
    })
}

/// What one stack holds in two reports; nothing where it is not there.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    old: Option<&'a StackReport>,
    new: Option<&'a StackReport>,
}

impl Change<'_> {
    fn numbers(stack: Option<&StackReport>) -> (u64, u64) {
        stack.map_or((0, 0), |stack| (stack.bytes, stack.count))
    }

    /// Bytes and how many it has become more.
    pub fn growth(&self) -> (i128, i128) {
        let (old, new) = (Self::numbers(self.old), Self::numbers(self.new));
        (i128::from(new.0) - i128::from(old.0), i128::from(new.1) - i128::from(old.1))
    }

    /// Its first word is for scripts.
    fn heading(&self) -> String {
        let ((bytes, count), kind) = (self.growth(), self.kind());
        let held = |stack| {
            let (bytes, count) = Self::numbers(stack);
            format!("{} in {}", Grouped(bytes), Grouped(count))
        };
        let (old, new) = (held(self.old), held(self.new));
        format!("{bytes:+} bytes ({}): {kind}, {old} -> {new}", GroupedChange(count))
    }

    fn kind(&self) -> &'static str {
        match (self.old, self.new, self.growth()) {
            (None, ..) => "new",
            (_, None, _) => "gone",
            (.., (bytes, count)) if (bytes, count) == (0, 0) => "same",
            (.., (bytes, count)) if bytes > 0 || bytes == 0 && count > 0 => "grown",
            _ => "shrunk",
        }
    }
}

/// The comparison.
#[derive(Debug)]
pub struct Diff<'a> {
    old: &'a Report,
    new: &'a Report,
    /// What has changed most first; what has not changed is not there.
    pub changes: Vec<Change<'a>>,
}

#[derive(Serialize)]
struct JsonDiff {
    schema: u32,
    old: JsonSide,
    new: JsonSide,
    growth: JsonGrowth,
    stacks: Vec<JsonChange>,
}

#[derive(Serialize)]
struct JsonSide {
    elapsed_ms: u64,
    bytes: u64,
    count: u64,
}

#[derive(Serialize)]
struct JsonGrowth {
    bytes: i128,
    count: i128,
    new: usize,
    gone: usize,
}

#[derive(Serialize)]
struct JsonChange {
    stack_id: Option<String>,
    change: &'static str,
    resource: String,
    old_bytes: u64,
    new_bytes: u64,
    old_count: u64,
    new_count: u64,
    verdict: Option<&'static str>,
    functions: Vec<String>,
}

impl<'a> Diff<'a> {
    /// Compares.
    pub fn of(old: &'a Report, new: &'a Report) -> Self {
        // Of stacks that are not known there is one for each resource.
        let key = |stack: &'a StackReport| (stack.stack_id, stack.resource.name.as_str());
        let mut before: HashMap<_, &StackReport> =
            old.stacks.iter().map(|stack| (key(stack), stack)).collect();
        let mut changes: Vec<Change<'_>> = new
            .stacks
            .iter()
            .map(|stack| Change { old: before.remove(&key(stack)), new: Some(stack) })
            .collect();
        changes.extend(before.into_values().map(|stack| Change { old: Some(stack), new: None }));
        changes.retain(|change| change.growth() != (0, 0));
        changes.sort_by_key(|change| {
            let (bytes, count) = change.growth();
            let id = change.new.or(change.old).and_then(|stack| stack.stack_id);
            (std::cmp::Reverse((bytes, count)), id)
        });
        Self { old, new, changes }
    }

    fn growth(&self) -> (i128, i128) {
        let (old, new) = (self.old.totals, self.new.totals);
        (i128::from(new.bytes) - i128::from(old.bytes), i128::from(new.count) - i128::from(old.count))
    }

    fn number(&self, kind: &str) -> usize {
        self.changes.iter().filter(|change| change.kind() == kind).count()
    }

    /// For `--fail-if`.
    pub fn facts(&self) -> Facts {
        Facts { growth: self.growth().0, new: self.number("new") as u64, ..Facts::of_run(self.new) }
    }

    /// Writes what has changed, for people and scripts: a heading begins with the bytes, signed.
    pub fn write_text(&self, top: usize, style: Style, out: &mut dyn Write) -> io::Result<()> {
        write_wrapped(&self.heading(), style, out)?;
        for change in self.changes.iter().take(top) {
            write_wrapped(&change.heading(), style, out)?;
            let (report, stack) = match (change.new, change.old) {
                (Some(stack), _) => (self.new, stack),
                (None, Some(stack)) => (self.old, stack),
                (None, None) => continue,
            };
            let frames: Vec<_> = report.frames_of(stack).collect();
            write_path(&frames, stack.cut(), INDENT, style.columns(), style, out)?;
        }
        match self.changes.len().saturating_sub(top) {
            0 => Ok(()),
            more => writeln!(out, "{} more have changed (-T)", Grouped(more as u64)),
        }
    }

    /// What both hold in all, and by how much they differ.
    fn heading(&self) -> String {
        let (bytes, count) = self.growth();
        let sign = if bytes < 0 { '-' } else { '+' };
        let amount = BinaryBytes(u64::try_from(bytes.unsigned_abs()).unwrap_or(u64::MAX));
        let side = |report: &Report| {
            let Report { totals, elapsed_ms, .. } = report;
            let blocks = counted(totals.count, "block");
            format!("{} in {blocks} after {}", BinaryBytes(totals.bytes), Span(*elapsed_ms))
        };
        let kinds = ["new", "grown", "shrunk", "gone"];
        let kinds = kinds.map(|kind| format!("{} {kind}", Grouped(self.number(kind) as u64)));
        format!(
            "{}; {}: {sign}{amount} ({} blocks); stacks: {}",
            side(self.old),
            side(self.new),
            GroupedChange(count),
            kinds.join(", "),
        )
    }

    /// Writes one object with all that has changed.
    pub fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        let side = |report: &Report| JsonSide {
            elapsed_ms: report.elapsed_ms,
            bytes: report.totals.bytes,
            count: report.totals.count,
        };
        let (bytes, count) = self.growth();
        let change = |change: &Change<'_>| {
            let (old, new) = (Change::numbers(change.old), Change::numbers(change.new));
            let (report, stack) = match change.new {
                Some(stack) => (self.new, Some(stack)),
                None => (self.old, change.old),
            };
            JsonChange {
                stack_id: stack.and_then(|stack| stack.stack_id).map(|id| format!("{id:016x}")),
                change: change.kind(),
                resource: stack.map_or_else(String::new, |stack| stack.resource.name.clone()),
                old_bytes: old.0,
                new_bytes: new.0,
                old_count: old.1,
                new_count: new.1,
                verdict: change.new.map(|stack| stack.verdict.kind.name()),
                functions: stack
                    .into_iter()
                    .flat_map(|stack| report.frames_of(stack))
                    .map(|frame| crate::report::names::name(frame, true).into_owned())
                    .collect(),
            }
        };
        let diff = JsonDiff {
            schema: 1,
            old: side(self.old),
            new: side(self.new),
            growth: JsonGrowth { bytes, count, new: self.number("new"), gone: self.number("gone") },
            stacks: self.changes.iter().map(change).collect(),
        };
        serde_json::to_writer(&mut *out, &diff)?;
        out.write_all(b"\n")
    }

    /// Draws the new report as a flame graph, red where it has grown and blue where it has shrunk.
    pub fn draw(&self, full_names: bool, out: &mut dyn Write) -> io::Result<()> {
        let [old, new] = [self.old, self.new].map(|report| fold_report(report, Measure::Bytes, full_names));
        let mut lines: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (line, number) in &old {
            lines.entry(line).or_default().0 = *number;
        }
        for (line, number) in &new {
            lines.entry(line).or_default().1 = *number;
        }
        let lines: Vec<String> =
            lines.into_iter().map(|(line, (old, new))| format!("{line} {old} {new}")).collect();
        let title = format!("{}: growth between two reports", self.new.target.comm);
        draw_difference(&title, &lines, out)
    }
}
