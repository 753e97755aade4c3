//! What is known of a frame at an instruction, and how instructions change it.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use memleak_common::unwind::{Kind, Row, SLOT_AT_FP, SLOT_AT_SP};

use crate::unwind::cfi::slot_of;

/// Farthest place from the CFA that is followed, bytes: a row reaches no farther.
const MAX_DISTANCE: i64 = 4 << 20;

/// An address on the stack.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Place {
    Unknown,
    /// CFA minus so many bytes.
    Cfa(i32),
    /// So many bytes below where `and` has put the stack pointer: how far that is from the CFA is
    /// not known.
    Base(i32),
}

impl Place {
    /// The place so many bytes below.
    pub(super) fn down(self, bytes: i64) -> Self {
        let moved = |from: i32| {
            let to = i64::from(from).checked_add(bytes).filter(|to| to.abs() <= MAX_DISTANCE)?;
            i32::try_from(to).ok()
        };
        match self {
            Self::Unknown => None,
            Self::Cfa(from) => moved(from).map(Self::Cfa),
            Self::Base(from) => moved(from).map(Self::Base),
        }
        .unwrap_or(Self::Unknown)
    }

    fn meet(self, other: Self) -> Self {
        if self == other { self } else { Self::Unknown }
    }

    fn is_cfa(self) -> bool {
        matches!(self, Self::Cfa(_))
    }

    fn is_known(self) -> bool {
        self != Self::Unknown
    }

    /// Whether what is here is free once the stack pointer is at `sp`.
    fn is_dropped_at(self, sp: Self) -> bool {
        match (self, sp) {
            (Self::Cfa(here), Self::Cfa(sp)) | (Self::Base(here), Self::Base(sp)) => here > sp,
            _ => false,
        }
    }
}

/// The registers of a frame before an instruction, as far as they are known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct State {
    /// Where `rsp` points.
    pub sp: Place,
    /// Where `rbp` points; `None` while it is the caller's.
    pub fp: Option<Place>,
    /// Where the caller's `rbp` is saved.
    pub saved: Option<Place>,
    /// Where the CFA itself is saved: gcc's realigned frames.
    stored_cfa: Place,
    /// A register that holds an address on the stack.
    copy: Option<(Register, Place)>,
    /// A stack ends here: the program's or a thread's first code.
    pub end: bool,
}

impl State {
    /// At a function's first instruction: the return address is on top.
    pub(super) const ENTRY: Self =
        Self { sp: Place::Cfa(8), fp: None, saved: None, stored_cfa: Place::Unknown, copy: None, end: false };

    /// Where nobody has called.
    pub(super) const OUTERMOST: Self = Self { sp: Place::Unknown, end: true, ..Self::ENTRY };

    /// Nothing is known.
    pub(super) const NOTHING: Self = Self { sp: Place::Unknown, fp: Some(Place::Unknown), ..Self::ENTRY };

    /// In the middle of a function, from what its end undoes.
    pub(super) fn inside(sp: Place, fp: Option<Place>, saved: Option<Place>) -> Self {
        Self { sp, fp, saved, ..Self::ENTRY }
    }

    /// As it has to be where a function returns, or jumps to another one in its place.
    pub(super) fn is_balanced(&self) -> bool {
        self.sp == Place::Cfa(8) && self.fp.is_none()
    }

    /// There is a row for it.
    pub(super) fn is_row(&self) -> bool {
        self.end || self.row().is_some()
    }

    /// The two are of one frame; `rbp` may have been put to use on one of the ways alone.
    pub(super) fn is_alike(&self, other: &Self) -> bool {
        (self.sp, self.saved, self.end) == (other.sp, other.saved, other.end)
            && (self.sp != Place::Unknown || self.fp == other.fp)
    }

    /// What holds where two ways meet.
    pub(super) fn meet(&self, other: &Self) -> Self {
        if self.end != other.end {
            return Self::NOTHING;
        }
        let fp = if self.fp == other.fp { self.fp } else { Some(Place::Unknown) };
        let saved = match (self.saved, other.saved) {
            (left, right) if left == right => left,
            // Saved on one of the ways and untouched on both.
            _ if fp.is_none() => None,
            _ => Some(Place::Unknown),
        };
        Self {
            sp: self.sp.meet(other.sp),
            fp,
            saved,
            stored_cfa: self.stored_cfa.meet(other.stored_cfa),
            copy: self.copy.filter(|copy| other.copy == Some(*copy)),
            end: self.end,
        }
    }

    /// The rule bits of a row ([`Row::rule`]); those of [`Kind::NONE`] if the caller cannot be
    /// found.
    pub(super) fn rule(&self) -> u32 {
        if self.end {
            return Row::bare(0, Kind::END).rule();
        }
        self.row().unwrap_or(Row::bare(0, Kind::NONE)).rule()
    }

    fn row(&self) -> Option<Row> {
        let slot = match self.saved {
            None if self.fp.is_none() => 0,
            None | Some(Place::Unknown) => return None,
            Some(saved) if self.fp == Some(saved) => match saved {
                Place::Cfa(below) => slot_of(-i64::from(below)).unwrap_or(SLOT_AT_FP),
                _ => SLOT_AT_FP,
            },
            Some(Place::Cfa(below)) => slot_of(-i64::from(below)).or(self.fp.is_none().then_some(0))?,
            Some(saved) if self.sp == saved => SLOT_AT_SP,
            Some(_) => return None,
        };
        match (self.fp, self.stored_cfa) {
            // A frame pointer holds whatever the stack pointer does. One that points elsewhere is a
            // variable's address.
            (Some(Place::Cfa(below)), _) if below > 0 && (self.fp == self.saved || !self.sp.is_cfa()) => {
                Row::new(0, Kind::FP, below.into(), slot)
            }
            (Some(Place::Base(below)), Place::Base(stored)) => {
                Row::new(0, Kind::DEREF_FP, i64::from(below) - i64::from(stored), slot)
            }
            _ => match self.sp {
                Place::Cfa(below) if below >= 8 => Row::new(0, Kind::SP, below.into(), slot),
                _ => None,
            },
        }
    }

    /// Whether an instruction may change it: most do not.
    pub(super) fn is_concerned(&self, instruction: &Instruction) -> bool {
        let is_pointer =
            |register: Register| matches!(register.full_register(), Register::RSP | Register::RBP);
        self.copy.is_some()
            || self.stored_cfa.is_known()
            || instruction.is_stack_instruction()
            || is_pointer(instruction.op0_register())
            || is_pointer(instruction.op1_register())
            || (instruction.mnemonic() == Mnemonic::Lea && is_pointer(instruction.memory_base()))
    }

    /// Follows an instruction that is not a jump, call or return. `may_begin`: nothing says yet
    /// that there is a caller, so that a zeroed `rbp` says that there is none (System V psABI
    /// x86_64 3.4.1).
    pub(super) fn apply(&mut self, instruction: &Instruction, may_begin: bool) {
        if !self.is_concerned(instruction) {
            return;
        }
        let first = instruction.op0_register();
        if instruction.is_stack_instruction() {
            return self.apply_stack(instruction, first);
        }
        match first.full_register() {
            Register::RSP => self.write_sp(instruction),
            Register::RBP => self.write_fp(instruction, may_begin),
            Register::None => self.store(instruction),
            register => self.write_other(instruction, register),
        }
        if matches!(instruction.mnemonic(), Mnemonic::Xchg | Mnemonic::Xadd) {
            match instruction.op1_register().full_register() {
                Register::RSP => self.lose_sp(),
                Register::RBP => self.fp = Some(Place::Unknown),
                register => self.drop_copy(register),
            }
        }
    }

    /// What a call leaves.
    pub(super) fn after_call(&mut self) {
        if self.copy.is_some_and(|(register, _)| {
            matches!(register, Register::R8 | Register::R9 | Register::R10 | Register::R11)
        }) {
            self.copy = None;
        }
    }

    /// A call of the next instruction: it pushes an address.
    pub(super) fn push_address(&mut self) {
        self.sp = self.sp.down(8);
    }

    fn apply_stack(&mut self, instruction: &Instruction, first: Register) {
        match instruction.mnemonic() {
            Mnemonic::Leave => {
                self.sp = self.fp.unwrap_or(Place::Unknown);
                self.pop_fp();
            }
            Mnemonic::Enter if instruction.code() == Code::Enterq_imm16_imm8 => {
                self.push_fp();
                let nested = instruction.immediate8_2nd() & 31 != 0;
                self.fp = Some(if nested { Place::Unknown } else { self.sp });
                let bytes = i64::from(instruction.immediate16());
                self.sp = if nested { Place::Unknown } else { self.sp.down(bytes) };
            }
            Mnemonic::Push if first == Register::RBP => self.push_fp(),
            Mnemonic::Pop if first == Register::RBP => self.pop_fp(),
            Mnemonic::Push => {
                self.sp = self.sp.down(-i64::from(instruction.stack_pointer_increment()));
                if self.copy == Some((first, Place::Cfa(0))) {
                    self.stored_cfa = self.sp;
                }
            }
            Mnemonic::Pop => {
                self.move_sp(self.sp.down(-i64::from(instruction.stack_pointer_increment())));
                match first.full_register() {
                    Register::RSP => self.lose_sp(),
                    Register::RBP => self.fp = Some(Place::Unknown),
                    register => self.drop_copy(register),
                }
            }
            _ => match instruction.stack_pointer_increment() {
                0 => self.lose_sp(),
                bytes => self.move_sp(self.sp.down(-i64::from(bytes))),
            },
        }
    }

    fn push_fp(&mut self) {
        self.sp = self.sp.down(8);
        if self.fp.is_none() && self.saved.is_none() && self.sp.is_known() {
            self.saved = Some(self.sp);
        }
    }

    fn pop_fp(&mut self) {
        if self.sp.is_known() && self.saved == Some(self.sp) {
            (self.fp, self.saved) = (None, None);
        } else {
            self.fp = Some(Place::Unknown);
        }
        self.move_sp(self.sp.down(-8));
    }

    fn lose_sp(&mut self) {
        self.sp = Place::Unknown;
    }

    /// Moves the stack pointer; what it leaves behind is not there any more.
    fn move_sp(&mut self, to: Place) {
        self.sp = to;
        if self.saved.is_some_and(|saved| saved.is_dropped_at(to)) {
            self.saved = self.fp.map(|_| Place::Unknown);
        }
    }

    /// An instruction whose first operand is `rsp` or a part of it.
    fn write_sp(&mut self, instruction: &Instruction) {
        let whole = instruction.op0_register() == Register::RSP;
        let to = match (instruction.mnemonic(), immediate(instruction)) {
            (Mnemonic::Cmp | Mnemonic::Test, _) => return,
            (Mnemonic::Add, Some(bytes)) if whole => self.sp.down(bytes.saturating_neg()),
            (Mnemonic::Sub, Some(bytes)) if whole => self.sp.down(bytes),
            (Mnemonic::And, Some(_)) if whole => return self.realign(),
            (Mnemonic::Lea, _) if whole => self.place(instruction),
            (Mnemonic::Mov, _) if whole && instruction.op1_kind() == OpKind::Register => {
                self.value(instruction.op1_register())
            }
            _ => Place::Unknown,
        };
        self.move_sp(to);
    }

    fn realign(&mut self) {
        // Of two bases only the new one is kept.
        let stale = |place: Place| if matches!(place, Place::Base(_)) { Place::Unknown } else { place };
        self.fp = self.fp.map(stale);
        self.saved = self.saved.map(stale);
        self.copy = self.copy.map(|(register, place)| (register, stale(place)));
        self.stored_cfa = stale(self.stored_cfa);
        self.sp = Place::Base(0);
    }

    /// An instruction whose first operand is `rbp` or a part of it.
    fn write_fp(&mut self, instruction: &Instruction, may_begin: bool) {
        let whole = instruction.op0_register() == Register::RBP;
        let to = match (instruction.mnemonic(), immediate(instruction)) {
            (Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt, _) => return,
            (Mnemonic::Mov, _) if whole && instruction.op1_kind() == OpKind::Register => {
                self.value(instruction.op1_register())
            }
            (Mnemonic::Mov, _) if whole && instruction.op1_kind() == OpKind::Memory => {
                let from = self.place(instruction);
                if from.is_known() && self.saved == Some(from) {
                    (self.fp, self.saved) = (None, None);
                    return;
                }
                Place::Unknown
            }
            (Mnemonic::Lea, _) if whole => self.place(instruction),
            (Mnemonic::Add, Some(bytes)) if whole => self.value(Register::RBP).down(bytes.saturating_neg()),
            (Mnemonic::Sub, Some(bytes)) if whole => self.value(Register::RBP).down(bytes),
            (Mnemonic::Xor, _) if may_begin && instruction.op1_register() == instruction.op0_register() => {
                self.end |= self.fp.is_none() && self.saved.is_none();
                Place::Unknown
            }
            _ => Place::Unknown,
        };
        self.fp = Some(to);
    }

    /// An instruction whose first operand is memory, or that has none.
    fn store(&mut self, instruction: &Instruction) {
        if instruction.mnemonic() == Mnemonic::Mov
            && instruction.op0_kind() == OpKind::Memory
            && instruction.op1_register() == Register::RBP
            && self.fp.is_none()
            && self.saved.is_none()
        {
            self.saved = Some(self.place(instruction)).filter(|place| place.is_known());
        }
        if matches!(instruction.mnemonic(), Mnemonic::Cpuid | Mnemonic::Syscall) {
            self.copy = self.copy.filter(|(register, _)| !matches!(register, Register::RBX | Register::R11));
        }
    }

    /// An instruction whose first operand is another register.
    fn write_other(&mut self, instruction: &Instruction, register: Register) {
        let copied = match instruction.mnemonic() {
            Mnemonic::Cmp | Mnemonic::Test => return,
            Mnemonic::Lea => self.place(instruction),
            Mnemonic::Mov if instruction.op1_kind() == OpKind::Register => {
                self.value(instruction.op1_register())
            }
            Mnemonic::Mov if instruction.op1_kind() == OpKind::Memory && self.stored_cfa.is_known() => {
                if self.place(instruction) == self.stored_cfa { Place::Cfa(0) } else { Place::Unknown }
            }
            _ => Place::Unknown,
        };
        self.drop_copy(register);
        let kept = matches!(
            register,
            Register::RBX
                | Register::R8
                | Register::R9
                | Register::R10
                | Register::R11
                | Register::R12
                | Register::R13
                | Register::R14
                | Register::R15
        );
        if kept && copied.is_known() && self.copy.is_none() {
            self.copy = Some((register, copied));
        }
    }

    fn drop_copy(&mut self, register: Register) {
        self.copy = self.copy.filter(|(copy, _)| *copy != register);
    }

    /// Where a register points.
    fn value(&self, register: Register) -> Place {
        match register {
            Register::RSP => self.sp,
            Register::RBP => self.fp.unwrap_or(Place::Unknown),
            other => match self.copy {
                Some((copy, place)) if copy == other => place,
                _ => Place::Unknown,
            },
        }
    }

    /// The address of the instruction's operand in memory.
    fn place(&self, instruction: &Instruction) -> Place {
        if instruction.memory_index() != Register::None || instruction.segment_prefix() != Register::None {
            return Place::Unknown;
        }
        let displacement = instruction.memory_displacement64() as i64;
        self.value(instruction.memory_base()).down(displacement.saturating_neg())
    }
}

/// The second operand, if it is a number.
fn immediate(instruction: &Instruction) -> Option<i64> {
    let is_number = matches!(
        instruction.op1_kind(),
        OpKind::Immediate8to64 | OpKind::Immediate32to64 | OpKind::Immediate8 | OpKind::Immediate32
    );
    is_number.then(|| instruction.immediate(1) as i64)
}
