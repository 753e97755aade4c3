//! The text form, which scripts written for bcc's memleak read.
//!
//! Every line that is not a stack's heading begins with something that is not a plain integer, and
//! only a stack's heading and what stands above a stack begin with exactly one tab.

use std::{
    fmt,
    io::{self, Write},
    time::SystemTime,
};

use jiff::{Timestamp, tz::TimeZone};

use super::{
    Format, Kind, Options,
    memory::write_memory,
    why::{write_classes, write_why},
};
use crate::{
    escape::printable,
    probe::resource::ResourceInfo,
    report::{
        model::{AllocationLine, Note, ProcessCount, Report, StackReport},
        trace::EventLine,
    },
    snapshot::{Cut, KERNEL_PID, Lost},
    symbolize::{Frame, NoSymbol},
};

/// `--format text`.
pub const KIND: Kind = Kind { name: "text", has_events: true, new };

fn new(options: &Options) -> Box<dyn Format> {
    Box::new(Text(options.clone()))
}

/// See the module.
#[derive(Debug)]
struct Text(Options);

impl Format for Text {
    fn report(&self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        write_text(report, &self.0, out)
    }

    fn event(&self, event: &EventLine, out: &mut dyn Write) -> io::Result<()> {
        write_event(event, &self.0, out)
    }
}

/// Time of day in `format` (strftime(3)).
fn time_of_day(time: SystemTime, zone: &TimeZone, format: &str) -> String {
    // A clock set outside of jiff's years -9999 to 9999 shows as 1970.
    let time = Timestamp::try_from(time).unwrap_or_default();
    time.to_zoned(zone.clone()).strftime(format).to_string()
}

/// Writes a report.
pub fn write_text(report: &Report, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let time = time_of_day(report.time, &options.time_zone, "%H:%M:%S");
    // bcc's form has no place for the process; with one process it needs none.
    let first_pid = report.target.pids.first().copied();
    let several =
        report.target.pids.len() > 1 || report.stacks.iter().any(|stack| Some(stack.pid()) != first_pid);
    for (number, table) in report.tables().enumerate() {
        write!(out, "[{time}] Top {} stacks with outstanding {}", options.top, printable(&table.unit))?;
        match report.sampled {
            Some(rate) => writeln!(out, " (estimated from 1 in {rate}):")?,
            None => writeln!(out, ":")?,
        }
        if number == 0 {
            write_lost(&report.lost, out)?;
            if let Some(said) = report.if_empty.as_deref().filter(|_| report.stacks.is_empty()) {
                writeln!(out, "\t{}", printable(said))?;
            }
            report.memory.iter().try_for_each(|memory| write_memory(memory, out))?;
        }
        for stack in report.top(options.top).filter(|stack| stack.resource.table() == table.table()) {
            write_stack(report, stack, several && stack.pid() != KERNEL_PID, out)?;
        }
    }
    report.why.as_deref().map_or(Ok(()), |why| write_why(why, out))
}

/// Writes `[HH:MM:SS.mmm] PID/TID acquire heap 0x7f12 128 bytes` or, if there is no size,
/// `... acquire fd 5`. In kernel mode what is known of cache and thread follows the bytes:
/// `(kmalloc-128) by nginx`; the idle process, on which interrupts run, is `kernel`.
pub fn write_event(event: &EventLine, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "[{}] ", time_of_day(event.time, &options.time_zone, "%H:%M:%S%.3f"))?;
    match event.pid {
        KERNEL_PID => write!(out, "kernel")?,
        pid => write!(out, "{pid}")?,
    }
    write!(
        out,
        "/{} {} {} {}",
        event.tid,
        event.kind.name(),
        event.resource.name,
        ShownHandle(event.address, &event.resource),
    )?;
    if event.resource.has_size {
        write!(out, " {} bytes", event.size)?;
    }
    if let Some(tag) = &event.tag {
        write!(out, " ({})", printable(&tag.to_string()))?;
    }
    if let Some(comm) = &event.comm {
        write!(out, " by {}", printable(comm))?;
    }
    writeln!(out)
}

/// One line that says how much of what was lost and what to do about it; none if nothing was.
fn write_lost(lost: &Lost, out: &mut dyn Write) -> io::Result<()> {
    let ways = [
        (lost.allocations, "allocation", "table full: raise --max-allocs, or trace fewer with -z or -s"),
        (lost.stacks, "stack", "counted, but their stacks are unknown: raise --stack-storage-size"),
        (
            lost.events.saturating_sub(lost.trace_lines),
            "control event",
            "mmap totals may be too high: report more often",
        ),
        (lost.trace_lines, "line", "of -t not printed: write to a file with --output"),
        (
            lost.processes,
            "process",
            "not traced, or not from their beginning: what they acquired then is missing",
        ),
        (lost.moved, "moving record", "missing from one of the reports: trace fewer with -z or -s"),
        (lost.missed_returns, "return", "allocations by these calls are missing: restart the trace"),
        (
            lost.skipped_runs,
            "program run",
            "skipped by the kernel, numbers may be off: trace fewer with -z or -s",
        ),
        (
            lost.mass_releases,
            "mass release",
            "mi_heap_destroy, arena.N.reset or their like: the blocks that they freed are still listed",
        ),
        (lost.cut_stacks, "stack", "truncated: see the line after the last frame"),
    ];
    let parts: Vec<String> = ways
        .iter()
        .filter(|(number, ..)| *number > 0)
        .map(|(number, what, remedy)| {
            let plural = match what.ends_with('s') {
                _ if *number == 1 => "",
                true => "es",
                false => "s",
            };
            format!("{number} {what}{plural} ({remedy})")
        })
        .collect();
    if parts.is_empty() { Ok(()) } else { writeln!(out, "\tlost: {}", parts.join(", ")) }
}

fn write_stack(
    report: &Report,
    stack: &StackReport,
    names_process: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    for allocation in stack.allocations.iter().flatten() {
        write_allocation(allocation, stack, out)?;
    }
    match stack.resource.has_size {
        true => write!(out, "\t{} bytes in {} allocations from stack", stack.bytes, stack.count)?,
        false => write!(out, "\t{} outstanding from stack", stack.count)?,
    }
    match &stack.tag {
        Some(tag) => writeln!(out, " ({})", printable(&tag.to_string()))?,
        None => writeln!(out)?,
    }
    if names_process && !stack.is_merged() {
        writeln!(out, "\t\t[process {}]", stack.pid())?;
    }
    stack.notes.iter().try_for_each(|note| write_note_above(note, stack, out))?;
    write_classes(stack, out)?;
    if stack.frames.is_empty() {
        let why = match stack.resource.is_descriptor {
            true if stack.notes.contains(&Note::WaitedInAccept) => {
                "stack not known: was waiting in accept when tracing began"
            }
            true => "stack not known: received in a message, or made by io_uring or another process",
            false => "stack not recorded: raise --stack-storage-size",
        };
        writeln!(out, "\t\t[{why}]")?;
    }
    report.frames_of(stack).try_for_each(|frame| write_frame(frame, out))?;
    let last = report.frames_of(stack).next_back();
    stack.notes.iter().try_for_each(|note| write_note_below(note, last, out))?;
    if stack.is_merged() { write_processes(stack, out) } else { Ok(()) }
}

/// One line that says which process holds how much of it.
fn write_processes(stack: &StackReport, out: &mut dyn Write) -> io::Result<()> {
    /// Processes named, those that hold most.
    const NAMED: usize = 8;
    let amount = |bytes: u64, count: u64| match stack.resource.has_size {
        true => format!("{bytes} bytes in {count}"),
        false => count.to_string(),
    };
    let others = &stack.others;
    write!(out, "\t\t(in {} processes", stack.processes.len() as u64 + others.processes)?;
    let mut separator = ": ";
    for process in stack.processes.iter().take(NAMED) {
        write!(out, "{separator}{} holds {}", process.pid, amount(process.bytes, process.count))?;
        separator = ", ";
    }
    let rest = stack.processes.get(NAMED..).unwrap_or_default();
    let more = rest.len() as u64 + others.processes;
    if more > 0 {
        let sum = |of: fn(&ProcessCount) -> u64| rest.iter().map(of).fold(0, u64::saturating_add);
        let (bytes, count) = (sum(|process| process.bytes), sum(|process| process.count));
        let amount = amount(bytes.saturating_add(others.bytes), count.saturating_add(others.count));
        write!(out, ", {more} more hold {amount}")?;
    }
    writeln!(out, ")")
}

/// What stands between a stack's heading and its frames.
fn write_note_above(note: &Note, stack: &StackReport, out: &mut dyn Write) -> io::Result<()> {
    match (note, stack.oldest_ms) {
        (Note::Now(now), Some(ms)) => {
            writeln!(out, "\t\t[now: {}; open for {ms} ms at most]", printable(now))
        }
        (Note::Now(now), None) => writeln!(out, "\t\t[now: {}]", printable(now)),
        (Note::Cut(_) | Note::WaitedInAccept, _) => Ok(()),
    }
}

/// What follows a stack's frames, of which `last` is the last.
fn write_note_below(note: &Note, last: Option<&Frame>, out: &mut dyn Write) -> io::Result<()> {
    match note {
        Note::Cut(cut) => writeln!(out, "\t\t(cut: {})", why_cut(*cut, last)),
        Note::Now(_) | Note::WaitedInAccept => Ok(()),
    }
}

/// One line of `-a`: `addr = 0x1000 size = 16 age = 900 ms`; if there is no size,
/// `handle = 5 age = 900 ms`. Where several processes hold the stack `process = 123` follows.
fn write_allocation(allocation: &AllocationLine, stack: &StackReport, out: &mut dyn Write) -> io::Result<()> {
    let AllocationLine { pid, address, size, age_ms, now } = allocation;
    let resource = &stack.resource;
    match resource.has_size {
        true => write!(out, "\taddr = {} size = {size} age = {age_ms} ms", ShownHandle(*address, resource))?,
        false => write!(out, "\thandle = {} age = {age_ms} ms", ShownHandle(*address, resource))?,
    }
    if stack.is_merged() {
        write!(out, " process = {pid}")?;
    }
    match now {
        Some(now) => writeln!(out, " now = {}", printable(now)),
        None => writeln!(out),
    }
}

/// A handle as people know it: a descriptor is a decimal number, an address a hexadecimal one.
struct ShownHandle<'a>(u64, &'a ResourceInfo);

impl fmt::Display for ShownHandle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1.is_number {
            true => write!(f, "{}", self.0),
            false => write!(f, "{:#x}", self.0),
        }
    }
}

/// Why callers are missing after the last frame.
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

/// One line for a frame.
fn write_frame(frame: &Frame, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "\t\t0x{:016x}\t", frame.ip)?;
    let Some(function) = &frame.function else {
        return writeln!(out, "{}", frame_without_symbol(frame));
    };
    write!(out, "{}", printable(function))?;
    match frame.function_offset {
        // The offset is that of the function that this one was inlined into: beside this name it
        // would mislead.
        _ if frame.inlined => write!(out, " (inlined)")?,
        Some(offset) => write!(out, "+{offset:#x}")?,
        None => {}
    }
    match (frame.file.as_deref().map(basename), frame.line) {
        (Some(file), Some(line)) => write!(out, " at {}:{line}", printable(file))?,
        (Some(file), None) => write!(out, " at {}", printable(file))?,
        (None, _) => {}
    }
    match frame.module.as_deref().map(bracketed) {
        Some(module) => writeln!(out, " {module}"),
        None => writeln!(out),
    }
}

/// What a frame is called that has no function: `[libfoo.so]+0x1234`.
pub(super) fn frame_without_symbol(frame: &Frame) -> String {
    match (frame.module.as_deref().map(bracketed), frame.offset) {
        (Some(module), Some(offset)) => format!("{module}+{offset:#x}"),
        (Some(module), None) => module,
        (None, _) => format!("[unknown]{}", why_unknown(frame.no_symbol)),
    }
}

fn why_unknown(reason: Option<NoSymbol>) -> &'static str {
    match reason {
        Some(NoSymbol::Unmapped) => " (nothing is mapped there)",
        Some(NoSymbol::Anonymous) => " (no file is mapped there: code made at run time?)",
        Some(NoSymbol::Uncertain) => " (what was mapped there then was not seen in time)",
        Some(NoSymbol::UnreadableObject | NoSymbol::NotInSymbolTable) | None => "",
    }
}

/// `[libc.so.6]` for a path; a module that is not a path has its brackets already (`[vdso]`).
fn bracketed(module: &str) -> String {
    let name = printable(basename(module));
    if name.starts_with('[') && name.ends_with(']') { name.into_owned() } else { format!("[{name}]") }
}

/// What follows the last slash; all of it if nothing does.
fn basename(path: &str) -> &str {
    match path.rsplit('/').next() {
        Some(name) if !name.is_empty() => name,
        _ => path,
    }
}
