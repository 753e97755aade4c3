//! Rows for text that nothing describes, from its machine code (x86_64).
//!
//! musl, hand-written assembly, Go without debug information: there is no `.eh_frame` to say how
//! far the stack pointer is from the return address. The code itself says it: a function begins
//! with the return address on top, and each instruction moves the stack pointer by what it says.
//! [`flow`] follows that from where functions begin along all jumps, and [`state`] is what is known
//! before an instruction. If two ways disagree there is no row: a wrong row is worse than none.
//!
//! Functions begin at symbols, at the entry point and where calls lead to. What they do not reach
//! (functions that are called by address alone, cases of a `switch`) is tried: a state is guessed,
//! followed to where it meets a return or code that is known, and kept if all fits.
//!
//! The code is the target's: it is analysed in windows, with a limit on bytes and on decoded
//! instructions, and nothing is read but the bytes of executable segments.

mod flow;
mod run;
mod state;
mod symbols;
#[cfg(test)]
mod tests;
mod text;

use memleak_common::unwind::{Kind, Row};
pub(crate) use symbols::{Symbols, code_sections};

use self::{
    flow::{Flow, padding_len},
    run::Evidence,
    state::State,
    text::{Region, Text},
};
use super::signal_returns::SIGNAL_RETURNS;
use crate::{
    hurry,
    unwind::{ExecSegments, eh_frame::Runs},
};

/// Most bytes of an object that are analysed.
const MAX_BYTES: u32 = 64 << 20;
/// Bytes that are analysed together: memory is some ten times that.
const WINDOW_BYTES: u32 = 4 << 20;
/// Shorter stretches between functions are padding.
const MIN_GAP: u32 = 16;
/// Symbols are read if there are no more than one for so many bytes, and these.
const BYTES_PER_SYMBOL: u64 = 64;
const MIN_SYMBOLS: u64 = 4096;
/// Most stretches, the longest.
const MAX_GAPS: usize = 2048;
/// Instructions that are decoded for each byte: compilers' code takes less than one, and what is
/// hard to make sense of some more, which is not tried if there is much of it.
const WORK: u64 = 4;
const MUCH: u64 = 16 << 20;
/// Most windows that are analysed at a time.
const MAX_THREADS: usize = 4;
/// Most instructions of a trial.
const MAX_TRIAL: u64 = 20_000;
/// Instructions of a trial once many have failed.
const MIN_TRIAL: u64 = 64;
/// How far after an indirect jump its targets are looked for, bytes.
const MAX_SWITCH: u32 = 1 << 16;

/// Text that no entry describes, and what is known of it.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    /// First `pc`, `pc` after the last.
    gaps: Vec<(u32, u32)>,
    /// Where functions begin: `pc`s.
    starts: Vec<u32>,
    /// Where the parts of functions begin that compilers moved elsewhere.
    parts: Vec<u32>,
    /// Where the kernel starts it.
    entry: Option<u32>,
}

impl Gaps {
    /// What the runs, which are in order, leave of the text, as far as it is in one of the
    /// `code_sections`, if there are any. `read_symbols` is called with a limit
    /// ([`Symbols::read`]): most symbols of a file with little text to analyse are of no use.
    pub(crate) fn find(
        runs: &Runs,
        segments: &ExecSegments,
        entry: u64,
        code_sections: impl FnOnce() -> Vec<(u64, u64)>,
        read_symbols: impl FnOnce(u64, &dyn Fn(u64) -> bool) -> Symbols,
    ) -> Self {
        let mut gaps: Vec<(u32, u32)> = Vec::new();
        for (start, end) in runs.gaps(segments.text_len()) {
            // A gap can reach over the hole between two segments.
            for segment in &segments.segments {
                let from = segment.vaddr.max(segments.text_base + u64::from(start));
                let to = segment.vaddr.saturating_add(segment.len).min(segments.text_base + u64::from(end));
                gaps.extend(segments.clip(from, to).filter(|(start, end)| end - start >= MIN_GAP));
            }
        }
        if gaps.len() > MAX_GAPS {
            gaps.sort_unstable_by_key(|(start, end)| std::cmp::Reverse(end - start));
            gaps.truncate(MAX_GAPS);
        }
        gaps.sort_unstable();
        let code: Vec<_> = match gaps.is_empty() {
            true => return Self::default(),
            false => code_sections().iter().filter_map(|(start, end)| segments.clip(*start, *end)).collect(),
        };
        let code = join(code);
        if !code.is_empty() {
            gaps = intersect(&gaps, &code);
        }
        let bytes: u64 = gaps.iter().map(|(start, end)| u64::from(end - start)).sum();
        if bytes == 0 {
            return Self::default();
        }
        let pc = |vaddr: u64| segments.clip(vaddr, vaddr.saturating_add(1)).map(|(pc, _)| pc);
        let is_in_gap = |vaddr: u64| pc(vaddr).is_some_and(|pc| gap_at(&gaps, pc));
        let symbols = read_symbols(bytes / BYTES_PER_SYMBOL + MIN_SYMBOLS, &is_in_gap);
        let starts = symbols.functions.iter().filter_map(|vaddr| pc(*vaddr)).collect();
        let parts = symbols.parts.iter().filter_map(|vaddr| pc(*vaddr)).collect();
        Self { gaps, starts, parts, entry: Some(entry).filter(|entry| *entry != 0).and_then(pc) }
    }

    /// Adds rows to the runs, which are in order, before and after; gives how many. `read` fills a
    /// buffer with the file's bytes from an offset on, or says that it cannot.
    pub(crate) fn add_rows(
        &self,
        runs: &mut Runs,
        segments: &ExecSegments,
        read: &mut dyn FnMut(u64, &mut [u8]) -> bool,
    ) -> u64 {
        let (mut count, before) = (0, runs.runs.len());
        let threads =
            std::thread::available_parallelism().map_or(1, |threads| threads.get().min(MAX_THREADS));
        for windows in self.windows().chunks(threads) {
            if hurry::is_due() {
                break;
            }
            let texts: Vec<Text> = windows.iter().map(|window| read_text(window, segments, read)).collect();
            for (region, rows) in self.analyse_all(&texts) {
                let known = rows.iter().filter(|row| row.kind() != Kind::NONE).count();
                if known > 0 {
                    runs.push(region.pc, region.pc + region.len, &rows);
                    count += known as u64;
                }
            }
        }
        if runs.runs.len() > before {
            runs.runs.sort_unstable_by_key(|run| (run.start, run.first));
        }
        count
    }

    /// The gaps in pieces that are analysed together.
    fn windows(&self) -> Vec<Vec<(u32, u32)>> {
        let mut windows: Vec<Vec<(u32, u32)>> = vec![Vec::new()];
        let (mut left, mut room) = (MAX_BYTES, WINDOW_BYTES);
        for (mut start, end) in self.gaps.iter().copied() {
            while start < end && left > 0 {
                let len = (end - start).min(left).min(room);
                if let Some(window) = windows.last_mut() {
                    window.push((start, start + len));
                }
                (start, left, room) = (start + len, left - len, room - len);
                if room == 0 {
                    windows.push(Vec::new());
                    room = WINDOW_BYTES;
                }
            }
        }
        windows
    }

    /// Rows of each region, one thread for each text.
    fn analyse_all(&self, texts: &[Text]) -> Vec<(Region, Vec<Row>)> {
        match texts {
            [text] => self.analyse(text),
            _ => std::thread::scope(|scope| {
                let workers: Vec<_> =
                    texts.iter().map(|text| scope.spawn(move || self.analyse(text))).collect();
                workers.into_iter().filter_map(|worker| worker.join().ok()).flatten().collect()
            }),
        }
    }

    /// Rows of each region.
    fn analyse(&self, text: &Text) -> Vec<(Region, Vec<Row>)> {
        let parts = self.parts.iter().filter_map(|pc| text.index((*pc).into()));
        let all: u64 = self.gaps.iter().map(|(start, end)| u64::from(end - start)).sum();
        let work = if all > MUCH { 1 } else { WORK };
        let mut flow = Flow::new(text, parts, work * text.bytes.len() as u64);
        mark_signal_returns(text, &mut flow);
        if let Some(entry) = self.entry.and_then(|pc| text.index(pc.into())) {
            flow.follow_function(entry, State::OUTERMOST);
        }
        for start in self.starts.iter().filter_map(|pc| text.index((*pc).into())) {
            flow.add_start(start);
        }
        flow.follow_starts();
        for region in &text.regions {
            try_rest(*region, text, &mut flow);
        }
        text.regions.iter().map(|region| (*region, flow.marks.rows(*region))).collect()
    }
}

/// Whether one of the gaps, which are in order, holds `pc`.
fn gap_at(gaps: &[(u32, u32)], pc: u32) -> bool {
    let after = gaps.partition_point(|(start, _)| *start <= pc);
    after.checked_sub(1).and_then(|at| gaps.get(at)).is_some_and(|(_, end)| pc < *end)
}

/// Stretches, which a damaged file has overlap, as ones that do not: in order, and apart.
fn join(mut stretches: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    stretches.sort_unstable();
    let mut joined: Vec<(u32, u32)> = Vec::with_capacity(stretches.len());
    for (start, end) in stretches {
        match joined.last_mut() {
            Some((_, last)) if start <= *last => *last = end.max(*last),
            _ => joined.push((start, end)),
        }
    }
    joined
}

/// What is in both lists of stretches, which are in order and apart.
fn intersect(left: &[(u32, u32)], right: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let mut both = Vec::new();
    for &(start, end) in left {
        let first = right.partition_point(|(_, other_end)| *other_end <= start);
        let overlapping = right.iter().skip(first).take_while(|(other, _)| *other < end);
        both.extend(overlapping.map(|(other, other_end)| (start.max(*other), end.min(*other_end))));
    }
    both
}

fn read_text(
    window: &[(u32, u32)],
    segments: &ExecSegments,
    read: &mut dyn FnMut(u64, &mut [u8]) -> bool,
) -> Text {
    let mut text = Text::default();
    for &(start, end) in window {
        let at = text.bytes.len();
        let Some(offset) = segments.file_offset(segments.text_base + u64::from(start)) else { continue };
        text.bytes.resize(at + (end - start) as usize, 0);
        if text.bytes.get_mut(at..).is_some_and(|buffer| read(offset, buffer)) {
            text.regions.push(Region { pc: start, at: at as u32, len: end - start });
        } else {
            text.bytes.truncate(at);
        }
    }
    text
}

fn mark_signal_returns(text: &Text, flow: &mut Flow<'_>) {
    for region in &text.regions {
        let bytes = text.tail(region.at).get(..region.len as usize).unwrap_or_default();
        // `syscall` first: it is rare.
        let calls = bytes.windows(2).enumerate().filter(|(_, window)| *window == [0x0f, 0x05]);
        for (end, _) in calls.map(|(at, window)| (at + 2, window)) {
            let code = bytes.get(..end).unwrap_or_default();
            let Some(stub) = SIGNAL_RETURNS.iter().find(|stub| code.ends_with(stub)) else { continue };
            // A handler's return address is the first byte, and a walk looks up the byte before.
            let start = (end - stub.len()).saturating_sub(1);
            flow.marks.set_signal(region.at + start as u32, (end - start) as u32);
        }
    }
}

/// Tries what the known functions have not reached.
fn try_rest(region: Region, text: &Text, flow: &mut Flow<'_>) {
    let end = region.at + region.len;
    let mut at = region.at;
    // Code that makes no sense from its begin makes none from the middle, and costs as much each
    // time.
    let mut limit = MAX_TRIAL;
    while at < end && flow.budget > 0 {
        if flow.marks.get(at).is_marked() {
            at += 1;
            continue;
        }
        let code = text.tail(at);
        let padding = if code.first() == Some(&0) { 1 } else { padding_len(code) };
        if padding > 0 {
            at += padding;
            limit = MAX_TRIAL;
            continue;
        }
        match try_at(at, limit, flow) {
            None => {
                flow.follow_starts();
                at += u32::from(!flow.marks.get(at).is_marked());
                limit = MAX_TRIAL;
            }
            Some(next) => {
                at = next.max(at + 1);
                limit = (limit / 2).max(MIN_TRIAL);
            }
        }
    }
}

/// Tries guesses at what holds at an index. Gives where to try next if none is right.
fn try_at(at: u32, limit: u64, flow: &mut Flow<'_>) -> Option<u32> {
    let fits = |evidence: &Evidence| evidence.good > 0;
    let Err(entry) = flow.try_out(at, State::ENTRY, limit, fits) else { return None };
    let after = flow.switches.partition_point(|(index, _)| *index < at);
    let switch = after.checked_sub(1).and_then(|last| flow.switches.get(last).copied());
    let switch = switch.filter(|(index, _)| at - index <= MAX_SWITCH).map(|(_, state)| state);
    for guess in switch.into_iter().chain(entry.hint) {
        if flow.try_out(at, guess, limit, fits).is_ok() {
            return None;
        }
    }
    // A function that never returns proves itself by its calls alone: it is followed as one, and so
    // known for it.
    let calls = |evidence: &Evidence| evidence.aligned > 0 && evidence.misaligned == 0;
    if !entry.bad && calls(&entry) {
        flow.add_start(at);
        return None;
    }
    Some(entry.end)
}
