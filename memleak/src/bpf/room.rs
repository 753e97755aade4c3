//! Room for a run: what it needs beside what our control groups leave it, so that it refuses with a
//! word and is not killed without one.

use log::debug;
use memleak_common::{history::StackHistory, stack::StackRecord};

use super::{config::Config, error::BpfError};
use crate::{proc::memory_limit::memory_total, unwind::Sums};

/// What a run needs without unwind tables, bytes: programs and maps, and our own memory.
const KERNEL: u64 = 32 << 20;
const OURS: u64 = 24 << 20;
/// What a place of a hash table takes before it is used (kernel/bpf/hashtab.c,
/// `struct bucket`).
const PLACE: u64 = 16;
/// What tables take of our memory: some, and for each byte of theirs so many while they are made.
const TABLES: u64 = 8 << 20;
const MAKING: u64 = 12;
/// Words of tables for what is loaded later, if there is little room.
const LITTLE_SPARE: u64 = 64 << 10;

/// Stacks that are kept in kernel mode by default: the kernel has few, and the memory for them is
/// taken in advance.
pub(crate) const STACKS_OF_KERNEL: u32 = 1 << 14;

/// Stacks that are kept by default: an eighth of the memory is enough for so many long ones, of
/// which there are few. `left`: what our control groups leave.
pub(crate) fn stacks_of_processes(left: Option<u64>) -> u32 {
    stacks_in([memory_total(), left].into_iter().flatten().min())
}

fn stacks_in(memory: Option<u64>) -> u32 {
    /// A compiler comes by 70,000 in its first second. What does not fit into half of the room is
    /// removed and stored again, which makes such calls a third dearer.
    const MOST: u32 = 1 << 18;
    const FEWEST: u32 = 1 << 16;
    const PART: u64 = 8;
    let bytes = (size_of::<StackRecord>() as u64).next_power_of_two();
    let places = memory.map_or(MOST.into(), |memory| memory / PART / bytes);
    u32::try_from(places).unwrap_or(MOST).clamp(FEWEST, MOST)
}

/// How many of the unwind tables' words there is room for: `words`, or as few as serve what is
/// known (`sums`).
pub(super) fn fit(config: &Config, sums: Option<&Sums>, words: u32) -> Result<u32, BpfError> {
    let places = u64::from(config.hashed().max(1)).next_power_of_two();
    // Two tables: of short ones, and of long ones.
    let stacks = 2 * u64::from(config.stack_storage_size.max(1)).next_power_of_two();
    fit_in(
        config.memory_left,
        PLACE * (places + stacks) + size_of::<StackHistory>() as u64 * u64::from(config.histories()),
        config.walks_tables(),
        sums.map_or(0, |sums| sums.words as u64),
        words,
    )
}

fn fit_in(left: Option<u64>, maps: u64, walks_tables: bool, known: u64, words: u32) -> Result<u32, BpfError> {
    let Some(left) = left else { return Ok(words) };
    let base = KERNEL + OURS + maps;
    let with_tables = |words: u64| base + 8 * words + TABLES + MAKING * 8 * known;
    let fewer = known + known / 4 + LITTLE_SPARE;
    let needed = if walks_tables { with_tables(fewer) } else { base };
    let megabytes = |bytes: u64| bytes.div_ceil(1 << 20);
    if needed > left {
        let (left, needed) = (left >> 20, megabytes(needed));
        let without = (walks_tables && base >> 20 <= left).then(|| megabytes(base));
        return Err(BpfError::LittleMemory { left, needed, without });
    }
    if !walks_tables || with_tables(u64::from(words)) <= left {
        return Ok(words);
    }
    debug!(
        "the control group leaves {} MB: little room for unwind tables of what is loaded later",
        left >> 20
    );
    Ok(u32::try_from(fewer).unwrap_or(words).min(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;
    const MAPS: u64 = PLACE << 20;
    const WORDS: u32 = 5 << 20;

    fn tables(left: u64, known: u64) -> Result<u32, BpfError> {
        fit_in(Some(left), MAPS, true, known, WORDS)
    }

    #[test]
    fn tables_have_the_room_that_there_is() {
        assert!(matches!(fit_in(None, MAPS, true, 1 << 30, WORDS), Ok(WORDS)));
        assert!(matches!(tables(200 * MB, 100_000), Ok(WORDS)));
        // Ten megabytes of tables' making and no more than what is known.
        assert!(matches!(tables(110 * MB, 100_000), Ok(190_536)));
        let refused = tables(110 * MB, 300_000);
        assert!(matches!(refused, Err(BpfError::LittleMemory { left: 110, needed: 111, without: Some(72) })));
    }

    #[test]
    fn what_is_said_to_help_does() {
        assert!(matches!(fit_in(Some(72 * MB), MAPS, false, 0, WORDS), Ok(WORDS)));
        assert!(matches!(
            tables(71 * MB, 300_000),
            Err(BpfError::LittleMemory { left: 71, needed: 111, without: None })
        ));
        assert!(matches!(fit_in(Some(57 * MB), PLACE << 14, false, 0, WORDS), Ok(WORDS)));
    }

    #[test]
    fn stacks_have_an_eighth_of_the_memory() {
        let sizes = [None, Some(64 << 30), Some(4 << 30), Some(2 << 30), Some(1 << 30), Some(64 << 20)];
        assert_eq!(sizes.map(stacks_in), [1 << 18, 1 << 18, 1 << 18, 1 << 17, 1 << 16, 1 << 16]);
    }
}
