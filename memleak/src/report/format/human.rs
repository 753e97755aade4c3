//! The form for people, at a terminal: what is responsible first, no addresses, nothing wider than
//! the terminal. Its details may change; scripts read the other forms.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    io::{self, Write},
    iter,
};

use super::{
    Format, Kind, Options, Scope, SplitBy,
    blocks::blocks_of,
    clock::time_of_day,
    line::{Look, TextLine, columns, wrap},
    lost::lost_line,
    memory,
    oom::oom_lines,
    path::write_path,
    summary::summary,
    text::{estimated, suppressed, temporary_line, write_allocation, write_event},
    why::write_why,
};
use crate::{
    account::Memory,
    escape::printable,
    report::{
        call_sites::{CallSite, call_sites},
        model::{Note, Report, TargetInfo},
        trace::EventLine,
    },
    snapshot::KERNEL_PID,
    verdict::VerdictKind,
    words::{BinaryBytes, Grouped, Span, counted},
};

/// `--format human`.
pub const KIND: Kind = Kind { name: "human", has_events: true, new };

fn new(options: &Options) -> Box<dyn Format> {
    Box::new(Human(options.clone()))
}

/// See the module.
#[derive(Debug)]
struct Human(Options);

impl Format for Human {
    fn scope(&self) -> Scope {
        // What is put together may be outside of the top.
        Scope::All
    }

    fn needs_blocks(&self) -> bool {
        matches!(self.0.split_by, Some(SplitBy::Size))
    }

    fn needs_threads(&self) -> bool {
        matches!(self.0.split_by, Some(SplitBy::Thread))
    }

    fn report(&self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        write_human(report, &self.0, out)
    }

    fn event(&self, event: &EventLine, out: &mut dyn Write) -> io::Result<()> {
        write_event(event, &self.0, out)
    }
}

/// What lines look like.
#[derive(Clone, Copy)]
struct Screen<'a> {
    options: &'a Options,
    width: usize,
}

impl Screen<'_> {
    fn line(&self, line: &TextLine, out: &mut dyn Write) -> io::Result<()> {
        line.write(self.width, self.options.style.color, out)
    }

    /// A table's heading, and what the top ones hold of it: below if there is no room.
    fn heading(&self, heading: String, of_all: Option<String>, out: &mut dyn Write) -> io::Result<()> {
        let line =
            [Some(heading.clone()), of_all.clone()].into_iter().flatten().collect::<Vec<_>>().join(" ");
        if columns(&line) <= self.width {
            return self.text(&line, 0, Look::Plain, out);
        }
        self.text(&heading, 0, Look::Plain, out)?;
        of_all.map_or(Ok(()), |said| self.text(&said, INDENT, Look::Plain, out))
    }

    /// Text in as many lines as it needs, after `indent` blanks.
    fn text(&self, text: &str, indent: usize, look: Look, out: &mut dyn Write) -> io::Result<()> {
        wrap(text, self.width.saturating_sub(indent)).iter().try_for_each(|part| {
            let mut line = TextLine::default();
            line.push(Look::Plain, " ".repeat(indent)).push(look, part.as_str());
            self.line(&line, out)
        })
    }
}

/// Writes a report.
pub fn write_human(report: &Report, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let screen = Screen { options, width: options.style.columns() };
    let tables = call_sites(report, options.sort);
    write_header(report, screen, out)?;
    writeln!(out)?;
    let time = time_of_day(report.time, &options.time_zone, "%H:%M:%S");
    for (table, sites) in &tables {
        let estimated = estimated(report);
        let unit = printable(&table.unit);
        let heading = format!("[{time}] Top {} stacks with outstanding {unit}{estimated}:", options.top);
        let all = sites.iter().map(CallSite::amount).fold(0, u64::saturating_add);
        let shown = sites.iter().take(options.top).map(CallSite::amount).fold(0, u64::saturating_add);
        let of_all = match sites.len() > options.top {
            true => Some(format!("{}, of {}", percent(shown, all), counted(sites.len() as u64, "site"))),
            false => None,
        };
        screen.heading(heading, of_all, out)?;
        if sites.is_empty() {
            let said = report.if_empty.as_deref().unwrap_or("nothing is outstanding");
            screen.text(&printable(said), INDENT, Look::Plain, out)?;
        }
        for site in sites.iter().take(options.top) {
            write_site(report, site, all, screen, out)?;
        }
    }
    write_temporary(report, screen, &time, out)?;
    if let Some(why) = &report.why {
        let mut lines = Vec::new();
        write_why(why, &mut lines)?;
        for line in String::from_utf8_lossy(&lines).lines() {
            let words = line.trim_start();
            screen.text(words, line.len() - words.len(), Look::Plain, out)?;
        }
    }
    // What follows is the next report, or the shell's prompt.
    if report.is_final && !options.summary {
        return Ok(());
    }
    writeln!(out)?;
    if report.is_final {
        summary(report).iter().try_for_each(|line| screen.text(line, 0, Look::Plain, out))?;
    }
    Ok(())
}

/// The stacks whose allocations were released at once.
fn write_temporary(report: &Report, screen: Screen<'_>, time: &str, out: &mut dyn Write) -> io::Result<()> {
    if report.temporary.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    screen.text(&format!("[{time}] Stacks of temporary allocations:"), 0, Look::Plain, out)?;
    for stack in &report.temporary {
        screen.text(&temporary_line(stack), INDENT, Look::Bold, out)?;
        let frames: Vec<_> = stack.frames.iter().filter_map(|id| report.frames.get(*id)).collect();
        write_path(&frames, None, INDENT, screen.width, screen.options.style, out)?;
    }
    Ok(())
}

/// What is traced, what it holds in all, and what its memory is.
fn write_header(report: &Report, screen: Screen<'_>, out: &mut dyn Write) -> io::Result<()> {
    let totals = report.totals;
    let mut line = format!(
        "{}, traced for {}: {} in {}",
        printable(&who(&report.target)),
        Span(report.elapsed_ms),
        BinaryBytes(totals.bytes),
        counted(totals.count, "block"),
    );
    if let Some(rate) = rate(report) {
        line += &format!(", {rate}");
    }
    screen.text(&line, 0, Look::Plain, out)?;
    let released = match totals.acquired {
        0 => "nothing was acquired".to_owned(),
        acquired => format!("{} of {} released", percent(totals.released, acquired), Grouped(acquired)),
    };
    let memory = report.memory.as_ref().map(account).into_iter().chain([released]);
    screen.text(&memory.collect::<Vec<_>>().join("; "), 0, Look::Plain, out)?;
    if let Some(known) = &report.suppressed {
        screen.text(&format!("suppressed: {}", suppressed(known)), 0, Look::Dim, out)?;
    }
    for line in oom_lines(report, &screen.options.time_zone) {
        screen.text(&line, 0, Look::Bad, out)?;
    }
    if let Some(lost) = lost_line(&report.lost) {
        screen.text(&lost, 0, Look::Warning, out)?;
    }
    report
        .memory
        .as_ref()
        .and_then(memory::finding)
        .map_or(Ok(()), |found| screen.text(&found, 0, Look::Bold, out))
}

/// `wordcount (4711)`, `nginx (12 and 3 more processes)`, `kernel`.
pub(super) fn who(target: &TargetInfo) -> String {
    let comm = &target.comm;
    match target.pids.as_slice() {
        [] => comm.clone(),
        [pid] => format!("{comm} ({pid})"),
        [first, _] => format!("{comm} ({first} and 1 more process)"),
        [first, others @ ..] => {
            format!("{comm} ({first} and {} more processes)", Grouped(others.len() as u64))
        }
    }
}

/// `memory 9.8 MiB, +1.6 MiB: all accounted for`.
pub(crate) fn account(memory: &Memory) -> String {
    /// A few pages are what two readings differ by.
    const LITTLE: u64 = 16_384;
    let sign = if memory.rss_growth < 0 { '-' } else { '+' };
    let (rss, growth) = (BinaryBytes(memory.rss), BinaryBytes(memory.rss_growth.unsigned_abs()));
    let rest = match memory.unaccounted {
        0..=LITTLE => "all accounted for".to_owned(),
        bytes => format!("{} not accounted for", BinaryBytes(bytes)),
    };
    format!("memory {rss}, {sign}{growth}: {rest}")
}

/// What became more of the whole, a minute, since the report before; `None` in the first report.
pub(crate) fn rate(report: &Report) -> Option<String> {
    let [.., before, now] = report.moments.as_slice() else { return None };
    let ms = now.at_ms.checked_sub(before.at_ms).filter(|ms| *ms > 0)?;
    let a_minute = |now: u64, before: u64| i128::from(now.abs_diff(before)) * 60_000 / i128::from(ms);
    let bytes = u64::try_from(a_minute(now.bytes, before.bytes)).unwrap_or(u64::MAX);
    let sign = if now.bytes < before.bytes { '-' } else { '+' };
    Some(format!("{sign}{}/min", BinaryBytes(bytes)))
}

/// `99.9 %`, and 100 % only if it is all.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole.max(1));
    match tenths {
        _ if part >= whole => "100 %".to_owned(),
        _ => format!("{}.{} %", tenths / 10, tenths % 10),
    }
}

fn look_of(kind: VerdictKind) -> Look {
    match kind {
        VerdictKind::Leak => Look::Bad,
        VerdictKind::Growing => Look::Warning,
        VerdictKind::Cache | VerdictKind::InUse | VerdictKind::Temporary => Look::Good,
        VerdictKind::Unknown => Look::Dim,
    }
}

/// One site: what it holds, what that is, and who is responsible.
fn write_site(
    report: &Report,
    site: &CallSite<'_>,
    all: u64,
    screen: Screen<'_>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let (Some(stack), Some(resource)) = (site.largest(), site.resource()) else { return Ok(()) };
    let share = percent(site.amount(), all);
    let held = match resource.has_size {
        true => format!("{} bytes in {} allocations", site.bytes, site.count),
        false => format!("{} outstanding", site.count),
    };
    let tag =
        stack.tag.as_ref().map_or_else(String::new, |tag| format!(" ({})", printable(&tag.to_string())));
    let mut line = TextLine::default();
    line.push(Look::Dim, bar(site.amount(), all)).push(Look::Bold, format!("{share:>7}"));
    // Numbers are not cut: what has no room there is below.
    let mut below = Vec::new();
    for part in iter::once(format!("{held}{tag}")).chain(growth(report, site, resource.has_size)) {
        match below.is_empty() && line.columns() + 2 + columns(&part) <= screen.width {
            true => _ = line.push(Look::Plain, format!("  {part}")),
            false => below.push(part),
        }
    }
    screen.line(&line, out)?;
    below.iter().try_for_each(|part| screen.text(part, INDENT, Look::Plain, out))?;
    let verdict = format!("{}: {}{}", site.verdict.kind.words(), site.verdict.reason, parts(report, site));
    screen.text(&verdict, INDENT, look_of(site.verdict.kind), out)?;
    for line in site_parts(report, site, screen.options.split_by) {
        screen.text(&line, INDENT, Look::Plain, out)?;
    }
    for stack in &site.stacks {
        for allocation in stack.allocations.iter().flatten() {
            let mut text = Vec::new();
            write_allocation(allocation, stack, &mut text)?;
            screen.text(String::from_utf8_lossy(&text).trim(), INDENT, Look::Dim, out)?;
        }
    }
    for note in &stack.notes {
        match note {
            Note::Now(now) => screen.text(&format!("now: {}", printable(now)), INDENT, Look::Plain, out)?,
            Note::WaitedInAccept => {
                screen.text("was waiting in accept when tracing began", INDENT, Look::Plain, out)?;
            }
            // Said at the end of the path.
            Note::Cut(_) => {}
        }
    }
    let frames: Vec<_> = report.frames_of(stack).collect();
    write_path(&frames, stack.cut(), INDENT, screen.width, screen.options.style, out)
}

/// What the parts of a site hold, those that hold most, a line each.
fn site_parts(report: &Report, site: &CallSite<'_>, by: Option<SplitBy>) -> Vec<String> {
    /// Lines at most.
    const MOST: usize = 8;
    let mut parts: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut add = |key: u64, bytes: u64, count: u64| {
        let sum = parts.entry(key).or_default();
        *sum = (sum.0.saturating_add(bytes), sum.1.saturating_add(count));
    };
    match by {
        Some(SplitBy::Process) => {
            let processes = site.stacks.iter().flat_map(|stack| &stack.processes);
            processes.for_each(|process| add(process.pid.into(), process.bytes, process.count));
        }
        Some(SplitBy::Thread) => {
            for stack in &site.stacks {
                let threads = report.threads_of(stack);
                threads.iter().for_each(|thread| add(thread.tid.into(), thread.bytes, thread.count));
            }
        }
        Some(SplitBy::Size) => {
            site.stacks
                .iter()
                .flat_map(|stack| blocks_of(stack))
                .for_each(|block| add(block.size, block.size, 1));
        }
        None => {}
    }
    let mut parts: Vec<_> = parts.into_iter().collect();
    parts.sort_by_key(|(key, amount)| (Reverse(*amount), *key));
    let (others, all) = (parts.len().saturating_sub(MOST), site.amount());
    let has_size = site.resource().is_some_and(|resource| resource.has_size);
    let line = |(key, (bytes, count)): (u64, (u64, u64))| {
        let share = percent(if has_size { bytes } else { count }, all);
        match by {
            Some(SplitBy::Size) => format!("{share:>7}  {} of {} each", Grouped(count), BinaryBytes(key)),
            Some(SplitBy::Thread) => {
                let held = format!("{} in {}", BinaryBytes(bytes), counted(count, "block"));
                format!("{share:>7}  {}: {held}", thread_name(report, key))
            }
            _ => format!("{share:>7}  process {key}: {} in {}", BinaryBytes(bytes), counted(count, "block")),
        }
    };
    let mut lines: Vec<String> = parts.into_iter().take(MOST).map(line).collect();
    lines.extend((others > 0).then(|| format!("         and {} more", Grouped(others as u64))));
    lines
}

/// `thread 4711 (worker)`; 0 stands for one that is not known.
fn thread_name(report: &Report, number: u64) -> String {
    let name = u32::try_from(number).ok().and_then(|number| report.threads.get(&number));
    match (number, name) {
        (0, _) => "thread not known".to_owned(),
        (_, Some(name)) => format!("thread {number} ({})", printable(name)),
        (_, None) => format!("thread {number}"),
    }
}

/// Where what belongs to a site begins.
const INDENT: usize = 6;

/// Its share as a bar of five blocks.
fn bar(part: u64, whole: u64) -> String {
    const CELLS: u128 = 5;
    let filled = (u128::from(part) * CELLS * 2 + u128::from(whole)) / (2 * u128::from(whole.max(1)));
    let filled = usize::try_from(filled.min(CELLS)).unwrap_or(0);
    format!("{:5}", "#".repeat(filled))
}

/// `+524288 bytes (+2), 7.5 MiB/h`: since the report before; `None` in the first report, and if
/// nothing has changed.
fn growth(report: &Report, site: &CallSite<'_>, has_size: bool) -> Option<String> {
    let [.., before, now] = report.moments.as_slice() else { return None };
    if (site.growth_bytes, site.growth_count) == (0, 0) {
        return None;
    }
    if !has_size {
        return Some(format!("{:+}", site.growth_count));
    }
    let ms = u128::from(now.at_ms.saturating_sub(before.at_ms).max(1));
    let an_hour = u128::from(site.growth_bytes.unsigned_abs()) * 3_600_000 / ms;
    let sign = if site.growth_bytes < 0 { '-' } else { '+' };
    Some(format!(
        "{:+} bytes ({:+}), {sign}{}/h",
        site.growth_bytes,
        site.growth_count,
        BinaryBytes(u64::try_from(an_hour).unwrap_or(u64::MAX))
    ))
}

/// What is put together here: `  (3 stacks in 2 processes)`; nothing if it is one of the one
/// process.
fn parts(report: &Report, site: &CallSite<'_>) -> String {
    let stacks = match site.stacks.len() {
        1 => None,
        stacks => Some(format!("{stacks} stacks")),
    };
    let processes = match (site.processes, site.largest().map(|stack| stack.pid())) {
        (2.., _) => Some(format!("in {} processes", site.processes)),
        (_, Some(pid)) if pid != KERNEL_PID && report.target.pids.len() > 1 => Some(format!("process {pid}")),
        _ => None,
    };
    match (stacks, processes) {
        (None, None) => String::new(),
        (one, other) => {
            let parts: Vec<String> = one.into_iter().chain(other).collect();
            format!("  ({})", parts.join(" "))
        }
    }
}
