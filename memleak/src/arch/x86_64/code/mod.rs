//! Rows for text that nothing describes, from its machine code (x86_64).
//!
//! musl, hand-written assembly, Go without debug information: there is no `.eh_frame` to say how
//! far the stack pointer is from the return address. The code itself says it: a function begins
//! with the return address on top, and each instruction moves the stack pointer by what it says.
//! [`flow`] follows that from where functions begin along all jumps, and [`state`] is what is known
//! before an instruction. If two ways disagree there is no row: a wrong row is worse than none.
//!
//! Functions begin at symbols, at the entry point and where calls lead to. What they do not reach
//! (functions that are called by address alone, cases of a `switch`) is tried: a state is guessed,
//! followed to where it meets a return or code that is known, and kept if all fits.
//!
//! The code is the target's: it is analysed in windows, with a limit on bytes and on decoded
//! instructions, and nothing is read but the bytes of executable segments.

mod flow;
mod run;
mod state;
#[cfg(test)]
mod tests;
mod text;

use memleak_common::unwind::Row;

use self::{
    flow::{Flow, padding_len},
    run::Evidence,
    state::State,
};
use super::signal_returns::SIGNAL_RETURNS;
use crate::arch::text::{Functions, Region, Text};

/// Instructions that are decoded for each byte: compilers' code takes less than one, and what is
/// hard to make sense of some more, which is not tried if there is much of it.
const WORK: u64 = 4;
const MUCH: u64 = 16 << 20;
/// Most instructions of a trial.
const MAX_TRIAL: u64 = 20_000;
/// Instructions of a trial once many have failed.
const MIN_TRIAL: u64 = 64;
/// How far after an indirect jump its targets are looked for, bytes.
const MAX_SWITCH: u32 = 1 << 16;

/// Rows of each region.
pub(crate) fn analyse(text: &Text, functions: &Functions) -> Vec<(Region, Vec<Row>)> {
    let parts = functions.parts.iter().filter_map(|pc| text.index((*pc).into()));
    let work = if functions.bytes > MUCH { 1 } else { WORK };
    let mut flow = Flow::new(text, parts, work * text.bytes.len() as u64);
    mark_signal_returns(text, &mut flow);
    if let Some(entry) = functions.entry.and_then(|pc| text.index(pc.into())) {
        flow.follow_function(entry, State::OUTERMOST);
    }
    for start in functions.starts.iter().filter_map(|pc| text.index((*pc).into())) {
        flow.add_start(start);
    }
    flow.follow_starts();
    for region in &text.regions {
        try_rest(*region, text, &mut flow);
    }
    text.regions.iter().map(|region| (*region, flow.marks.rows(*region))).collect()
}

fn mark_signal_returns(text: &Text, flow: &mut Flow<'_>) {
    for region in &text.regions {
        let bytes = text.tail(region.at).get(..region.len as usize).unwrap_or_default();
        // `syscall` first: it is rare.
        let calls = bytes.windows(2).enumerate().filter(|(_, window)| *window == [0x0f, 0x05]);
        for (end, _) in calls.map(|(at, window)| (at + 2, window)) {
            let code = bytes.get(..end).unwrap_or_default();
            let Some(stub) = SIGNAL_RETURNS.iter().find(|stub| code.ends_with(stub)) else { continue };
            // A handler's return address is the first byte, and a walk looks up the byte before.
            let start = (end - stub.len()).saturating_sub(1);
            flow.marks.set_signal(region.at + start as u32, (end - start) as u32);
        }
    }
}

/// Tries what the known functions have not reached.
fn try_rest(region: Region, text: &Text, flow: &mut Flow<'_>) {
    let end = region.at + region.len;
    let mut at = region.at;
    // Code that makes no sense from its begin makes none from the middle, and costs as much each
    // time.
    let mut limit = MAX_TRIAL;
    while at < end && flow.budget > 0 {
        if flow.marks.get(at).is_marked() {
            at += 1;
            continue;
        }
        let code = text.tail(at);
        let padding = if code.first() == Some(&0) { 1 } else { padding_len(code) };
        if padding > 0 {
            at += padding;
            limit = MAX_TRIAL;
            continue;
        }
        match try_at(at, limit, flow) {
            None => {
                flow.follow_starts();
                at += u32::from(!flow.marks.get(at).is_marked());
                limit = MAX_TRIAL;
            }
            Some(next) => {
                at = next.max(at + 1);
                limit = (limit / 2).max(MIN_TRIAL);
            }
        }
    }
}

/// Tries guesses at what holds at an index. Gives where to try next if none is right.
fn try_at(at: u32, limit: u64, flow: &mut Flow<'_>) -> Option<u32> {
    let fits = |evidence: &Evidence| evidence.good > 0;
    let Err(entry) = flow.try_out(at, State::ENTRY, limit, fits) else { return None };
    let after = flow.switches.partition_point(|(index, _)| *index < at);
    let switch = after.checked_sub(1).and_then(|last| flow.switches.get(last).copied());
    let switch = switch.filter(|(index, _)| at - index <= MAX_SWITCH).map(|(_, state)| state);
    for guess in switch.into_iter().chain(entry.hint) {
        if flow.try_out(at, guess, limit, fits).is_ok() {
            return None;
        }
    }
    // A function that never returns proves itself by its calls alone: it is followed as one, and so
    // known for it.
    let calls = |evidence: &Evidence| evidence.aligned > 0 && evidence.misaligned == 0;
    if !entry.bad && calls(&entry) {
        flow.add_start(at);
        return None;
    }
    Some(entry.end)
}
