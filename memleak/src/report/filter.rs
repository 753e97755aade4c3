//! Stacks that are left out of a report by what is in them: `--only`, `--hide`, `--suppressions`.

use regex_lite::Regex;

use super::{
    model::{Report, ResourceTotal, SortKey, StackReport, Suppressed},
    names::basename,
    suppressions::Suppressions,
};
use crate::symbolize::Frame;

/// What is left out.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Stacks without a frame like one of these.
    pub only: Vec<Pattern>,
    /// Frames like these: their stacks.
    pub hide: Vec<Pattern>,
    /// Known leaks.
    pub suppressions: Option<Suppressions>,
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        (&self.only, &self.hide, &self.suppressions) == (&other.only, &other.hide, &other.suppressions)
    }
}

impl Eq for Filter {}

/// A module's name, or a regular expression for functions.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl Pattern {
    /// As it was typed. An error says what is wrong with it, in one line.
    pub fn new(text: &str) -> Result<Self, String> {
        Regex::new(text).map(Self).map_err(|error| error.to_string().replace('\n', " "))
    }

    fn matches(&self, frame: &Frame) -> bool {
        let module = frame.module.as_deref();
        frame.function.as_deref().is_some_and(|function| self.0.is_match(function))
            || module.is_some_and(|module| {
                // The name of a file, as it is typed: not a part of another's.
                basename(module) == self.0.as_str() || module == self.0.as_str()
            })
    }
}

impl Filter {
    /// Nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.only.is_empty() && self.hide.is_empty() && self.suppressions.is_none()
    }

    /// Takes out of a report, all frames of which are known, what is to be left out. Sums are of
    /// what is left.
    pub fn apply(&self, report: &mut Report, sort: SortKey) {
        if self.is_empty() {
            return;
        }
        let stacks = std::mem::take(&mut report.stacks);
        let (mut kept, mut suppressed) = (Vec::with_capacity(stacks.len()), Suppressed::default());
        // Where each stack is among those that are kept, if it is.
        let mut places = Vec::with_capacity(stacks.len());
        for stack in stacks {
            places.push(None);
            let frames: Vec<&Frame> = report.frames_of(&stack).collect();
            let any = |patterns: &[Pattern]| {
                patterns.iter().any(|pattern| frames.iter().any(|frame| pattern.matches(frame)))
            };
            if !self.only.is_empty() && !any(&self.only) || any(&self.hide) {
                continue;
            }
            match &self.suppressions {
                Some(rules) if rules.suppress(stack.resource.resource, frames.iter().copied()) => {
                    suppressed.add(&stack)
                }
                _ => {
                    places.pop();
                    places.push(Some(kept.len()));
                    kept.push(stack);
                }
            }
        }
        if let Some(why) = &mut report.why {
            why.move_stacks(&places);
        }
        report.suppressed = self.suppressions.is_some().then_some(suppressed);
        report.stacks = kept;
        report.sum_up();
        report.sort(sort);
    }
}

impl Suppressed {
    fn add(&mut self, stack: &StackReport) {
        self.stacks += 1;
        self.bytes = self.bytes.saturating_add(stack.bytes);
        self.count = self.count.saturating_add(stack.count);
    }
}

impl Report {
    /// Sums over the stacks that are there.
    fn sum_up(&mut self) {
        let sum = |of: &mut dyn Iterator<Item = u64>| of.fold(0, u64::saturating_add);
        self.totals.bytes = sum(&mut self.stacks.iter().map(|stack| stack.bytes));
        self.totals.count = sum(&mut self.stacks.iter().map(|stack| stack.count));
        for ResourceTotal { resource, bytes, count } in &mut self.by_resource {
            let of_it = || self.stacks.iter().filter(|stack| stack.resource.resource == resource.resource);
            *bytes = sum(&mut of_it().map(|stack| stack.bytes));
            *count = sum(&mut of_it().map(|stack| stack.count));
        }
        if let Some(last) = self.moments.last_mut() {
            (last.bytes, last.count) = (self.totals.bytes, self.totals.count);
        }
    }

    /// Puts all stacks in order, table by table as they are.
    pub fn sort(&mut self, sort: SortKey) {
        let tables: Vec<_> = self.tables().map(|table| table.table()).collect();
        let place = |stack: &StackReport| tables.iter().position(|table| *table == stack.resource.table());
        let key = |stack: &StackReport| {
            let growth = if stack.resource.has_size { stack.growth_bytes } else { stack.growth_count };
            let first = match sort {
                SortKey::Size => 0,
                SortKey::Count => i128::from(stack.count),
                SortKey::Age => stack.oldest_ms.map_or(-1, i128::from),
                SortKey::Growth => i128::from(growth),
                SortKey::Verdict => -i128::from(stack.verdict.kind as u8),
            };
            std::cmp::Reverse((first, stack.bytes, stack.count))
        };
        // Stable: equal ones stay as the aggregation has put them.
        self.stacks.sort_by(|a, b| place(a).cmp(&place(b)).then_with(|| key(a).cmp(&key(b))));
    }
}
