//! The text forms of metrics that Prometheus reads: 0.0.4, and OpenMetrics 1.0.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    time::UNIX_EPOCH,
};

use super::{Published, PublishedProcess};
use crate::{
    report::{
        format::path::responsible,
        model::{Report, StackReport},
        names::{basename, name},
    },
    snapshot::{KERNEL_PID, Lost},
    symbolize::Frame,
};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TextForm {
    /// `text/plain; version=0.0.4`.
    Plain,
    /// `application/openmetrics-text; version=1.0.0`.
    Open,
}

impl TextForm {
    /// What a client would rather have.
    pub fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::Open } else { Self::Plain }
    }

    /// For the header `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
            Self::Open => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Series of single stacks, at least: so many of those that hold most.
const STACKS: usize = 20;

/// Bytes of a site's name in a label, at most.
const SITE_LENGTH: usize = 200;

/// What a value does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
    Info,
}

/// A family of series, written at its end.
struct MetricsPage {
    form: TextForm,
    text: String,
}

/// A label's name and value.
type Label = (&'static str, String);

/// Labels and a value.
type Sample<'a> = (&'a [Label], f64);

impl MetricsPage {
    fn family<'a>(&mut self, name: &str, kind: Kind, help: &str, samples: impl Iterator<Item = Sample<'a>>) {
        let mut samples = samples.peekable();
        if samples.peek().is_none() {
            return;
        }
        // OpenMetrics gives a family's name without the ending of its series.
        let family = match (self.form, kind) {
            (TextForm::Open, Kind::Counter) => name.trim_end_matches("_total"),
            (TextForm::Open, Kind::Info) => name.trim_end_matches("_info"),
            _ => name,
        };
        let kind = match (self.form, kind) {
            (_, Kind::Counter) => "counter",
            (TextForm::Open, Kind::Info) => "info",
            (_, Kind::Gauge | Kind::Info) => "gauge",
        };
        let _ = writeln!(self.text, "# HELP {family} {help}\n# TYPE {family} {kind}");
        for (labels, value) in samples {
            self.text.push_str(name);
            for (at, (label, value)) in labels.iter().enumerate() {
                let before = if at == 0 { '{' } else { ',' };
                let _ = write!(self.text, "{before}{label}=\"{}\"", Escaped(value));
            }
            let end = if labels.is_empty() { "" } else { "}" };
            let _ = writeln!(self.text, "{end} {value}");
        }
    }

    fn single(&mut self, name: &str, kind: Kind, help: &str, value: f64) {
        self.family(name, kind, help, [(&[][..], value)].into_iter());
    }
}

/// A label's value: `\`, `"` and line ends are escaped, and control characters are no text.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                c if c.is_control() => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The whole page. `top`: series of single stacks. `more`: counters of those who serve, with help.
pub fn page(published: Option<&Published>, form: TextForm, top: usize, more: &[(&str, &str, u64)]) -> String {
    let mut page = MetricsPage { form, text: String::with_capacity(16 << 10) };
    let version = [("version", env!("CARGO_PKG_VERSION").to_owned())];
    let sample = [(&version[..], 1.0)].into_iter();
    page.family("memleak_build_info", Kind::Info, "The version that runs.", sample);
    if let Some(published) = published {
        totals(&mut page, published);
        processes(&mut page, published);
        stacks(&mut page, &published.report, top.max(STACKS));
        lost(&mut page, &published.report.lost);
        programs(&mut page, published);
    }
    for (name, help, value) in more {
        page.single(name, Kind::Counter, help, *value as f64);
    }
    if form == TextForm::Open {
        page.text.push_str("# EOF\n");
    }
    page.text
}

fn totals(page: &mut MetricsPage, published: &Published) {
    let report = &published.report;
    if let Some(bytes) = published.allocated_bytes {
        let help = "Bytes acquired since tracing began, at least.";
        page.single("memleak_allocated_bytes_total", Kind::Counter, help, bytes as f64);
    }
    let totals = &report.totals;
    let help = "Acquires since tracing began.";
    page.single("memleak_allocations_total", Kind::Counter, help, totals.acquired as f64);
    let help = "Releases since tracing began of what was seen to be acquired.";
    page.single("memleak_releases_total", Kind::Counter, help, totals.released as f64);
    let time = report.time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let help = "When the report was made that these numbers are of.";
    page.single("memleak_last_report_timestamp_seconds", Kind::Gauge, help, time);
}

/// What processes hold of each resource.
fn processes(page: &mut MetricsPage, published: &Published) {
    let mut held: BTreeMap<(u32, &str), (u64, u64)> = BTreeMap::new();
    for process in published.processes.iter().filter(|process| process.resident.is_some()) {
        for total in &published.report.by_resource {
            held.insert((process.pid, &total.resource.name), (0, 0));
        }
    }
    for stack in &published.report.stacks {
        for process in &stack.processes {
            let sum = held.entry((process.pid, &stack.resource.name)).or_default();
            sum.0 = sum.0.saturating_add(process.bytes);
            sum.1 = sum.1.saturating_add(process.count);
        }
    }
    let names = CommandNames::of(&published.processes);
    let rows: Vec<([Label; 3], u64, u64)> = held
        .into_iter()
        .map(|((pid, resource), (bytes, count))| {
            let labels =
                [("pid", pid.to_string()), ("comm", names.of_pid(pid)), ("resource", resource.to_owned())];
            (labels, bytes, count)
        })
        .collect();
    let help = "Bytes acquired and not released, by process and resource.";
    let samples = rows.iter().map(|(labels, bytes, _)| (&labels[..], *bytes as f64));
    page.family("memleak_outstanding_bytes", Kind::Gauge, help, samples);
    let help = "What was acquired and not released, by process and resource.";
    let samples = rows.iter().map(|(labels, _, count)| (&labels[..], *count as f64));
    page.family("memleak_outstanding_allocations", Kind::Gauge, help, samples);
    let resident: Vec<([Label; 1], u64)> = published
        .processes
        .iter()
        .filter_map(|process| Some(([("pid", process.pid.to_string())], process.resident?)))
        .collect();
    let samples = resident.iter().map(|(labels, bytes)| (&labels[..], *bytes as f64));
    page.family(
        "memleak_target_resident_bytes",
        Kind::Gauge,
        "Bytes in memory of a traced process.",
        samples,
    );
}

/// Command names by process.
struct CommandNames<'a>(BTreeMap<u32, &'a str>);

impl<'a> CommandNames<'a> {
    fn of(processes: &'a [PublishedProcess]) -> Self {
        Self(processes.iter().map(|process| (process.pid, process.comm.as_str())).collect())
    }

    fn of_pid(&self, pid: u32) -> String {
        let of_kernel = if pid == KERNEL_PID { "kernel" } else { "" };
        (*self.0.get(&pid).unwrap_or(&of_kernel)).to_owned()
    }
}

/// The stacks that hold most, each for each of its processes.
fn stacks(page: &mut MetricsPage, report: &Report, top: usize) {
    let mut held: Vec<(u64, u64, u32, &StackReport)> = report
        .stacks
        .iter()
        .filter(|stack| stack.stack_id.is_some() && stack.resource.has_size)
        .flat_map(|stack| stack.processes.iter().map(move |of| (of.bytes, of.count, of.pid, stack)))
        .collect();
    held.sort_by_key(|(bytes, count, pid, stack)| {
        (std::cmp::Reverse((*bytes, *count)), *pid, stack.stack_id)
    });
    // Two stacks of one id and process would be one series twice.
    let mut seen = std::collections::HashSet::new();
    held.retain(|(.., pid, stack)| seen.insert((*pid, stack.stack_id, stack.resource.resource)));
    held.truncate(top);
    let labels: Vec<[Label; 4]> = held
        .iter()
        .map(|(.., pid, stack)| {
            let id = format!("{:016x}", stack.stack_id.unwrap_or_default());
            [
                ("pid", pid.to_string()),
                ("resource", stack.resource.name.clone()),
                ("stack", id),
                ("site", site(report, stack)),
            ]
        })
        .collect();
    let samples = labels.iter().zip(&held).map(|(labels, (bytes, ..))| (&labels[..], *bytes as f64));
    let help = "Bytes that a stack holds: those that hold most.";
    page.family("memleak_stack_outstanding_bytes", Kind::Gauge, help, samples);
    // A stack's history is of all its processes together: with one alone it is that one's.
    let growth = labels.iter().zip(&held).filter_map(|(labels, (.., stack))| {
        let alone = !stack.is_merged();
        alone.then(|| growth_per_second(stack)).flatten().map(|growth| (&labels[..], growth))
    });
    let help = "Bytes a second by which a stack of one process has grown over the last half of the run.";
    page.family("memleak_stack_growth_bytes_per_second", Kind::Gauge, help, growth);
}

/// The slope over the later half of what is known of it.
fn growth_per_second(stack: &StackReport) -> Option<f64> {
    let points = &stack.history.points;
    let last = points.last()?;
    let first = points.iter().find(|point| point.at_ms >= last.at_ms / 2).filter(|first| *first != last)?;
    let seconds = last.at_ms.checked_sub(first.at_ms).filter(|ms| *ms > 0)? as f64 / 1000.0;
    Some((last.bytes as f64 - first.bytes as f64) / seconds)
}

/// The responsible function and its place: `leaky leak.c:20`.
fn site(report: &Report, stack: &StackReport) -> String {
    let frames: Vec<&Frame> = report.frames_of(stack).collect();
    let Some(frame) = frames.get(responsible(&frames)) else { return String::new() };
    let mut site = name(frame, false).into_owned();
    if let (Some(file), Some(line)) = (&frame.file, frame.line) {
        let _ = write!(site, " {}:{line}", basename(file));
    }
    match site.char_indices().nth(SITE_LENGTH) {
        Some((end, _)) => site[..end].to_owned(),
        None => site,
    }
}

fn lost(page: &mut MetricsPage, lost: &Lost) {
    let reasons = [
        ("allocations", lost.allocations),
        ("stacks", lost.stacks),
        ("events", lost.events),
        ("processes", lost.processes),
        ("moved", lost.moved),
        ("missed_returns", lost.missed_returns),
        ("skipped_runs", lost.skipped_runs),
        ("mass_releases", lost.mass_releases),
    ];
    let rows: Vec<([Label; 1], u64)> =
        reasons.map(|(reason, number)| ([("reason", reason.to_owned())], number)).into();
    let samples = rows.iter().map(|(labels, number)| (&labels[..], *number as f64));
    page.family("memleak_lost_total", Kind::Counter, "What was not seen, by the way of its loss.", samples);
}

fn programs(page: &mut MetricsPage, published: &Published) {
    let labels: Vec<[Label; 1]> =
        published.programs.iter().map(|program| [("probe", program.name.clone())]).collect();
    let both = || labels.iter().zip(&published.programs);
    let samples = both().map(|(labels, program)| (&labels[..], program.time.as_secs_f64()));
    let help = "Time in our BPF programs, without the traps.";
    page.family("memleak_probe_run_seconds_total", Kind::Counter, help, samples);
    let samples = both().map(|(labels, program)| (&labels[..], program.runs as f64));
    page.family("memleak_probe_hits_total", Kind::Counter, "Runs of our BPF programs.", samples);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let text = Escaped("a\\b\"c\nd\u{1b}[0m").to_string();
        assert_eq!(text, "a\\\\b\\\"c\\nd\u{fffd}[0m");
    }

    #[test]
    fn before_the_first_report_there_is_the_version() {
        let text = page(None, TextForm::Plain, 20, &[("memleak_push_failed_total", "Pushes.", 3)]);
        assert!(text.starts_with("# HELP memleak_build_info "), "{text}");
        assert!(text.ends_with("# TYPE memleak_push_failed_total counter\nmemleak_push_failed_total 3\n"));
        let text = page(None, TextForm::Open, 20, &[("memleak_push_failed_total", "Pushes.", 3)]);
        assert!(text.contains("# TYPE memleak_push_failed counter\nmemleak_push_failed_total 3\n"), "{text}");
        assert!(
            text.contains("# TYPE memleak_build info\nmemleak_build_info{version=")
                && text.ends_with("# EOF\n")
        );
    }

    #[test]
    fn openmetrics_is_written_if_it_is_asked_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
        assert_eq!(TextForm::accepted(prometheus), TextForm::Open);
        assert_eq!(TextForm::accepted("*/*"), TextForm::Plain);
    }
}
