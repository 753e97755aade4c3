//! Stack unwinding without frame pointers: the row format and the pure step from a frame to its
//! caller.
//!
//! Both sides compile this file. The user side makes tables of rows from `.eh_frame`
//! (`memleak::unwind`) and lays them out in arrays; the BPF programs walk with [`step_x86_64`] or
//! [`step_aarch64`], which reach memory and tables through [`Reads`] and [`Tables`] alone. Nothing
//! here can panic, recurse or loop without a constant bound.
//!
//! ## Tables
//!
//! A table belongs to an object (an ELF file, the vdso). Its `pc`s are `vaddr - text_base`, where
//! `text_base` is the vaddr of the object's first executable segment. One array of 64-bit words
//! holds for each table
//! - its rows, in order of `pc`, the first at `pc` 0: a row holds from its `pc` to the next row's;
//! - its page index: for each [`PAGE_BYTES`] of text one word of two row indices ([`page_word`])
//!   that bound the search.
//!
//! A process has a list of [`Mapping`]s in order of address; a [`MappingList`] names it in one
//! 64-bit word, so that one store swaps a list for its successor.
//!
//! ## A step
//!
//! A row says, for every `ip` it covers, how the caller's registers follow. The canonical frame
//! address (CFA) is the value of the stack pointer before the call. x86_64 (System V psABI 3.3.2,
//! DWARF 5 section 6.4):
//!
//! ```text
//! CFA  = rsp + o                      Kind::SP
//!      = rbp + o                      Kind::FP
//!      = [rbp + o]                    Kind::DEREF_FP   (gcc's realigned frames)
//!      = rsp + o + 8*((rip & 15) >= s)  Kind::PLT      (s: the slot field)
//! rip' = [CFA - 8]
//! rsp' = CFA
//! rbp' = rbp, [CFA + 8*s], [rsp] or [rbp]              (slot 0, s, SLOT_AT_SP, SLOT_AT_FP)
//! Kind::SIGNAL: rbp', rsp', rip' = [rsp + 120], [rsp + 160], [rsp + 168]
//! Kind::RECORD: rbp', rip' = [rbp], [rbp + 8]; rsp' = rbp + 16, which may be another stack's
//! ```
//!
//! aarch64 (B is sp in SP_* and x29 in FP_*; A is CFA + 8*s where s < 0, B + 8*s where s > 0, sp or
//! x29 by the slot field: nothing is saved above a CFA, and at the bottom of a large frame is much;
//! pc' loses its pointer authentication bits):
//!
//! ```text
//! CFA = B + o
//! pc' = x30             x29' = x29, or [A] where s != 0     *_LEAF
//! pc' = [A + 8]         x29' = [A]                          *_PAIR
//! pc' = [A]             x29' = x29                          *_RA
//! pc' = [E - 8*(r+1)]   x29' = [E - 8*(f+1)]                *_APART        (E is CFA)
//! pc' = [B + 8*r]       x29' = [B + 8*f]                    *_APART_ABOVE
//! sp' = CFA
//! Kind::SIGNAL: x29', x30', sp', pc' = [sp + 544], [sp + 552], [sp + 560], [sp + 568]
//! Kind::RECORD: x29', pc' = [x29], [x29 + 8]; sp' >= x29 + 16, which may be another stack's
//! ```
//!
//! An aarch64 record is at the bottom of its frame (gcc) or anywhere in it, so a step by it leaves
//! only a bound of sp. The next frame's sp is that by which its own record is at x29 (SP_PAIR).

mod aarch64;
mod apart;
mod known;
mod x86_64;

pub use aarch64::step_aarch64;
pub use apart::Apart;
pub use known::{KNOWN_RULES, KnownRule};
pub use x86_64::step_x86_64;

/// Bytes of text that one word of the page index covers.
pub const PAGE_BYTES: u64 = 256;
const PAGE_SHIFT: u32 = PAGE_BYTES.trailing_zeros();
/// Steps of the search for a row: at most 256 rows begin in a page and one reaches into it, and
/// 2^9 > 257.
const ROW_STEPS: u32 = 9;
/// Steps of the search for a mapping.
const MAPPING_STEPS: u32 = 13;
/// Most mappings a list can have and still be searched to the end.
pub const MAX_MAPPINGS: u32 = (1 << MAPPING_STEPS) - 1;
/// Longest distance from the stack pointer to a frame record that is believed, in bytes.
const MAX_FP_DISTANCE: u64 = 1 << 20;

/// How a row's CFA and return address are found; the module's documentation has the equations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub struct Kind(pub u8);

/// Numbers 1 to 4 are other kinds on each machine.
impl Kind {
    /// No unwind information for this text.
    pub const NONE: Self = Self(0);
    /// x86_64: from `rsp`.
    pub const SP: Self = Self(1);
    /// x86_64: from `rbp`.
    pub const FP: Self = Self(2);
    /// x86_64: in memory, at an offset from `rbp`.
    pub const DEREF_FP: Self = Self(3);
    /// x86_64: a lazy procedure linkage table, whose second half has pushed a word.
    pub const PLT: Self = Self(4);
    /// aarch64: CFA from `sp`, `x29` and `x30` saved apart from each other, both below the CFA.
    pub const SP_APART: Self = Self(1);
    /// aarch64: the same, both above `sp`.
    pub const SP_APART_ABOVE: Self = Self(2);
    /// aarch64: CFA from `x29`, `x29` and `x30` saved apart from each other, both below the CFA.
    pub const FP_APART: Self = Self(3);
    /// aarch64: the same, both above `x29`.
    pub const FP_APART_ABOVE: Self = Self(4);
    /// The outermost function: its return address is undefined. The stack is complete.
    pub const END: Self = Self(5);
    /// There is a rule, but a row cannot say it.
    pub const UNSUPPORTED: Self = Self(6);
    /// Where a signal handler returns to: the interrupted registers are in the `ucontext` on the
    /// stack.
    pub const SIGNAL: Self = Self(7);
    /// aarch64: CFA from `sp`, return address in `x30`.
    pub const SP_LEAF: Self = Self(8);
    /// aarch64: CFA from `sp`, `x29` and `x30` saved side by side.
    pub const SP_PAIR: Self = Self(9);
    /// aarch64: CFA from `sp`, `x30` saved and `x29` untouched.
    pub const SP_RA: Self = Self(10);
    /// aarch64: CFA from `x29`, return address in `x30`.
    pub const FP_LEAF: Self = Self(11);
    /// aarch64: CFA from `x29`, `x29` and `x30` saved side by side.
    pub const FP_PAIR: Self = Self(12);
    /// aarch64: CFA from `x29`, `x30` saved and `x29` untouched.
    pub const FP_RA: Self = Self(13);
    /// The frame record at the frame pointer, on whatever stack that is: code that keeps
    /// frame pointers and switches stacks (Go).
    pub const RECORD: Self = Self(14);
}

/// Slot field: the register is saved where the stack pointer points.
pub const SLOT_AT_SP: i8 = 127;
/// Slot field: the register is saved where the frame pointer points.
pub const SLOT_AT_FP: i8 = 126;
/// Highest and lowest slot that is an offset.
pub const SLOT_RANGE: core::ops::RangeInclusive<i64> = -128..=125;

/// One row: from bit 0, `pc` (32 bits), CFA offset in words (20, signed), kind (4), slot in words
/// (8, signed). In the `*_APART*` kinds the CFA offset has 18 bits and no sign, and its two highest
/// bits and the slot's 8 are `f` and `r`, 5 bits each ([`Apart`]).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Row(pub u64);

impl Row {
    /// A row from its parts. `None` if `cfa_offset` (bytes) is not a multiple of 8 or beyond 4 MiB.
    pub const fn new(pc: u32, kind: Kind, cfa_offset: i64, slot: i8) -> Option<Self> {
        let words = cfa_offset >> 3;
        if cfa_offset & 7 != 0 || words < -(1 << 19) || words >= 1 << 19 {
            return None;
        }
        let rule = ((words as u32) & 0xf_ffff) | ((kind.0 as u32 & 15) << 20) | ((slot as u8 as u32) << 24);
        Some(Self::from_rule(pc, rule))
    }

    /// A row of a kind that needs no offsets.
    pub const fn bare(pc: u32, kind: Kind) -> Self {
        Self::from_rule(pc, (kind.0 as u32 & 15) << 20)
    }

    /// A row that says at `pc` what another one's [`Row::rule`] says.
    pub const fn from_rule(pc: u32, rule: u32) -> Self {
        Self(pc as u64 | ((rule as u64) << 32))
    }

    /// First `pc` that the row covers, relative to the table's text base.
    pub const fn pc(self) -> u32 {
        self.0 as u32
    }

    /// All but the `pc`: rows that follow each other with equal rules are one.
    pub const fn rule(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Which rule.
    pub const fn kind(self) -> Kind {
        Kind(((self.0 >> 52) & 15) as u8)
    }

    /// `o` of the equations, bytes.
    pub const fn cfa_offset(self) -> i64 {
        // The shift to the top and back down carries the sign of the 20-bit field.
        (((self.0 << 12) as i64) >> 44) << 3
    }

    /// `s` of the equations, words (or one of the `SLOT_` constants).
    pub const fn slot(self) -> i8 {
        (self.0 >> 56) as i8
    }
}

/// A word of the page index: the last row that begins at or before the page, and the first one
/// after the page.
pub const fn page_word(first: u32, end: u32) -> u64 {
    first as u64 | ((end as u64) << 32)
}

/// A file's executable mapping and its table. `end` 0: none.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// `pc` of a row = `ip - bias`.
    pub bias: u64,
    /// Index of the table's first row among the words.
    pub rows: u32,
    /// Index of its page index.
    pub pages: u32,
    /// Words of its page index; 0 if the object has no rows.
    pub page_count: u32,
    /// Fills up; 0.
    pub reserved: u32,
}

/// A process's mappings: index of the first, and how many, in one word.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MappingList(pub u64);

impl MappingList {
    /// `count` mappings from index `first` on.
    pub const fn new(first: u32, count: u32) -> Self {
        Self(first as u64 | ((count as u64) << 32))
    }

    /// Index of the first.
    pub const fn first(self) -> u32 {
        self.0 as u32
    }

    /// How many.
    pub const fn count(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A process's list as the programs find it. User space stores `list` before `generation`, and a
/// walk loads them the other way round: with an old generation it may see a new list, and never an
/// old list with a new generation.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PublishedList {
    /// Its mappings.
    pub list: MappingList,
    /// Another one for each list that was ever published: what was found by one says nothing under
    /// the next.
    pub generation: u64,
}

/// Reads of the traced thread's memory.
pub trait Reads {
    /// The word at `address`; `None` if it cannot be read.
    fn read(&self, address: u64) -> Option<u64>;

    /// The words at `address` and `address + 8`, in one read.
    fn read2(&self, address: u64) -> Option<[u64; 2]>;

    /// The return address that belongs to the frame with this CFA, where `found` was read: a
    /// pending return probe has put the kernel's trampoline in its place, and whoever set the probe
    /// knows the real one.
    #[inline(always)]
    fn return_address(&self, _cfa: u64, found: u64) -> u64 {
        found
    }

    /// Where there is no row, a step may be made by the frame pointer.
    #[inline(always)]
    fn may_step_by_pointer(&self) -> bool {
        true
    }
}

/// Look-ups in the arrays that hold the tables. Any index can be asked for: an array that is being
/// rewritten must give a wrong row at worst.
pub trait Tables {
    /// A row or a word of a page index.
    fn word(&self, index: u32) -> Option<u64>;
    /// [`Mapping::start`] of a mapping.
    fn mapping_start(&self, index: u32) -> Option<u64>;
    /// A mapping.
    fn mapping(&self, index: u32) -> Option<Mapping>;

    /// [`Row::rule`] for `address` (the state's `ip`, or the byte before) where the driver knows it
    /// from an earlier walk over the same tables, else 0.
    #[inline(always)]
    fn known_rule(&self, _address: u64) -> u32 {
        0
    }

    /// Tells the driver the rule for `address`; 0 if there is none.
    #[inline(always)]
    fn found_rule(&self, _address: u64, _rule: u32) {}
}

/// The registers a walk starts from.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Regs {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer: `rbp`, `x29`.
    pub fp: u64,
    /// Link register: `x30`; 0 on x86_64, and in frames that have made a call.
    pub lr: u64,
}

/// A frame, and what is kept from step to step.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    /// The frame's registers. `lr` counts if `exact` is set or it is not 0: a call overwrites it.
    pub regs: Regs,
    /// Bits of a return address that are address (aarch64's pointer authentication uses the
    /// others).
    pub address_mask: u64,
    /// The process's mappings.
    pub list: MappingList,
    /// Where the last `ip` was found.
    pub mapping: Mapping,
    /// 1: `ip` is the next instruction to run (the first frame, or one that a signal interrupted).
    /// 0: it is a return address, and the call is before it.
    pub exact: u32,
    /// aarch64, 1: the stack pointer is at or above `regs.sp`: a frame record led here.
    pub sp_is_bound: u32,
}

/// [`State::address_mask`] if nothing is masked.
pub const NO_MASK: u64 = u64::MAX;

impl State {
    /// A walk from a stopped thread: `regs.ip` is the next instruction.
    #[inline(always)]
    pub const fn new(regs: Regs, list: MappingList, address_mask: u64) -> Self {
        let mapping = Mapping { start: 0, end: 0, bias: 0, rows: 0, pages: 0, page_count: 0, reserved: 0 };
        Self { regs, address_mask, list, mapping, exact: 1, sp_is_bound: 0 }
    }

    /// A walk from the caller of a function, `regs.ip` being the address that it returns to. Makes
    /// of a state that was used what [`Self::new`] would, as far as that is read: in BPF zeroes are
    /// written byte by byte.
    #[inline(always)]
    pub fn begin_at_caller(&mut self, regs: Regs, list: MappingList, address_mask: u64) {
        (self.regs, self.address_mask, self.list) = (regs, address_mask, list);
        // No address is in it.
        (self.mapping.start, self.mapping.end) = (u64::MAX, 0);
        (self.exact, self.sp_is_bound) = (0, 0);
    }
}

/// What a step did: the first two found a frame and the rest ended the walk, with the state as it
/// was.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The state is the caller's.
    Frame = 0,
    /// The state is the caller's, by the frame pointer, for want of a row.
    FrameByPointer = 1,
    /// That was the outermost frame.
    Complete = 2,
    /// No row, and the frame pointer leads nowhere.
    NoRow = 3,
    /// There is a rule, but rows cannot say it.
    Unsupported = 4,
    /// The stack could not be read.
    Unreadable = 5,
    /// The caller's frame would lie below this one.
    NoProgress = 6,
    /// Said by the driver: the limit of frames is reached.
    TooDeep = 7,
    /// aarch64: the row goes by the stack pointer, of which only a bound is known.
    UnknownStackPointer = 8,
}

impl Step {
    /// There is a new frame in the state.
    #[inline(always)]
    pub const fn is_frame(self) -> bool {
        (self as u32) < 2
    }

    /// From the number that crossed the kernel boundary.
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Frame,
            1 => Self::FrameByPointer,
            2 => Self::Complete,
            3 => Self::NoRow,
            4 => Self::Unsupported,
            5 => Self::Unreadable,
            6 => Self::NoProgress,
            7 => Self::TooDeep,
            8 => Self::UnknownStackPointer,
            _ => return None,
        })
    }
}

/// Loads the mapping that holds `address` into the state; false if none does.
#[inline(always)]
fn find_mapping<T: Tables>(state: &mut State, address: u64, tables: &T) -> bool {
    if address >= state.mapping.start && address < state.mapping.end {
        return true;
    }
    // The last mapping that starts at or before the address: `low` is one past the best so far.
    let first = state.list.first();
    let mut low = 0u32;
    let mut high = state.list.count();
    let mut step = 0;
    while step < MAPPING_STEPS {
        if low < high {
            let middle = low + ((high - low) >> 1);
            let Some(start) = tables.mapping_start(first.wrapping_add(middle)) else { return false };
            if start <= address {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        step += 1;
    }
    if low == 0 {
        return false;
    }
    let Some(mapping) = tables.mapping(first.wrapping_add(low - 1)) else { return false };
    if address < mapping.start || address >= mapping.end {
        return false;
    }
    state.mapping = mapping;
    true
}

/// No unwind information.
const NO_ROW: Row = Row::bare(0, Kind::NONE);

/// The row for the state's `ip`; one of kind [`Kind::NONE`] if there is none.
#[inline(always)]
fn find_row<T: Tables>(state: &mut State, tables: &T) -> Row {
    // A return address can be the first byte of the next function, where the callee never returns:
    // the call itself is one byte before. An interrupted instruction can be a function's first.
    let address = if state.exact != 0 { state.regs.ip } else { state.regs.ip.wrapping_sub(1) };
    let known = tables.known_rule(address);
    if known != 0 {
        return Row::from_rule(0, known);
    }
    let row = if find_mapping(state, address, tables) {
        search_rows(&state.mapping, address, tables)
    } else {
        NO_ROW
    };
    tables.found_rule(address, row.rule());
    row
}

/// The row for an address of a mapping.
#[inline(always)]
fn search_rows<T: Tables>(mapping: &Mapping, address: u64, tables: &T) -> Row {
    let pc = address.wrapping_sub(mapping.bias);
    let page = pc >> PAGE_SHIFT;
    if page >= mapping.page_count as u64 {
        return NO_ROW;
    }
    let Some(bounds) = tables.word(mapping.pages.wrapping_add(page as u32)) else { return NO_ROW };
    let mut low = bounds as u32;
    let mut high = (bounds >> 32) as u32;
    // The row at `low` begins at or before the page, so the last row that the search moves `low`
    // past is the answer.
    let mut best = NO_ROW.0;
    let mut step = 0;
    while step < ROW_STEPS {
        if low < high {
            let middle = low + ((high - low) >> 1);
            let Some(word) = tables.word(mapping.rows.wrapping_add(middle)) else { return NO_ROW };
            if word as u32 as u64 <= pc {
                low = middle + 1;
                best = word;
            } else {
                high = middle;
            }
        }
        step += 1;
    }
    Row(best)
}

/// One step where there is no row for the state's `ip`.
#[inline(always)]
fn step_without_row<R: Reads, T: Tables>(state: &mut State, reads: &R, tables: &T) -> Step {
    // A return address before which there is no function, and after which there is: nothing called
    // from there, so somebody put it on the stack for a thread's or a coroutine's first function to
    // return to (glibc's makecontext).
    let (ip, mapping) = (state.regs.ip, &state.mapping);
    if state.exact == 0
        && ip > mapping.start
        && ip < mapping.end
        && search_rows(mapping, ip, tables).kind() != Kind::NONE
    {
        return Step::Complete;
    }
    if !reads.may_step_by_pointer() {
        return Step::NoRow;
    }
    step_by_pointer(state, reads, tables)
}

/// Moves the state to a caller whose `ip` is a return address.
#[inline(always)]
fn enter_caller(state: &mut State, ip: u64, cfa: u64, fp: u64) -> Step {
    let ip = ip & state.address_mask;
    if ip == 0 {
        // What a thread's or a coroutine's first function returns to.
        return Step::Complete;
    }
    state.regs = Regs { ip, sp: cfa, fp, lr: 0 };
    state.exact = 0;
    Step::Frame
}

/// One step by the frame record at the frame pointer, of code that is known to keep one. The record
/// may be on another stack; the first one of a stack is at 0 (Go: `runtime.goexit`'s).
#[inline(always)]
fn step_by_record<R: Reads>(state: &mut State, reads: &R) -> Step {
    let fp = state.regs.fp;
    if fp == 0 {
        return Step::Complete;
    }
    let Some([next, found]) = reads.read2(fp) else { return Step::Unreadable };
    let cfa = fp.wrapping_add(16);
    enter_caller(state, reads.return_address(cfa, found), cfa, next)
}

/// One step by the frame record at the frame pointer. It is believed where the record is on this
/// stack and leads to text with a table or to a further record.
#[inline(always)]
fn step_by_pointer<R: Reads, T: Tables>(state: &mut State, reads: &R, tables: &T) -> Step {
    let fp = state.regs.fp;
    if fp & 7 != 0 || fp < state.regs.sp || fp.wrapping_sub(state.regs.sp) > MAX_FP_DISTANCE {
        return Step::NoRow;
    }
    let Some([next, found]) = reads.read2(fp) else { return Step::NoRow };
    let cfa = fp.wrapping_add(16);
    let ip = reads.return_address(cfa, found) & state.address_mask;
    let leads_on = next & 7 == 0 && next > fp && next.wrapping_sub(fp) <= MAX_FP_DISTANCE;
    if ip < 4096 || !(find_mapping(state, ip.wrapping_sub(1), tables) || leads_on) {
        return Step::NoRow;
    }
    match enter_caller(state, ip, cfa, next) {
        Step::Frame => Step::FrameByPointer,
        other => other,
    }
}

/// Where the slot field says that a register is saved.
#[inline(always)]
fn slot_address(slot: i8, cfa: u64, regs: &Regs) -> u64 {
    if slot == SLOT_AT_SP {
        regs.sp
    } else if slot == SLOT_AT_FP {
        regs.fp
    } else {
        cfa.wrapping_add((slot as i64 as u64) << 3)
    }
}

/// Moves the state to a frame that a signal interrupted. It can be on another stack, so no order is
/// asked of it.
#[inline(always)]
fn enter_interrupted(state: &mut State, regs: Regs) -> Step {
    if regs.ip == 0 {
        return Step::Complete;
    }
    state.regs = regs;
    state.exact = 1;
    Step::Frame
}

#[cfg(test)]
mod tests;
