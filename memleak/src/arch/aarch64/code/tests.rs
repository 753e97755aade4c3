use memleak_common::unwind::{Apart, SLOT_AT_SP};

use super::*;

/// Rows of instructions at `pc` 0, with functions at `starts`.
fn analysed(code: &[u32], functions: &Functions) -> Vec<Row> {
    let bytes: Vec<u8> = code.iter().flat_map(|code| code.to_le_bytes()).collect();
    let len = bytes.len() as u32;
    let text = Text { bytes, regions: vec![Region { pc: 0, at: 0, len }] };
    analyse(&text, functions).into_iter().flat_map(|(_, rows)| rows).collect()
}

fn rows_of(code: &[u32], starts: &[u32]) -> Vec<Row> {
    analysed(code, &Functions { starts: starts.to_vec(), ..Functions::default() })
}

fn row(pc: u32, kind: Kind, offset: i64, slot: i8) -> Row {
    Row::new(pc, kind, offset, slot).unwrap()
}

/// At a function's begin, and where it has undone its frame.
fn leaf(pc: u32) -> Row {
    row(pc, Kind::SP_LEAF, 0, 0)
}

fn bare(pc: u32, kind: Kind) -> Row {
    Row::bare(pc, kind)
}

// As objdump disassembles them.
const PUSH_RECORD: u32 = 0xa9bd_7bfd; // stp x29, x30, [sp, #-48]!
const POP_RECORD: u32 = 0xa8c3_7bfd; // ldp x29, x30, [sp], #48
const SET_FP: u32 = 0x9100_03fd; // mov x29, sp
const LEAVE_SP: u32 = 0x9100_03bf; // mov sp, x29
const SUB_X9: u32 = 0xcb29_63ff; // sub sp, sp, x9
const CALL_OUTSIDE: u32 = 0x9404_0000; // bl 0x100000 further
const CALL_REGISTER: u32 = 0xd63f_0020; // blr x1
const JUMP_REGISTER: u32 = 0xd61f_0020; // br x1
const RET: u32 = 0xd65f_03c0;
const SVC: u32 = 0xd400_0001;
const MOV: u32 = 0xaa00_03e1; // mov x1, x0
const UDF: u32 = 0x0000_0000;

#[test]
fn a_frame_record_is_followed_from_prologue_to_epilogue() {
    let code = [PUSH_RECORD, SET_FP, CALL_OUTSIDE, POP_RECORD, RET];
    assert_eq!(rows_of(&code, &[0]), [leaf(0), row(4, Kind::SP_PAIR, 48, SLOT_AT_SP), leaf(16)]);
    // A frame of a size that is known at run time.
    let code = [PUSH_RECORD, SET_FP, SUB_X9, CALL_OUTSIDE, LEAVE_SP, POP_RECORD, RET];
    let pair = |pc, kind, slot| row(pc, kind, 48, slot);
    let (by_sp, by_fp) = ((Kind::SP_PAIR, SLOT_AT_SP), (Kind::FP_PAIR, memleak_common::unwind::SLOT_AT_FP));
    let expected = [
        leaf(0),
        pair(4, by_sp.0, by_sp.1),
        pair(12, by_fp.0, by_fp.1),
        pair(20, by_sp.0, by_sp.1),
        leaf(24),
    ];
    assert_eq!(rows_of(&code, &[0]), expected);
}

/// musl's `__restore_sigs`: a signal comes behind the `svc`, and the return address is in `x30`.
#[test]
fn a_leaf_has_its_return_address_in_the_register() {
    assert_eq!(rows_of(&[MOV, 0xd280_10e8, SVC, RET], &[0]), [leaf(0)]);
    // One that only reads and writes memory, by `x30` as the second register, too.
    let code = [0xf800_0c20, 0xf862_7820, 0xf822_7820, 0xb840_4441, RET];
    assert_eq!(rows_of(&code, &[0]), [leaf(0)]);
    // No return is behind a call that nothing was saved for.
    assert_eq!(rows_of(&[CALL_OUTSIDE, RET], &[0])[0], leaf(0));
}

/// clang's: `str x29, [sp, #-32]!; stp x30, x19, [sp, #16]; sub sp, sp, #0xaf000`, and back.
#[test]
fn registers_apart_are_followed() {
    let code =
        [0xf81e_0ffd, 0xa901_4ffe, 0xd142_bfff, CALL_OUTSIDE, 0x9142_bfff, 0xa941_4ffe, 0xf842_07fd, RET];
    let apart = |pc, cfa_offset| Apart { by_fp: false, cfa_offset, fp_at: -32, ra_at: -16 }.row(pc).unwrap();
    let half = |pc| row(pc, Kind::SP_LEAF, 32, SLOT_AT_SP);
    let expected = [leaf(0), half(4), apart(8, 32), apart(12, 0xaf_020), apart(20, 32), half(24), leaf(28)];
    assert_eq!(rows_of(&code, &[0]), expected);
}

/// gcc's large frame: `mov x12, #40016; sub sp, sp, x12; stp x29, x30, [sp]`, and back.
#[test]
fn a_frames_size_can_be_in_a_register() {
    let code =
        [0xd293_8a0c, 0xcb2c_63ff, 0xa900_7bfd, CALL_OUTSIDE, 0xa940_7bfd, 0xd293_8a0c, 0x8b2c_63ff, RET];
    let expected = [
        leaf(0),
        row(8, Kind::SP_LEAF, 40016, 0),
        row(12, Kind::SP_PAIR, 40016, SLOT_AT_SP),
        row(20, Kind::SP_LEAF, 40016, 0),
        leaf(28),
    ];
    assert_eq!(rows_of(&code, &[0]), expected);
    // Of another register nothing is known.
    let code = [0xd293_8a0d, 0xcb2c_63ff, 0xa900_7bfd, CALL_OUTSIDE, UDF];
    assert_eq!(rows_of(&code, &[0]), [leaf(0), bare(8, Kind::NONE)]);
}

/// What follows the call saves `x30` anew: it is another function.
#[test]
fn a_call_that_does_not_return_ends_a_function() {
    let code = [PUSH_RECORD, CALL_OUTSIDE, PUSH_RECORD, SET_FP, CALL_OUTSIDE, POP_RECORD, RET];
    let pair = |pc| row(pc, Kind::SP_PAIR, 48, SLOT_AT_SP);
    assert_eq!(rows_of(&code, &[0]), [leaf(0), pair(4), leaf(8), pair(12), leaf(24)]);
    // The same of one that does not: `ret` with the frame still there.
    let code = [PUSH_RECORD, CALL_OUTSIDE, MOV, RET];
    assert_eq!(rows_of(&code, &[0]), [leaf(0), pair(4), leaf(8)]);
}

/// `cbz x0` to a return from within the frame: there is no telling which of the two is right.
#[test]
fn ways_that_disagree_give_no_row() {
    let code = [0xb400_0060, PUSH_RECORD, MOV, MOV, RET];
    assert_eq!(rows_of(&code, &[0]), [bare(0, Kind::NONE)]);
}

#[test]
fn cases_of_a_switch_prove_their_frame_where_they_leave_it() {
    let code = [PUSH_RECORD, JUMP_REGISTER, MOV, POP_RECORD, RET, CALL_OUTSIDE, 0x17ff_fffc];
    let pair = |pc| row(pc, Kind::SP_PAIR, 48, SLOT_AT_SP);
    assert_eq!(rows_of(&code, &[0]), [leaf(0), pair(4), leaf(16), pair(20)]);
}

#[test]
fn what_is_called_and_what_returns_is_a_function() {
    // `bl` to the last one, and one that nothing leads to.
    let code = [PUSH_RECORD, 0x9400_0003, POP_RECORD, RET, PUSH_RECORD, MOV, POP_RECORD, RET];
    let found = rows_of(&code, &[0]);
    assert_eq!(found.iter().filter(|row| row.kind() == Kind::SP_PAIR).count(), 2, "{found:?}");
    let code = [UDF, PUSH_RECORD, CALL_REGISTER, POP_RECORD, RET, UDF, CALL_REGISTER, MOV, UDF];
    let pair = |pc| row(pc, Kind::SP_PAIR, 48, SLOT_AT_SP);
    assert_eq!(rows_of(&code, &[]), [bare(0, Kind::NONE), leaf(4), pair(8), leaf(16), bare(20, Kind::NONE)]);
}

/// musl's `libc_start_main_stage2`, which nothing calls: it saves `x30`, and ends with a call of
/// `exit`. What does not save it may be anything.
#[test]
fn a_function_that_never_returns_proves_itself_by_its_begin() {
    let code = [UDF, PUSH_RECORD, SET_FP, CALL_REGISTER, CALL_OUTSIDE, UDF, MOV, CALL_OUTSIDE, UDF];
    let pair = row(8, Kind::SP_PAIR, 48, SLOT_AT_SP);
    assert_eq!(rows_of(&code, &[]), [bare(0, Kind::NONE), leaf(4), pair, bare(24, Kind::NONE)]);
    // Behind it is one that the entry goes on in by a jump: `b` to the sixth instruction.
    let code = [0x1400_0005, PUSH_RECORD, SET_FP, CALL_OUTSIDE, 0xd503_201f, PUSH_RECORD, CALL_OUTSIDE, UDF];
    let found = analysed(&code, &Functions { entry: Some(0), ..Functions::default() });
    let pair = row(8, Kind::SP_PAIR, 48, SLOT_AT_SP);
    assert_eq!(found, [bare(0, Kind::END), leaf(4), pair, bare(16, Kind::NONE), bare(20, Kind::END)]);
}

/// musl's `__clone`: the child takes what is on the new stack, which no caller has made.
#[test]
fn a_thread_begins_behind_a_system_call() {
    let code =
        [0x927c_ec21, 0xa9bf_0c20, SVC, 0xb400_0040, RET, 0xa8c1_03e1, CALL_REGISTER, 0xd280_0ba8, SVC, UDF];
    assert_eq!(rows_of(&code, &[0])[..2], [leaf(0), bare(24, Kind::END)]);
}

/// crt1's `_start`, with its first calls; behind it is another function.
#[test]
fn the_entry_is_the_end_of_each_stack() {
    let code = [
        0xd280_001d,
        0xd280_001e,
        0x927c_ec1f,
        CALL_OUTSIDE,
        CALL_OUTSIDE,
        PUSH_RECORD,
        MOV,
        POP_RECORD,
        RET,
    ];
    let found = analysed(&code, &Functions { entry: Some(0), ..Functions::default() });
    assert_eq!(found, [bare(0, Kind::END), leaf(20), row(24, Kind::SP_PAIR, 48, SLOT_AT_SP), leaf(32)]);
}

#[test]
fn a_signals_way_back_is_known_by_its_bytes() {
    let code = [MOV, RET, 0xd280_1168, SVC, MOV, RET];
    assert_eq!(rows_of(&code, &[0, 16]), [leaf(0), bare(7, Kind::SIGNAL), leaf(16)]);
    assert_eq!(rows_of(&code[2..4], &[]), [bare(0, Kind::SIGNAL)]);
}

/// Any instructions: an end in bounded time, and rows in order.
#[test]
fn nonsense_is_survived() {
    const LIKELY: [u32; 16] = [
        PUSH_RECORD,
        POP_RECORD,
        SET_FP,
        LEAVE_SP,
        SUB_X9,
        0x9400_0004,
        CALL_REGISTER,
        JUMP_REGISTER,
        RET,
        SVC,
        MOV,
        UDF,
        0xb4ff_ffa0,
        0x17ff_fff0,
        0xf840_07fe,
        0xd503_201f,
    ];
    let mut seed = 1u64;
    for round in 0..200u32 {
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 32) as u32
        };
        let code: Vec<u32> = (0..600)
            .map(|_| if round % 2 == 0 { next() } else { LIKELY[(next() >> 5 & 15) as usize] })
            .collect();
        let rows = rows_of(&code, &[0, 5, 100, 2396]);
        assert!(rows.windows(2).all(|pair| pair[0].pc() < pair[1].pc() && pair[0].rule() != pair[1].rule()));
    }
}
