//! Rows from an object's `.eh_frame` (LSB Core 10.6) and `.debug_frame` (DWARF 5 section 6.4.1).
//!
//! The sections are the target's: each entry that cannot be read is counted and left out, time and
//! memory are proportional to the bytes of the sections, and rows outside the object's executable
//! segments are dropped.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use gimli::{
    BaseAddresses, CommonInformationEntry, DebugFrame, EhFrame, LittleEndian, UnwindSection, Vendor,
};
use memleak_common::unwind::Row;

use super::{
    cfi::{Entry, Rules, Slice},
    sections::Sections,
    segments::ExecSegments,
};
use crate::{arch::Machine, elf::Budget, hurry};

/// Sections of at least this many entries are read by several threads.
const PARALLEL_ENTRIES: usize = 20_000;
/// Most entries of an object, and rows: rustc's 95 MB of code have 250,000 and 1.7 million.
const MAX_ENTRIES: usize = 2 << 20;
const MAX_ROWS: u64 = 8 << 20;
/// Work for each byte of a section: an instruction takes some of it, and so does each byte of a
/// CIE, which each thread reads once. Entries may share a CIE, but a hostile file may have each of
/// them name another.
const WORK: u64 = 16;
const INSTRUCTION_WORK: u64 = 8;
/// Length that says that the real one follows, in 64 bits.
const EXTENDED_LENGTH: u32 = u32::MAX;

/// What building a table met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuildStats {
    /// Frame description entries that gave rows.
    pub entries: u64,
    /// Entries (or the rest of their instructions) that could not be read.
    pub malformed: u64,
    /// Entries for addresses that are in no executable segment: text that the linker dropped.
    pub outside: u64,
    /// Entries that cover what another one covers: cut to the part before it, or left out.
    pub overlapping: u64,
    /// Rows that were read from machine code, if no entry is.
    pub code_rows: u64,
}

impl BuildStats {
    fn add(&mut self, other: Self) {
        self.entries += other.entries;
        self.malformed += other.malformed;
        self.outside += other.outside;
        self.overlapping += other.overlapping;
        self.code_rows += other.code_rows;
    }
}

/// The rows of one entry, among [`Runs::rows`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// First `pc`, relative to the text base.
    pub start: u32,
    /// `pc` after the last.
    pub end: u32,
    /// Index of the first row.
    pub first: u32,
    /// How many rows.
    pub count: u32,
}

/// Entries in no order, with their rows.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    pub runs: Vec<Run>,
    pub rows: Vec<Row>,
    pub stats: BuildStats,
}

impl Runs {
    fn append(&mut self, mut other: Self) {
        let base = self.rows.len() as u32;
        self.runs.extend(other.runs.iter().map(|run| Run { first: run.first + base, ..*run }));
        self.rows.append(&mut other.rows);
        self.stats.add(other.stats);
    }

    /// Appends a run of rows for `start..end`.
    pub(crate) fn push(&mut self, start: u32, end: u32, rows: &[Row]) {
        self.runs.push(Run { start, end, first: self.rows.len() as u32, count: rows.len() as u32 });
        self.rows.extend_from_slice(rows);
    }

    /// Orders the runs, the first of the section before others that start where it does.
    fn sort(&mut self) {
        // The index of the first row grows in section order, and is a key that an unstable sort can
        // use.
        self.runs.sort_unstable_by_key(|run| (run.start, run.first));
    }

    /// The text between the runs, in `0..text_len`.
    pub(crate) fn gaps(&self, text_len: u32) -> Vec<(u32, u32)> {
        let mut gaps = Vec::new();
        let mut covered = 0;
        for run in &self.runs {
            if run.start > covered {
                gaps.push((covered, run.start));
            }
            covered = covered.max(run.end);
        }
        if covered < text_len {
            gaps.push((covered, text_len));
        }
        gaps
    }
}

/// Reads all entries of the object's sections; the runs are in order of address.
/// What is more than an object may cost is left out and noted in `budget`.
pub(super) fn read_entries(
    sections: &Sections,
    segments: &ExecSegments,
    machine: Machine,
    budget: &Budget,
) -> Runs {
    let mut runs = Runs::default();
    let rows = AtomicU64::new(MAX_ROWS);
    let limits =
        |bytes: &[u8]| Limits { rows: &rows, work: AtomicU64::new(WORK * bytes.len() as u64), budget };
    if let Some((address, bytes)) = &sections.eh_frame {
        let mut section = EhFrame::new(bytes, LittleEndian);
        section.set_address_size(8);
        section.set_vendor(vendor(machine));
        let bases = BaseAddresses::default().set_eh_frame(*address).set_text(segments.text_base);
        let offsets = entry_offsets(bytes, 0, budget);
        runs = read_section(&section, &bases, segments, machine, &offsets, &limits(bytes));
    }
    runs.sort();
    let bytes = &sections.debug_frame;
    if !bytes.is_empty() {
        let mut section = DebugFrame::new(bytes, LittleEndian);
        section.set_address_size(8);
        section.set_vendor(vendor(machine));
        let bases = BaseAddresses::default();
        let offsets = entry_offsets(bytes, u32::MAX, budget);
        let mut more = read_section(&section, &bases, segments, machine, &offsets, &limits(bytes));
        more.sort();
        keep_uncovered(&mut more.runs, &runs.runs);
        runs.append(more);
        runs.sort();
    }
    runs
}

/// What reading a section may cost, over all threads.
struct Limits<'l> {
    rows: &'l AtomicU64,
    work: AtomicU64,
    budget: &'l Budget,
}

impl Limits<'_> {
    /// Takes `amount` out of one of the counters.
    fn take(&self, counter: &AtomicU64, amount: u64) -> bool {
        let left =
            counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(amount));
        if left.is_err() {
            self.budget.exceeded();
        }
        left.is_ok()
    }

    /// Takes what the instructions of an entry of `len` bytes may cost, at once: a counter that all
    /// threads share is dear at each instruction. An instruction has at least a byte.
    fn steps(&self, len: usize) -> gimli::Result<Steps> {
        match self.take(&self.work, INSTRUCTION_WORK * len as u64) {
            true => Ok(Steps(0)),
            false => Err(gimli::Error::Io),
        }
    }
}

/// Counts the instructions of an entry: a long one is left when the program has to end.
struct Steps(u32);

impl Steps {
    fn step(&mut self) -> gimli::Result<()> {
        self.0 = self.0.wrapping_add(1);
        match self.0.is_multiple_of(1024) && hurry::is_due() {
            true => Err(gimli::Error::Io),
            false => Ok(()),
        }
    }
}

/// Drops from `more` what touches a run of `covered`. Both are in order.
fn keep_uncovered(more: &mut Vec<Run>, covered: &[Run]) {
    let mut at = covered.iter().peekable();
    more.retain(|run| {
        while at.next_if(|other| other.end <= run.start).is_some() {}
        at.peek().is_none_or(|other| other.start >= run.end)
    });
}

fn vendor(machine: Machine) -> Vendor {
    match machine {
        Machine::X86_64 => Vendor::Default,
        Machine::Aarch64 => Vendor::AArch64,
    }
}

/// Offsets of the entries that are not a CIE. The lengths alone are followed, so that one bad entry
/// costs no other.
fn entry_offsets(bytes: &[u8], cie_id: u32, budget: &Budget) -> Vec<usize> {
    let word = |at: usize| bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes);
    let mut offsets = Vec::with_capacity(bytes.len() / 64);
    let mut at = 0usize;
    while let Some(length) = word(at) {
        let (header, length) = if length == EXTENDED_LENGTH {
            let Some(low) = word(at + 4) else { break };
            let Some(high) = word(at + 8) else { break };
            (12, u64::from(low) | u64::from(high) << 32)
        } else {
            (4, u64::from(length))
        };
        // A zero length ends what one file brought to the section, not always the section.
        if length >= 4 && word(at + header).is_some_and(|id| id != cie_id) {
            if offsets.len() == MAX_ENTRIES {
                budget.exceeded();
                break;
            }
            offsets.push(at);
        }
        let Some(next) = usize::try_from(length).ok().and_then(|length| length.checked_add(at + header))
        else {
            break;
        };
        at = next;
    }
    offsets
}

/// Reads the entries at `offsets`, with several threads if they are many.
fn read_section<'input, S>(
    section: &S,
    bases: &BaseAddresses,
    segments: &ExecSegments,
    machine: Machine,
    offsets: &[usize],
    limits: &Limits<'_>,
) -> Runs
where
    S: UnwindSection<Slice<'input>> + Sync,
    S::Offset: From<usize>,
{
    let read = |offsets: &[usize]| {
        let mut reader = SectionReader {
            section,
            bases,
            segments,
            machine,
            limits,
            cies: HashMap::new(),
            last: None,
            runs: Runs::default(),
        };
        reader.runs.runs.reserve(offsets.len());
        reader.runs.rows.reserve(offsets.len() * 8);
        for &offset in offsets {
            if limits.budget.is_exceeded() || hurry::is_due() {
                break;
            }
            reader.read_entry(offset);
        }
        reader.runs
    };
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get().min(8));
    if threads == 1 || offsets.len() < PARALLEL_ENTRIES {
        return read(offsets);
    }
    std::thread::scope(|scope| {
        let workers: Vec<_> = offsets
            .chunks(offsets.len().div_ceil(threads))
            .map(|chunk| scope.spawn(move || read(chunk)))
            .collect();
        let mut all = Runs::default();
        for worker in workers {
            // A worker cannot panic on what it reads; were it to, its entries would be missing and
            // nothing else.
            if let Ok(runs) = worker.join() {
                all.append(runs);
            }
        }
        all
    })
}

/// A CIE and what its instructions say; `None` if they cannot be read.
#[derive(Clone)]
struct Cie<'input> {
    entry: CommonInformationEntry<Slice<'input>>,
    initial: Option<Rules>,
}

struct SectionReader<'s, 'input, S> {
    section: &'s S,
    bases: &'s BaseAddresses,
    segments: &'s ExecSegments,
    machine: Machine,
    limits: &'s Limits<'s>,
    cies: HashMap<usize, Cie<'input>>,
    /// The one used last: entries that share one follow each other.
    last: Option<(usize, Cie<'input>)>,
    runs: Runs,
}

impl<'input, S> SectionReader<'_, 'input, S>
where
    S: UnwindSection<Slice<'input>>,
    S::Offset: From<usize>,
{
    fn read_entry(&mut self, offset: usize) {
        let (section, bases, limits) = (self.section, self.bases, self.limits);
        let parsed = section
            .partial_fde_from_offset(bases, offset.into())
            .and_then(|partial| partial.parse(|_, _, cie| self.cie(gimli::UnwindOffset::into(cie))));
        let Ok(fde) = parsed else {
            self.runs.stats.malformed += 1;
            return;
        };
        let Some(initial) = self.last.as_ref().and_then(|(_, cie)| cie.initial) else {
            self.runs.stats.malformed += 1;
            return;
        };
        if fde.len() == 0 {
            return;
        }
        let (start, end) = (fde.initial_address(), fde.end_address());
        let Some((start_pc, end_pc)) = self.segments.clip(start, end) else {
            self.runs.stats.outside += 1;
            return;
        };
        let Ok(mut steps) = limits.steps(fde.entry_len()) else { return };
        let entry = entry_of(section, self.machine, fde.cie());
        let mut instructions = fde.instructions(section, bases);
        let rows = &mut self.runs.rows;
        let first = rows.len();
        let result = entry.rows(
            initial,
            start,
            end,
            || steps.step().and_then(|()| instructions.next()),
            |address, rule| {
                // Addresses grow from `start`, so that the distance says the pc.
                let pc = u64::from(start_pc) + (address - start);
                let merged =
                    rows.get(first..).and_then(<[Row]>::last).is_some_and(|last| last.rule() == rule);
                if pc < u64::from(end_pc) && !merged {
                    rows.push(Row::from_rule(pc as u32, rule));
                }
            },
        );
        self.runs.stats.malformed += u64::from(result.is_err());
        self.runs.stats.entries += 1;
        let count = rows.len() - first;
        if !limits.take(limits.rows, count as u64) {
            rows.truncate(first);
            return;
        }
        self.runs.runs.push(Run { start: start_pc, end: end_pc, first: first as u32, count: count as u32 });
    }

    /// The CIE at `offset`, which becomes `last`.
    fn cie(&mut self, offset: usize) -> gimli::Result<CommonInformationEntry<Slice<'input>>> {
        if let Some((last, cie)) = &self.last
            && *last == offset
        {
            return Ok(cie.entry.clone());
        }
        let cie = match self.cies.get(&offset) {
            Some(cie) => cie.clone(),
            None => {
                let entry = self.section.cie_from_offset(self.bases, offset.into())?;
                // It was looked through for its augmentation.
                if !self.limits.take(&self.limits.work, entry.entry_len() as u64) {
                    return Err(gimli::Error::Io);
                }
                let mut steps = self.limits.steps(entry.entry_len())?;
                let mut instructions = entry.instructions(self.section, self.bases);
                let mut next = || steps.step().and_then(|()| instructions.next());
                let initial = entry_of(self.section, self.machine, &entry).initial_rules(&mut next).ok();
                let cie = Cie { entry, initial };
                self.cies.insert(offset, cie.clone());
                cie
            }
        };
        let entry = cie.entry.clone();
        self.last = Some((offset, cie));
        Ok(entry)
    }
}

fn entry_of<'s, 'input: 's, S: UnwindSection<Slice<'input>>>(
    section: &'s S,
    machine: Machine,
    cie: &CommonInformationEntry<Slice<'input>>,
) -> Entry<'s, S> {
    Entry {
        section,
        machine,
        signal_frame: cie.is_signal_trampoline(),
        code_factor: cie.code_alignment_factor(),
        data_factor: cie.data_alignment_factor(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u32, end: u32) -> Run {
        Run { start, end, first: 0, count: 0 }
    }

    #[test]
    fn second_section_fills_gaps_only() {
        let mut more = vec![run(0, 10), run(10, 20), run(15, 30), run(40, 50), run(45, 46), run(60, 70)];
        keep_uncovered(&mut more, &[run(5, 8), run(20, 40), run(44, 60)]);
        let kept: Vec<_> = more.iter().map(|run| (run.start, run.end)).collect();
        assert_eq!(kept, [(10, 20), (60, 70)]);
    }

    #[test]
    fn gaps_are_what_no_run_covers() {
        let runs = Runs { runs: vec![run(4, 8), run(6, 7), run(8, 12), run(20, 24)], ..Runs::default() };
        assert_eq!(runs.gaps(30), [(0, 4), (12, 20), (24, 30)]);
        assert_eq!(Runs::default().gaps(3), [(0, 3)]);
        assert_eq!(runs.gaps(24), [(0, 4), (12, 20)]);
    }

    #[test]
    fn entries_are_found_behind_a_bad_length_and_a_zero() {
        let (mut bytes, budget) = (Vec::new(), Budget::new(0));
        let mut entry = |id: u32, len: usize| {
            bytes.extend_from_slice(&(len as u32).to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
            bytes.resize(bytes.len() + len - 4, 0);
        };
        entry(0, 12);
        entry(20, 16);
        entry(99, 5);
        bytes.extend_from_slice(&0u32.to_le_bytes());
        bytes.extend_from_slice(&[16, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(entry_offsets(&bytes, 0, &budget), [16, 36, 49]);
        assert_eq!(entry_offsets(&[0xff; 40], 0, &budget), [0]);
        assert_eq!(entry_offsets(&[], 0, &budget), [0usize; 0]);
    }
}
