//! The edges of the step's rules. (Every rule is in `src/unwind/tests.rs`; what is here is no
//! source of the BPF object's.)

use std::collections::{BTreeMap, HashSet};

use memleak_common::unwind::{
    KNOWN_RULES, Kind, KnownRule, Mapping, MappingList, NO_MASK, PAGE_BYTES, Reads, Regs, Row, State, Step,
    Tables, page_word, step_x86_64,
};

const SP: u64 = 0x7ffc_0000_0000;
/// How far a frame record may be from the stack pointer, and the next one from it.
const FAR: u64 = 1 << 20;

/// Memory by address. It has no return probes: addresses are what is read.
struct Memory(BTreeMap<u64, u64>);

impl Reads for Memory {
    fn read(&self, address: u64) -> Option<u64> {
        self.0.get(&address).copied()
    }

    fn read2(&self, address: u64) -> Option<[u64; 2]> {
        Some([self.read(address)?, self.read(address + 8)?])
    }
}

#[derive(Default)]
struct Arrays {
    words: Vec<u64>,
    mappings: Vec<Mapping>,
}

impl Arrays {
    /// Appends a mapping of `pages` pages at `start` whose table has these rows, which cover
    /// `pages_of_table`.
    fn add(&mut self, start: u64, pages: u64, rows: &[Row], pages_of_table: u32) {
        let first = self.words.len() as u32;
        self.words.extend(rows.iter().map(|row| row.0));
        let index = self.words.len() as u32;
        for page in 0..pages_of_table {
            let low = rows.partition_point(|row| row.pc() <= page * 256).saturating_sub(1);
            let high = rows.partition_point(|row| row.pc() < (page + 1) * 256);
            self.words.push(page_word(low as u32, high as u32));
        }
        let end = start + pages * PAGE_BYTES;
        self.mappings.push(Mapping {
            start,
            end,
            bias: start,
            rows: first,
            pages: index,
            page_count: pages_of_table,
            reserved: 0,
        });
    }

    fn list(&self) -> MappingList {
        MappingList::new(0, self.mappings.len() as u32)
    }
}

impl Tables for Arrays {
    fn word(&self, index: u32) -> Option<u64> {
        self.words.get(index as usize).copied()
    }

    fn mapping_start(&self, index: u32) -> Option<u64> {
        self.mapping(index).map(|mapping| mapping.start)
    }

    fn mapping(&self, index: u32) -> Option<Mapping> {
        self.mappings.get(index as usize).copied()
    }
}

fn sp_row(pc: u32, offset: i64) -> Row {
    Row::new(pc, Kind::SP, offset, 0).expect("a small offset")
}

/// A step from code that no table describes, by the record `[next, ip]` at `fp`.
fn step_by_record(fp: u64, next: u64, ip: u64) -> (Step, u64) {
    let memory = Memory(BTreeMap::from([(fp, next), (fp + 8, ip)]));
    let regs = Regs { ip: 0x1000_0000, sp: SP, fp, lr: 0 };
    let mut state = State::new(regs, MappingList::new(0, 0), NO_MASK);
    (step_x86_64(&mut state, &memory, &Arrays::default()), state.regs.ip)
}

#[test]
fn a_frame_record_is_believed_up_to_its_bounds() {
    let ip = 0x7f00_0000_1234;
    let (believed, not) = ((Step::FrameByPointer, ip), (Step::NoRow, 0x1000_0000));
    for (fp, next, expected) in [
        (SP, SP + 8, believed),
        (SP - 8, SP + 8, not),
        (SP + FAR, SP + FAR + 8, believed),
        (SP + FAR + 8, SP + FAR + 16, not),
        (SP + 4, SP + 16, not),
        (SP + 16, SP + 16, not),
        (SP + 16, SP + 8, not),
        (SP + 16, SP + 28, not),
        (SP + 16, SP + 16 + FAR, believed),
        (SP + 16, SP + 24 + FAR, not),
    ] {
        assert_eq!(step_by_record(fp, next, ip), expected, "{fp:#x} {next:#x}");
    }
    assert_eq!(step_by_record(SP, SP + 8, 4095).0, Step::NoRow, "the first page is never mapped");
    assert_eq!(step_by_record(SP, SP + 8, 4096), (Step::FrameByPointer, 4096));
}

#[test]
fn a_walk_goes_from_mapping_to_mapping_up_and_down() {
    let mut arrays = Arrays::default();
    let starts = [0x10_0000, 0x20_0000, 0x40_0000, 0x50_0000, 0x90_0000];
    for (at, start) in starts.iter().enumerate() {
        arrays.add(*start, 2, &[sp_row(0, 8 + 8 * at as i64)], 2);
    }
    // Each mapping's frames have a size of their own, so that a row of another one shows.
    let order = [4, 0, 3, 1, 2, 0, 4, 2];
    let mut memory = BTreeMap::new();
    let (mut sp, mut expected) = (SP, Vec::new());
    for pair in order.windows(2) {
        sp += 8 + 8 * pair[0] as u64;
        let return_address = starts[pair[1]] + 1 + pair[1] as u64 * 100;
        memory.insert(sp - 8, return_address);
        expected.push((Step::Frame, return_address, sp));
    }
    let (first, list) = (Regs { ip: starts[order[0]] + 5, sp: SP, fp: 1, lr: 0 }, arrays.list());
    let mut state = State::new(first, list, NO_MASK);
    let memory = Memory(memory);
    let walked: Vec<_> = (0..expected.len())
        .map(|_| (step_x86_64(&mut state, &memory, &arrays), state.regs.ip, state.regs.sp))
        .collect();
    assert_eq!(walked, expected);
}

#[test]
fn every_row_of_a_full_page_is_found() {
    let rows: Vec<Row> = (0..512).map(|pc| sp_row(pc, 8 * i64::from(pc + 1))).collect();
    let mut arrays = Arrays::default();
    arrays.add(0x10_0000, 2, &rows, 2);
    let memory = Memory((0..600).map(|word| (SP + 8 * word, 0x7000 + word)).collect());
    for pc in 0..512 {
        let regs = Regs { ip: 0x10_0000 + pc, sp: SP, fp: 1, lr: 0 };
        let mut state = State::new(regs, arrays.list(), NO_MASK);
        assert_eq!(step_x86_64(&mut state, &memory, &arrays), Step::Frame);
        assert_eq!(state.regs.ip, 0x7000 + pc);
    }
}

/// The rule for coroutines' first frames holds within the mapping that was looked at last, not at
/// its edges.
#[test]
fn the_edges_of_a_mapping_complete_no_stack() {
    let mut arrays = Arrays::default();
    // The table covers four pages, of which two are mapped; what comes after is another mapping's.
    let rows = [Row::bare(0, Kind::NONE), sp_row(1, 8)];
    arrays.add(0x10_0000, 2, &rows, 4);
    let none = Memory(BTreeMap::new());
    let step = |ip: u64| {
        let mut state = State::new(Regs { ip, sp: SP, fp: 1, lr: 0 }, arrays.list(), NO_MASK);
        (state.exact, state.mapping) = (0, arrays.mappings[0]);
        step_x86_64(&mut state, &none, &arrays)
    };
    assert_eq!(step(0x10_0001), Step::Complete, "the first byte that has a row, after one that has none");
    assert_eq!(step(0x10_0002), Step::Unreadable, "a row like others");
    let end = 0x10_0000 + 2 * PAGE_BYTES;
    assert_eq!((step(end), step(end + 1)), (Step::Unreadable, Step::NoRow));

    let mut arrays = Arrays::default();
    arrays.add(0x10_0000, 2, &[sp_row(0, 8)], 2);
    let mut state = State::new(Regs { ip: 0x10_0000, sp: SP, fp: 1, lr: 0 }, arrays.list(), NO_MASK);
    (state.exact, state.mapping) = (0, arrays.mappings[0]);
    assert_eq!(step_x86_64(&mut state, &none, &arrays), Step::NoRow, "the byte before is in no mapping");
}

#[test]
fn steps_that_are_frames_are_told() {
    let frames: Vec<Step> = (0..8).filter_map(Step::from_u32).filter(|step| step.is_frame()).collect();
    assert_eq!(frames, [Step::Frame, Step::FrameByPointer]);
}

#[test]
fn a_known_rule_is_of_its_address_and_generation_and_has_a_place() {
    let rule = sp_row(0, 48).rule();
    let known = KnownRule::new(0x7f12_3456_7890, 5, rule);
    assert_eq!(KnownRule::rule_of(0x7f12_3456_7890, 5, known), rule);
    for (address, generation) in
        [(0x7f12_3456_7891, 5), (0x7f12_3456_7890, 6), (0x7f12_3456_7890, 5 + (1 << 16))]
    {
        assert_eq!(KnownRule::rule_of(address, generation, known), 0, "{address:#x} {generation}");
    }
    // Calls of a hot path lie anywhere: few of 1000 may fall together.
    let places: HashSet<u32> = (0..1000).map(|call| KnownRule::place(0x7f12_3456_0000 + call * 37)).collect();
    assert!(places.iter().all(|place| *place < KNOWN_RULES));
    assert!(places.len() > 800, "{}", places.len());
}
