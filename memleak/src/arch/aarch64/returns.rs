//! Where a function returns: its `ret` instructions, and those of what it jumps to.
//!
//! No return address is ever replaced on this machine, so all functions are followed so. All
//! instructions have four bytes, so a breakpoint can be in the middle of none, and code can be
//! followed where no symbol says how long it is: parts that were split off and functions that are
//! jumped to have none where symbols were removed.
//!
//! A jump to another function of the same library goes through a slot that the dynamic linker
//! fills, since the function may be defined elsewhere, too (tcmalloc's malloc, for all that takes
//! longer). Both can be meant: the library's own is followed, and another allocator's is probed
//! itself.
//!
//! What is left otherwise by an address that is known at run time only (`br`: a table of cases, or
//! a jump to another library's function) is not followed. Such a call returns where the other
//! function does: if that is probed too its `ret` counts, and else the call is counted as missed.
//!
//! Where the function that is jumped to through a slot returns its first argument (calloc goes on
//! by memset), its returns are everybody's: the jump to it is as good, since what is returned is
//! known there.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::arch::returns::{SlotFunction, Unclear};

/// Instructions that are looked at, at most.
const MAX_INSTRUCTIONS: usize = 1 << 14;
/// A function has no more `ret` instructions than this: each is a probe.
const MAX_RETURNS: usize = 64;
/// Instructions of a stub of the linker's, by which a slot's function is called.
const STUB_INSTRUCTIONS: u64 = 6;
/// Bytes of code that are read at once, if the function's size is not known.
const PIECE: u64 = 1024;

/// How an object's code is found.
pub(crate) struct Code<W, F, S> {
    /// All code of the function at an address, if its size is known.
    pub whole_function: W,
    /// So many bytes of code from an address on, or what there is.
    pub code_from: F,
    /// What the slot at an address leads to, if it is known.
    pub function_of_slot: S,
}

/// Addresses (`vaddr`) of the instructions by which the function at `vaddr` returns. None if it
/// returns by functions that it jumps to by their addresses.
pub(crate) fn returns<W, F, S>(vaddr: u64, code: &Code<W, F, S>) -> Result<BTreeSet<u64>, Unclear>
where
    W: Fn(u64) -> Option<Vec<u8>>,
    F: Fn(u64, u64) -> Vec<u8>,
    S: Fn(u64) -> Option<SlotFunction>,
{
    let (whole, from) = (&code.whole_function, &code.code_from);
    match Found::of(vaddr, whole, from, &code.function_of_slot) {
        // What is beyond a slot may be too much: then it is not followed.
        Err(Unclear::Extent | Unclear::NotCode) => Found::of(vaddr, whole, from, &|_| None),
        found => found,
    }
}

/// The function that the one at `vaddr` is another name of: all that it does is to jump to it.
pub(crate) fn other_name_of<W, F, S>(vaddr: u64, code: &Code<W, F, S>) -> Option<u64>
where
    F: Fn(u64, u64) -> Vec<u8>,
    S: Fn(u64) -> Option<SlotFunction>,
{
    const BTI_C: u32 = 0xd503_245f;
    let code_at = |at| (code.code_from)(at, 4 * STUB_INSTRUCTIONS);
    let first = code_at(vaddr);
    let (at, word) = (vaddr..).step_by(4).zip(words(&first)).find(|(_, word)| *word != BTI_C)?;
    let Instruction::Jump(to) = Instruction::of(word, at) else { return None };
    let (stub, mut before) = (code_at(to), Before::default());
    let mut stub = (to..).step_by(4).zip(words(&stub)).map(|(at, word)| before.next(word, at));
    match stub.find(|instruction| *instruction != Instruction::Other) {
        Some(Instruction::Slot(slot)) => match (code.function_of_slot)(slot)? {
            SlotFunction::Own(function) => Some(function),
            SlotFunction::ReturnsArgument => None,
        },
        _ => Some(to),
    }
}

#[derive(Default)]
struct Found {
    seen: HashSet<u64>,
    to_do: Vec<u64>,
    returns: BTreeSet<u64>,
    /// A way leads to an address that is known at run time only.
    leaves: bool,
    /// Ways lead to the addresses in slots: where they jump, and the slots.
    slots: Vec<(u64, u64)>,
    /// Jumps, from and to where, and where branches lead to.
    jumps: Vec<(u64, u64)>,
    branches: HashSet<u64>,
    /// Stubs of functions that return their first argument.
    stubs: HashSet<u64>,
    /// A way ends with `retaa` or `retab`, which the kernel takes no probe at
    /// (arch/arm64/kernel/probes/decode-insn.c).
    is_signed: bool,
    /// Code by its place.
    pieces: HashMap<u64, Vec<u8>>,
}

impl Found {
    /// Follows the function at `vaddr`.
    fn of(
        vaddr: u64,
        whole_function: &impl Fn(u64) -> Option<Vec<u8>>,
        code_from: &impl Fn(u64, u64) -> Vec<u8>,
        function_of_slot: &impl Fn(u64) -> Option<SlotFunction>,
    ) -> Result<BTreeSet<u64>, Unclear> {
        let mut found = Self { to_do: vec![vaddr], ..Self::default() };
        while let Some(start) = found.to_do.pop() {
            if found.seen.contains(&start) {
                continue;
            }
            match whole_function(start) {
                Some(code) => found.sweep(start, &code)?,
                None => found.follow(start, code_from)?,
            }
            for (at, slot) in std::mem::take(&mut found.slots) {
                match function_of_slot(slot) {
                    Some(SlotFunction::Own(function)) => found.to_do.push(function),
                    Some(SlotFunction::ReturnsArgument) => found.returns_argument(vaddr, start, at),
                    None => found.leaves = true,
                }
            }
        }
        let stubs = &found.stubs;
        found.leaves |= !stubs.is_disjoint(&found.branches);
        found.returns.extend(found.jumps.iter().filter(|(_, to)| stubs.contains(to)).map(|(at, _)| *at));
        match found.returns.len() {
            0 if found.is_signed => Err(Unclear::Signed),
            0 if !found.leaves => Err(Unclear::Extent),
            0..=MAX_RETURNS => Ok(found.returns),
            _ => Err(Unclear::Extent),
        }
    }

    /// From `start` on a way has led to a jump, at `at`, to a function that returns its first
    /// argument. That jump is everybody's if it is a stub's.
    fn returns_argument(&mut self, vaddr: u64, start: u64, at: u64) {
        if start != vaddr && at.wrapping_sub(start) < 4 * STUB_INSTRUCTIONS {
            self.stubs.insert(start);
        } else {
            self.returns.insert(at);
        }
    }

    /// Reads all of a function whose end is known.
    fn sweep(&mut self, start: u64, code: &[u8]) -> Result<(), Unclear> {
        let range = start..start.saturating_add(code.len() as u64);
        let mut before = Before::default();
        for (at, word) in (start..).step_by(4).zip(words(code)) {
            let instruction = before.next(word, at);
            if let Instruction::Jump(target) | Instruction::Branch(target) = instruction
                && !range.contains(&target)
            {
                self.go_on(at, target, instruction);
            }
            self.note(at, instruction)?;
        }
        Ok(())
    }

    /// Reads on until the way ends, where it is not known where the function does.
    fn follow(&mut self, start: u64, code_from: &impl Fn(u64, u64) -> Vec<u8>) -> Result<(), Unclear> {
        let (mut at, mut after_call, mut before) = (start, false, Before::default());
        while !self.seen.contains(&at) {
            let Some(word) = self.word(at, code_from) else { return Err(Unclear::NotCode) };
            if after_call && begins_function(word) {
                return Ok(()); // the call before does not return
            }
            let instruction = before.next(word, at);
            self.note(at, instruction)?;
            match instruction {
                Instruction::Jump(target) => {
                    self.go_on(at, target, instruction);
                    return Ok(());
                }
                Instruction::Branch(target) => self.go_on(at, target, instruction),
                Instruction::Return
                | Instruction::SignedReturn
                | Instruction::Leave
                | Instruction::Slot(_)
                | Instruction::Undefined => {
                    return Ok(());
                }
                Instruction::Call | Instruction::Other => {}
            }
            after_call = instruction == Instruction::Call;
            at = at.wrapping_add(4);
        }
        Ok(())
    }

    /// A way leads from `at` to `target`.
    fn go_on(&mut self, at: u64, target: u64, instruction: Instruction) {
        self.to_do.push(target);
        if matches!(instruction, Instruction::Jump(_)) {
            self.jumps.push((at, target));
        } else {
            self.branches.insert(target);
        }
    }

    fn note(&mut self, at: u64, instruction: Instruction) -> Result<(), Unclear> {
        self.seen.insert(at);
        match instruction {
            Instruction::Return => drop(self.returns.insert(at)),
            Instruction::SignedReturn => self.is_signed = true,
            Instruction::Leave => self.leaves = true,
            Instruction::Slot(slot) => self.slots.push((at, slot)),
            _ => {}
        }
        if self.seen.len() > MAX_INSTRUCTIONS { Err(Unclear::Extent) } else { Ok(()) }
    }

    fn word(&mut self, at: u64, code_from: &impl Fn(u64, u64) -> Vec<u8>) -> Option<u32> {
        let place = at - at % PIECE;
        let offset = at.checked_sub(place)?;
        let piece = self.pieces.entry(place).or_insert_with(|| code_from(place, PIECE));
        let rest = piece.get(usize::try_from(offset).ok()?..).filter(|rest| rest.len() >= 4);
        // A segment may begin, or end, within the piece.
        let word = rest.and_then(|rest| words(rest).next());
        word.or_else(|| words(&code_from(at, 4)).next())
    }
}

fn words(code: &[u8]) -> impl Iterator<Item = u32> {
    code.as_chunks::<4>().0.iter().copied().map(u32::from_le_bytes)
}

/// What an instruction does to the way through the code (Arm Architecture Reference Manual,
/// C4.1.66, "Branches, Exception Generating and System instructions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    /// `ret`, by the link register.
    Return,
    /// `retaa`, `retab`.
    SignedReturn,
    /// To an address in a register.
    Leave,
    /// To the address in the slot at this place.
    Slot(u64),
    /// `b`.
    Jump(u64),
    /// On a condition.
    Branch(u64),
    /// `bl`, `blr`: the way goes on behind it, if it returns.
    Call,
    /// `udf`, `brk`: the way ends.
    Undefined,
    Other,
}

impl Instruction {
    fn of(word: u32, at: u64) -> Self {
        match word {
            0xd65f_03c0 => Self::Return,
            0xd65f_0bff | 0xd65f_0fff => Self::SignedReturn,
            _ if word & 0xffff_fc1f == 0xd63f_0000 || word & 0xfeff_f800 == 0xd63f_0800 => Self::Call, // blr
            _ if word & 0xfc00_0000 == 0x9400_0000 => Self::Call,
            // br and ret by another register, with a signature (braa) or not
            _ if word & 0xfe00_0000 == 0xd600_0000 => Self::Leave,
            _ if word & 0xfc00_0000 == 0x1400_0000 => Self::Jump(target(at, word, 0, 26)),
            // b.cond, bc.cond; cbz, cbnz
            _ if word & 0xff00_0000 == 0x5400_0000 || word & 0x7e00_0000 == 0x3400_0000 => {
                Self::Branch(target(at, word, 5, 19))
            }
            // tbz, tbnz
            _ if word & 0x7e00_0000 == 0x3600_0000 => Self::Branch(target(at, word, 5, 14)),
            // udf; brk
            _ if word & 0xffff_0000 == 0 || word & 0xffe0_001f == 0xd420_0000 => Self::Undefined,
            _ => Self::Other,
        }
    }
}

/// The last instructions, by which a jump through a slot is known.
#[derive(Default)]
struct Before([u32; 4]);

impl Before {
    /// What the next instruction does.
    fn next(&mut self, word: u32, at: u64) -> Instruction {
        let instruction = match Instruction::of(word, at) {
            Instruction::Leave => self.slot(word, at).map_or(Instruction::Leave, Instruction::Slot),
            other => other,
        };
        self.0.rotate_left(1);
        self.0[3] = word;
        instruction
    }

    /// The place of what `br` jumps by, if it has just been loaded as linkers do it (AAELF64, "PLT
    /// sequences"): `adrp xN`, `ldr xM, [xN, #offset]`, perhaps `add xN, xN, #offset` and a hint
    /// (`autia1716`), `br xM`.
    fn slot(&self, word: u32, at: u64) -> Option<u64> {
        if word & 0xffff_fc1f != 0xd61f_0000 {
            return None; // braa; ret by another register
        }
        let by = word >> 5 & 31;
        let is_between = |word: u32| {
            let is_hint = word & 0xffff_f01f == 0xd503_201f;
            is_hint || (word & 0xffc0_0000 == 0x9100_0000 && word & 31 != by)
        };
        let load = self.0.iter().rposition(|word| !is_between(*word))?;
        let (load, page, page_at) = (self.0[load], *self.0.get(load.checked_sub(1)?)?, 5 - load as u64);
        let (loaded, base) = (load & 31, load >> 5 & 31);
        if load & 0xffc0_0000 != 0xf940_0000 || loaded != by || page & 0x9f00_001f != 0x9000_0000 | base {
            return None;
        }
        let pages = ((page >> 5 & 0x7_ffff) << 2 | page >> 29 & 3) << 11;
        let start = at.wrapping_sub(4 * page_at) & !0xfff;
        let offset = u64::from(load >> 10 & 0xfff) * 8;
        Some(start.wrapping_add_signed(i64::from(pages.cast_signed() >> 11) << 12).wrapping_add(offset))
    }
}

/// Where a jump leads whose distance, in instructions, is these bits, with a sign.
fn target(at: u64, word: u32, low: u32, bits: u32) -> u64 {
    let distance = (word << (32 - low - bits)).cast_signed() >> (32 - bits);
    at.wrapping_add_signed(i64::from(distance) * 4)
}

/// What functions begin with, and nothing else: `paciasp`, `pacibsp`, `bti c`;
/// `stp x29, x30, [sp, #-N]!`; padding (`nop`) before one.
fn begins_function(word: u32) -> bool {
    matches!(word, 0xd503_233f | 0xd503_237f | 0xd503_245f | 0xd503_201f) || word & 0xffc0_7fff == 0xa980_7bfd
}

#[cfg(test)]
mod tests {
    use super::*;

    const RET: u32 = 0xd65f_03c0;
    const NOP: u32 = 0xd503_201f;
    const RETAA: u32 = 0xd65f_0bff;
    const BR_X16: u32 = 0xd61f_0200;
    const BL: u32 = 0x9400_0100;
    const PUSH: u32 = 0xa9be_7bfd; // stp x29, x30, [sp, #-32]!

    /// `b` over so many instructions.
    fn b(over: i32) -> u32 {
        0x1400_0000 | (over.cast_unsigned() & 0x3ff_ffff)
    }

    /// `cbz x0`, likewise.
    fn cbz(over: i32) -> u32 {
        0xb400_0000 | (over.cast_unsigned() & 0x7_ffff) << 5
    }

    /// The returns of the function at 0x1000, where all code from there on is this; the size of
    /// some functions (in instructions) is known.
    fn of(code: &[u32], sizes: &[(u64, usize)]) -> Result<Vec<u64>, Unclear> {
        let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        let from = |at: u64, len: u64| {
            let Some(start) = at.checked_sub(0x1000) else { return Vec::new() };
            bytes
                .get(start as usize..)
                .map_or(Vec::new(), |rest| rest[..rest.len().min(len as usize)].to_vec())
        };
        let whole = |at| {
            let (_, len) = sizes.iter().find(|(start, _)| *start == at)?;
            Some(from(at, *len as u64 * 4))
        };
        let code = Code { whole_function: whole, code_from: from, function_of_slot };
        returns(0x1000, &code).map(|found| found.into_iter().collect())
    }

    /// Those of the tests' code are at 0x4010 (a function at 0x1020), at 0x4018 (nothing is known
    /// of it) and at 0x4020 (memset's).
    fn function_of_slot(slot: u64) -> Option<SlotFunction> {
        match slot {
            0x4010 => Some(SlotFunction::Own(0x1020)),
            0x4020 => Some(SlotFunction::ReturnsArgument),
            _ => None,
        }
    }

    const ADRP_X16: u32 = 0xf000_0010; // three pages on
    const LDR_X17: u32 = 0xf940_0a11; // [x16, #16]
    const ADD_X16: u32 = 0x9100_4210; // #16
    const AUTIA1716: u32 = 0xd503_219f;
    const BR_X17: u32 = 0xd61f_0220;

    #[test]
    fn jumps_through_slots_lead_to_own_functions() {
        // malloc, of known size: cbz; ret; b to the stub at 0x100c, which leads to 0x1020.
        let malloc = [cbz(2), RET, b(1)];
        let stub = [ADRP_X16, LDR_X17, ADD_X16, BR_X17];
        let rest = [NOP, NOP, RET];
        let code = [&malloc[..], &stub, &[RET], &rest].concat();
        assert_eq!(of(&code, &[(0x1000, 3)]), Ok(vec![0x1004, 0x1028]));
        // The same where no sizes are known, and where addresses are signed.
        assert_eq!(of(&code, &[]), Ok(vec![0x1004, 0x1028]));
        let signed = [&malloc[..], &stub[..3], &[AUTIA1716, BR_X17], &rest].concat();
        assert_eq!(of(&signed, &[]), Ok(vec![0x1004, 0x1028]));
        // It has no `ret` of its own (mimalloc's realloc).
        let code = [&[b(1)], &stub[..], &[RET; 3], &rest].concat();
        assert_eq!(of(&code, &[(0x1000, 1)]), Ok(vec![0x1028]));
    }

    #[test]
    fn a_function_that_only_jumps_is_another_name() {
        const BTI_C: u32 = 0xd503_245f;
        let name_of = |code: &[u32]| {
            let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
            let code_from = |at: u64, len: u64| {
                let rest = bytes.get((at - 0x1000) as usize..).unwrap_or_default();
                rest[..rest.len().min(len as usize)].to_vec()
            };
            other_name_of(0x1000, &Code { whole_function: (), code_from, function_of_slot })
        };
        let stub = [ADRP_X16, LDR_X17, ADD_X16, BR_X17];
        assert_eq!(name_of(&[b(2), NOP, PUSH, RET]), Some(0x1008));
        assert_eq!(name_of(&[BTI_C, b(2), NOP, PUSH, RET]), Some(0x100c));
        assert_eq!(name_of(&[&[b(2), NOP][..], &stub].concat()), Some(0x1020));
        assert_eq!(name_of(&[&[cbz(2), NOP][..], &stub].concat()), None);
        assert_eq!(name_of(&[NOP, b(1), PUSH, RET]), None);
        assert_eq!(name_of(&[]), None);
    }

    #[test]
    fn a_jump_to_what_returns_its_argument_is_a_return() {
        const LDR_MEMSET: u32 = 0xf940_1211; // [x16, #32]
        let stub = [ADRP_X16, LDR_MEMSET, ADD_X16, BR_X17];
        // calloc: cbz; ret; b to the stub.
        let code = [&[cbz(2), RET, b(1)], &stub[..], &[RET; 8]].concat();
        assert_eq!(of(&code, &[(0x1000, 3)]), Ok(vec![0x1004, 0x1008]));
        assert_eq!(of(&code, &[]), Ok(vec![0x1004, 0x1008]));
        // It goes there on a condition: that is no return, and nothing else is.
        let code = [&[cbz(2), b(0)], &stub[..], &[RET; 8]].concat();
        assert_eq!(of(&code, &[(0x1000, 2)]), Ok(vec![]));
        // The stub is part of it.
        assert_eq!(of(&[&stub[..], &[RET; 8]].concat(), &[]), Ok(vec![0x100c]));
    }

    #[test]
    fn other_jumps_by_register_are_left() {
        const LDR_NEXT: u32 = 0xf940_0e11; // [x16, #24]
        for stub in [
            [ADRP_X16, LDR_NEXT, ADD_X16, BR_X17],     // another library's function
            [ADRP_X16, LDR_X17, ADD_X16 | 17, BR_X17], // of which an address is made
            [ADRP_X16 | 1, LDR_X17, ADD_X16, BR_X17],  // from another register
            [ADRP_X16, LDR_X17, ADD_X16, BR_X16],      // by another register
            [ADRP_X16, NOP, LDR_X17 & !0x0040_0000, BR_X17], // which is stored
        ] {
            let code = [&stub[..], &[RET; 8]].concat();
            assert_eq!(of(&code, &[]), Ok(vec![]), "{stub:x?}");
        }
    }

    #[test]
    fn what_is_too_much_beyond_a_slot_is_not_followed() {
        let stub = [cbz(2), RET, ADRP_X16, LDR_X17, ADD_X16, BR_X17, NOP, NOP];
        let code = [&stub[..], &[RET; MAX_RETURNS + 1]].concat();
        let sizes = [(0x1000, 6), (0x1020, MAX_RETURNS)];
        assert_eq!(of(&code, &sizes), Ok(vec![0x1004]));
    }

    #[test]
    fn every_ret_of_a_known_function_is_found() {
        // br: a table of cases, which are in the function.
        assert_eq!(of(&[PUSH, BR_X16, RET, NOP, RET, RET], &[(0x1000, 5)]), Ok(vec![0x1008, 0x1010]));
    }

    #[test]
    fn code_without_symbols_is_followed() {
        // cbz; bl, which returns; mov; ret; b; ret, which is not reached; b, back to the first ret
        let code = [cbz(4), BL, 0xaa00_03e0, RET, b(2), RET, b(-3), RET];
        assert_eq!(of(&code, &[]), Ok(vec![0x100c]));
        // What comes behind a call that does not return is the next function.
        assert_eq!(of(&[cbz(3), BL, PUSH, RET], &[]), Ok(vec![0x100c]));
        assert_eq!(of(&[cbz(4), BL, PUSH, RET, RET], &[]), Ok(vec![0x1010]));
    }

    #[test]
    fn functions_that_it_jumps_to_return_in_its_stead() {
        // The first one's end is known, the second's is not.
        let code = [cbz(3), b(4), RET, NOP, NOP, PUSH, RET];
        assert_eq!(of(&code, &[(0x1000, 2)]), Ok(vec![0x1018]));
        // Only by its address: whoever is jumped to is followed there, or nobody.
        assert_eq!(of(&[NOP, BR_X16], &[]), Ok(vec![]));
    }

    #[test]
    fn what_is_not_clear_is_said() {
        assert_eq!(of(&[PUSH, RETAA], &[]), Err(Unclear::Signed));
        assert_eq!(of(&[b(0)], &[]), Err(Unclear::Extent));
        assert_eq!(of(&[0], &[]), Err(Unclear::Extent));
        assert_eq!(of(&[NOP; 3], &[]), Err(Unclear::NotCode));
        assert_eq!(of(&[cbz(0); MAX_INSTRUCTIONS + 1], &[]), Err(Unclear::Extent));
        assert_eq!(of(&[RET; MAX_RETURNS + 1], &[(0x1000, MAX_RETURNS + 1)]), Err(Unclear::Extent));
    }

    #[test]
    fn jumps_lead_both_ways() {
        assert_eq!(Instruction::of(b(-1), 0x1000), Instruction::Jump(0xffc));
        assert_eq!(Instruction::of(cbz(-2), 0x1000), Instruction::Branch(0xff8));
        // tbz w0, #3, +8; tbnz x0, #33, -4; b.ne +8
        assert_eq!(Instruction::of(0x3618_0040, 0x1000), Instruction::Branch(0x1008));
        assert_eq!(Instruction::of(0xb70f_ffe0, 0x1000), Instruction::Branch(0xffc));
        assert_eq!(Instruction::of(0x5400_0041, 0x1000), Instruction::Branch(0x1008));
        // blr x8; blraa x8, x9; braa x8, x9; ret x5
        assert_eq!(Instruction::of(0xd63f_0100, 0), Instruction::Call);
        assert_eq!(Instruction::of(0xd73f_0909, 0), Instruction::Call);
        assert_eq!(Instruction::of(0xd71f_0909, 0), Instruction::Leave);
        assert_eq!(Instruction::of(0xd65f_00a0, 0), Instruction::Leave);
    }
}
