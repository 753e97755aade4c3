//! Which stacks records refer to: gathered while they are read, since later it takes a pass over
//! all of them.

use rustc_hash::FxHashSet;

use crate::recent::Recent;

/// Stacks, each with the owner of what was acquired there; more than records refer to, if some
/// records were left out.
#[derive(Clone, Debug, Default)]
pub struct StackUses {
    all: FxHashSet<(u32, u64)>,
    recent: Recent<(u32, u64), ()>,
}

impl StackUses {
    /// A record of owner `space` refers to one.
    #[inline]
    pub fn add(&mut self, (space, stack_id): (u32, u64)) {
        let at = (space, stack_id);
        self.recent.get(stack_id, at, || {
            self.all.insert(at);
        });
    }

    /// Owners and ids, each pair once.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u64)> {
        self.all.iter().copied()
    }
}

impl FromIterator<(u32, u64)> for StackUses {
    fn from_iter<I: IntoIterator<Item = (u32, u64)>>(pairs: I) -> Self {
        let mut uses = Self::default();
        pairs.into_iter().for_each(|at| uses.add(at));
        uses
    }
}
