//! What was lost, in words.

use crate::{snapshot::Lost, words::Grouped};

/// What says how much of what was lost and what to do about it, for people; `None` if nothing was.
pub(crate) fn lost_line(lost: &Lost) -> Option<String> {
    said(lost, |number| Grouped(number).to_string())
}

/// The same with plain integers, which scripts read.
pub(crate) fn plain_lost_line(lost: &Lost) -> Option<String> {
    said(lost, |number| number.to_string())
}

fn said(lost: &Lost, shown: fn(u64) -> String) -> Option<String> {
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
            format!("{} {what}{plural} ({remedy})", shown(*number))
        })
        .collect();
    (!parts.is_empty()).then(|| format!("lost: {}", parts.join(", ")))
}
