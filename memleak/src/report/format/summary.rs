//! What there is to say at the end of a run.

use super::lost::lost_line;
use crate::{
    report::model::Report,
    verdict::VerdictKind,
    words::{BinaryBytes, Grouped, Span, counted},
};

/// The lines of a summary.
pub(super) fn summary(report: &Report) -> Vec<String> {
    let totals = report.totals;
    let seconds = (report.elapsed_ms as f64 / 1000.0).max(0.001);
    let mut lines = vec![format!(
        "traced for {}: {} acquired ({:.0}/s), {} released",
        Span(report.elapsed_ms),
        Grouped(totals.acquired),
        totals.acquired as f64 / seconds,
        Grouped(totals.released),
    )];
    let temporary: Vec<u64> = report
        .stacks
        .iter()
        .filter(|stack| stack.verdict.kind == VerdictKind::Temporary)
        .filter_map(|stack| Some(stack.history.calls?.acquired))
        .collect();
    if !temporary.is_empty() {
        let sum = temporary.iter().fold(0u64, |sum, number| sum.saturating_add(*number));
        lines.push(format!("temporary: {} from {}", Grouped(sum), counted(temporary.len() as u64, "stack")));
    }
    if let Some(most) = report.moments.iter().max_by_key(|moment| (moment.bytes, moment.count)) {
        lines.push(format!(
            "most outstanding, as reports saw it: {} in {} blocks, after {}",
            BinaryBytes(most.bytes),
            Grouped(most.count),
            Span(most.at_ms),
        ));
    }
    lines.push(format!(
        "outstanding at the end: {} in {} blocks",
        BinaryBytes(totals.bytes),
        Grouped(totals.count)
    ));
    lines.push(lost_line(&report.lost).unwrap_or_else(|| "lost: nothing".to_owned()));
    lines
}
