//! From where code begins, along its jumps, to the state before each instruction.
//!
//! A call may return or not, and nothing in the code says which. So what follows a call is looked
//! at last, in order of address: by then the jumps have said what holds at the places where
//! functions go on. If the two differ, or where the code after a call comes to a `ret` too high
//! or too low on the stack, the call does not return.

use std::cmp::Reverse;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use rustc_hash::FxHashSet;

use super::{
    run::{Edge, Evidence, Item, Run, shifted},
    state::{Place, State},
    text::{Bits, Mark, Marks},
};
use crate::arch::text::{Region, Text};

/// How often a function is looked at again, with calls left out that do not return.
const MAX_ATTEMPTS: u32 = 8;
/// Most padding after which a function continues, bytes.
const MAX_PADDING: u32 = 64;
/// `int3`: nothing runs into it.
const INT3: u8 = 0xcc;
/// Most functions that are followed to see whether they return, each called by the one before.
const MAX_DEPTH: usize = 64;
/// The CFA and a caller's stack pointer are multiples of this.
const STACK_ALIGNMENT: i32 = 16;
/// `call` of a relative address.
const CALL: u8 = 0xe8;
/// Instructions after a system call (clone) where a zeroed `rbp` says that a thread begins.
const CHILD_INSTRUCTIONS: u32 = 6;

/// What an instruction leads to.
enum Next {
    On,
    At(u32),
    Stop,
}

/// A function, those that it calls of which nothing was known, and its marks.
#[derive(Debug)]
struct Unsure {
    start: u32,
    called: Vec<u32>,
    marked: Vec<(u32, u8)>,
}

/// The analysis of a window's code.
pub(super) struct Flow<'t> {
    text: &'t Text,
    decoder: Decoder<'t>,
    pub marks: Marks,
    /// Where functions begin.
    starts: Bits,
    /// Where calls may lead: bytes that look like one, in whatever they are.
    hints: Bits,
    queue: Vec<u32>,
    /// Functions that were followed, or are being.
    followed: Bits,
    /// Functions that are being followed, each for the one before.
    pending: Vec<u32>,
    /// Functions that were followed without knowing of others whether they return, and what was
    /// marked.
    unsure: Vec<Unsure>,
    /// Where parts of functions begin.
    parts: Bits,
    /// Functions that never return: `pc`s.
    no_returns: FxHashSet<u64>,
    /// In order of index.
    pub switches: Vec<(u32, State)>,
    /// Instructions that may still be decoded.
    pub budget: u64,
}

impl<'t> Flow<'t> {
    /// `parts`: also where code begins, but with a function's frame.
    pub(super) fn new(text: &'t Text, parts: impl Iterator<Item = u32>, budget: u64) -> Self {
        let len = text.bytes.len();
        let mut flow = Self {
            text,
            decoder: Decoder::new(64, &text.bytes, DecoderOptions::NONE),
            marks: Marks::new(len),
            starts: Bits::new(len),
            hints: Bits::new(len),
            parts: Bits::new(len),
            queue: Vec::new(),
            followed: Bits::new(len),
            pending: Vec::new(),
            unsure: Vec::new(),
            no_returns: FxHashSet::default(),
            switches: Vec::new(),
            budget,
        };
        parts.for_each(|index| {
            flow.parts.insert(index);
        });
        flow.find_hints();
        flow
    }

    /// Bytes that look like a call: index after it, `pc` of what is called.
    fn likely_calls(text: &Text) -> impl Iterator<Item = (u32, u64)> {
        text.regions.iter().flat_map(|region| {
            let bytes = text.tail(region.at).get(..region.len as usize).unwrap_or_default();
            let calls = bytes.windows(5).zip(5u32..).filter(|(window, _)| window.first() == Some(&CALL));
            calls.filter_map(|(window, end)| {
                let distance = i32::from_le_bytes(window.get(1..)?.try_into().ok()?);
                let next = u64::from(region.pc) + u64::from(end);
                Some((region.at + end, next.wrapping_add_signed(distance.into())))
            })
        })
    }

    /// Notes where calls may lead, and what is called where the caller's last instruction is: it
    /// never returns there.
    fn find_hints(&mut self) {
        let calls: Vec<_> = Self::likely_calls(self.text).collect();
        for target in calls.iter().filter_map(|(_, target)| self.text.index(*target)) {
            self.hints.insert(target);
        }
        for (behind, target) in calls {
            let mut at = behind;
            while let len @ 1.. = padding_len(self.text.tail(at)) {
                at += len;
            }
            if self.is_likely_start(at) {
                self.no_returns.insert(target);
            }
        }
    }

    fn is_likely_start(&self, index: u32) -> bool {
        self.starts.contains(index) || self.hints.contains(index) || self.parts.contains(index)
    }

    /// Notes a function, to be followed by [`Flow::follow_starts`].
    pub(super) fn add_start(&mut self, index: u32) {
        if self.starts.insert(index) {
            self.queue.push(index);
        }
    }

    /// Follows all functions that are known, and those that they call.
    pub(super) fn follow_starts(&mut self) {
        while let Some(start) = self.queue.pop() {
            if !self.followed.contains(start) {
                self.follow_function(start, State::ENTRY);
            }
            // The functions that call each other are all known now.
            for Unsure { start, called, marked } in std::mem::take(&mut self.unsure) {
                if called.iter().any(|called| self.is_no_return(*called)) {
                    marked.iter().for_each(|(index, len)| self.marks.clear(*index, (*len).into()));
                    self.follow_function(start, State::ENTRY);
                }
            }
        }
    }

    /// Follows a function whose state at its begin is certain.
    pub(super) fn follow_function(&mut self, start: u32, state: State) {
        self.followed.insert(start);
        self.pending.push(start);
        let mut run = self.attempts(start, state, None);
        self.pending.pop();
        if run.odd {
            self.take_back(&run);
        } else if !run.returns && !run.again && self.budget > 0 {
            self.no_returns.extend(self.text.pc(start));
        }
        if !run.unsure.is_empty() && !run.odd && !state.end {
            let called = std::mem::take(&mut run.unsure);
            self.unsure.push(Unsure { start, called, marked: run.marked.clone() });
        }
        self.keep(run);
    }

    /// Follows code whose state is a guess for so many instructions, and takes it back unless it
    /// comes to an end and `is_right` says that it has proved right.
    pub(super) fn try_out(
        &mut self,
        start: u32,
        state: State,
        limit: u64,
        is_right: impl FnOnce(&Evidence) -> bool,
    ) -> Result<(), Evidence> {
        let run = self.attempts(start, state, Some(limit));
        if run.evidence.bad || !is_right(&run.evidence) {
            self.take_back(&run);
            return Err(run.evidence);
        }
        self.keep(run);
        Ok(())
    }

    fn attempts(&mut self, start: u32, state: State, limit: Option<u64>) -> Run {
        let trial = limit.is_some();
        let mut run = Run { trial, start, ..Run::default() };
        for _ in 0..MAX_ATTEMPTS {
            run.last = self.budget.saturating_sub(limit.unwrap_or(self.budget));
            run.jumps.push(Item { at: start, edge: Edge::Entry, state, may_begin: 0 });
            self.run(&mut run);
            if !run.again || self.budget == 0 {
                break;
            }
            self.take_back(&run);
            run = Run { trial, start, no_return: run.no_return, ..Run::default() };
        }
        run
    }

    fn take_back(&mut self, run: &Run) {
        for (index, len) in &run.marked {
            self.marks.clear(*index, (*len).into());
        }
    }

    /// Takes over what a run has found besides marks.
    fn keep(&mut self, run: Run) {
        if !run.odd {
            run.marked.iter().for_each(|(index, _)| self.marks.confirm(*index));
        }
        for called in run.called {
            self.add_start(called);
        }
        for (index, state) in run.switches {
            let at = self.switches.partition_point(|(other, _)| *other < index);
            self.switches.insert(at, (index, state));
        }
    }

    fn run(&mut self, run: &mut Run) {
        loop {
            let (item, called) = match run.jumps.pop() {
                Some(item) => (item, None),
                None => match run.calls.pop().and_then(|Reverse((_, at))| run.behind.get(at).copied()) {
                    Some(behind) => behind,
                    None => return,
                },
            };
            if let Some(called) = called {
                if self.never_returns(called) {
                    continue;
                }
                if self.pending.contains(&called) || !self.followed.contains(called) {
                    run.unsure.push(called);
                }
            }
            run.evidence.bad |= self.budget <= run.last;
            // What is bad once stays so.
            if self.budget == 0 || run.again || (run.trial && run.evidence.bad) {
                return;
            }
            self.follow(run, item);
        }
    }

    /// Whether a function is known to, once it has been followed.
    fn never_returns(&mut self, called: u32) -> bool {
        if self.pending.len() < MAX_DEPTH && !self.followed.contains(called) {
            self.starts.insert(called);
            self.follow_function(called, State::ENTRY);
        }
        self.is_no_return(called)
    }

    fn is_no_return(&self, index: u32) -> bool {
        self.text.pc(index).is_some_and(|pc| self.no_returns.contains(&pc))
    }

    fn seek(&mut self, at: u32, region: Region) -> bool {
        self.decoder.set_ip(u64::from(region.pc) + u64::from(at - region.at));
        self.decoder.set_position(at as usize).is_ok()
    }

    /// Follows straight code and unconditional jumps.
    fn follow(&mut self, run: &mut Run, item: Item) {
        let Some(mut region) = self.text.region(item.at) else { return };
        let Item { mut at, mut edge, mut state, mut may_begin } = item;
        if let Edge::Call(call) = edge {
            match self.land_behind_call(run, at, call, state, region) {
                Some(landed) => at = landed,
                None => return,
            }
        }
        if !self.seek(at, region) {
            return;
        }
        let mut mark = self.marks.mark_of(&mut state);
        let mut marked_state = state;
        let (mut is_first, mut changed) = (true, false);
        let mut instruction = Instruction::default();
        while at < region.at + region.len && self.budget > 0 {
            self.budget -= 1;
            if !is_first && edge != Edge::Jump && self.starts.contains(at) && !state.end {
                run.returns = true;
                return;
            }
            let seen = self.marks.get(at);
            if seen.is_seen() {
                match self.meet(run, at, seen, &state) {
                    Some(lowered) => (state, changed) = (lowered, true),
                    None => return,
                }
            }
            if changed && state != marked_state {
                mark = self.marks.mark_of(&mut state);
                marked_state = state;
            }
            self.decoder.decode_out(&mut instruction);
            let len = instruction.len() as u32;
            if instruction.is_invalid() || at + len > region.at + region.len {
                run.stop_at(at + 1, true);
                return;
            }
            self.marks.set(at, len, mark.as_trial());
            if !seen.is_seen() {
                run.marked.push((at, len as u8));
            }
            (edge, is_first) = (Edge::Entry, false);
            may_begin = if instruction.mnemonic() == Mnemonic::Syscall {
                CHILD_INSTRUCTIONS
            } else {
                may_begin.saturating_sub(1)
            };
            changed = state.is_concerned(&instruction);
            match self.step(run, at, &instruction, &mut state, may_begin) {
                Next::On => at += len,
                Next::At(target) => {
                    run.stop_at(at + len, false);
                    let Some(there) = self.text.region(target) else { return };
                    (at, region, edge) = (target, there, Edge::Jump);
                    self.seek(at, region);
                }
                Next::Stop => return run.stop_at(at + len, false),
            }
        }
        // Code does not run into what is none.
        run.stop_at(at, true);
    }

    /// Where the code after a call goes on, past padding; `None` if it does not.
    fn land_behind_call(
        &mut self,
        run: &mut Run,
        behind: u32,
        call: u32,
        mut state: State,
        region: Region,
    ) -> Option<u32> {
        // Another way has come to the call since, and what follows it is noted again.
        let now = self.marks.state(self.marks.get(call))?;
        if (now.sp, now.fp, now.saved) != (state.sp, state.fp, state.saved) {
            return None;
        }
        let mut at = behind;
        loop {
            let is_end = at >= region.at + region.len || at - behind > MAX_PADDING;
            let code = self.text.tail(at);
            if is_end || self.is_likely_start(at) || code.first() == Some(&INT3) {
                // What only looks like the next function's begin proves nothing.
                run.returns |= !is_end && !self.starts.contains(at);
                return None;
            }
            match padding_len(code) {
                0 => break,
                len => at += len,
            }
        }
        // What is known here is so by a jump. If it is another state, the call does not return.
        let seen = self.marks.get(at);
        if seen.is_seen() {
            run.returns |= !seen.is_trial();
            return None;
        }
        if at > behind {
            let mark = self.marks.mark_of(&mut state);
            self.marks.set(behind, at - behind, mark.as_trial());
            run.marked.push((behind, (at - behind) as u8));
        }
        run.fallen.insert(at, call);
        Some(at)
    }

    /// Two ways meet: the state to go on with, or `None` if there is nothing new.
    fn meet(&mut self, run: &mut Run, at: u32, seen: Mark, state: &State) -> Option<State> {
        run.returns |= !seen.is_trial();
        let known = self.marks.state(seen)?;
        let is_alike = known.is_alike(state);
        if run.trial && is_alike && !seen.is_trial() {
            run.evidence.good += u32::from(known.is_row());
        }
        if known == *state || (run.trial && is_alike && !seen.is_trial()) {
            return None;
        }
        if !is_alike && let Some(call) = run.fallen.get(&at) {
            run.again |= run.no_return.insert(*call);
            return None;
        }
        if run.trial && !is_alike {
            run.evidence.bad = true;
            if !seen.is_trial() {
                run.evidence.hint = run.evidence.hint.or(shifted(&known, state));
            }
            return None;
        }
        let met = known.meet(state);
        (met != known).then_some(met)
    }

    fn step(
        &mut self,
        run: &mut Run,
        at: u32,
        instruction: &Instruction,
        state: &mut State,
        may_begin: u32,
    ) -> Next {
        match instruction.flow_control() {
            FlowControl::Next => {
                if instruction.mnemonic() == Mnemonic::Hlt || run.is_hinted_by(instruction, state) {
                    return Next::Stop;
                }
                state.apply(instruction, may_begin > 0);
                Next::On
            }
            FlowControl::UnconditionalBranch => match self.target(run, instruction, state) {
                Some(target) => Next::At(target),
                None => Next::Stop,
            },
            FlowControl::ConditionalBranch => {
                if let Some(at) = self.target(run, instruction, state) {
                    run.jumps.push(Item { at, edge: Edge::Jump, state: *state, may_begin });
                }
                Next::On
            }
            FlowControl::Call if instruction.is_call_near() => {
                if instruction.near_branch_target() == instruction.next_ip() {
                    state.push_address();
                    return Next::On;
                }
                let called = self.text.index(instruction.near_branch_target());
                run.called.extend(called);
                if !self.no_returns.contains(&instruction.near_branch_target()) {
                    self.call(run, at, instruction, *state, called);
                }
                Next::Stop
            }
            FlowControl::IndirectCall => {
                self.call(run, at, instruction, *state, None);
                Next::Stop
            }
            FlowControl::IndirectBranch => {
                run.returns = true;
                if !state.end && state.is_row() {
                    run.switches.push((at, *state));
                }
                Next::Stop
            }
            FlowControl::Return => {
                run.returns = true;
                run.check_return(at, state);
                Next::Stop
            }
            FlowControl::Exception => Next::Stop,
            FlowControl::Interrupt if instruction.mnemonic() == Mnemonic::Int3 => Next::Stop,
            FlowControl::Call | FlowControl::Interrupt | FlowControl::XbeginXabortXend => {
                state.apply(instruction, false);
                Next::On
            }
        }
    }

    fn call(
        &mut self,
        run: &mut Run,
        at: u32,
        instruction: &Instruction,
        mut state: State,
        called: Option<u32>,
    ) {
        run.made.push((at, state.sp));
        if let Place::Cfa(below) = state.sp {
            let is_aligned = below % STACK_ALIGNMENT == 0;
            run.evidence.aligned += u32::from(is_aligned);
            run.evidence.misaligned += u32::from(!is_aligned);
        }
        if run.no_return.contains(&at) {
            return;
        }
        state.after_call();
        let behind = at + instruction.len() as u32;
        run.calls.push(Reverse((behind, run.behind.len())));
        run.behind.push((Item { at: behind, edge: Edge::Call(at), state, may_begin: 0 }, called));
    }

    /// Where a jump leads to within this function; another one returns to this one's caller.
    fn target(&self, run: &mut Run, instruction: &Instruction, state: &State) -> Option<u32> {
        let target = self.text.index(instruction.near_branch_target());
        // What is also called elsewhere is a function of its own.
        let is_other = |target: u32| {
            target != run.start
                && (self.starts.contains(target) || (state.is_balanced() && self.hints.contains(target)))
        };
        match target {
            Some(target) if state.end || !is_other(target) => Some(target),
            _ => {
                run.called.extend(target);
                run.returns |= !self.no_returns.contains(&instruction.near_branch_target());
                if state.is_balanced() {
                    run.evidence.good += 1;
                } else if matches!(state.sp, Place::Cfa(_)) {
                    run.evidence.bad = true;
                }
                None
            }
        }
    }
}

/// Length of the padding instruction at the front; 0 if there is none.
pub(super) fn padding_len(bytes: &[u8]) -> u32 {
    match bytes {
        [0x90 | INT3, ..] => 1,
        [0x66 | 0x0f | 0x2e, ..] => {
            let instruction =
                Decoder::new(64, bytes.get(..15).unwrap_or(bytes), DecoderOptions::NONE).decode();
            if instruction.mnemonic() == Mnemonic::Nop { instruction.len() as u32 } else { 0 }
        }
        _ => 0,
    }
}
