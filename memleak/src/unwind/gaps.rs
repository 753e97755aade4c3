//! Text that nothing describes: where it is, and its rows, which are read from its machine code.

use memleak_common::unwind::{Kind, Row};

use super::{code_symbols::CodeSymbols, eh_frame::Runs, segments::ExecSegments};
use crate::{
    arch::{
        Machine, aarch64,
        text::{Functions, Region, Text},
        x86_64,
    },
    hurry,
};

/// Most bytes of an object that are analysed.
const MAX_BYTES: u32 = 64 << 20;
/// Bytes that are analysed together: memory is some ten times that.
const WINDOW_BYTES: u32 = 4 << 20;
/// Shorter stretches between functions are padding.
const MIN_GAP: u32 = 16;
/// CodeSymbols are read if there are no more than one for so many bytes, and these.
const BYTES_PER_SYMBOL: u64 = 64;
const MIN_SYMBOLS: u64 = 4096;
/// Most stretches, the longest.
const MAX_GAPS: usize = 2048;
/// Most windows that are analysed at a time.
const MAX_THREADS: usize = 4;

/// Text that no entry describes, and what is known of it.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// First `pc`, `pc` after the last.
    gaps: Vec<(u32, u32)>,
    functions: Functions,
}

impl Gaps {
    /// What the runs, which are in order, leave of the text, as far as it is in one of the
    /// `code_sections`, if there are any. `read_symbols` is called with a limit
    /// ([`CodeSymbols::read`]): most symbols of a file with little text to analyse are of no use.
    pub(super) fn find(
        runs: &Runs,
        segments: &ExecSegments,
        entry: u64,
        code_sections: impl FnOnce() -> Vec<(u64, u64)>,
        read_symbols: impl FnOnce(u64, &dyn Fn(u64) -> bool) -> CodeSymbols,
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
        let entry = Some(entry).filter(|entry| *entry != 0).and_then(pc);
        Self { gaps, functions: Functions { starts, parts, entry, bytes } }
    }

    /// Adds rows to the runs, which are in order, before and after; gives how many. `read` fills a
    /// buffer with the file's bytes from an offset on, or says that it cannot.
    pub(super) fn add_rows(
        &self,
        machine: Machine,
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
            for (region, rows) in self.analyse_all(machine, &texts) {
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
    fn analyse_all(&self, machine: Machine, texts: &[Text]) -> Vec<(Region, Vec<Row>)> {
        let functions = &self.functions;
        match texts {
            [text] => analyse(machine, text, functions),
            _ => std::thread::scope(|scope| {
                let analyse = |text| scope.spawn(move || analyse(machine, text, functions));
                let workers: Vec<_> = texts.iter().map(analyse).collect();
                workers.into_iter().filter_map(|worker| worker.join().ok()).flatten().collect()
            }),
        }
    }
}

/// Rows of each region.
fn analyse(machine: Machine, text: &Text, functions: &Functions) -> Vec<(Region, Vec<Row>)> {
    match machine {
        Machine::X86_64 => x86_64::code::analyse(text, functions),
        Machine::Aarch64 => aarch64::code::analyse(text, functions),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_cut_into_windows_and_at_sections() {
        let gaps = Gaps { gaps: vec![(0, 10), (100, 100 + WINDOW_BYTES)], ..Gaps::default() };
        let windows = gaps.windows();
        assert_eq!(
            windows,
            [vec![(0, 10), (100, 90 + WINDOW_BYTES)], vec![(90 + WINDOW_BYTES, 100 + WINDOW_BYTES)]]
        );
        let all = Gaps { gaps: vec![(0, u32::MAX)], ..Gaps::default() }.windows();
        assert_eq!(all.iter().flatten().map(|(start, end)| end - start).sum::<u32>(), MAX_BYTES);
        assert_eq!(intersect(&[(0, 10), (20, 30)], &[(5, 22), (25, 26)]), [(5, 10), (20, 22), (25, 26)]);
    }

    #[test]
    fn sections_that_overlap_are_joined() {
        let joined = join(vec![(30, 40), (0, 100), (10, 20), (100, 110), (200, 210)]);
        assert_eq!(joined, [(0, 110), (200, 210)]);
        assert_eq!(intersect(&[(5, 35), (105, 205)], &joined), [(5, 35), (105, 110), (200, 205)]);
    }
}
