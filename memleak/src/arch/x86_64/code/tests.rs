use memleak_common::unwind::{Kind, Row, SLOT_AT_FP};

use super::*;

/// Rows of code at `pc` 0, with functions at `starts`.
fn rows_of(code: &[u8], starts: &[u32]) -> Vec<Row> {
    let len = code.len() as u32;
    let text = Text { bytes: code.to_vec(), regions: vec![Region { pc: 0, at: 0, len }] };
    let functions = Functions { starts: starts.to_vec(), bytes: len.into(), ..Functions::default() };
    analyse(&text, &functions).into_iter().flat_map(|(_, rows)| rows).collect()
}

fn sp(pc: u32, offset: i64, slot: i8) -> Row {
    Row::new(pc, Kind::SP, offset, slot).unwrap()
}

fn fp(pc: u32, offset: i64, slot: i8) -> Row {
    Row::new(pc, Kind::FP, offset, slot).unwrap()
}

fn bare(pc: u32, kind: Kind) -> Row {
    Row::bare(pc, kind)
}

const CALL_OUTSIDE: [u8; 5] = [0xe8, 0, 0, 1, 0];
const PUSH_RBP: [u8; 1] = [0x55];
const MOV_RSP_RBP: [u8; 3] = [0x48, 0x89, 0xe5];
const LEAVE_RET: [u8; 2] = [0xc9, 0xc3];
const SUB_16: [u8; 4] = [0x48, 0x83, 0xec, 0x10];
const ADD_16: [u8; 4] = [0x48, 0x83, 0xc4, 0x10];
const PUSH_RBX: [u8; 1] = [0x53];
const POP_RBX_RET: [u8; 2] = [0x5b, 0xc3];

#[test]
fn a_frame_pointer_is_followed_from_prologue_to_epilogue() {
    let code = [&PUSH_RBP[..], &MOV_RSP_RBP, &SUB_16, &CALL_OUTSIDE, &LEAVE_RET].concat();
    assert_eq!(rows_of(&code, &[0]), [sp(0, 8, 0), sp(1, 16, -2), fp(4, 16, -2), sp(14, 8, 0)]);
}

#[test]
fn enter_is_a_prologue() {
    let code = [&[0xc8, 0x20, 0, 0][..], &LEAVE_RET].concat();
    assert_eq!(rows_of(&code, &[0]), [sp(0, 8, 0), fp(4, 16, -2), sp(5, 8, 0)]);
}

#[test]
fn an_early_return_does_not_end_the_function() {
    // push; test; je over pop, ret
    let code =
        [&PUSH_RBX[..], &[0x85, 0xff, 0x74, 0x02], &POP_RBX_RET, &SUB_16, &ADD_16, &POP_RBX_RET].concat();
    let expected =
        [sp(0, 8, 0), sp(1, 16, 0), sp(6, 8, 0), sp(7, 16, 0), sp(11, 32, 0), sp(15, 16, 0), sp(16, 8, 0)];
    assert_eq!(rows_of(&code, &[0]), expected);
}

#[test]
fn cases_of_a_switch_prove_their_frame_where_they_leave_it() {
    // push; sub; jmp *%rax | a case that returns | one that calls and jumps into the first
    let code = [
        &PUSH_RBX[..],
        &SUB_16,
        &[0xff, 0xe0, 0xb8, 1, 0, 0, 0],
        &ADD_16,
        &POP_RBX_RET,
        &CALL_OUTSIDE,
        &[0xeb, 0xf3],
    ]
    .concat();
    let expected = [sp(0, 8, 0), sp(1, 16, 0), sp(5, 32, 0), sp(16, 16, 0), sp(17, 8, 0), sp(18, 32, 0)];
    assert_eq!(rows_of(&code, &[0]), expected);
}

#[test]
fn a_tail_call_leaves_the_other_function_its_frame() {
    let code = [&SUB_16[..], &CALL_OUTSIDE, &ADD_16, &[0xe9, 0, 0, 0, 0], &PUSH_RBX, &POP_RBX_RET].concat();
    assert_eq!(
        rows_of(&code, &[0, 18]),
        [sp(0, 8, 0), sp(4, 24, 0), sp(13, 8, 0), sp(19, 16, 0), sp(20, 8, 0)]
    );
}

#[test]
fn the_next_function_begins_behind_a_call_that_does_not_return() {
    let code = [&SUB_16[..], &CALL_OUTSIDE, &PUSH_RBX, &POP_RBX_RET].concat();
    let expected = [sp(0, 8, 0), sp(4, 24, 0), sp(9, 8, 0), sp(10, 16, 0), sp(11, 8, 0)];
    assert_eq!(rows_of(&code, &[0, 9]), expected);
    // Without its symbol its return tells, which would be from 16 bytes too high.
    assert_eq!(rows_of(&code, &[0]), expected);
}

#[test]
fn a_realigned_frame_goes_by_its_frame_pointer() {
    let and = [0x48, 0x83, 0xe4, 0xf0];
    let code = [&PUSH_RBP[..], &MOV_RSP_RBP, &and, &SUB_16, &CALL_OUTSIDE, &LEAVE_RET].concat();
    assert_eq!(rows_of(&code, &[0]), [sp(0, 8, 0), sp(1, 16, -2), fp(4, 16, -2), sp(18, 8, 0)]);
}

/// gcc keeps the CFA in `r10` and on the stack.
#[test]
fn a_realigned_frame_with_a_stored_cfa_is_followed() {
    let code = [
        &[0x4c, 0x8d, 0x54, 0x24, 0x08][..], // lea 8(%rsp), %r10
        &[0x48, 0x83, 0xe4, 0xe0],           // and $-32, %rsp
        &[0x41, 0xff, 0x72, 0xf8],           // push -8(%r10)
        &PUSH_RBP,
        &MOV_RSP_RBP,
        &[0x41, 0x52], // push %r10
        &CALL_OUTSIDE,
        &[0x4c, 0x8b, 0x55, 0xf8, 0xc9], // mov -8(%rbp), %r10; leave
        &[0x49, 0x8d, 0x62, 0xf8, 0xc3], // lea -8(%r10), %rsp; ret
    ]
    .concat();
    let stored = Row::new(19, Kind::DEREF_FP, -8, SLOT_AT_FP).unwrap();
    assert_eq!(
        rows_of(&code, &[0]),
        [sp(0, 8, 0), bare(9, Kind::NONE), stored, bare(29, Kind::NONE), sp(33, 8, 0)]
    );
}

#[test]
fn alloca_leaves_the_frame_pointer() {
    let sub = [0x48, 0x29, 0xc4]; // sub %rax, %rsp
    let code = [&PUSH_RBP[..], &MOV_RSP_RBP, &sub, &CALL_OUTSIDE, &LEAVE_RET].concat();
    assert_eq!(rows_of(&code, &[0]), [sp(0, 8, 0), sp(1, 16, -2), fp(4, 16, -2), sp(13, 8, 0)]);
}

#[test]
fn ways_that_disagree_leave_no_row() {
    // test; je over the push
    let code = [&[0x85, 0xff, 0x74, 0x01, 0x50][..], &CALL_OUTSIDE, &[0xc3]].concat();
    assert_eq!(rows_of(&code, &[0]), [sp(0, 8, 0), bare(5, Kind::NONE)]);
}

#[test]
fn a_clobbered_frame_pointer_leaves_no_row() {
    let code = [&[0xbd, 1, 0, 0, 0][..], &CALL_OUTSIDE, &[0xc3]].concat(); // mov $1, %ebp
    assert_eq!(rows_of(&code, &[0]), [sp(0, 8, 0), bare(5, Kind::NONE)]);
}

/// As musl's and glibc's `clone`.
#[test]
fn a_thread_begins_where_the_frame_pointer_is_zeroed_behind_a_system_call() {
    let code = [
        0x0f, 0x05, 0x85, 0xc0, 0x75, 0x06, // syscall; test; jne
        0x31, 0xed, 0x5f, 0xff, 0xd0, 0xf4, // xor %ebp, %ebp; pop; call *%rax; hlt
        0xc3,
    ];
    assert_eq!(rows_of(&code, &[0]), [sp(0, 8, 0), bare(8, Kind::END), sp(12, 8, 0)]);
    // Anywhere else it is a zero like others.
    let code = [&[0x31, 0xed][..], &CALL_OUTSIDE, &[0xc3]].concat();
    assert_eq!(rows_of(&code, &[0]), [sp(0, 8, 0), bare(2, Kind::NONE)]);
}

#[test]
fn a_signals_way_back_is_known_by_its_bytes() {
    let code = [0x90, 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05, 0x90, 0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05];
    assert_eq!(rows_of(&code, &[]), [bare(0, Kind::SIGNAL)]);
}

#[test]
fn the_entry_is_the_end_of_each_stack() {
    let code = [&[0x31, 0xed][..], &CALL_OUTSIDE, &[0xf4]].concat();
    let text = Text { bytes: code, regions: vec![Region { pc: 0, at: 0, len: 8 }] };
    let functions = Functions { entry: Some(0), bytes: 8, ..Functions::default() };
    assert_eq!(analyse(&text, &functions)[0].1, [bare(0, Kind::END)]);
}

/// Any bytes: an end in bounded time, and rows in order.
#[test]
fn nonsense_is_survived() {
    let mut seed = 1u64;
    for round in 0..200usize {
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as u8
        };
        // Each other round of bytes that instructions on the stack are made of.
        const LIKELY: [u8; 16] =
            [0x55, 0x5d, 0xc9, 0xc3, 0xe8, 0xeb, 0x74, 0x48, 0x83, 0xec, 0xc4, 0, 0xff, 0x89, 0xe5, 0x90];
        let code: Vec<u8> = (0..2000)
            .map(|_| if round % 2 == 0 { next() } else { LIKELY[usize::from(next() & 15)] })
            .collect();
        let rows = rows_of(&code, &[0, 5, 100, 1999]);
        assert!(rows.windows(2).all(|pair| pair[0].pc() < pair[1].pc() && pair[0].rule() != pair[1].rule()));
    }
}
