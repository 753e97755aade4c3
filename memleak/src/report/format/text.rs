//! The text form, which scripts written for bcc's memleak read.
//!
//! Every line that is not a stack's heading begins with something that is not a plain integer, and
//! only a stack's heading and what stands above a stack begin with exactly one tab.

use std::{
    fmt,
    io::{self, Write},
};

use super::{
    Format, Kind, Options,
    clock::time_of_day,
    lost::plain_lost_line,
    memory::write_memory,
    oom::oom_lines,
    summary::summary,
    why::{write_classes, write_why},
};
use crate::{
    escape::printable,
    probe::resource::ResourceInfo,
    report::{
        model::{
            AllocationLine, Note, ProcessCount, Report, SortKey, StackReport, Suppressed, TemporaryStack,
        },
        names::{basename, module_name, without_symbol},
        trace::EventLine,
    },
    snapshot::{Cut, KERNEL_PID},
    symbolize::Frame,
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

/// Writes a report.
pub fn write_text(report: &Report, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let time = time_of_day(report.time, &options.time_zone, "%H:%M:%S");
    // bcc's form has no place for the process; with one process it needs none.
    let first_pid = report.target.pids.first().copied();
    let several =
        report.target.pids.len() > 1 || report.stacks.iter().any(|stack| Some(stack.pid()) != first_pid);
    for (number, table) in report.tables().enumerate() {
        write!(out, "[{time}] Top {} stacks with outstanding {}", options.top, printable(&table.unit))?;
        writeln!(out, "{}:", estimated(report))?;
        if number == 0 {
            report
                .suppressed
                .iter()
                .try_for_each(|known| writeln!(out, "\tsuppressed: {}", suppressed(known)))?;
            for line in oom_lines(report, &options.time_zone) {
                writeln!(out, "\t{line}")?;
            }
            plain_lost_line(&report.lost).iter().try_for_each(|line| writeln!(out, "\t{line}"))?;
            if let Some(said) = report.if_empty.as_deref().filter(|_| report.stacks.is_empty()) {
                writeln!(out, "\t{}", printable(said))?;
            }
            report.memory.iter().try_for_each(|memory| write_memory(memory, out))?;
        }
        for stack in report.top(options.top).filter(|stack| stack.resource.table() == table.table()) {
            let said = what_it_is_sorted_by(stack, options.sort);
            write_stack(report, stack, &said, several && stack.pid() != KERNEL_PID, out)?;
        }
    }
    write_temporary(report, &time, out)?;
    report.why.as_deref().map_or(Ok(()), |why| write_why(why, out))?;
    if report.is_final && options.summary {
        summary(report).iter().try_for_each(|line| writeln!(out, "summary: {line}"))?;
    }
    Ok(())
}

/// The stacks whose allocations were released at once.
fn write_temporary(report: &Report, time: &str, out: &mut dyn Write) -> io::Result<()> {
    if report.temporary.is_empty() {
        return Ok(());
    }
    writeln!(out, "[{time}] Stacks of temporary allocations:")?;
    for stack in &report.temporary {
        writeln!(out, "\t{}", temporary_line(stack))?;
        let frames = stack.frames.iter().filter_map(|id| report.frames.get(*id));
        frames.into_iter().try_for_each(|frame| write_frame(frame, out))?;
    }
    Ok(())
}

/// `released at once: 11990 of 12004 (480160 bytes)`.
pub(super) fn temporary_line(stack: &TemporaryStack) -> String {
    let TemporaryStack { released, at_once, bytes, .. } = stack;
    format!("released at once: {at_once} of {released} ({bytes} bytes)")
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

/// What the numbers of a report are estimated from, in parentheses; nothing if they are not.
pub(super) fn estimated(report: &Report) -> String {
    let margin = report.margin.map(|margin| format!(", +-{margin} bytes in all")).unwrap_or_default();
    report.sampling.said().map(|said| format!(" ({said}{margin})")).unwrap_or_default()
}

/// How much known leaks hold.
pub(super) fn suppressed(known: &Suppressed) -> String {
    format!("{} bytes in {} allocations from {} stacks", known.bytes, known.count, known.stacks)
}

/// What stands in parentheses behind a stack's heading, where no script looks: its growth or its
/// verdict, if stacks are in that order.
fn what_it_is_sorted_by(stack: &StackReport, sort: SortKey) -> String {
    match sort {
        SortKey::Growth if stack.resource.has_size => {
            format!(" ({:+} bytes, {:+} since the report before)", stack.growth_bytes, stack.growth_count)
        }
        SortKey::Growth => format!(" ({:+} since the report before)", stack.growth_count),
        SortKey::Verdict => format!(" ({}: {})", stack.verdict.kind.words(), stack.verdict.reason),
        SortKey::Size | SortKey::Count | SortKey::Age => String::new(),
    }
}

fn write_stack(
    report: &Report,
    stack: &StackReport,
    said: &str,
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
        Some(tag) => writeln!(out, " ({}){said}", printable(&tag.to_string()))?,
        None => writeln!(out, "{said}")?,
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
    write!(out, "\t\t(in {} processes", others.processes.saturating_add(stack.processes.len() as u64))?;
    let mut separator = ": ";
    for process in stack.processes.iter().take(NAMED) {
        write!(out, "{separator}{} holds {}", process.pid, amount(process.bytes, process.count))?;
        separator = ", ";
    }
    let rest = stack.processes.get(NAMED..).unwrap_or_default();
    let more = others.processes.saturating_add(rest.len() as u64);
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
pub(super) fn write_allocation(
    allocation: &AllocationLine,
    stack: &StackReport,
    out: &mut dyn Write,
) -> io::Result<()> {
    let AllocationLine { pid, address, size, age_ms, now, .. } = allocation;
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
pub(super) fn why_cut(cut: Cut, last: Option<&Frame>) -> String {
    let place = match last.and_then(|frame| frame.module.as_deref()) {
        Some(module) => module_name(module),
        None => "code of no file".to_owned(),
    };
    match cut {
        Cut::TooDeep => "deeper than --max-depth".to_owned(),
        Cut::NoUnwindInformation => format!("no unwind information in {place}"),
        Cut::Unsupported => format!("unwind information of an unknown kind in {place}"),
        Cut::Unreadable => format!("stack not readable in {place}"),
        Cut::NoProgress => format!("unwind information or stack damaged in {place}"),
        Cut::UnknownStackPointer => {
            format!("stack pointer unknown in {place}, which called code without unwind information")
        }
    }
}

/// One line for a frame.
fn write_frame(frame: &Frame, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "\t\t0x{:016x}\t", frame.ip)?;
    let Some(function) = &frame.function else {
        return writeln!(out, "{}", without_symbol(frame));
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
    match frame.module.as_deref().map(module_name) {
        Some(module) => writeln!(out, " {module}"),
        None => writeln!(out),
    }
}
