//! One function that is followed, and what that shows.

use std::{cmp::Reverse, collections::BinaryHeap};

use iced_x86::{Instruction, Mnemonic, Register};
use rustc_hash::{FxHashMap, FxHashSet};

use super::state::{Place, State};

/// How a place was come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Edge {
    Entry,
    Jump,
    /// Behind the call at an index.
    Call(u32),
}

/// Where to go on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) at: u32,
    pub(super) edge: Edge,
    pub(super) state: State,
    /// Instructions in which a thread may begin.
    pub(super) may_begin: u32,
}

/// What following a piece of code has shown of the state that it was begun with.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// Ways that ended as they should: a return from where the function was entered, code that is
    /// known and agrees.
    pub(super) good: u32,
    /// One did not.
    pub(super) bad: bool,
    /// Calls with the stack pointer aligned as the psABI has it (3.2.2): from a wrong begin it is
    /// not.
    pub(super) aligned: u32,
    /// Other calls.
    pub(super) misaligned: u32,
    /// The state that would have fitted.
    pub(super) hint: Option<State>,
    /// Index after the first straight stretch.
    pub(super) end: u32,
}

/// One function (or piece of code) that is followed.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// Nothing is settled until the end, and what is there already stays.
    pub(super) trial: bool,
    pub(super) start: u32,
    /// What is left of the budget when it has taken too long.
    pub(super) last: u64,
    pub(super) jumps: Vec<Item>,
    /// What follows calls: index, and which of `behind`, where the function that is called is, too.
    pub(super) calls: BinaryHeap<Reverse<(u32, usize)>>,
    pub(super) behind: Vec<(Item, Option<u32>)>,
    /// Instructions that were marked: index, length.
    pub(super) marked: Vec<(u32, u8)>,
    /// Where the code after a call was the first: the call.
    pub(super) fallen: FxHashMap<u32, u32>,
    /// Calls, and where the stack pointer was.
    pub(super) made: Vec<(u32, Place)>,
    /// Functions of the window that are called.
    pub(super) called: Vec<u32>,
    /// Indirect jumps, and the state there.
    pub(super) switches: Vec<(u32, State)>,
    /// It may come back to its caller, by itself or by what it continues in.
    pub(super) returns: bool,
    /// Functions that it calls and that wait for it: whether they return was not known yet.
    pub(super) unsure: Vec<u32>,
    /// Another attempt will do better.
    pub(super) again: bool,
    /// The stack is not used as compilers do.
    pub(super) odd: bool,
    /// Calls that proved not to return.
    pub(super) no_return: FxHashSet<u32>,
    /// Where `rbp` was popped that had not been pushed.
    pub(super) popped: Option<i32>,
    pub(super) evidence: Evidence,
}

impl Run {
    pub(super) fn stop_at(&mut self, end: u32, bad: bool) {
        if self.evidence.end == 0 {
            self.evidence.end = end;
        }
        self.evidence.bad |= bad;
        self.returns |= bad;
    }

    /// An end of a function that undoes what a trial has not seen done says what was.
    pub(super) fn is_hinted_by(&mut self, instruction: &Instruction, state: &State) -> bool {
        if !self.trial {
            return false;
        }
        match instruction.mnemonic() {
            Mnemonic::Pop if instruction.op0_register() == Register::RBP => {
                if let Place::Cfa(below) = state.sp
                    && state.saved != Some(state.sp)
                {
                    self.popped = self.popped.or(Some(below));
                }
                false
            }
            Mnemonic::Leave if !matches!(state.fp, Some(Place::Cfa(_) | Place::Base(_))) => {
                let frame = Some(Place::Cfa(16));
                self.evidence.hint = Some(State::inside(Place::Unknown, frame, frame));
                self.evidence.bad = true;
                true
            }
            _ => false,
        }
    }

    pub(super) fn check_return(&mut self, at: u32, state: &State) {
        if state.end {
            return;
        }
        let Place::Cfa(below) = state.sp else { return };
        if below == 8 {
            let is_whole = state.fp.is_none();
            self.evidence.good += u32::from(is_whole);
            self.evidence.bad |= !is_whole;
            return;
        }
        // A call at this height that does not return, and the function after it: it returns from
        // there.
        let before = self.made.iter().filter(|(call, sp)| *sp == state.sp && *call < at);
        if let Some((call, _)) = before.max_by_key(|(call, _)| *call) {
            self.again |= self.no_return.insert(*call);
            return;
        }
        self.odd = true;
        self.evidence.bad = true;
        let shift = 8 - below;
        let saved = self.popped.map(|popped| Place::Cfa(popped + shift));
        let fp = saved.map(|_| Place::Unknown);
        self.evidence.hint = self.evidence.hint.or(Some(State::inside(Place::Cfa(8 + shift), fp, saved)));
    }
}

/// What a trial from [`State::ENTRY`] should have begun with to be at `known` where it was at
/// `found`.
pub(super) fn shifted(known: &State, found: &State) -> Option<State> {
    match (known.sp, found.sp) {
        (Place::Cfa(known_below), Place::Cfa(found_below)) => {
            let sp = Place::Cfa(8 + known_below - found_below);
            Some(State::inside(sp, known.fp, known.saved))
        }
        (Place::Unknown, _) if known.is_row() => Some(State::inside(Place::Unknown, known.fp, known.saved)),
        _ => None,
    }
}
