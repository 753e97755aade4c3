//! What was found at each byte of the code that is analysed together.

use memleak_common::unwind::{Kind, Row};
use rustc_hash::FxHashMap;

use super::state::State;
use crate::arch::text::Region;

/// A bit for each byte.
#[derive(Debug)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn new(len: usize) -> Self {
        Self(vec![0; len / 64 + 1])
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        self.0.get(index as usize / 64).is_some_and(|word| word >> (index % 64) & 1 != 0)
    }

    /// False if it was set before.
    pub(super) fn insert(&mut self, index: u32) -> bool {
        let Some(word) = self.0.get_mut(index as usize / 64) else { return false };
        let bit = 1 << (index % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}

/// What is known at a byte: nothing, that it is within an instruction, or the state before the
/// instruction that begins here, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u16);

impl Mark {
    pub(super) const UNSEEN: Self = Self(0);
    const INSIDE: Self = Self(1);
    const SIGNAL: Self = Self(2);
    /// The first number of a state.
    const STATES: u16 = 3;
    /// Set while a trial may still be taken back.
    const TRIAL: u16 = 1 << 15;

    /// Whether an instruction begins here.
    pub(super) fn is_seen(self) -> bool {
        self.0 > Self::INSIDE.0
    }

    /// Whether it is of an instruction.
    pub(super) fn is_marked(self) -> bool {
        self != Self::UNSEEN
    }

    pub(super) fn is_trial(self) -> bool {
        self.0 & Self::TRIAL != 0
    }

    pub(super) fn as_trial(self) -> Self {
        Self(self.0 | Self::TRIAL)
    }
}

/// Marks of all bytes, and the states that they name.
#[derive(Debug)]
pub(super) struct Marks {
    marks: Vec<Mark>,
    states: Vec<State>,
    rules: Vec<u32>,
    numbers: FxHashMap<State, u16>,
}

impl Marks {
    pub(super) fn new(len: usize) -> Self {
        Self {
            marks: vec![Mark::UNSEEN; len],
            states: Vec::new(),
            rules: Vec::new(),
            numbers: FxHashMap::default(),
        }
    }

    /// The mark for a state. So many are different in no program: if they run out nothing is
    /// known.
    pub(super) fn mark_of(&mut self, state: &mut State) -> Mark {
        if let Some(number) = self.numbers.get(state) {
            return Mark(*number);
        }
        let room = Mark::TRIAL - Mark::STATES - 1;
        if self.states.len() >= usize::from(room) {
            *state = State::NOTHING;
            if let Some(number) = self.numbers.get(state) {
                return Mark(*number);
            }
            if self.states.len() > usize::from(room) {
                return Mark::INSIDE;
            }
        }
        let number = Mark::STATES + self.states.len() as u16;
        self.states.push(*state);
        self.rules.push(state.rule());
        self.numbers.insert(*state, number);
        Mark(number)
    }

    /// The state that a mark names.
    pub(super) fn state(&self, mark: Mark) -> Option<State> {
        let number = (mark.0 & !Mark::TRIAL).checked_sub(Mark::STATES)?;
        self.states.get(usize::from(number)).copied()
    }

    pub(super) fn get(&self, index: u32) -> Mark {
        self.marks.get(index as usize).copied().unwrap_or(Mark::UNSEEN)
    }

    /// Marks the instruction of `len` bytes at `index`.
    pub(super) fn set(&mut self, index: u32, len: u32, mark: Mark) {
        let at = index as usize;
        let Some(bytes) = self.marks.get_mut(at..at + len as usize) else { return };
        if let Some((first, rest)) = bytes.split_first_mut() {
            *first = mark;
            for byte in rest {
                if *byte == Mark::UNSEEN {
                    *byte = Mark::INSIDE;
                }
            }
        }
    }

    /// Takes back what was set.
    pub(super) fn clear(&mut self, index: u32, len: u32) {
        let at = index as usize;
        self.marks.get_mut(at..at + len as usize).unwrap_or_default().fill(Mark::UNSEEN);
    }

    /// A trial has passed.
    pub(super) fn confirm(&mut self, index: u32) {
        if let Some(mark) = self.marks.get_mut(index as usize) {
            mark.0 &= !Mark::TRIAL;
        }
    }

    /// Bytes of a signal's way back.
    pub(super) fn set_signal(&mut self, index: u32, len: u32) {
        let at = index as usize;
        self.marks.get_mut(at..at + len as usize).unwrap_or_default().fill(Mark::SIGNAL);
    }

    /// Rows of a region, the first at its `pc`; equal neighbours are one.
    pub(super) fn rows(&self, region: Region) -> Vec<Row> {
        let none = Row::bare(0, Kind::NONE).rule();
        let at = region.at as usize;
        let marks = self.marks.get(at..at + region.len as usize).unwrap_or_default();
        let mut rows: Vec<Row> = Vec::new();
        let (mut rule, mut last) = (none, Mark::INSIDE);
        for (pc, mark) in (region.pc..).zip(marks) {
            if *mark != last && *mark != Mark::INSIDE {
                rule = match *mark {
                    Mark::UNSEEN => none,
                    Mark::SIGNAL => Row::bare(0, Kind::SIGNAL).rule(),
                    mark => usize::from(mark.0 & !Mark::TRIAL)
                        .checked_sub(usize::from(Mark::STATES))
                        .and_then(|number| self.rules.get(number).copied())
                        .unwrap_or(none),
                };
                last = *mark;
            }
            if rows.last().is_none_or(|row| row.rule() != rule) {
                rows.push(Row::from_rule(pc, rule));
            }
        }
        rows
    }
}
