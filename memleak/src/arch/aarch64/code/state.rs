//! What is known before an instruction, and what the instruction makes of it (Arm ARM DDI 0487,
//! C4.1: the encodings' index).

use std::hash::{Hash, Hasher};

use memleak_common::unwind::{Kind, Row};

use crate::unwind::cfi::aarch64_row;

const FP: u32 = 29;
const LR: u32 = 30;
const SP: u32 = 31;
/// Instructions after a system call (clone) in which a thread may begin.
const CHILD_INSTRUCTIONS: u8 = 6;

/// Where the caller's value of a register is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(super) enum Saved {
    InRegister,
    /// This many bytes from the CFA.
    At(i32),
    /// Nobody knows.
    Lost,
}

/// What is known before an instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    /// From `sp` to the CFA.
    pub sp: Option<i32>,
    /// From `x29` to the CFA, where `x29` is an address in the frame.
    pub fp: Option<i32>,
    pub saved_fp: Saved,
    pub saved_lr: Saved,
    /// A stack ends here.
    pub end: bool,
    /// A register that was given a number. Nobody jumps to where it is needed.
    constant: Option<(u32, i64)>,
    /// A thread may begin in as many instructions.
    may_begin: u8,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.lasting() == other.lasting()
    }
}

impl Eq for State {}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.lasting().hash(hasher);
    }
}

/// Where an instruction leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// To the next one.
    On,
    /// To this many bytes from here.
    Jump(i64),
    /// To both.
    Branch(i64),
    /// To the next one, once a function has returned: this many bytes from here, if it says where.
    Call(Option<i64>),
    /// To where a register says: one of those that are for calls (`x16`, `x17`), or another.
    Register {
        is_for_calls: bool,
    },
    Return,
    /// Nowhere: no compiler makes it, or it stops the program.
    Stop,
}

/// The signed number in `bits` bits of an instruction from bit `low` on.
fn signed(code: u32, low: u32, bits: u32) -> i64 {
    i64::from(((code << (32 - low - bits)) as i32) >> (32 - bits))
}

impl Next {
    /// Where `code` leads to.
    pub(super) fn of(code: u32) -> Self {
        match code {
            _ if code & 0xfc00_0000 == 0x1400_0000 => Self::Jump(4 * signed(code, 0, 26)),
            _ if code & 0xfc00_0000 == 0x9400_0000 => Self::Call(Some(4 * signed(code, 0, 26))),
            // b.cond, cbz, cbnz
            _ if code & 0xff00_0000 == 0x5400_0000 || code & 0x7e00_0000 == 0x3400_0000 => {
                Self::Branch(4 * signed(code, 5, 19))
            }
            // tbz, tbnz
            _ if code & 0x7e00_0000 == 0x3600_0000 => Self::Branch(4 * signed(code, 5, 14)),
            // br, blr, ret, and those that authenticate
            _ if code & 0xfe00_0000 == 0xd600_0000 => match (code >> 21) & 7 {
                0 if (code >> 5) & 31 == LR => Self::Return,
                0 => Self::Register { is_for_calls: (code >> 6) & 15 == 8 },
                1 => Self::Call(None),
                2 => Self::Return,
                _ => Self::Stop,
            },
            // brk, hlt, udf
            _ if [0xd420_0000, 0xd440_0000].contains(&(code & 0xffe0_0000)) || code >> 16 == 0 => Self::Stop,
            _ => Self::On,
        }
    }
}

/// A load or store that names its address by a register and a number.
struct Access {
    base: u32,
    /// From the base to the address, and what is added to the base.
    offset: i64,
    moves: i64,
    /// General registers of 64 bits, from the address on: those that are transferred.
    registers: [Option<u32>; 2],
    is_load: bool,
}

impl Access {
    fn of(code: u32) -> Option<Self> {
        let field = |low: u32| (code >> low) & 31;
        let (is_vector, size) = (code & 1 << 26 != 0, code >> 30);
        let base = field(5);
        if code & 0x3a00_0000 == 0x2800_0000 {
            let scale = match (is_vector, size) {
                (false, 2) => 3,
                (false, _) => 2,
                (true, size) => 2 + size,
            };
            let distance = signed(code, 15, 7) << scale;
            let (offset, moves) = match (code >> 23) & 3 {
                1 => (0, distance),
                3 => (distance, distance),
                _ => (distance, 0),
            };
            let whole = !is_vector && size == 2;
            let registers = if whole { [Some(field(0)), Some(field(10))] } else { [None; 2] };
            return Some(Self { base, offset, moves, registers, is_load: code & 1 << 22 != 0 });
        }
        if code & 0x3a00_0000 != 0x3800_0000 {
            return None;
        }
        let (whole, opc) = (!is_vector && size == 3, (code >> 22) & 3);
        let registers = [whole.then_some(field(0)).filter(|_| opc < 2), None];
        let is_load = opc != 0;
        if code & 1 << 24 != 0 {
            let scale = if is_vector && opc >= 2 { 4 } else { size };
            let offset = i64::from((code >> 10) & 0xfff) << scale;
            return Some(Self { base, offset, moves: 0, registers, is_load });
        }
        if code & 1 << 21 != 0 {
            return None; // by a second register; atomic
        }
        let distance = signed(code, 12, 9);
        let (offset, moves) = match (code >> 10) & 3 {
            1 => (0, distance),
            3 => (distance, distance),
            _ => (distance, 0),
        };
        Some(Self { base, offset, moves, registers, is_load })
    }
}

impl State {
    /// At a function's first instruction.
    pub(super) const ENTRY: Self = Self {
        sp: Some(0),
        fp: None,
        saved_fp: Saved::InRegister,
        saved_lr: Saved::InRegister,
        end: false,
        constant: None,
        may_begin: 0,
    };
    /// Where the kernel starts a program.
    pub(super) const OUTERMOST: Self = Self { end: true, ..Self::ENTRY };

    /// What is not only of use at once.
    fn lasting(&self) -> impl Eq + Hash + use<> {
        (self.sp, self.fp, self.saved_fp, self.saved_lr, self.end)
    }

    /// A function can return here, or go on by a jump to another one.
    pub(super) fn is_left(&self) -> bool {
        let Self { sp, saved_fp, saved_lr, end, .. } = *self;
        !end && (sp, saved_fp, saved_lr) == (Some(0), Saved::InRegister, Saved::InRegister)
    }

    /// The return address is in the frame.
    pub(super) fn has_saved(&self) -> bool {
        matches!(self.saved_lr, Saved::At(_))
    }

    /// The rule bits of its row; [`Kind::NONE`]'s if it has none.
    pub(super) fn rule(&self) -> u32 {
        let place = |saved: Saved| match saved {
            Saved::InRegister => Some(None),
            Saved::At(at) => Some(Some(i64::from(at))),
            Saved::Lost => None,
        };
        let row = || {
            let (by_fp, offset) = match (self.sp, self.fp) {
                (Some(offset), _) => (false, offset),
                (None, offset) => (true, offset?),
            };
            aarch64_row(by_fp, offset.into(), place(self.saved_fp)?, place(self.saved_lr)?)
        };
        let row = if self.end { Some(Row::bare(0, Kind::END)) } else { row() };
        row.unwrap_or(Row::bare(0, Kind::NONE)).rule()
    }

    /// What is known on both of two ways to an instruction.
    pub(super) fn met_by(&self, other: &Self) -> Self {
        let saved = |left: Saved, right: Saved| if left == right { left } else { Saved::Lost };
        Self {
            sp: self.sp.filter(|_| self.sp == other.sp),
            fp: self.fp.filter(|_| self.fp == other.fp),
            saved_fp: saved(self.saved_fp, other.saved_fp),
            saved_lr: if self.end == other.end { saved(self.saved_lr, other.saved_lr) } else { Saved::Lost },
            end: self.end && other.end,
            constant: None,
            may_begin: 0,
        }
    }

    /// An instruction saves `x30` a second time: another function begins here, or did before.
    pub(super) fn is_ended_by(&self, code: u32) -> bool {
        let saves = |access: Access| !access.is_load && access.registers.contains(&Some(LR));
        self.saved_lr != Saved::InRegister && Access::of(code).is_some_and(saves)
    }

    /// What is known after a call.
    pub(super) fn after_call(mut self) -> Self {
        self.set(LR);
        self.constant = None;
        self
    }

    /// What is known after an instruction that leads to the next one.
    pub(super) fn after(mut self, code: u32) -> Self {
        self.may_begin = self.may_begin.saturating_sub(1);
        if code & 0xffe0_001f == 0xd400_0001 {
            self.may_begin = CHILD_INSTRUCTIONS;
        } else if let Some(access) = Access::of(code) {
            self.access(&access);
        } else if !self.compute(code) {
            self.overwrite(code);
        }
        // What is above the frame is not the function's: it is on a stack that begins there.
        self.end |= self.may_begin > 0 && self.sp.is_some_and(|sp| sp < 0);
        self
    }

    /// A register gets a value of which nothing is known.
    fn set(&mut self, register: u32) {
        match register {
            FP => {
                self.fp = None;
                if self.saved_fp == Saved::InRegister {
                    self.saved_fp = Saved::Lost;
                }
            }
            LR if self.saved_lr == Saved::InRegister => self.saved_lr = Saved::Lost,
            _ => {}
        }
        self.constant = self.constant.filter(|(holds, _)| *holds != register);
    }

    /// From a register to the CFA.
    fn distance(&self, register: u32) -> Option<i32> {
        match register {
            SP => self.sp,
            FP => self.fp,
            _ => None,
        }
    }

    /// A register gets an address: `sp` and `x29` are known by their distances to the CFA.
    fn set_address(&mut self, register: u32, distance: Option<i32>) {
        if register == SP {
            self.sp = distance;
        } else {
            self.set(register);
            if register == FP {
                self.fp = distance;
            }
        }
    }

    fn access(&mut self, access: &Access) {
        let from_cfa = self
            .distance(access.base)
            .and_then(|distance| i32::try_from(access.offset - i64::from(distance)).ok());
        for (number, register) in (0i32..).zip(access.registers) {
            let Some(register) = register else { continue };
            let at = from_cfa.map(|from| from.wrapping_add(8 * number));
            let saved = match register {
                FP => &mut self.saved_fp,
                LR => &mut self.saved_lr,
                _ => {
                    if access.is_load {
                        self.set(register);
                    }
                    continue;
                }
            };
            match (*saved, at) {
                (Saved::InRegister, Some(at)) if !access.is_load && at < 0 => *saved = Saved::At(at),
                (Saved::At(place), Some(at)) if access.is_load && place == at => {
                    *saved = Saved::InRegister;
                    self.fp = self.fp.filter(|_| register != FP);
                }
                _ if access.is_load => self.set(register),
                _ => {}
            }
        }
        if access.is_load && access.registers == [None; 2] {
            self.constant = None;
        }
        if access.moves != 0 {
            let moved = self
                .distance(access.base)
                .and_then(|from| i32::try_from(i64::from(from) - access.moves).ok());
            self.set_address(access.base, moved);
        }
    }

    /// Additions, and numbers that are put into registers. False of other instructions.
    fn compute(&mut self, code: u32) -> bool {
        let (to, from) = (code & 31, (code >> 5) & 31);
        let is_subtracted = code & 1 << 30 != 0;
        // add and sub of a number, of 64 bits: 31 is `sp`.
        let (amount, to_sp) = if code & 0xbf80_0000 == 0x9100_0000 {
            let shift = if code & 1 << 22 != 0 { 12 } else { 0 };
            (Some(i64::from((code >> 10) & 0xfff) << shift), true)
        } else if code & 0xbfe0_fc00 == 0x8b20_6000 {
            // The same of a register (`uxtx`).
            let register = (code >> 16) & 31;
            (self.constant.filter(|(holds, _)| *holds == register).map(|(_, number)| number), true)
        } else {
            (None, false)
        };
        if to_sp {
            let amount = amount.map(|amount| if is_subtracted { -amount } else { amount });
            let distance = self
                .distance(from)
                .zip(amount)
                .and_then(|(distance, amount)| i32::try_from(i64::from(distance) - amount).ok());
            self.set_address(to, distance);
            return true;
        }
        // movz, movn, movk
        if code & 0x1f80_0000 != 0x1280_0000 {
            return false;
        }
        let (shift, number) = (16 * ((code >> 21) & 3), i64::from((code >> 5) & 0xffff));
        let kept = self.constant.filter(|(holds, _)| *holds == to).map(|(_, number)| number);
        self.set(to);
        let number = match (code >> 29) & 3 {
            2 => Some(number << shift),
            0 => Some(!(number << shift)),
            3 => kept.map(|kept| kept & !(0xffff << shift) | number << shift),
            _ => None,
        };
        self.constant = number.filter(|_| to != SP).map(|number| (to, number));
        true
    }

    /// Whatever register an instruction may write to.
    fn overwrite(&mut self, code: u32) {
        let (to, class) = (code & 31, (code >> 25) & 15);
        match class {
            // `mrs`
            _ if code & 0xffe0_0000 == 0xd520_0000 => self.set(to),
            // Numbers and addresses; of bits, 31 is `sp` but where flags are set.
            0b1000 | 0b1001 => match to {
                SP if code & 0x1f80_0000 == 0x1200_0000 && (code >> 29) & 3 != 3 => self.sp = None,
                SP if code & 0x1f00_0000 == 0x1100_0000 && code & 1 << 29 == 0 => self.sp = None,
                SP => {}
                to => self.set(to),
            },
            // Registers; of extended ones 31 is `sp` but where flags are set.
            0b0101 | 0b1101 => match to {
                SP if code & 0x1fe0_0000 == 0x0b20_0000 && code & 1 << 29 == 0 => self.sp = None,
                SP => {}
                to => self.set(to),
            },
            // Loads and stores.
            0b0100 | 0b0110 | 0b1100 | 0b1110 => {
                let is_exclusive = code & 0x3f00_0000 == 0x0800_0000;
                let is_store = code & 0x3ac0_0000 == 0x3800_0000 && code & 0xc00 == 0x800;
                if is_exclusive {
                    // Two registers, the result of a store.
                    [to, (code >> 10) & 31, (code >> 16) & 31]
                        .into_iter()
                        .for_each(|register| self.set(register));
                } else if code & 1 << 26 == 0 && !is_store {
                    self.set(to);
                }
                // Structures of vectors, tags of memory.
                let moves = code & 0xbf80_0000 == 0x0c80_0000 || code & 0xff20_0000 == 0xd920_0000;
                let base = (code >> 5) & 31;
                if moves {
                    self.set_address(base, None);
                }
            }
            // Vectors, of which few lead to a general register.
            0b0111 | 0b1111 if code & 0x5f20_fc00 == 0x1e20_0000 || code & 0xbfe0_cc00 == 0x0e00_0c00 => {
                self.set(to);
            }
            _ => {}
        }
    }
}
