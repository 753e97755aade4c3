//! The unwind table of an object, as plain data.

use std::{fs::File, path::Path};

use memleak_common::unwind::{Kind, PAGE_BYTES, Row, page_word};
use object::elf;

use super::{
    UnwindError,
    code_symbols::{CodeSymbols, code_sections},
    eh_frame::{BuildStats, Run, Runs, read_entries},
    gaps::Gaps,
    sections::Sections,
    segments::ExecSegments,
};
use crate::{
    arch::{Machine, aarch64::signal_returns::signal_returns},
    elf::ElfFile,
    objects::ObjectFile,
};

/// Code at the entry that nothing describes: both C libraries' is shorter.
const ENTRY_BYTES: u32 = 256;
/// Most text that nothing describes and that is searched for ways back from signal handlers, bytes:
/// more is a program of another language, which has the C library's or the kernel's.
const MAX_SEARCHED: u64 = 16 << 20;

/// Rows for all text of an object.
#[derive(Debug, PartialEq, Eq)]
pub struct UnwindTable {
    /// The object's machine.
    pub machine: Machine,
    /// `NT_GNU_BUILD_ID`.
    pub build_id: Option<Vec<u8>>,
    /// Its text.
    pub segments: ExecSegments,
    /// In order of `pc`, no two with the same; the first is at 0. None if the object has no rows
    /// at all.
    pub rows: Vec<Row>,
    /// One word for each [`PAGE_BYTES`] of text up to the last row ([`page_word`]).
    pub pages: Vec<u64>,
    /// What building it met.
    pub stats: BuildStats,
}

impl UnwindTable {
    /// Builds the table of an object, whose headers are read.
    pub fn of(elf: &ElfFile) -> Result<Self, UnwindError> {
        Ok(Parts::read(elf, Sections::read)?.into_table(elf))
    }

    /// Builds the table of a file.
    pub fn from_file(file: &File) -> Result<Self, UnwindError> {
        let file = file.try_clone();
        Self::of(read(&ObjectFile::new(file, Path::new("")))?)
    }

    /// Builds the table of an ELF image.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, UnwindError> {
        Self::of(read(&ObjectFile::from_memory(bytes.to_vec(), Path::new("")))?)
    }

    /// Builds the table that the ELF image would have if it had no unwind information: all rows are
    /// read from its machine code.
    pub fn from_code(bytes: &[u8]) -> Result<Self, UnwindError> {
        let object = ObjectFile::from_memory(bytes.to_vec(), Path::new(""));
        let elf = read(&object)?;
        Ok(Parts::read(elf, |_| Sections::default())?.into_table(elf))
    }

    /// The row that covers `pc` (relative to the text base), found as a walk finds it.
    pub fn lookup(&self, pc: u32) -> Option<Row> {
        let bounds = *self.pages.get(usize::try_from(u64::from(pc) / PAGE_BYTES).ok()?)?;
        let rows = self.rows.get(bounds as u32 as usize..(bounds >> 32) as usize)?;
        let after = rows.partition_point(|row| row.pc() <= pc);
        rows.get(after.checked_sub(1)?).copied()
    }
}

/// What was read of an object, before its rows are put in order.
struct Parts {
    machine: Machine,
    build_id: Option<Vec<u8>>,
    segments: ExecSegments,
    runs: Runs,
    /// Text that no entry describes.
    gaps: Gaps,
}

impl Parts {
    fn read(elf: &ElfFile, sections: impl FnOnce(&ElfFile) -> Sections) -> Result<Self, UnwindError> {
        if !elf.format.is_64 || !elf.format.little_endian {
            return Err(UnwindError::NotElf);
        }
        let machine = elf::Machine(elf.machine);
        let machine = Machine::from_elf(machine).ok_or(UnwindError::Machine(machine.0))?;
        let segments = ExecSegments::read(elf)?;
        // Megabytes of `.eh_frame`, which are given back before as much again is asked for.
        let mut sections = sections(elf);
        let is_go = is_go(elf);
        let keeps_records = is_go && machine == Machine::X86_64;
        if keeps_records {
            // It knows nothing of switches of stacks.
            sections.debug_frame = crate::elf::Bytes::default();
        }
        let mut runs = read_entries(&sections, &segments, machine, &elf.budget());
        let gaps = if keeps_records {
            add_records(&mut runs, &segments);
            Gaps::default()
        } else if !is_go {
            let read_symbols =
                |limit, is_wanted: &dyn Fn(u64) -> bool| CodeSymbols::read(elf, limit, is_wanted);
            Gaps::find(&runs, &segments, elf.entry, || code_sections(elf), read_symbols)
        } else {
            add_entry(&mut runs, &segments, elf.entry);
            add_signal_returns(&mut runs, &segments, elf);
            Gaps::default()
        };
        Ok(Self { machine, build_id: elf.build_id(), segments, runs, gaps })
    }

    fn into_table(self, elf: &ElfFile) -> UnwindTable {
        let Self { machine, build_id, segments, mut runs, gaps } = self;
        let budget = elf.budget();
        let mut read = |offset, buffer: &mut [u8]| elf.source().read(offset, buffer, &budget).is_ok();
        runs.stats.code_rows = gaps.add_rows(machine, &mut runs, &segments, &mut read);
        let (rows, overlapping) = merge(&runs);
        let stats = BuildStats { overlapping: runs.stats.overlapping + overlapping, ..runs.stats };
        drop(runs);
        let pages = index_pages(&rows);
        UnwindTable { machine, build_id, segments, rows, pages, stats }
    }
}

/// The headers of an object.
pub(super) fn read(object: &ObjectFile) -> Result<&ElfFile, UnwindError> {
    object.elf().map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => UnwindError::NotElf,
        _ => UnwindError::Read(error.to_string()),
    })
}

/// The object has code of Go's compiler (src/runtime/symtab.go: the table of its functions).
fn is_go(elf: &ElfFile) -> bool {
    [b".gopclntab" as &[u8], b".data.rel.ro.gopclntab"].iter().any(|name| elf.section(name).is_some())
}

/// Says of all code that nothing else tells of that it keeps frame pointers, as Go does. It has
/// calls from one stack to another (`runtime.asmcgocall`), which a reader of code would follow on
/// the wrong one.
fn add_records(runs: &mut Runs, segments: &ExecSegments) {
    for (start, end) in runs.gaps(segments.text_len()) {
        runs.push(start, end, &[Row::bare(start, Kind::RECORD)]);
    }
    runs.runs.sort_unstable_by_key(|run| (run.start, run.first));
}

/// Says of the code at the entry, if nothing else does, that a stack ends there: the kernel has
/// jumped to it. (In glibc's dynamic linker and musl's crt1 it is assembly without unwind
/// information.) The runs are in order, before and after.
fn add_entry(runs: &mut Runs, segments: &ExecSegments, entry: u64) {
    let Some((pc, _)) = segments.clip(entry, entry.saturating_add(1)) else { return };
    let gap = runs.gaps(segments.text_len()).into_iter().find(|(start, end)| (*start..*end).contains(&pc));
    if let Some((_, end)) = gap.filter(|_| !runs.runs.is_empty()) {
        runs.push(pc, end.min(pc + ENTRY_BYTES), &[Row::bare(pc, Kind::END)]);
        runs.runs.sort_unstable_by_key(|run| (run.start, run.first));
    }
}

/// Says of arm64's ways back from signal handlers, if nothing else does, what they are. The runs
/// are in order, before and after.
fn add_signal_returns(runs: &mut Runs, segments: &ExecSegments, elf: &ElfFile) {
    let gaps = runs.gaps(segments.text_len());
    let (mut left, budget) = (MAX_SEARCHED, elf.budget());
    for (start, end) in gaps {
        // Instructions are at multiples of four.
        let from = segments.text_base.saturating_add(start.into()).next_multiple_of(4);
        let Some((pc, end)) = segments.clip(from, segments.text_base.saturating_add(end.into())) else {
            continue;
        };
        let Some(rest) = left.checked_sub(u64::from(end - pc)) else { break };
        left = rest;
        let Some(offset) = segments.file_offset(from) else { continue };
        let mut code = vec![0; (end - pc) as usize];
        if elf.source().read(offset, &mut code, &budget).is_err() {
            continue;
        }
        for (first, end) in signal_returns(&code) {
            let (first, end) = (pc + first as u32, pc + end as u32);
            runs.push(first, end, &[Row::bare(first, Kind::SIGNAL)]);
        }
    }
    runs.runs.sort_unstable_by_key(|run| (run.start, run.first));
}

/// Makes one ascending list of rows, and counts the runs that overlapped. Where two cover the same
/// text, the one that begins later has it, and of two that begin together the first of the section.
fn merge(runs: &Runs) -> (Vec<Row>, u64) {
    let mut rows = Vec::with_capacity(runs.rows.len() + runs.runs.len() / 4 + 2);
    let mut overlapping = 0;
    if runs.runs.is_empty() {
        return (rows, 0);
    }
    push(&mut rows, Row::bare(0, Kind::NONE));
    let mut ordered = runs.runs.iter().peekable();
    while let Some(run) = ordered.next() {
        while ordered.next_if(|next| next.start == run.start).is_some() {
            overlapping += 1;
        }
        let next_start = ordered.peek().map_or(u32::MAX, |next| next.start);
        let end = run.end.min(next_start);
        overlapping += u64::from(end < run.end);
        for row in rows_of(runs, run).iter().take_while(|row| row.pc() < end) {
            push(&mut rows, *row);
        }
        if end < next_start {
            push(&mut rows, Row::bare(end, Kind::NONE));
        }
    }
    rows.shrink_to_fit();
    (rows, overlapping)
}

fn rows_of<'r>(runs: &'r Runs, run: &Run) -> &'r [Row] {
    let first = run.first as usize;
    runs.rows.get(first..first + run.count as usize).unwrap_or_default()
}

/// Appends a row; it replaces one at its `pc`, and is dropped if the row before says the same.
fn push(rows: &mut Vec<Row>, row: Row) {
    if rows.last().is_some_and(|last| last.pc() == row.pc()) {
        rows.pop();
    }
    if rows.last().is_none_or(|last| last.rule() != row.rule()) {
        rows.push(row);
    }
}

/// The page index of rows whose first is at 0.
fn index_pages(rows: &[Row]) -> Vec<u64> {
    let Some(last) = rows.last() else { return Vec::new() };
    let count = u64::from(last.pc()) / PAGE_BYTES + 1;
    let mut pages = Vec::with_capacity(count as usize);
    let mut first = 0;
    for page in 0..count {
        let start = page * PAGE_BYTES;
        while rows.get(first + 1).is_some_and(|row| u64::from(row.pc()) <= start) {
            first += 1;
        }
        let mut end = first + 1;
        while rows.get(end).is_some_and(|row| u64::from(row.pc()) < start + PAGE_BYTES) {
            end += 1;
        }
        pages.push(page_word(first as u32, end as u32));
        first = end - 1;
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sp(pc: u32, offset: i64) -> Row {
        Row::new(pc, Kind::SP, offset, 0).unwrap()
    }

    fn none(pc: u32) -> Row {
        Row::bare(pc, Kind::NONE)
    }

    fn runs(parts: &[(u32, u32, &[Row])]) -> Runs {
        let mut runs = Runs::default();
        for (start, end, rows) in parts {
            runs.push(*start, *end, rows);
        }
        runs
    }

    #[test]
    fn neighbours_merge_and_gaps_are_terminated() {
        let (rows, overlapping) = merge(&runs(&[
            (16, 32, &[sp(16, 8), sp(20, 16)]),
            (32, 40, &[sp(32, 16)]),
            (48, 50, &[sp(48, 16)]),
        ]));
        assert_eq!(rows, [none(0), sp(16, 8), sp(20, 16), none(40), sp(48, 16), none(50)]);
        assert_eq!(overlapping, 0);
    }

    #[test]
    fn overlapping_runs_are_cut_and_counted() {
        let (rows, overlapping) = merge(&runs(&[
            (0, 40, &[sp(0, 8), sp(10, 16), sp(30, 24)]),
            (20, 24, &[sp(20, 64)]),
            (20, 90, &[sp(20, 72)]),
        ]));
        assert_eq!(rows, [sp(0, 8), sp(10, 16), sp(20, 64), none(24)]);
        assert_eq!(overlapping, 2);
    }

    #[test]
    fn pages_bound_every_search() {
        let rows: Vec<Row> = [0, 1, 255, 256, 300, 511, 1024, 5000]
            .iter()
            .enumerate()
            .map(|(at, pc)| sp(*pc, 8 * at as i64))
            .collect();
        let pages = index_pages(&rows);
        assert_eq!(pages.len(), 20);
        for pc in 0..5300u32 {
            let expected = rows.iter().rfind(|row| row.pc() <= pc).copied();
            let bounds = pages.get(pc as usize / 256);
            let found = bounds.and_then(|word| {
                let slice = &rows[*word as u32 as usize..(word >> 32) as usize];
                assert!(slice[0].pc() <= pc & !255);
                slice.iter().rfind(|row| row.pc() <= pc).copied()
            });
            assert_eq!(found, if pc < 5120 { expected } else { None }, "{pc}");
        }
        assert_eq!(index_pages(&[]), [0u64; 0]);
    }
}
