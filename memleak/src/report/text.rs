//! The text form (spec section 2), which scripts written for bcc's memleak read.
//!
//! Every line that is no stack's heading begins with something that is no plain integer, and only a stack's heading
//! and what stands above a stack begin with exactly one tab.

use std::{
    collections::HashSet,
    fmt,
    io::{self, Write},
    time::SystemTime,
};

use jiff::{Timestamp, tz::TimeZone};

use super::{AllocationLine, Report, StackReport};
use crate::{
    escape::printable,
    probe::resource::ResourceInfo,
    settings::ReportSettings,
    snapshot::{Cut, KERNEL_PID, Lost},
    symbolize::{Frame, NoSymbol},
};

/// What the text form depends on besides the report.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// How many stacks were asked for (`-T`): the K of the heading, as in bcc's.
    pub top: usize,
    /// Whose time of day the heading shows.
    pub time_zone: TimeZone,
}

impl TextOptions {
    /// The settings' options, in the system's time zone (`TZ` or /etc/localtime; UTC where neither can be read).
    pub fn new(settings: &ReportSettings) -> Self {
        Self { top: settings.top, time_zone: TimeZone::system() }
    }

    /// Time of day in `format` (strftime(3)).
    pub(super) fn time_of_day(&self, time: SystemTime, format: &str) -> String {
        // A clock set outside of jiff's years -9999 to 9999 shows as 1970.
        let time = Timestamp::try_from(time).unwrap_or_default();
        time.to_zoned(self.time_zone.clone()).strftime(format).to_string()
    }
}

/// Writes a report.
pub fn write_text(report: &Report, options: &TextOptions, out: &mut dyn Write) -> io::Result<()> {
    let time = options.time_of_day(report.time, "%H:%M:%S");
    // bcc's form has no place for the process; with one process it needs none.
    let first_pid = report.target.pids.first().copied();
    let several =
        report.target.pids.len() > 1 || report.stacks.iter().any(|stack| Some(stack.pid) != first_pid);
    for (number, (unit, stacks)) in tables(report).into_iter().enumerate() {
        write!(out, "[{time}] Top {} stacks with outstanding {}", options.top, printable(unit))?;
        match report.sampled {
            Some(rate) => writeln!(out, " (estimated from 1 in {rate}):")?,
            None => writeln!(out, ":")?,
        }
        if number == 0 {
            write_lost(&report.lost, out)?;
        }
        for stack in stacks {
            write_stack(stack, several && stack.pid != KERNEL_PID, out)?;
        }
    }
    Ok(())
}

/// The tables of a report, each with what it counts and its stacks: that of memory as bcc's memleak has it, and one for
/// each other resource.
fn tables(report: &Report) -> Vec<(&str, Vec<&StackReport>)> {
    let traced = report.by_resource.iter().map(|total| &total.resource);
    let mut seen = HashSet::new();
    let first_of_tables = traced.filter(|resource| seen.insert(resource.table()));
    let tables = first_of_tables.map(|resource| {
        let is_in = |stack: &&StackReport| stack.resource.table() == resource.table();
        (resource.unit.as_str(), report.stacks.iter().filter(is_in).collect())
    });
    tables.collect()
}

/// One line that says how much of what was lost and what to do about it; none where nothing was.
fn write_lost(lost: &Lost, out: &mut dyn Write) -> io::Result<()> {
    let ways = [
        (lost.allocations, "allocation", "table full: raise --max-allocs, or trace fewer with -z or -s"),
        (lost.stacks, "stack", "counted, but where is not known: raise --stack-storage-size"),
        (
            lost.events.saturating_sub(lost.trace_lines),
            "control event",
            "mmap totals may be too high: report more often",
        ),
        (lost.trace_lines, "line", "of -t not printed: write to a file with --output"),
        (lost.missed_returns, "return", "what these calls acquired is not counted: tracing anew may help"),
        (
            lost.skipped_runs,
            "program run",
            "skipped by the kernel, numbers may be off: trace fewer with -z or -s",
        ),
        (lost.cut_stacks, "stack", "known in part: the line behind its last frame says why"),
    ];
    let parts: Vec<String> = ways
        .iter()
        .filter(|(number, ..)| *number > 0)
        .map(|(number, what, remedy)| {
            format!("{number} {what}{} ({remedy})", if *number == 1 { "" } else { "s" })
        })
        .collect();
    if parts.is_empty() { Ok(()) } else { writeln!(out, "\tlost: {}", parts.join(", ")) }
}

fn write_stack(stack: &StackReport, names_process: bool, out: &mut dyn Write) -> io::Result<()> {
    for allocation in stack.allocations.iter().flatten() {
        write_allocation(allocation, &stack.resource, out)?;
    }
    match stack.resource.has_size {
        true => write!(out, "\t{} bytes in {} allocations from stack", stack.bytes, stack.count)?,
        false => write!(out, "\t{} outstanding from stack", stack.count)?,
    }
    match &stack.label {
        Some(label) => writeln!(out, " ({})", printable(label))?,
        None => writeln!(out)?,
    }
    if names_process {
        writeln!(out, "\t\t[process {}]", stack.pid)?;
    }
    if let Some(now) = &stack.now {
        match stack.oldest_ms {
            Some(ms) => writeln!(out, "\t\t[now: {}; open for {ms} ms at most]", printable(now))?,
            None => writeln!(out, "\t\t[now: {}]", printable(now))?,
        }
    }
    if stack.frames.is_empty() {
        let why = match stack.resource.is_descriptor {
            true => "stack not known: received in a message, or made by io_uring or another process",
            false => "stack not recorded: raise --stack-storage-size",
        };
        writeln!(out, "\t\t[{why}]")?;
    }
    write_frames(&stack.frames, out)?;
    match stack.cut {
        None => Ok(()),
        Some(cut) => writeln!(out, "\t\t(cut: {})", why_cut(cut, stack.frames.last())),
    }
}

/// One line of `-a`: `addr = 0x1000 size = 16 age = 900 ms`; where there is no size, `handle = 5 age = 900 ms`.
fn write_allocation(
    allocation: &AllocationLine,
    resource: &ResourceInfo,
    out: &mut dyn Write,
) -> io::Result<()> {
    let AllocationLine { address, size, age_ms, now } = allocation;
    match resource.has_size {
        true => write!(out, "\taddr = {} size = {size} age = {age_ms} ms", Handle(*address, resource))?,
        false => write!(out, "\thandle = {} age = {age_ms} ms", Handle(*address, resource))?,
    }
    match now {
        Some(now) => writeln!(out, " now = {}", printable(now)),
        None => writeln!(out),
    }
}

/// A handle as people know it: a descriptor is a decimal number, an address a hexadecimal one.
pub(super) struct Handle<'a>(pub u64, pub &'a ResourceInfo);

impl fmt::Display for Handle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1.is_number {
            true => write!(f, "{}", self.0),
            false => write!(f, "{:#x}", self.0),
        }
    }
}

/// Why callers are missing behind the last frame.
fn why_cut(cut: Cut, last: Option<&Frame>) -> String {
    let place = match last.and_then(|frame| frame.module.as_deref()) {
        Some(module) => bracketed(module),
        None => "code of no file".to_owned(),
    };
    match cut {
        Cut::TooDeep => "deeper than --max-depth".to_owned(),
        Cut::NoUnwindInformation => format!("no unwind information in {place}"),
        Cut::Unsupported => format!("unwind information of an unknown kind in {place}"),
        Cut::Unreadable => format!("stack not readable in {place}"),
        Cut::NoProgress => format!("unwind information or stack damaged in {place}"),
    }
}

/// One line a frame.
pub(super) fn write_frames(frames: &[Frame], out: &mut dyn Write) -> io::Result<()> {
    frames.iter().try_for_each(|frame| write_frame(frame, out))
}

fn write_frame(frame: &Frame, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "\t\t0x{:016x}\t", frame.ip)?;
    let module = frame.module.as_deref().map(bracketed);
    let Some(function) = &frame.function else {
        return match (module, frame.offset) {
            (Some(module), Some(offset)) => writeln!(out, "{module}+{offset:#x}"),
            (Some(module), None) => writeln!(out, "{module}"),
            (None, _) => writeln!(out, "[unknown]{}", why_unknown(frame.no_symbol)),
        };
    };
    write!(out, "{}", printable(function))?;
    match frame.function_offset {
        // The offset is that of the function that this one was inlined into: beside this name it would mislead.
        _ if frame.inlined => write!(out, " (inlined)")?,
        Some(offset) => write!(out, "+{offset:#x}")?,
        None => {}
    }
    match (frame.file.as_deref().map(basename), frame.line) {
        (Some(file), Some(line)) => write!(out, " at {}:{line}", printable(file))?,
        (Some(file), None) => write!(out, " at {}", printable(file))?,
        (None, _) => {}
    }
    match module {
        Some(module) => writeln!(out, " {module}"),
        None => writeln!(out),
    }
}

fn why_unknown(reason: Option<NoSymbol>) -> &'static str {
    match reason {
        Some(NoSymbol::Unmapped) => " (nothing is mapped there)",
        Some(NoSymbol::Anonymous) => " (no file is mapped there: code made at run time?)",
        Some(NoSymbol::UnreadableObject | NoSymbol::NotInSymbolTable) | None => "",
    }
}

/// `[libc.so.6]` for a path; a module that is no path has its brackets already (`[vdso]`).
fn bracketed(module: &str) -> String {
    let name = printable(basename(module));
    if name.starts_with('[') && name.ends_with(']') { name.into_owned() } else { format!("[{name}]") }
}

/// What follows the last slash; all of it where nothing does.
fn basename(path: &str) -> &str {
    match path.rsplit('/').next() {
        Some(name) if !name.is_empty() => name,
        _ => path,
    }
}
