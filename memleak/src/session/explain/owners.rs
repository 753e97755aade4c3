//! Whether the blocks of a circle own each other: a weak pointer, or a plain one back to the owner,
//! closes a circle of pointers and keeps nothing alive.

use std::collections::HashMap;

use super::{Explainer, allocated::weak_pointer};
use crate::{
    heap::{Circle, CircleLink, Holds, Owned, Owners, Sample, first_argument, judge},
    session::examined::ExaminedHeap,
    symbolize::WRAPPERS,
};

/// Blocks of the owners' numbers alone, with a pointer to the object.
const COUNTERS: [&str; 3] =
    ["std::_Sp_counted_ptr<", "std::_Sp_counted_deleter<", "std::__1::__shared_ptr_pointer<"];
/// Types whose objects do not own what they point to.
const WEAK: [&str; 5] = ["weak_ptr", "__weak_ptr", "Weak", "WeakPtr", "QWeakPointer"];
/// Bytes of such an object, with a lock around it.
const MOST_WEAK: u64 = 24;
/// Others that may have one of these in them.
const OPTIONAL: [&str; 2] = ["Option", "optional"];

impl Explainer<'_> {
    /// See [`Owned`].
    pub(super) fn owned(&mut self, heap: &ExaminedHeap, circle: &Circle) -> Owned {
        let shape;
        let sample = match circle.sample.links.is_empty() {
            true => {
                shape = circle.shape();
                &shape
            }
            false => &circle.sample,
        };
        let stack = |link: &CircleLink| sample.blocks.get(link.from as usize).map_or(0, |block| block.stack);
        let mut known: HashMap<(u32, u32), Holds> = HashMap::new();
        let holds: Vec<Holds> = sample
            .links
            .iter()
            .map(|link| (stack(link), link.offset))
            .map(|place| *known.entry(place).or_insert_with(|| self.holds(heap, place.0, place.1)))
            .collect();
        let owners: Vec<Option<Owners>> =
            (0..sample.blocks.len()).map(|at| self.owners(heap, sample, at)).collect();
        let is_counted = circle.sides.iter().any(|side| self.weak_pointer(heap, side.stack).is_some());
        match judge(sample, &holds, &owners, circle.length == 1) {
            Owned::Plainly if is_counted => Owned::Yes,
            Owned::Plainly => Owned::No,
            other => other,
        }
    }

    /// The pointer at `offset` of a block of this stack does not own what it leads to.
    pub(super) fn is_weak(&mut self, heap: &ExaminedHeap, stack: u32, offset: u32) -> bool {
        self.holds(heap, stack, offset) == Holds::Weakly
    }

    fn holds(&mut self, heap: &ExaminedHeap, stack: u32, offset: u32) -> Holds {
        let Some(of) = self.type_at(heap, stack) else { return Holds::Unknown };
        if is_weak(of.name.trim_end_matches("[]")) {
            return Holds::Weakly;
        }
        if COUNTERS.iter().any(|start| of.name.starts_with(start)) {
            return Holds::Firmly;
        }
        let Some(within) = u64::from(offset).checked_sub(of.offset) else { return Holds::Unknown };
        // The last member that begins before: there may be others after it that have no name.
        let Some(member) = self.member_of(&super::holder(&of.name), within) else { return Holds::Unknown };
        let inside = within - member.offset;
        match &member.is {
            Some(name) if is_weak(name) && inside < MOST_WEAK => Holds::Weakly,
            Some(name) if !is_weak(name) => Holds::Firmly,
            None if member.points_to.is_some() && inside == 0 => Holds::Plainly,
            _ => Holds::Unknown,
        }
    }

    /// Of libstdc++, libc++ and Rust: two numbers before the object, in 4 bytes each or 8, after
    /// the virtual table if there is one. The weak ones are one more as long as there is an owner;
    /// libc++ counts from 0.
    fn owners(&mut self, heap: &ExaminedHeap, sample: &Sample, at: usize) -> Option<Owners> {
        let weak = self.weak_pointer(heap, sample.blocks.get(at)?.stack)?;
        let [first, second, third] = (*sample.heads.get(at)?)?;
        let (strong, others) = match (weak.as_str(), second >> 32) {
            ("std::weak_ptr", 0) => (second.wrapping_add(1), third.wrapping_add(1)),
            ("std::weak_ptr", weak) => (second & u64::from(u32::MAX), weak),
            _ => (first, second),
        };
        Some(Owners { strong, weak: others.saturating_sub(u64::from(strong > 0)) })
    }

    /// What would not own a block of this stack: what `std::make_shared` has made begins after its
    /// counters, and else these are a block of their own.
    pub(super) fn weak_pointer(&mut self, heap: &ExaminedHeap, number: u32) -> Option<String> {
        let weak = match heap.types.get(&number) {
            Some(it) if it.offset > 0 && !it.name.ends_with("[]") => Some("std::weak_ptr"),
            Some(it) => COUNTERS.iter().any(|start| it.name.starts_with(start)).then_some("std::weak_ptr"),
            None => {
                let site = self.site(number);
                weak_pointer(self.frames(site))
            }
        };
        weak.map(str::to_owned)
    }
}

/// Objects of a type of this name, or what they may have in them, do not own what they point to.
fn is_weak(name: &str) -> bool {
    let Some((template, arguments)) = name.split_once('<') else { return false };
    let last = template.rsplit("::").next().unwrap_or(template);
    let is_wrapper = WRAPPERS.iter().any(|wrapper| wrapper.trim_end_matches('<') == last);
    WEAK.contains(&last)
        || ((is_wrapper || OPTIONAL.contains(&last)) && first_argument(arguments).is_some_and(is_weak))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_types_are_known() {
        for name in [
            "std::weak_ptr<node>",
            "std::__1::weak_ptr<node>",
            "alloc::rc::Weak<core::cell::RefCell<tree::Node>, alloc::alloc::Global>",
            "core::cell::RefCell<core::option::Option<alloc::sync::Weak<tree::Node>>>",
        ] {
            assert!(is_weak(name), "{name}");
        }
        for name in
            ["std::shared_ptr<node>", "std::vector<std::weak_ptr<node>>", "Weakness<int>", "node", "a<b"]
        {
            assert!(!is_weak(name), "{name}");
        }
    }
}
