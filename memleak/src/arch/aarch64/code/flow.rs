//! From where functions begin, along their jumps, to the state before each instruction.
//!
//! A call may return or not, and nothing in the code says which. So what follows a call is looked
//! at last, in order of address: by then the jumps have said what holds at the places where
//! functions go on. If the two differ, or where the code after a call comes to a `ret` too high or
//! too low on the stack, the call does not return.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use rustc_hash::{FxHashMap, FxHashSet};

use super::state::{Next, State};
use crate::arch::text::Text;

/// How often a function is looked at again, with calls left out that do not return.
const MAX_ATTEMPTS: u32 = 8;
/// Most instructions of a trial.
const MAX_TRIAL: u64 = 4000;
/// Padding.
pub(super) const NOP: u32 = 0xd503_201f;

/// The analysis of a window's code.
pub(super) struct Flow<'t> {
    text: &'t Text,
    /// Of all that is settled.
    settled: Settled,
    starts: FxHashSet<u32>,
    queue: Vec<u32>,
    /// Jumps by a register, which may be a `switch`, by index.
    switches: BTreeMap<u32, State>,
    /// Instructions that may still be looked at.
    pub budget: u64,
}

/// The states before instructions, each by a number: there are few different ones.
struct Settled {
    /// Of each instruction the number, from 1 on, or 0. Two are never less than four bytes apart.
    numbers: Vec<u16>,
    states: Vec<State>,
    known: FxHashMap<State, u16>,
}

impl Settled {
    fn new(bytes: usize) -> Self {
        Self { numbers: vec![0; bytes / 4 + 1], states: Vec::new(), known: FxHashMap::default() }
    }

    fn get(&self, index: u32) -> Option<State> {
        let number = *self.numbers.get(index as usize / 4)?;
        self.states.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// If numbers run out, which no program comes to, nothing is known.
    fn set(&mut self, index: u32, state: State) {
        let new = u16::try_from(self.states.len() + 1).ok();
        let known = self.known.get(&state).copied();
        if known.is_none()
            && let Some(new) = new
        {
            self.states.push(state);
            self.known.insert(state, new);
        }
        if let Some((number, place)) = known.or(new).zip(self.numbers.get_mut(index as usize / 4)) {
            *place = number;
        }
    }
}

/// One function (or piece of code) that is followed, and what that has shown.
#[derive(Default)]
struct Run {
    states: FxHashMap<u32, State>,
    jumps: Vec<(u32, State)>,
    /// What follows calls.
    calls: BinaryHeap<Reverse<(u32, usize)>>,
    behind: Vec<State>,
    /// Calls from which there was a way on, and the state there.
    made: Vec<(u32, State)>,
    /// Functions that are called.
    called: Vec<u32>,
    switches: Vec<(u32, State)>,
    /// Ways that ended as they should.
    good: u32,
    /// One did not.
    bad: bool,
    /// A call that does not return was taken for one that does: what follows it.
    no_return: Option<u32>,
    /// Whether that is a function is not known.
    is_trial: bool,
}

/// How a place was come to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edge {
    Jump,
    Call,
}

impl<'t> Flow<'t> {
    pub(super) fn new(text: &'t Text, budget: u64) -> Self {
        Self {
            text,
            settled: Settled::new(text.bytes.len()),
            starts: FxHashSet::default(),
            queue: Vec::new(),
            switches: BTreeMap::new(),
            budget,
        }
    }

    /// The instruction at an index.
    pub(super) fn code(&self, index: u32) -> Option<u32> {
        let region = self.text.region(index)?;
        let bytes = self.text.tail(index).get(..4)?;
        if index + 4 > region.at + region.len {
            return None;
        }
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    /// What is known before the instruction at an index.
    pub(super) fn state(&self, index: u32) -> Option<State> {
        self.settled.get(index)
    }

    /// The last jump by a register before an index, and what is known there.
    pub(super) fn switch_before(&self, index: u32) -> Option<(u32, State)> {
        self.switches.range(..index).next_back().map(|(index, state)| (*index, *state))
    }

    /// Notes a function, to be followed by [`Flow::follow_starts`].
    pub(super) fn add_start(&mut self, index: u32) {
        let is_instruction = self.text.pc(index).is_some_and(|pc| pc % 4 == 0);
        if is_instruction && self.starts.insert(index) {
            self.queue.push(index);
        }
    }

    /// Follows all functions that were noted, and those that they call.
    pub(super) fn follow_starts(&mut self) {
        while let Some(start) = self.queue.pop() {
            if self.state(start).is_none() {
                self.follow(start, State::ENTRY);
            }
        }
    }

    /// Follows a function that is known to be one.
    pub(super) fn follow(&mut self, start: u32, state: State) {
        let run = self.run(start, state, u64::MAX);
        if !run.bad {
            self.settle(run);
        }
    }

    /// Follows what may be one: kept if it returns, or comes to what is known. True if so.
    pub(super) fn try_out(&mut self, start: u32, state: State) -> bool {
        let run = self.run(start, state, MAX_TRIAL);
        let fits = run.good > 0 && !run.bad;
        if fits {
            self.settle(run);
        }
        fits
    }

    fn settle(&mut self, run: Run) {
        run.states.into_iter().for_each(|(index, state)| self.settled.set(index, state));
        for called in run.called {
            self.add_start(called);
        }
        self.switches.extend(run.switches);
    }

    fn run(&mut self, start: u32, state: State, limit: u64) -> Run {
        let mut no_return = FxHashSet::default();
        let mut run = Run::default();
        for _ in 0..MAX_ATTEMPTS {
            run = Run { jumps: vec![(start, state)], is_trial: limit < u64::MAX, ..Run::default() };
            let mut left = limit.min(self.budget);
            loop {
                let (at, state, edge) = if let Some((at, state)) = run.jumps.pop() {
                    (at, state, Edge::Jump)
                } else if let Some(Reverse((at, number))) = run.calls.pop() {
                    let Some(state) = run.behind.get(number) else { break };
                    (at, *state, Edge::Call)
                } else {
                    break;
                };
                if edge == Edge::Call && no_return.contains(&at) {
                    continue;
                }
                self.walk(&mut run, start, at, state, edge, &mut left);
                run.bad |= left == 0;
                if run.bad {
                    break;
                }
            }
            let Some(behind) = run.no_return else { break };
            no_return.insert(behind);
        }
        run
    }

    /// Goes straight on from a place.
    fn walk(&mut self, run: &mut Run, start: u32, mut at: u32, mut state: State, edge: Edge, left: &mut u64) {
        let mut edge = edge;
        loop {
            let Some(code) = self.code(at).filter(|_| *left > 0) else { return };
            if !self.enter(run, start, at, &mut state, edge) {
                return;
            }
            if state.is_ended_by(code) {
                return run.blame_call(at, &state);
            }
            *left -= 1;
            self.budget = self.budget.saturating_sub(1);
            let next = Next::of(code);
            let target = |distance: i64| {
                let pc = self.text.pc(at)?.checked_add_signed(distance)?;
                self.text.index(pc)
            };
            match next {
                Next::On => {
                    let after = state.after(code);
                    // Nothing but a function's begin saves `x30`, whether it returns or not.
                    run.good += u32::from(after.has_saved() && !state.has_saved());
                    state = after;
                }
                Next::Branch(distance) => {
                    state = state.after(code);
                    run.jumps.extend(target(distance).map(|target| (target, state)));
                }
                Next::Jump(distance) => {
                    match target(distance) {
                        Some(target) => run.jumps.push((target, state)),
                        None => run.good += u32::from(state.is_left()),
                    }
                    return;
                }
                Next::Call(distance) => {
                    // A function saves where it returns to before it calls.
                    run.bad |= run.is_trial && state.is_left();
                    run.called.extend(distance.and_then(target));
                    let Some(behind) = self.following(at) else { return };
                    run.calls.push(Reverse((behind, run.behind.len())));
                    run.behind.push(state.after_call());
                    return;
                }
                Next::Register { is_for_calls } => {
                    if state.is_left() {
                        run.good += u32::from(is_for_calls);
                    } else {
                        run.switches.push((at, state));
                    }
                    return;
                }
                Next::Return if state.is_left() => {
                    run.good += 1;
                    return;
                }
                Next::Return if state.end => return,
                Next::Return => return run.blame_call(at, &state),
                Next::Stop => return,
            }
            let Some(following) = self.following(at) else { return };
            (at, edge) = (following, Edge::Jump);
        }
    }

    /// The index of the next instruction, if it is in the same region.
    fn following(&self, at: u32) -> Option<u32> {
        let next = at.checked_add(4)?;
        (self.text.region(at) == self.text.region(next)).then_some(next)
    }

    /// Whether there is something new at an instruction.
    fn enter(&self, run: &mut Run, start: u32, at: u32, state: &mut State, edge: Edge) -> bool {
        if let Some(known) = run.states.get_mut(&at) {
            if *known == *state || edge == Edge::Call {
                return false;
            }
            let met = known.met_by(state);
            if met == *known {
                return false;
            }
            (*known, *state) = (met, met);
            return true;
        }
        let known = self.state(at);
        if known.is_some_and(|known| known == *state) {
            run.good += 1;
            return false;
        }
        // Another function: what is called before it does not return.
        if at != start && (known.is_some() || self.starts.contains(&at)) {
            if known.is_some() && edge == Edge::Jump && !self.starts.contains(&at) {
                run.blame_call(at, state);
            }
            return false;
        }
        if edge == Edge::Call {
            run.made.push((at, *state));
        }
        run.states.insert(at, *state);
        true
    }
}

impl Run {
    /// The code at `at` is another function's, or that of another way through this one: the last
    /// call before it with the stack pointer where it is now does not return.
    fn blame_call(&mut self, at: u32, state: &State) {
        let before = || self.made.iter().filter(|(behind, _)| *behind <= at);
        let same_height = before().filter(|(_, made)| made.sp == state.sp).max_by_key(|(behind, _)| *behind);
        let last = || before().max_by_key(|(behind, _)| *behind);
        self.no_return = same_height.or_else(last).map(|(behind, _)| *behind);
        self.bad = true;
    }
}
