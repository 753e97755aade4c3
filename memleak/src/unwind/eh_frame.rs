//! Rows from an object's `.eh_frame` (LSB Core 10.6) and `.debug_frame` (DWARF 5 section 6.4.1).
//!
//! The sections are the target's: each entry that cannot be read is counted and left out, time and memory are
//! proportional to the bytes of the sections, and rows outside the object's executable segments are dropped.

use std::collections::HashMap;

use gimli::{
    BaseAddresses, CommonInformationEntry, DebugFrame, EhFrame, LittleEndian, UnwindSection, Vendor,
};
use memleak_common::unwind::Row;

use super::{
    cfi::{Entry, Rules, Slice},
    object::{ExecSegments, Sections},
};
use crate::arch::Machine;

/// Sections of at least this many entries are read by several threads.
const PARALLEL_ENTRIES: usize = 20_000;
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
    /// Rows that were read from machine code, where no entry is.
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
        // The index of the first row grows in section order, and is a key that an unstable sort can use.
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
pub(super) fn read_entries(sections: &Sections<'_>, segments: &ExecSegments, machine: Machine) -> Runs {
    let mut runs = Runs::default();
    if let Some((address, bytes)) = sections.eh_frame {
        let mut section = EhFrame::new(bytes, LittleEndian);
        section.set_address_size(8);
        section.set_vendor(vendor(machine));
        let bases = BaseAddresses::default().set_eh_frame(address).set_text(segments.text_base);
        runs = read_section(&section, &bases, segments, machine, &entry_offsets(bytes, 0));
    }
    runs.sort();
    if let Some(bytes) = &sections.debug_frame {
        let mut section = DebugFrame::new(bytes, LittleEndian);
        section.set_address_size(8);
        section.set_vendor(vendor(machine));
        let bases = BaseAddresses::default();
        let mut more = read_section(&section, &bases, segments, machine, &entry_offsets(bytes, u32::MAX));
        more.sort();
        keep_uncovered(&mut more.runs, &runs.runs);
        runs.append(more);
        runs.sort();
    }
    runs
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

/// Offsets of the entries that are no CIE. The lengths alone are followed, so that one bad entry costs no other.
fn entry_offsets(bytes: &[u8], cie_id: u32) -> Vec<usize> {
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

/// Reads the entries at `offsets`, with several threads where they are many.
fn read_section<'input, S>(
    section: &S,
    bases: &BaseAddresses,
    segments: &ExecSegments,
    machine: Machine,
    offsets: &[usize],
) -> Runs
where
    S: UnwindSection<Slice<'input>> + Sync,
    S::Offset: From<usize>,
{
    let read = |offsets: &[usize]| {
        let mut reader = Reader {
            section,
            bases,
            segments,
            machine,
            cies: HashMap::new(),
            last: None,
            runs: Runs::default(),
        };
        reader.runs.runs.reserve(offsets.len());
        reader.runs.rows.reserve(offsets.len() * 8);
        for &offset in offsets {
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
            // A worker cannot panic on what it reads; were it to, its entries would be missing and nothing else.
            if let Ok(runs) = worker.join() {
                all.append(runs);
            }
        }
        all
    })
}

/// A CIE and what its instructions say; `None` where they cannot be read.
#[derive(Clone)]
struct Cie<'input> {
    entry: CommonInformationEntry<Slice<'input>>,
    initial: Option<Rules>,
}

struct Reader<'s, 'input, S> {
    section: &'s S,
    bases: &'s BaseAddresses,
    segments: &'s ExecSegments,
    machine: Machine,
    cies: HashMap<usize, Cie<'input>>,
    /// The one used last: entries that share one follow each other.
    last: Option<(usize, Cie<'input>)>,
    runs: Runs,
}

impl<'input, S> Reader<'_, 'input, S>
where
    S: UnwindSection<Slice<'input>>,
    S::Offset: From<usize>,
{
    fn read_entry(&mut self, offset: usize) {
        let (section, bases) = (self.section, self.bases);
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
        let entry = entry_of(section, self.machine, fde.cie());
        let mut instructions = fde.instructions(section, bases);
        let rows = &mut self.runs.rows;
        let first = rows.len();
        let result = entry.rows(
            initial,
            start,
            end,
            || instructions.next(),
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
                let mut instructions = entry.instructions(self.section, self.bases);
                let initial =
                    entry_of(self.section, self.machine, &entry).initial_rules(|| instructions.next()).ok();
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
        let mut bytes = Vec::new();
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
        assert_eq!(entry_offsets(&bytes, 0), [16, 36, 49]);
        assert_eq!(entry_offsets(&[0xff; 40], 0), [0]);
        assert_eq!(entry_offsets(&[], 0), [0usize; 0]);
    }
}
