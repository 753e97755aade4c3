//! Every rule, on arrays. The expected callers are written out by hand from the ABI's pictures of a
//! frame.

extern crate std;

use std::{vec, vec::Vec};

use super::*;

/// A stack at address 0x7000, a word for each element.
const STACK: u64 = 0x7000;
/// The text of the tests: pc 0 is here.
const TEXT: u64 = 0x55_0000;

struct Words {
    words: Vec<u64>,
    /// Replaces one return address: CFA, address.
    hidden: Option<(u64, u64)>,
}

impl Reads for Words {
    fn read(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(STACK)?;
        if offset % 8 == 0 { self.words.get((offset / 8) as usize).copied() } else { None }
    }

    fn read2(&self, address: u64) -> Option<[u64; 2]> {
        Some([self.read(address)?, self.read(address + 8)?])
    }

    fn return_address(&self, cfa: u64, found: u64) -> u64 {
        match self.hidden {
            Some((at, address)) if at == cfa => address,
            _ => found,
        }
    }
}

struct Arrays {
    words: Vec<u64>,
    mappings: Vec<Mapping>,
}

impl Tables for Arrays {
    fn word(&self, index: u32) -> Option<u64> {
        self.words.get(index as usize).copied()
    }
    fn mapping_start(&self, index: u32) -> Option<u64> {
        self.mappings.get(index as usize).map(|mapping| mapping.start)
    }
    fn mapping(&self, index: u32) -> Option<Mapping> {
        self.mappings.get(index as usize).copied()
    }
}

/// A table at [`TEXT`] over four pages, searched through by one page word each.
fn tables(rows: &[Row]) -> Arrays {
    const PAGES: u32 = 4;
    let mut words: Vec<u64> = rows.iter().map(|row| row.0).collect();
    for page in 0..PAGES {
        let first = rows.iter().rposition(|row| row.pc() <= page * 256).unwrap_or(0);
        let end = rows.iter().position(|row| row.pc() >= (page + 1) * 256).unwrap_or(rows.len());
        words.push(page_word(first as u32, end as u32));
    }
    let pages = rows.len() as u32;
    let end = TEXT + u64::from(PAGES) * PAGE_BYTES;
    let mapping = Mapping { start: TEXT, end, bias: TEXT, rows: 0, pages, page_count: PAGES, reserved: 0 };
    Arrays { words, mappings: vec![mapping] }
}

fn stack(words: &[u64]) -> Words {
    Words { words: words.to_vec(), hidden: None }
}

fn state(ip: u64, sp: u64, fp: u64) -> State {
    State::new(Regs { ip, sp, fp, lr: 0 }, MappingList::new(0, 1), NO_MASK)
}

fn row(pc: u32, kind: Kind, offset: i64, slot: i8) -> Row {
    Row::new(pc, kind, offset, slot).unwrap()
}

/// One x86_64 step under one row: what it did, and `ip`, `sp`, `fp` after it.
fn step_with(row: Row, from: (u64, u64, u64), words: &[u64]) -> (Step, u64, u64, u64) {
    let mut state = state(from.0, from.1, from.2);
    let step = step_x86_64(&mut state, &stack(words), &tables(&[row]));
    (step, state.regs.ip, state.regs.sp, state.regs.fp)
}

#[test]
fn fields_survive_packing() {
    for pc in [0, 1, 0x7fff_ffff, u32::MAX] {
        for kind in 0..16 {
            for offset in [0, 8, -8, 700 << 10, (4 << 20) - 8, -(4 << 20)] {
                for slot in [0, -2, -128, SLOT_AT_FP, SLOT_AT_SP] {
                    let row = row(pc, Kind(kind), offset, slot);
                    let parts = (row.pc(), row.kind(), row.cfa_offset(), row.slot());
                    assert_eq!(parts, (pc, Kind(kind), offset, slot));
                    assert_eq!(Row::from_rule(pc, row.rule()), row);
                }
            }
        }
    }
    for offset in [4, 12, -4, 4 << 20, -(4 << 20) - 8, i64::MAX, i64::MIN] {
        assert_eq!(Row::new(0, Kind::SP, offset, 0), None, "{offset}");
    }
    assert_eq!(Row::bare(7, Kind::END).kind(), Kind::END);
    // The prototype's layout, bit by bit: pc | offset/8 | kind | slot.
    assert_eq!(row(0x1234, Kind::FP, 16, -2).0, 0xfe20_0002_0000_1234);
}

#[test]
fn cfa_from_the_stack_pointer() {
    let words = [1, 2, TEXT + 0x33, 9];
    let ok = (Step::Frame, TEXT + 0x33, STACK + 24, 77);
    assert_eq!(step_with(row(0, Kind::SP, 24, 0), (TEXT, STACK, 77), &words), ok);
    // rbp saved below the return address, and further down.
    assert_eq!(step_with(row(0, Kind::SP, 24, -2), (TEXT, STACK, 77), &words).3, 2);
    assert_eq!(step_with(row(0, Kind::SP, 24, -3), (TEXT, STACK, 77), &words).3, 1);
    assert_eq!(step_with(row(0, Kind::SP, 24, SLOT_AT_SP), (TEXT, STACK, 77), &words).3, 1);
}

#[test]
fn cfa_from_the_frame_pointer() {
    let words = [0, 0, 0xbeef, TEXT + 5];
    let expected = (Step::Frame, TEXT + 5, STACK + 32, 0xbeef);
    assert_eq!(step_with(row(0, Kind::FP, 16, -2), (TEXT, STACK, STACK + 16), &words), expected);
}

#[test]
fn cfa_in_memory_of_a_realigned_frame() {
    // rbp points to the caller's rbp; [rbp - 8] is the CFA that r10 held.
    let words = [0, STACK + 48, 0xbeef, 0, 0, TEXT + 5];
    let row = row(0, Kind::DEREF_FP, -8, SLOT_AT_FP);
    let expected = (Step::Frame, TEXT + 5, STACK + 48, 0xbeef);
    assert_eq!(step_with(row, (TEXT, STACK, STACK + 16), &words), expected);
}

#[test]
fn plt_has_pushed_a_word_in_its_second_half() {
    let words = [TEXT + 1, TEXT + 2, TEXT + 3];
    for ip in TEXT..TEXT + 32 {
        let (step, caller, sp, fp) = step_with(row(0, Kind::PLT, 8, 11), (ip, STACK, 77), &words);
        let expected = if ip % 16 >= 11 { (TEXT + 2, STACK + 16) } else { (TEXT + 1, STACK + 8) };
        assert_eq!((step, caller, sp, fp), (Step::Frame, expected.0, expected.1, 77), "{ip:#x}");
    }
}

#[test]
fn signal_frame_restores_the_interrupted_registers() {
    let mut words = vec![0; 30];
    (words[15], words[20], words[21]) = (0xbbb, STACK - 4096, TEXT);
    let mut state = state(TEXT + 8, STACK, 0);
    state.exact = 0;
    let rows = [row(0, Kind::SP, 8, 0), Row::bare(7, Kind::SIGNAL)];
    assert_eq!(step_x86_64(&mut state, &stack(&words), &tables(&rows)), Step::Frame);
    assert_eq!(state.regs, Regs { ip: TEXT, sp: STACK - 4096, fp: 0xbbb, lr: 0 });
    assert_eq!(state.exact, 1, "the interrupted instruction is looked up as it is");
}

#[test]
fn a_return_address_is_looked_up_one_byte_before() {
    let words = [TEXT + 0x40, TEXT + 0x50, 0];
    let rows = [row(0, Kind::SP, 8, 0), row(0x40, Kind::SP, 16, 0)];
    let tables = tables(&rows);
    let mut at = state(TEXT + 0x40, STACK, 0);
    assert_eq!(step_x86_64(&mut at, &stack(&words), &tables), Step::Frame);
    assert_eq!(at.regs.sp, STACK + 16);
    let mut after = state(TEXT + 0x40, STACK, 0);
    after.exact = 0;
    assert_eq!(step_x86_64(&mut after, &stack(&words), &tables), Step::Frame);
    assert_eq!(after.regs.sp, STACK + 8);
}

#[test]
fn walks_end_with_their_reason() {
    let at = (TEXT, STACK, 1);
    let words = [0x10, TEXT + 1, 0];
    assert_eq!(step_with(Row::bare(0, Kind::END), at, &words).0, Step::Complete);
    assert_eq!(step_with(Row::bare(0, Kind::UNSUPPORTED), at, &words).0, Step::Unsupported);
    assert_eq!(step_with(Row::bare(0, Kind(15)), at, &words).0, Step::Unsupported);
    assert_eq!(step_with(Row::bare(0, Kind::NONE), at, &words).0, Step::NoRow);
    assert_eq!(step_with(row(0, Kind::SP, 0x1000, 0), at, &words).0, Step::Unreadable);
    assert_eq!(step_with(row(0, Kind::SP, 0, 0), at, &words).0, Step::NoProgress);
    assert_eq!(step_with(row(0, Kind::FP, -64, 0), (TEXT, STACK, STACK + 8), &words).0, Step::NoProgress);
    assert_eq!(step_with(row(0, Kind::DEREF_FP, 8, 0), at, &words).0, Step::Unreadable);
    assert_eq!(step_with(Row::bare(0, Kind::SIGNAL), at, &words).0, Step::Unreadable);
    // A thread's first function returns to 0.
    assert_eq!(step_with(row(0, Kind::SP, 24, 0), at, &words).0, Step::Complete);
    // The state is as it was.
    assert_eq!(step_with(row(0, Kind::SP, 24, 0), at, &words), (Step::Complete, TEXT, STACK, 1));
    for number in 0..9 {
        assert_eq!(Step::from_u32(number).unwrap() as u32, number);
    }
    assert_eq!(Step::from_u32(9), None);
}

#[test]
fn no_row_steps_by_a_plausible_frame_pointer() {
    let none = Row::bare(0, Kind::NONE);
    let into_text = [0, 0xabc, TEXT + 5, 0, 0];
    let step = |fp, words: &[u64]| step_with(none, (TEXT, STACK, fp), words);
    assert_eq!(step(STACK + 8, &into_text), (Step::FrameByPointer, TEXT + 5, STACK + 24, 0xabc));
    // Generated code is in no mapping, but its frame records form a chain.
    let chain = [0, STACK + 32, 0x7f00_0000, 0, 0];
    assert_eq!(step(STACK + 8, &chain), (Step::FrameByPointer, 0x7f00_0000, STACK + 24, STACK + 32));
    let neither = [0, 0xabc, 0x7f00_0000, 0, 0];
    for (fp, words) in [
        (STACK + 8, &neither),
        (STACK + 8, &[0, STACK + 32, 8, 0, 0]),
        (STACK + 9, &into_text),
        (STACK - 8, &into_text),
        (STACK + 0x10_0008, &into_text),
        (STACK + 32, &into_text),
    ] {
        assert_eq!(step(fp, words).0, Step::NoRow, "{fp:#x} {words:x?}");
    }
}

#[test]
fn an_address_that_nothing_called_from_ends_the_stack() {
    let rows = [Row::bare(0, Kind::NONE), row(0x40, Kind::SP, 8, 0), Row::bare(0x48, Kind::NONE)];
    let (words, tables) = (stack(&[TEXT + 0x44, 0]), tables(&rows));
    let step = |pc, exact| {
        let mut state = state(TEXT + pc, STACK, 1);
        state.exact = exact;
        step_x86_64(&mut state, &words, &tables)
    };
    assert_eq!(
        (step(0x40, 0), step(0x3f, 0), step(0x41, 0), step(0x49, 0)),
        (Step::Complete, Step::NoRow, Step::Frame, Step::NoRow)
    );
    // Interrupted there, it is an instruction like others.
    assert_eq!((step(0x40, 1), step(0x3f, 1)), (Step::Frame, Step::NoRow));
}

#[test]
fn a_hidden_return_address_is_put_back() {
    let mut words = stack(&[0x7fff_ffff_e000, 0]);
    words.hidden = Some((STACK + 8, TEXT + 0x77));
    let mut state = state(TEXT, STACK, 0);
    assert_eq!(step_x86_64(&mut state, &words, &tables(&[row(0, Kind::SP, 8, 0)])), Step::Frame);
    assert_eq!(state.regs.ip, TEXT + 0x77);
}

#[test]
fn a_known_rule_is_of_its_address_and_list() {
    let (here, there) = (0x7f12_3456_789a, 0x7f12_3456_789c);
    let known = KnownRule::new(here, 7, 0x1234_5678);
    assert_eq!(KnownRule::rule_of(here, 7, known), 0x1234_5678);
    assert_eq!(KnownRule::rule_of(there, 7, known), 0, "another address");
    assert_eq!(KnownRule::rule_of(here, 8, known), 0, "another list");
    assert_eq!(
        KnownRule::rule_of(here, 7 + (1 << 16), known),
        0,
        "a list that differs beyond the key's bits"
    );
    let other = KnownRule::new(there, 7, 0x4321);
    for torn in
        [KnownRule { key: other.key, rule: known.rule }, KnownRule { key: known.key, rule: other.rule }]
    {
        assert_eq!((KnownRule::rule_of(here, 7, torn), KnownRule::rule_of(there, 7, torn)), (0, 0));
    }
    assert_eq!(KnownRule::rule_of(0, 0, KnownRule::default()), 0, "nothing is known at first");
    assert!(KnownRule::place(u64::MAX) < KNOWN_RULES);
}

/// The row of every pc in tables of all densities, against a plain scan.
#[test]
fn search_finds_every_row() {
    for distance in [1, 2, 3, 7, 64, 255, 256, 257, 600] {
        let rows: Vec<Row> =
            (0..1024).step_by(distance).map(|pc| row(pc, Kind::SP, i64::from(pc) * 8, 0)).collect();
        let tables = tables(&rows);
        for pc in 0..1100 {
            let found = find_row(&mut state(TEXT + pc, 0, 0), &tables);
            let expected = rows.iter().rfind(|row| u64::from(row.pc()) <= pc && pc < 1024);
            assert_eq!(found, expected.copied().unwrap_or(Row::bare(0, Kind::NONE)), "{distance} {pc}");
        }
    }
}

#[test]
fn search_finds_every_mapping() {
    for count in [0u32, 1, 2, 3, 100, MAX_MAPPINGS] {
        let mappings = (0..u64::from(count) + 8).map(|at| {
            // Those before and after the list belong to others.
            let start = at.wrapping_sub(4).wrapping_mul(0x1000);
            Mapping { start, end: start.wrapping_add(0x800), ..Mapping::default() }
        });
        let tables = Arrays { words: vec![], mappings: mappings.collect() };
        let mut state = State::new(Regs::default(), MappingList::new(4, count), NO_MASK);
        for at in 0..u64::from(count) + 3 {
            for (offset, inside) in [(0, true), (0x7ff, true), (0x800, false), (0xfff, false)] {
                let address = at * 0x1000 + offset;
                let found = find_mapping(&mut state, address, &tables);
                assert_eq!(found, inside && at < u64::from(count), "{address:#x} of {count}");
                assert!(!found || state.mapping.start == at * 0x1000);
            }
        }
    }
}

/// Arrays that are being rewritten give nonsense: the search ends, and reads what it may.
#[test]
fn nonsense_in_the_arrays_ends() {
    for bounds in [u64::MAX, 0, page_word(5, 2), page_word(0, u32::MAX), page_word(u32::MAX, 0)] {
        let mut tables = tables(&[row(0, Kind::SP, 8, 0)]);
        tables.words[1] = bounds;
        let found = find_row(&mut state(TEXT, 0, 0), &tables);
        assert!(found == Row::bare(0, Kind::NONE) || found.kind() == Kind::SP);
    }
    let mut tables = tables(&[row(0, Kind::SP, 8, 0)]);
    (tables.mappings[0].rows, tables.mappings[0].pages) = (u32::MAX, u32::MAX);
    assert_eq!(find_row(&mut state(TEXT, 0, 0), &tables).kind(), Kind::NONE);
}

/// One aarch64 step; `exact` says whether `x30` counts.
fn arm_step(row: Row, mut from: State, words: &[u64]) -> (Step, State) {
    let step = step_aarch64(&mut from, &stack(words), &tables(&[row]));
    (step, from)
}

#[test]
fn aarch64_leaf_returns_by_register() {
    let mut from = state(TEXT, STACK, 77);
    (from.regs.lr, from.address_mask) = (0x00f5_0000_0055_0020, 0x0000_ffff_ffff_ffff);
    let (step, to) = arm_step(row(0, Kind::SP_LEAF, 0, 0), from, &[]);
    // The stack may be empty, and the signature is gone.
    assert_eq!((step, to.regs), (Step::Frame, Regs { ip: TEXT + 0x20, sp: STACK, fp: 77, lr: 0 }));
    let (step, to) = arm_step(
        row(0, Kind::FP_LEAF, 16, -2),
        State { regs: Regs { fp: STACK, ..from.regs }, ..from },
        &[5, 6],
    );
    assert_eq!((step, to.regs.sp, to.regs.fp), (Step::Frame, STACK + 16, 5));
    // Only the first frame, or an interrupted one, can be a leaf.
    let (step, _) = arm_step(row(0, Kind::SP_LEAF, 0, 0), to, &[]);
    assert_eq!(step, Step::Unsupported);
    // One that has called the kernel is the first, and its address is behind that call: its
    // register counts, and no later frame's.
    let behind = State { exact: 0, regs: Regs { ip: TEXT + 4, ..from.regs }, ..from };
    let (step, to) = arm_step(row(0, Kind::SP_LEAF, 0, 0), behind, &[]);
    assert_eq!((step, to.regs.ip, to.regs.lr, to.exact), (Step::Frame, TEXT + 0x20, 0, 0));
}

/// Go's: the caller's record may be at a lower address, on another stack; the first one is at 0.
#[test]
fn frame_records_lead_to_other_stacks() {
    let record = Row::bare(0, Kind::RECORD);
    let words = [0, TEXT + 0x20, 0, 0, STACK, TEXT + 0x30];
    let first = step_with(record, (TEXT, STACK, STACK + 32), &words);
    assert_eq!(first, (Step::Frame, TEXT + 0x30, STACK + 48, STACK));
    let second = step_with(record, (TEXT, STACK + 48, STACK), &words);
    assert_eq!(second, (Step::Frame, TEXT + 0x20, STACK + 16, 0));
    assert_eq!(step_with(record, (TEXT, STACK, 0), &words).0, Step::Complete);
    assert_eq!(step_with(record, (TEXT, STACK, 8), &words).0, Step::Unreadable);
}

#[test]
fn aarch64_frame_records() {
    let words = [0xf9, 0x00f5_0000_0055_0020, 3, 4, 5, 6];
    let mut from = state(TEXT, STACK, STACK);
    from.address_mask = 0x0000_ffff_ffff_ffff;
    let expected = Regs { ip: TEXT + 0x20, sp: STACK + 48, fp: 0xf9, lr: 0 };
    for row in [
        row(0, Kind::SP_PAIR, 48, -6),
        row(0, Kind::SP_PAIR, 48, SLOT_AT_SP),
        row(0, Kind::FP_PAIR, 48, -6),
        row(0, Kind::FP_PAIR, 48, SLOT_AT_FP),
    ] {
        let (step, to) = arm_step(row, from, &words);
        assert_eq!((step, to.regs), (Step::Frame, expected), "{row:?}");
    }
    // Below the top of a large frame, from its bottom.
    for kind in [Kind::SP_PAIR, Kind::FP_PAIR] {
        let (step, to) = arm_step(row(0, kind, 800_000, 2), from, &[1, 2, 0xf9, TEXT + 0x20]);
        assert_eq!((step, to.regs), (Step::Frame, Regs { sp: STACK + 800_000, ..expected }), "{kind:?}");
    }
    // Frames that keep x29 for something else.
    for kind in [Kind::SP_RA, Kind::FP_RA] {
        let (step, to) = arm_step(row(0, kind, 800_000, 1), from, &words);
        assert_eq!((step, to.regs.ip, to.regs.sp), (Step::Frame, TEXT + 0x20, STACK + 800_000));
        let (step, to) = arm_step(row(0, kind, 16, -1), from, &words);
        assert_eq!((step, to.regs.ip, to.regs.sp, to.regs.fp), (Step::Frame, TEXT + 0x20, STACK + 16, STACK));
    }
    assert_eq!(arm_step(row(0, Kind::SP_PAIR, 0, -2), from, &words).0, Step::NoProgress);
    assert_eq!(arm_step(row(0, Kind(15), 16, -2), from, &words).0, Step::Unsupported);
    assert_eq!(arm_step(Row::bare(0, Kind::END), from, &words).0, Step::Complete);
    let (step, to) = arm_step(Row::bare(0, Kind::RECORD), from, &words);
    assert_eq!((step, to.regs), (Step::Frame, Regs { ip: TEXT + 0x20, sp: STACK + 16, fp: 0xf9, lr: 0 }));
    let (step, to) = arm_step(Row::bare(0, Kind::NONE), from, &words);
    assert_eq!((step, to.regs.ip, to.regs.fp), (Step::FrameByPointer, TEXT + 0x20, 0xf9));
}

/// The places of `x29` and `x30` from the CFA.
fn apart(by_fp: bool, cfa_offset: i64, fp_at: i64, ra_at: i64) -> Option<Row> {
    Apart { by_fp, cfa_offset, fp_at, ra_at }.row(0)
}

#[test]
fn registers_apart_survive_packing() {
    const MOST: i64 = (2 << 20) - 8;
    for by_fp in [false, true] {
        let below = if by_fp { Kind::FP_APART } else { Kind::SP_APART };
        for (kind, cfa_offset, fp_at, ra_at) in [
            (below, 0, -8, -24),
            (below, MOST, -256, -8),
            (below, 32, -32, -16),
            (below, 716_832, -32, -16),
            (Kind(below.0 + 1), 716_800, -716_800, -716_784),
            (Kind(below.0 + 1), MOST, 248 - MOST, -MOST),
            (Kind(below.0 + 1), 400, -160, -264),
        ] {
            let row = apart(by_fp, cfa_offset, fp_at, ra_at).unwrap();
            assert_eq!((row.pc(), row.kind(), row.kind().is_apart()), (0, kind, true));
            assert_eq!(Apart::of(row), Apart { by_fp, cfa_offset, fp_at, ra_at });
        }
        for (cfa_offset, fp_at, ra_at) in [
            (MOST + 8, -32, -16),           // too large
            (-16, -32, -16),                // below the register
            (20, -32, -16),                 // not words
            (32, -32, -12),                 // nor this
            (800, -264, -8),                // one out of reach, and too far from the register
            (800, -16, -800),               // one at each end
            (16, 8, -8),                    // the caller's
            (64, i64::MIN, -8),             // nowhere
            (i64::MAX, i64::MAX, i64::MIN), // nor this
        ] {
            assert_eq!(apart(by_fp, cfa_offset, fp_at, ra_at), None, "{cfa_offset} {fp_at} {ra_at}");
        }
    }
    // Bit by bit: pc | offset/8 | low bits of the places | kind | the places' other bits.
    assert_eq!(apart(false, 32, -32, -16).unwrap().0, 0x081c_0004_0000_0000);
}

/// clang's `str x29, [sp, #-32]!; stp x30, x19, [sp, #16]`, and below that more or less.
#[test]
fn aarch64_registers_apart() {
    let from = State { address_mask: 0x0000_ffff_ffff_ffff, ..state(TEXT, STACK, STACK) };
    let words = [1, 2, 0xf9, 4, 0x00f5_0000_0055_0020, 6];
    let expected = Regs { ip: TEXT + 0x20, sp: STACK + 48, fp: 0xf9, lr: 0 };
    for by_fp in [false, true] {
        let (step, to) = arm_step(apart(by_fp, 48, -32, -16).unwrap(), from, &words);
        assert_eq!((step, to.regs), (Step::Frame, expected));
        // At the bottom of a large frame.
        let (step, to) = arm_step(apart(by_fp, 800_000, 16 - 800_000, 32 - 800_000).unwrap(), from, &words);
        assert_eq!((step, to.regs), (Step::Frame, Regs { sp: STACK + 800_000, ..expected }));
        // The return address below.
        let (step, to) = arm_step(apart(by_fp, 48, -8, -24).unwrap(), from, &[1, 2, 3, TEXT + 0x20, 5, 0xf9]);
        assert_eq!((step, to.regs), (Step::Frame, expected));
        assert_eq!(arm_step(apart(by_fp, 96, -32, -16).unwrap(), from, &words).0, Step::Unreadable);
        assert_eq!(arm_step(apart(by_fp, 0, -32, -16).unwrap(), from, &words).0, Step::NoProgress);
    }
    // Where sp is only bounded, x29 has to tell the CFA.
    let bounded = State { sp_is_bound: 1, ..from };
    let (step, to) = arm_step(apart(true, 48, -32, -16).unwrap(), bounded, &words);
    assert_eq!((step, to.regs, to.sp_is_bound), (Step::Frame, expected, 0));
    let (step, _) = arm_step(apart(false, 48, -32, -16).unwrap(), bounded, &words);
    assert_eq!(step, Step::UnknownStackPointer);
}

#[test]
fn aarch64_signal_frame() {
    let mut words = vec![0; 80];
    // x29, x30, sp, pc of the ucontext, by byte offset.
    (words[544 / 8], words[552 / 8], words[560 / 8], words[568 / 8]) = (29, 30, 31, TEXT + 4);
    let (step, to) = arm_step(Row::bare(0, Kind::SIGNAL), state(TEXT, STACK, 0), &words);
    assert_eq!((step, to.regs), (Step::Frame, Regs { ip: TEXT + 4, sp: 31, fp: 29, lr: 30 }));
    assert_eq!(to.exact, 1);
}

/// Rows of code that is called by code without rows: two functions as gcc makes them (the record at
/// the bottom, and above two outgoing arguments), one as clang does, one that saves x30 alone, the
/// first one, and a signal's.
fn arm_rows() -> Arrays {
    tables(&[
        Row::bare(0, Kind::NONE),
        row(0x40, Kind::SP_PAIR, 48, -6),
        row(0x80, Kind::SP_PAIR, 64, -6),
        row(0xc0, Kind::FP_PAIR, 16, -2),
        row(0x100, Kind::SP_RA, 32, -1),
        Row::bare(0x140, Kind::END),
        Row::bare(0x180, Kind::SIGNAL),
    ])
}

/// `ip`, `sp`, `fp` of a walk's frames, and how it ends.
fn arm_walk(words: &[u64], fp: u64) -> (Vec<(u64, u64, u64)>, Step) {
    let mut state = state(TEXT, STACK, fp);
    let mut frames = vec![];
    loop {
        let step = step_aarch64(&mut state, &stack(words), &arm_rows());
        if !step.is_frame() {
            return (frames, step);
        }
        frames.push((state.regs.ip, state.regs.sp, state.regs.fp));
    }
}

#[test]
fn aarch64_stack_pointers_beyond_code_without_rows() {
    let at = |word: u64| STACK + 8 * word;
    let mut words = [0; 36];
    // Eight words of generated code's, its record at the bottom.
    (words[0], words[1]) = (at(8), TEXT + 0x44);
    // Six words, the record at the bottom.
    (words[8], words[9]) = (at(16), TEXT + 0x84);
    // Eight words, of which two are arguments for the callee.
    (words[16], words[17]) = (at(26), TEXT + 0xc4);
    // Six words, the record at the top.
    (words[26], words[27]) = (at(34), TEXT + 0x104);
    // Four words, of which one is x30.
    words[31] = TEXT + 0x144;
    let frames = vec![
        (TEXT + 0x44, at(2), at(8)), // a bound: it is at word 8
        (TEXT + 0x84, at(14), at(16)),
        (TEXT + 0xc4, at(22), at(26)),
        (TEXT + 0x104, at(28), at(34)),
        (TEXT + 0x144, at(32), at(34)),
    ];
    assert_eq!(arm_walk(&words, at(0)), (frames, Step::Complete));
}

#[test]
fn aarch64_unknown_stack_pointers_end_the_walk() {
    let at = |word: u64| STACK + 8 * word;
    for (caller, fp) in [
        (0x104, at(8)),            // saves no record
        (0x184, at(8)),            // the kernel's frame
        (0x44, at(9)),             // not aligned as a record at the bottom is
        (0x84, at(2)),             // would be below the callee's record
        (0x44, at(8) + (2 << 20)), // too far away
    ] {
        let mut words = [0; 80];
        (words[0], words[1]) = (fp, TEXT + caller);
        let (frames, end) = arm_walk(&words, at(0));
        assert_eq!((frames.len(), end), (1, Step::UnknownStackPointer), "{caller:#x} {fp:#x}");
    }
    // Rows by x29 need none.
    let mut words = [0; 80];
    (words[0], words[1]) = (at(8), TEXT + 0xc4);
    (words[8], words[9]) = (7, TEXT + 0x144);
    let frames = vec![(TEXT + 0xc4, at(2), at(8)), (TEXT + 0x144, at(10), 7)];
    assert_eq!(arm_walk(&words, at(0)), (frames, Step::Complete));
}

/// `go_like.c`, as gcc 12 lays out its frames, out of `malloc` on the other stack: `allocate`, the
/// function that switches (no record), and after it the caller of the function that calls it, then
/// `main` and the C library's function, which has rows.
#[test]
fn aarch64_go_like_stacks_lead_to_the_c_library() {
    let at = |word: u64| STACK + 8 * word;
    let rows = tables(&[
        Row::bare(0, Kind::RECORD),
        row(0x40, Kind::SP_PAIR, 48, -6), // __libc_start_call_main
        Row::bare(0x80, Kind::END),
    ]);
    let mut words = [0; 40];
    // The other stack, below: allocate's 16 bytes, then what the switch keeps.
    (words[0], words[1]) = (at(8), TEXT + 0x20);
    (words[2], words[3]) = (at(8), TEXT + 0x24);
    // The thread's: switches (16 bytes), site_there (48), main (48), __libc_start_call_main (48).
    (words[8], words[9]) = (at(10), TEXT + 0x28);
    (words[10], words[11]) = (at(16), TEXT + 0x2c);
    (words[16], words[17]) = (at(22), TEXT + 0x44);
    (words[22], words[23]) = (0, TEXT + 0x84);
    let mut state = state(TEXT + 0x1c, at(0), at(0));
    state.exact = 0;
    let mut ips = vec![];
    let end = loop {
        match step_aarch64(&mut state, &stack(&words), &rows) {
            step if step.is_frame() => ips.push(state.regs.ip - TEXT),
            step => break step,
        }
    };
    assert_eq!((ips, end), (vec![0x20, 0x28, 0x2c, 0x44, 0x84], Step::Complete));
    assert_eq!(state.regs.sp, at(28));
}
