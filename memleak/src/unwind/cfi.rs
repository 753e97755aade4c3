//! Call frame instructions, evaluated for the three registers that a walk needs: CFA, frame
//! pointer, return address.
//!
//! gimli decodes; the state machine is ours, since a table of rules for all registers, copied for
//! each row, costs several times more. `tests/unwind_tables.rs` holds it against gimli's own
//! evaluation and readelf's.

use gimli::{CallFrameInstruction, EndianSlice, LittleEndian, Register, UnwindExpression, UnwindSection};
use memleak_common::unwind::{Apart, Kind, Row, SLOT_AT_FP, SLOT_AT_SP, SLOT_RANGE};

use crate::arch::Machine;

/// Bytes of a section; every supported machine is little-endian.
pub(super) type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Most states that `DW_CFA_remember_state` can stack; compilers use one or two.
const MAX_REMEMBERED: usize = 64;

/// DWARF numbers of the registers (System V psABI x86_64 figure 3.36; AADWARF64 section 4.1).
#[derive(Clone, Copy)]
struct Registers {
    sp: Register,
    fp: Register,
    ra: Register,
}

/// Those of a machine.
const fn registers_of(machine: Machine) -> Registers {
    match machine {
        Machine::X86_64 => Registers { sp: Register(7), fp: Register(6), ra: Register(16) },
        Machine::Aarch64 => Registers { sp: Register(31), fp: Register(29), ra: Register(30) },
    }
}

/// Where the CFA is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cfa {
    Offset(Register, i64),
    DerefFp(i64),
    DerefSp(i64),
    Plt { offset: i64, threshold: i8 },
    Other,
}

/// Where the caller's value of a register is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Saved {
    /// Nothing was said: it is where it was.
    Same,
    Undefined,
    /// At CFA + bytes.
    At(i64),
    AtSp,
    AtFp,
    Other,
}

/// Why a rule is in no row. A row of [`Kind::UNSUPPORTED`] says it in its slot field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
#[repr(i8)]
pub enum Unsupported {
    /// The CFA is an offset from a register that a walk does not have: gcc's realigned frames
    /// before their frame pointer is set (`r10`), hand-written assembly.
    CfaRegister = 1,
    /// The CFA is an expression of another form: OpenSSL's `[rsp + o] + 8`.
    CfaExpression,
    /// The CFA's offset is not a multiple of 8, or too large.
    CfaOffset,
    /// The frame pointer is saved beyond a slot's reach, or found by an expression; on aarch64 also
    /// where it is saved too far away from the return address.
    FramePointer,
    /// The return address is not where a call puts it.
    ReturnAddress,
    /// The entry could not be read from here on.
    Malformed,
}

impl Unsupported {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::CfaRegister,
        Self::CfaExpression,
        Self::CfaOffset,
        Self::FramePointer,
        Self::ReturnAddress,
        Self::Malformed,
    ];

    /// Why there is no better row than this one; `None` if it is a rule.
    pub fn of(row: Row) -> Option<Self> {
        let is_it = |reason: &Self| row.kind() == Kind::UNSUPPORTED && row.slot() == *reason as i8;
        Self::ALL.into_iter().find(is_it)
    }

    /// The row's bits that say it.
    fn rule(self) -> u32 {
        Row::new(0, Kind::UNSUPPORTED, 0, self as i8).unwrap_or(Row::bare(0, Kind::UNSUPPORTED)).rule()
    }
}

/// The rules of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    cfa: Cfa,
    fp: Saved,
    ra: Saved,
}

impl Rules {
    /// Before any instruction.
    const INITIAL: Self = Self { cfa: Cfa::Other, fp: Saved::Same, ra: Saved::Same };

    /// The rule bits of a row ([`Row::rule`]).
    fn pack(&self, machine: Machine, signal_frame: bool) -> u32 {
        let row = match (machine, self.ra) {
            (_, Saved::Undefined) => Some(Row::bare(0, Kind::END)),
            (Machine::X86_64, Saved::At(-8)) => self.pack_x86_64(),
            (Machine::X86_64, _) if signal_frame && self.cfa == Cfa::DerefSp(160) => {
                Some(Row::bare(0, Kind::SIGNAL))
            }
            (Machine::X86_64, _) => None,
            (Machine::Aarch64, _) if signal_frame => Some(Row::bare(0, Kind::SIGNAL)),
            (Machine::Aarch64, _) => self.pack_aarch64(),
        };
        row.map_or_else(|| self.unsupported(machine).rule(), Row::rule)
    }

    /// Why there is no row for it.
    fn unsupported(&self, machine: Machine) -> Unsupported {
        let Registers { sp, fp, .. } = registers_of(machine);
        let return_address = match machine {
            Machine::X86_64 => self.ra == Saved::At(-8),
            Machine::Aarch64 => matches!(self.ra, Saved::Same | Saved::At(_)),
        };
        let frame_pointer = match (self.fp, self.ra) {
            (Saved::At(fp_at), Saved::At(ra_at))
                if machine == Machine::Aarch64 && ra_at != fp_at.wrapping_add(8) =>
            {
                Apart { by_fp: false, cfa_offset: 0, fp_at, ra_at }.row(0).is_some()
            }
            (Saved::At(offset), _) => slot_of(offset).is_some(),
            (other, _) => other != Saved::Other,
        };
        match self.cfa {
            _ if !return_address => Unsupported::ReturnAddress,
            Cfa::Offset(register, _) if register != sp && register != fp => Unsupported::CfaRegister,
            Cfa::DerefSp(_) | Cfa::Other => Unsupported::CfaExpression,
            _ if !frame_pointer => Unsupported::FramePointer,
            Cfa::Plt { .. } => Unsupported::CfaExpression,
            _ => Unsupported::CfaOffset,
        }
    }

    fn pack_x86_64(&self) -> Option<Row> {
        let slot = match self.fp {
            Saved::Same | Saved::Undefined => 0,
            Saved::At(offset) => slot_of(offset)?,
            Saved::AtSp => SLOT_AT_SP,
            Saved::AtFp => SLOT_AT_FP,
            Saved::Other => return None,
        };
        let Registers { sp, fp, .. } = registers_of(Machine::X86_64);
        match self.cfa {
            Cfa::Offset(register, offset) if register == sp => Row::new(0, Kind::SP, offset, slot),
            Cfa::Offset(register, offset) if register == fp => Row::new(0, Kind::FP, offset, slot),
            Cfa::DerefFp(offset) => Row::new(0, Kind::DEREF_FP, offset, slot),
            // The slot field holds the threshold.
            Cfa::Plt { offset, threshold } if slot == 0 => Row::new(0, Kind::PLT, offset, threshold),
            _ => None,
        }
    }

    fn pack_aarch64(&self) -> Option<Row> {
        let Registers { sp, fp, .. } = registers_of(Machine::Aarch64);
        let (by_fp, offset) = match self.cfa {
            Cfa::Offset(register, offset) if register == sp => (false, offset),
            Cfa::Offset(register, offset) if register == fp => (true, offset),
            _ => return None,
        };
        let place = |saved: Saved| match saved {
            Saved::Same => Some(None),
            Saved::At(at) => Some(Some(at)),
            _ => None,
        };
        let saved_fp = if self.fp == Saved::Undefined { Saved::Same } else { self.fp };
        aarch64_row(by_fp, offset, place(saved_fp)?, place(self.ra)?)
    }
}

/// aarch64's row: its CFA is this many bytes above x29 or sp; x29 and x30 are at these distances
/// from the CFA, or where they were. `None` if no row can say it.
pub(crate) fn aarch64_row(
    by_fp: bool,
    cfa_offset: i64,
    fp_at: Option<i64>,
    ra_at: Option<i64>,
) -> Option<Row> {
    let ([leaf, pair, ra_only], base_slot) = match by_fp {
        false => ([Kind::SP_LEAF, Kind::SP_PAIR, Kind::SP_RA], SLOT_AT_SP),
        true => ([Kind::FP_LEAF, Kind::FP_PAIR, Kind::FP_RA], SLOT_AT_FP),
    };
    // What is saved at the bottom of a large frame is beyond a slot's reach, but the base register
    // points to it or below.
    let slot = |at: i64| match at.checked_add(cfa_offset)? {
        0 => Some(base_slot),
        _ if at >= 0 => None, // above the CFA
        above => slot_of(at).or_else(|| slot_of(above).filter(|slot| *slot > 0)),
    };
    let (kind, slot) = match (fp_at, ra_at) {
        (None, None) => (leaf, 0),
        (Some(at), None) => (leaf, slot(at)?),
        (Some(at), Some(ra)) if ra == at.wrapping_add(8) => (pair, slot(at)?),
        (Some(fp_at), Some(ra_at)) => return Apart { by_fp, cfa_offset, fp_at, ra_at }.row(0),
        (None, Some(at)) => (ra_only, slot(at)?),
    };
    Row::new(0, kind, cfa_offset, slot)
}

/// The slot field for "at CFA + `offset` bytes".
pub(crate) fn slot_of(offset: i64) -> Option<i8> {
    let slot = offset >> 3;
    // The CFA itself is the caller's: 0 has its own meaning, and nothing is saved there.
    (offset & 7 == 0 && slot != 0 && SLOT_RANGE.contains(&slot)).then_some(slot as i8)
}

/// Why the instructions of an entry were given up; the rows before are good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Malformed;

/// What an entry's instructions are read with.
pub(super) struct Entry<'s, S> {
    /// The section, for expressions.
    pub section: &'s S,
    pub machine: Machine,
    pub signal_frame: bool,
    pub code_factor: u64,
    pub data_factor: i64,
}

impl<'s, 'input: 's, S: UnwindSection<Slice<'input>>> Entry<'s, S> {
    /// The rules after a CIE's instructions: what its entries begin with.
    pub(super) fn initial_rules(
        &self,
        mut next: impl FnMut() -> gimli::Result<Option<CallFrameInstruction<usize>>>,
    ) -> Result<Rules, Malformed> {
        let mut machine = Evaluation { entry: self, initial: Rules::INITIAL, rules: Rules::INITIAL };
        while let Some(instruction) = next().map_err(|_| Malformed)? {
            machine.apply(&instruction)?;
        }
        Ok(machine.rules)
    }

    /// Calls `row(address, rule bits)` for every row of the entry, which covers `start..end`.
    pub(super) fn rows(
        &self,
        initial: Rules,
        start: u64,
        end: u64,
        mut next: impl FnMut() -> gimli::Result<Option<CallFrameInstruction<usize>>>,
        mut row: impl FnMut(u64, u32),
    ) -> Result<(), Malformed> {
        let mut evaluation = Evaluation { entry: self, initial, rules: initial };
        let mut remembered: Vec<Rules> = Vec::new();
        let mut address = start;
        let result = loop {
            let instruction = match next() {
                Ok(Some(instruction)) => instruction,
                Ok(None) => break Ok(()),
                Err(_) => break Err(Malformed),
            };
            let to = match instruction {
                CallFrameInstruction::AdvanceLoc { delta } => {
                    address.saturating_add(self.code_factor.saturating_mul(delta.into()))
                }
                CallFrameInstruction::SetLoc { address } => address,
                CallFrameInstruction::RememberState => {
                    if remembered.len() == MAX_REMEMBERED {
                        break Err(Malformed);
                    }
                    remembered.push(evaluation.rules);
                    continue;
                }
                CallFrameInstruction::RestoreState => {
                    let Some(rules) = remembered.pop() else { break Err(Malformed) };
                    evaluation.rules = rules;
                    continue;
                }
                other => {
                    if evaluation.apply(&other).is_err() {
                        break Err(Malformed);
                    }
                    continue;
                }
            };
            if to < address {
                break Err(Malformed);
            }
            if to > address {
                row(address, evaluation.rules.pack(self.machine, self.signal_frame));
                address = to;
            }
            if address >= end {
                return Ok(());
            }
        };
        match result {
            Ok(()) => row(address, evaluation.rules.pack(self.machine, self.signal_frame)),
            // What holds from here on is unknown.
            Err(Malformed) => row(address, Unsupported::Malformed.rule()),
        }
        result
    }

    fn expression(&self, expression: &UnwindExpression<usize>) -> &'input [u8] {
        expression.get(self.section).map_or(&[], |expression| expression.0.slice())
    }
}

struct Evaluation<'e, 's, S> {
    entry: &'e Entry<'s, S>,
    initial: Rules,
    rules: Rules,
}

impl<'s, 'input: 's, S: UnwindSection<Slice<'input>>> Evaluation<'_, 's, S> {
    fn factored(&self, offset: i64) -> Option<i64> {
        offset.checked_mul(self.entry.data_factor)
    }

    fn apply(&mut self, instruction: &CallFrameInstruction<usize>) -> Result<(), Malformed> {
        use CallFrameInstruction as I;
        let saved_at = |offset: Option<i64>| offset.map_or(Saved::Other, Saved::At);
        match *instruction {
            I::DefCfa { register, offset } => self.rules.cfa = cfa_at(register, i64::try_from(offset).ok()),
            I::DefCfaSf { register, factored_offset } => {
                self.rules.cfa = cfa_at(register, self.factored(factored_offset));
            }
            I::DefCfaRegister { register } => match self.rules.cfa {
                Cfa::Offset(_, offset) => self.rules.cfa = Cfa::Offset(register, offset),
                _ => return Err(Malformed),
            },
            I::DefCfaOffset { offset } => self.move_cfa(i64::try_from(offset).ok())?,
            I::DefCfaOffsetSf { factored_offset } => self.move_cfa(self.factored(factored_offset))?,
            I::DefCfaExpression { expression } => {
                self.rules.cfa = cfa_expression(self.entry.expression(&expression), self.entry.machine);
            }
            I::Undefined { register } => self.save(register, Saved::Undefined),
            I::SameValue { register } => self.save(register, Saved::Same),
            I::Offset { register, factored_offset } => {
                let offset = i64::try_from(factored_offset).ok().and_then(|offset| self.factored(offset));
                self.save(register, saved_at(offset));
            }
            I::OffsetExtendedSf { register, factored_offset } => {
                self.save(register, saved_at(self.factored(factored_offset)));
            }
            I::Expression { register, expression } => {
                let saved = saved_expression(self.entry.expression(&expression), self.entry.machine);
                self.save(register, saved);
            }
            I::Register { dest_register, src_register } => {
                let saved = if dest_register == src_register { Saved::Same } else { Saved::Other };
                self.save(dest_register, saved);
            }
            I::ValOffset { register, .. }
            | I::ValOffsetSf { register, .. }
            | I::ValExpression { register, .. } => self.save(register, Saved::Other),
            I::Restore { register } => {
                let Registers { fp, ra, .. } = registers_of(self.entry.machine);
                if register == fp {
                    self.rules.fp = self.initial.fp;
                } else if register == ra {
                    self.rules.ra = self.initial.ra;
                }
            }
            // The return address is masked whether it was signed or not; the size of arguments is
            // the handler's.
            I::NegateRaState | I::ArgsSize { .. } | I::Nop => {}
            // Locations and remembered states mean nothing in a CIE, and `rows` takes them from an
            // FDE.
            _ => return Err(Malformed),
        }
        Ok(())
    }

    fn save(&mut self, register: Register, saved: Saved) {
        let Registers { fp, ra, .. } = registers_of(self.entry.machine);
        if register == fp {
            self.rules.fp = saved;
        } else if register == ra {
            self.rules.ra = saved;
        }
    }

    fn move_cfa(&mut self, to: Option<i64>) -> Result<(), Malformed> {
        match self.rules.cfa {
            Cfa::Offset(register, _) => {
                self.rules.cfa = cfa_at(register, to);
                Ok(())
            }
            _ => Err(Malformed),
        }
    }
}

fn cfa_at(register: Register, offset: Option<i64>) -> Cfa {
    offset.map_or(Cfa::Other, |offset| Cfa::Offset(register, offset))
}

/// DWARF operations that the recognized expressions are made of (DWARF 5 section 7.7.1).
mod op {
    pub(super) const DEREF: u8 = 0x06;
    pub(super) const AND: u8 = 0x1a;
    pub(super) const PLUS: u8 = 0x22;
    pub(super) const SHL: u8 = 0x24;
    pub(super) const GE: u8 = 0x2a;
    pub(super) const LIT0: u8 = 0x30;
    pub(super) const BREG0: u8 = 0x70;
}

/// `DW_OP_bregN offset` at the front: register, offset, what follows.
fn split_breg(bytes: &[u8]) -> Option<(u16, i64, &[u8])> {
    let (&first, mut rest) = bytes.split_first()?;
    let register = first.checked_sub(op::BREG0).filter(|register| *register < 32)?;
    let mut value = 0i64;
    let mut shift = 0;
    loop {
        let (&byte, tail) = rest.split_first()?;
        rest = tail;
        value |= i64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            // The last group's highest bit is the sign.
            let unused = 64 - shift;
            return Some((register.into(), (value << unused) >> unused, rest));
        }
        if shift > 49 {
            return None;
        }
    }
}

fn cfa_expression(bytes: &[u8], machine: Machine) -> Cfa {
    let Some((register, offset, rest)) = split_breg(bytes) else { return Cfa::Other };
    let Registers { sp, fp, ra } = registers_of(machine);
    match rest {
        [] => Cfa::Offset(Register(register), offset),
        [op::DEREF] if register == fp.0 => Cfa::DerefFp(offset),
        [op::DEREF] if register == sp.0 => Cfa::DerefSp(offset),
        _ if register == sp.0 && machine == Machine::X86_64 => match split_breg(rest) {
            // binutils' bfd/elfxx-x86.c: rsp + o + ((rip & 15) >= threshold) << 3.
            Some((rip, 0, &[mask, op::AND, threshold, op::GE, shift, op::SHL, op::PLUS]))
                if rip == ra.0
                    && mask == op::LIT0 + 15
                    && shift == op::LIT0 + 3
                    && (op::LIT0..=op::LIT0 + 15).contains(&threshold) =>
            {
                Cfa::Plt { offset, threshold: (threshold - op::LIT0) as i8 }
            }
            _ => Cfa::Other,
        },
        _ => Cfa::Other,
    }
}

fn saved_expression(bytes: &[u8], machine: Machine) -> Saved {
    let Registers { sp, fp, .. } = registers_of(machine);
    match split_breg(bytes) {
        Some((register, 0, [])) if register == fp.0 => Saved::AtFp,
        Some((register, 0, [])) if register == sp.0 => Saved::AtSp,
        _ => Saved::Other,
    }
}
