//! Rows for text that nothing describes, from its machine code (aarch64): musl, assembly.
//!
//! A function begins with its return address in `x30` and the CFA in `sp`; each instruction moves
//! them by what it says ([`state`]). A function is followed from where it begins along all jumps
//! ([`flow`]). If two ways to an instruction disagree there is no row: a wrong row is worse than
//! none. All instructions have four bytes, so code cannot be read from a wrong begin.
//!
//! Functions begin at symbols, at the entry point and where calls lead to. What they do not reach
//! (functions that are called by address alone, cases of a `switch`) is tried: a state is guessed,
//! and kept if it leads to a return from where the function was entered, or to what is known.

mod flow;
mod state;
#[cfg(test)]
mod tests;

use memleak_common::unwind::{Kind, Row};

use self::{
    flow::{Flow, NOP},
    state::{Next, State},
};
use super::signal_returns::signal_returns;
use crate::arch::text::{Functions, Region, Text};

/// Instructions that are looked at, for each one that there is.
const WORK: u64 = 8;
/// How far after a jump by a register its targets are looked for, instructions.
const MAX_SWITCH: u32 = 1 << 14;

/// Rows of each region.
pub(crate) fn analyse(text: &Text, functions: &Functions) -> Vec<(Region, Vec<Row>)> {
    let mut flow = Flow::new(text, WORK * text.bytes.len() as u64 / 4);
    let index = |pc: &u32| text.index((*pc).into());
    if let Some(entry) = functions.entry.as_ref().and_then(index) {
        flow.follow(entry, State::OUTERMOST);
    }
    functions.starts.iter().filter_map(index).for_each(|start| flow.add_start(start));
    flow.follow_starts();
    for region in &text.regions {
        try_rest(*region, &mut flow);
    }
    text.regions.iter().map(|region| (*region, rows(*region, text, &flow))).collect()
}

/// Rows of a region, the first at its `pc`; equal neighbours are one.
fn rows(region: Region, text: &Text, flow: &Flow<'_>) -> Vec<Row> {
    let none = Row::bare(0, Kind::NONE).rule();
    let code = text.tail(region.at).get(..region.len as usize).unwrap_or_default();
    // From an instruction on, in a region that may begin in the middle of one.
    let lead = region.pc.next_multiple_of(4) - region.pc;
    let aligned = code.get(lead as usize..).unwrap_or_default();
    let ways_back: Vec<(u32, u32)> = signal_returns(aligned)
        .map(|(first, end)| (region.pc + lead + first as u32, region.pc + lead + end as u32))
        .collect();
    let mut rows: Vec<Row> = Vec::new();
    let mut push = |pc: u32, rule: u32| {
        rows.pop_if(|last| last.pc() == pc);
        if rows.last().is_none_or(|last| last.rule() != rule) {
            rows.push(Row::from_rule(pc, rule));
        }
    };
    push(region.pc, none);
    let mut ways_back = ways_back.into_iter().peekable();
    let mut pc = region.pc + lead;
    let end = region.pc + region.len;
    while pc < end {
        let rule = flow.state(region.at + (pc - region.pc)).map_or(none, |state| state.rule());
        match ways_back.next_if(|(first, _)| *first < pc + 4) {
            Some((first, behind)) => {
                // The byte before is another instruction's.
                if first > pc {
                    push(pc, rule);
                }
                push(first, Row::bare(0, Kind::SIGNAL).rule());
                pc = behind;
            }
            None => {
                push(pc, rule);
                pc += 4;
            }
        }
    }
    rows
}

/// Tries what the known functions have not reached.
fn try_rest(region: Region, flow: &mut Flow<'_>) {
    let end = region.at + region.len;
    let mut at = region.at + (region.pc.next_multiple_of(4) - region.pc);
    let mut is_after_end = true;
    while let Some(code) = flow.code(at).filter(|_| at < end && flow.budget > 0) {
        if flow.state(at).is_some() || code == NOP || code == 0 {
            is_after_end = true;
        } else {
            if is_after_end && try_at(at, flow) {
                flow.follow_starts();
            }
            // Code that makes no sense from its begin makes none from the middle.
            is_after_end = flow.state(at).is_some()
                || matches!(
                    Next::of(code),
                    Next::Jump(_) | Next::Register { .. } | Next::Return | Next::Stop
                );
        }
        at += 4;
    }
}

/// Tries guesses at what holds at an index. True if one is right.
fn try_at(at: u32, flow: &mut Flow<'_>) -> bool {
    if flow.try_out(at, State::ENTRY) {
        return true;
    }
    flow.switch_before(at)
        .is_some_and(|(index, state)| at - index <= 4 * MAX_SWITCH && flow.try_out(at, state))
}
