//! What processes that have ended held at their end: taken out of the kernel side's tables, which others need.

use std::collections::{HashMap, HashSet};

use crate::snapshot::{Outstanding, Stack};

/// Records of processes that have ended, and their stacks.
#[derive(Debug, Default)]
pub struct Ended {
    records: Vec<Outstanding>,
    stacks: HashMap<u64, Stack>,
}

impl Ended {
    /// Takes over the records of owners that have ended.
    pub fn add(&mut self, records: impl IntoIterator<Item = Outstanding>) {
        self.records.extend(records);
    }

    /// Takes over a stack that a record refers to.
    pub fn add_stack(&mut self, id: u64, stack: &Stack) {
        self.stacks.entry(id).or_insert_with(|| stack.clone());
    }

    /// All records.
    pub fn records(&self) -> &[Outstanding] {
        &self.records
    }

    /// A stack that one of them refers to.
    pub fn stack(&self, id: u64) -> Option<&Stack> {
        self.stacks.get(&id)
    }

    /// Numbers ([`Outstanding::space`]) that own one of them.
    pub fn owners(&self) -> HashSet<u32> {
        self.records.iter().map(|record| record.space).collect()
    }
}
