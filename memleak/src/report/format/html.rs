//! One page that opens from disk and asks nothing of a network: a table of sites, totals over time,
//! a flame graph, sizes and ages, and what was lost.
//!
//! What the page shows stands in it as JSON; the page's own code (`html/page.html`) puts it there
//! as text, never as markup.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use jiff::tz::TimeZone;
use serde::Serialize;

use super::{
    Format, Kind, Options, human::who, kind::FileForm, lost::lost_line, memory, oom::oom_lines,
    path::responsible, text::suppressed,
};
use crate::{
    report::{
        call_sites::{CallSite, call_sites},
        model::{Report, SortKey},
        names::{is_library, module_name, name, place},
        source::lines_of,
    },
    symbolize::Frame,
    words::{BinaryBytes, Grouped, Span, counted},
};

/// `--html`.
pub const KIND: Kind = Kind { name: "html", has_events: false, new };

const PAGE: &str = include_str!("html/page.html");

fn new(options: &Options) -> Box<dyn Format> {
    FileForm::boxed(options, true, |report, options, out| write_html(report, options.style.with_source, out))
}

#[derive(Serialize)]
struct PageData<'a> {
    title: String,
    numbers: Vec<(&'static str, String)>,
    notes: Vec<PageNote>,
    moments: Vec<(u64, u64, u64)>,
    sizes: Vec<(u64, u64)>,
    ages: Vec<(u64, u64)>,
    frames: Vec<PageFrame>,
    sites: Vec<PageSite<'a>>,
}

#[derive(Serialize)]
struct PageNote {
    text: String,
    bad: bool,
}

#[derive(Serialize)]
struct PageFrame {
    name: String,
    full: String,
    place: String,
    module: String,
    library: bool,
    /// Lines of its source, with their numbers (`--with-source`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    source: Vec<(u32, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Serialize)]
struct PageSite<'a> {
    name: String,
    amount: u64,
    bytes: u64,
    count: u64,
    growth: i64,
    oldest: Option<u64>,
    verdict: &'static str,
    reason: &'a str,
    said: String,
    frames: Vec<usize>,
    own: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    lifetimes: Option<Vec<(u64, u64)>>,
}

/// Writes a report.
pub fn write_html(report: &Report, with_source: bool, out: &mut dyn Write) -> io::Result<()> {
    let tables = call_sites(report, SortKey::Size);
    let sites: Vec<&CallSite<'_>> = tables.iter().flat_map(|(_, sites)| sites).collect();
    let blocks = || report.stacks.iter().flat_map(|stack| &stack.blocks);
    let data = PageData {
        title: who(&report.target),
        numbers: numbers(report),
        notes: notes(report),
        moments: report.moments.iter().map(|moment| (moment.at_ms, moment.bytes, moment.count)).collect(),
        sizes: histogram(blocks().map(|block| block.size)),
        ages: histogram(blocks().map(|block| block.age_ms)),
        frames: report.frames.iter().map(|frame| page_frame(frame, with_source)).collect(),
        sites: sites.iter().map(|site| page_site(report, site)).collect(),
    };
    // The end of the element in which it stands would be an end anywhere in it.
    let json = serde_json::to_string(&data)?.replace('<', "\\u003c");
    let (before, after) = PAGE.split_once("@DATA@").unwrap_or((PAGE, ""));
    out.write_all(before.as_bytes())?;
    out.write_all(json.as_bytes())?;
    out.write_all(after.as_bytes())
}

fn numbers(report: &Report) -> Vec<(&'static str, String)> {
    let totals = report.totals;
    let mut numbers = vec![
        ("outstanding", BinaryBytes(totals.bytes).to_string()),
        ("blocks", Grouped(totals.count).to_string()),
        ("acquired", Grouped(totals.acquired).to_string()),
        ("released", Grouped(totals.released).to_string()),
        ("traced for", Span(report.elapsed_ms).to_string()),
    ];
    numbers.extend(report.memory.map(|memory| ("resident", BinaryBytes(memory.rss).to_string())));
    numbers
}

fn notes(report: &Report) -> Vec<PageNote> {
    let estimated = report.sampling.said();
    let known = report.suppressed.as_ref().map(|known| format!("suppressed: {}", suppressed(known)));
    let found = report.memory.as_ref().and_then(memory::finding);
    let oom = oom_lines(report, &TimeZone::system());
    let oom = oom.into_iter().map(|text| PageNote { text, bad: true });
    let plain = [estimated, known, found, report.if_empty.clone()];
    let notes = plain.into_iter().flatten().map(|text| PageNote { text, bad: false });
    oom.chain(notes).chain(lost_line(&report.lost).map(|text| PageNote { text, bad: true })).collect()
}

fn page_frame(frame: &Frame, with_source: bool) -> PageFrame {
    let library = is_library(frame);
    PageFrame {
        name: name(frame, false).into_owned(),
        full: name(frame, true).into_owned(),
        place: if frame.file.is_some() { place(frame) } else { String::new() },
        source: if with_source && !library { lines_of(frame) } else { Vec::new() },
        line: frame.line,
        module: frame.module.as_deref().map(module_name).unwrap_or_default(),
        library,
    }
}

fn page_site<'a>(report: &Report, site: &'a CallSite<'_>) -> PageSite<'a> {
    let ids = site.largest().map(|stack| stack.frames.as_slice()).unwrap_or_default();
    let frames: Vec<&Frame> = site.largest().into_iter().flat_map(|stack| report.frames_of(stack)).collect();
    let own = responsible(&frames);
    let (resource, tag) = site.largest().map_or_else(Default::default, |stack| {
        (stack.resource.name.clone(), stack.tag.as_ref().map_or_else(String::new, |tag| format!(" ({tag})")))
    });
    PageSite {
        name: frames
            .get(own)
            .map_or_else(|| "[unknown stack]".to_owned(), |frame| name(frame, false).into_owned()),
        amount: site.amount(),
        bytes: site.bytes,
        count: site.count,
        growth: site.growth_bytes,
        oldest: site.history.oldest_ms,
        verdict: site.verdict.kind.name(),
        reason: &site.verdict.reason,
        said: format!("{resource}{tag}; {}", stacks_in_processes(site.stacks.len() as u64, site.processes)),
        frames: ids.iter().map(|id| id.index()).collect(),
        own,
        lifetimes: site.history.calls.map(|calls| {
            calls.lifetimes.iter().enumerate().map(|(bucket, number)| (1 << bucket, *number)).collect()
        }),
    }
}

/// `2 stacks in 1 process`.
pub(crate) fn stacks_in_processes(stacks: u64, processes: u64) -> String {
    let processes = match processes {
        1 => "1 process".to_owned(),
        number => format!("{number} processes"),
    };
    format!("{} in {processes}", counted(stacks, "stack"))
}

/// How many numbers there are up to each power of two.
fn histogram(numbers: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut buckets: BTreeMap<u32, u64> = BTreeMap::new();
    for number in numbers {
        *buckets.entry(u64::BITS - number.saturating_sub(1).leading_zeros()).or_default() += 1;
    }
    let (Some(first), Some(last)) = (buckets.keys().next(), buckets.keys().next_back()) else {
        return Vec::new();
    };
    let end = |bucket: u32| 1u64.checked_shl(bucket).unwrap_or(u64::MAX);
    (*first..=*last).map(|bucket| (end(bucket), buckets.get(&bucket).copied().unwrap_or(0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_counted_by_powers_of_two() {
        assert_eq!(histogram([1, 2, 3, 4, 16].into_iter()), [(1, 1), (2, 1), (4, 2), (8, 0), (16, 1)]);
        assert_eq!(histogram([u64::MAX].into_iter()), [(u64::MAX, 1)]);
        assert_eq!(histogram(std::iter::empty()), []);
    }

    #[test]
    fn the_page_has_one_place_for_data_and_asks_for_nothing_else() {
        assert_eq!(PAGE.matches("@DATA@").count(), 1);
        assert!(!PAGE.contains("src=") && !PAGE.contains("href="));
        assert_eq!(PAGE.matches("http://").count(), PAGE.matches("http://www.w3.org/2000/svg").count());
        assert!(!PAGE.contains("innerHTML"));
    }
}
