//! The single blocks of a stack, for forms that have a record for each.

use std::collections::HashMap;

use crate::report::model::{AllocationLine, ProcessCount, StackReport};

/// Blocks that are made up for one stack: one in a million, scaled up, would fill the disk.
const MOST_MADE_UP: u64 = 1_000_000;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldBlock {
    /// Whose it is; `None` stands for processes that ended long ago.
    pub(super) pid: Option<u32>,
    pub(super) size: u64,
    pub(super) age_ms: u64,
}

/// Each block that a stack holds. They add up to what the stack holds, and each process of it: what
/// is not listed is made up of blocks of equal sizes, as old as the oldest. Of very many only the
/// bytes are right: they are fewer and larger.
pub(super) fn blocks_of(stack: &StackReport) -> impl Iterator<Item = HeldBlock> {
    let listed =
        |block: &AllocationLine| HeldBlock { pid: Some(block.pid), size: block.size, age_ms: block.age_ms };
    let parts = not_listed(stack);
    let most = MOST_MADE_UP / (parts.len() as u64).max(1);
    let age_ms = stack.oldest_ms.unwrap_or(0);
    stack.blocks.iter().map(listed).chain(parts.into_iter().flat_map(move |(pid, bytes, count)| {
        let count = count.min(most);
        let (size, larger) = (bytes / count.max(1), bytes % count.max(1));
        (0..count).map(move |number| HeldBlock { pid, size: size + u64::from(number < larger), age_ms })
    }))
}

/// Whose blocks are not listed, with their bytes and how many they are.
fn not_listed(stack: &StackReport) -> Vec<(Option<u32>, u64, u64)> {
    let mut listed: HashMap<u32, (u64, u64)> = HashMap::new();
    for block in &stack.blocks {
        let sum = listed.entry(block.pid).or_default();
        *sum = (sum.0.saturating_add(block.size), sum.1 + 1);
    }
    let mut left = (stack.bytes, stack.count);
    let mut parts = Vec::new();
    for ProcessCount { pid, bytes, count } in &stack.processes {
        left = (left.0.saturating_sub(*bytes), left.1.saturating_sub(*count));
        let (in_bytes, in_all) = listed.get(pid).copied().unwrap_or_default();
        parts.push((Some(*pid), bytes.saturating_sub(in_bytes), count.saturating_sub(in_all)));
    }
    parts.push((None, left.0, left.1));
    parts.retain(|(.., count)| *count > 0);
    parts
}
