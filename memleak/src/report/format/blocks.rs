//! The single blocks of a stack, for forms that have a record for each.

use crate::report::model::StackReport;

/// Blocks that are made up for one stack: one in a million, scaled up, would fill the disk.
const MOST_MADE_UP: u64 = 1_000_000;

/// Size and age (milliseconds) of each block that a stack holds. They add up to what the stack
/// holds: what is not listed is made up of blocks of equal sizes, as old as the oldest. Of very
/// many only the bytes are right: they are fewer and larger.
pub(super) fn blocks_of(stack: &StackReport) -> impl Iterator<Item = (u64, u64)> {
    let listed = stack.blocks.iter().map(|block| (block.size, block.age_ms));
    let bytes: u64 = stack.blocks.iter().map(|block| block.size).fold(0, u64::saturating_add);
    let missing = stack.count.saturating_sub(stack.blocks.len() as u64).min(MOST_MADE_UP);
    let (bytes, age_ms) = (stack.bytes.saturating_sub(bytes), stack.oldest_ms.unwrap_or(0));
    let (size, larger) = (bytes / missing.max(1), bytes % missing.max(1));
    let others = (0..missing).map(move |number| (size + u64::from(number < larger), age_ms));
    listed.chain(others)
}
