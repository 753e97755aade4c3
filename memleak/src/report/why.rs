//! What `--why` has found, as plain data: what is lost, which blocks hold each other in a circle,
//! and what holds the rest.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::names::is_library;
use crate::{
    heap::{Class, Classes, RootKind},
    symbolize::Frame,
};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// How often the targets' memory was looked through; 0 if they were stopped for it.
    pub scans: u32,
    /// For so long they were stopped, milliseconds.
    pub stopped_ms: u64,
    /// Every block from the targets' first instruction on is known.
    pub complete: bool,
    /// Blocks in the allocator that are in use and not known; `None` if that cannot be told.
    pub unknown_blocks: Option<u64>,
    /// What may hide a leak: memory of an allocator that was mapped before tracing began.
    pub may_hide: bool,
    /// Bytes that are in swap, and were not read.
    pub unread_bytes: u64,
    /// Sums over all blocks that were looked at.
    pub classes: Classes,
    /// Circles, by shape, those that hold most first.
    pub cycles: Vec<Cycle>,
    /// What holds what is reachable, most bytes first.
    pub held: Vec<HeldBy>,
    /// What was asked for with `--why-of`.
    #[serde(default)]
    pub asked: Vec<Asked>,
    /// What is lost, by type, most bytes first; only what has one.
    pub types: Vec<LostType>,
    /// What was there before tracing began; `None` if there is nothing to tell.
    pub before: Option<BeforeAttach>,
    /// All blocks with their pointers, by process, if they were asked for.
    #[serde(skip)]
    pub objects: Vec<ObjectGraph>,
    /// What became of blocks that are listed (`-a`), by process and address.
    #[serde(with = "pairs")]
    pub allocations: HashMap<(u32, u64), Class>,
}

impl Why {
    /// The report's stacks are at other places now, by their old ones, or gone.
    pub fn move_stacks(&mut self, places: &[Option<usize>]) {
        for member in self.cycles.iter_mut().flat_map(|cycle| &mut cycle.members) {
            for stack in [&mut member.stack, &mut member.to_stack] {
                *stack = stack.and_then(|stack| places.get(stack).copied().flatten());
            }
        }
    }
}

/// A map as a list of pairs: keys of JSON are strings.
mod pairs {
    use std::collections::HashMap;

    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::heap::Class;

    type Map = HashMap<(u32, u64), Class>;

    pub(super) fn serialize<S: Serializer>(map: &Map, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Map, D::Error> {
        Ok(Vec::deserialize(from)?.into_iter().collect())
    }
}

/// All blocks of a process, and the pointers between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectGraph {
    /// The process.
    pub pid: u32,
    /// Names of types.
    pub types: Vec<String>,
    /// Names of members.
    pub fields: Vec<String>,
    /// The blocks, in order of address.
    pub objects: Vec<GraphObject>,
    /// The addresses of blocks that are held, and by what, in order of that.
    pub roots: Vec<(RootKind, u64)>,
}

/// A block of a graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GraphObject {
    /// Where it begins.
    pub address: u64,
    /// Its bytes.
    pub size: u64,
    /// Its type, by its place in [`ObjectGraph::types`].
    pub type_number: u32,
    /// For each pointer its member, by its place in [`ObjectGraph::fields`], and the block.
    pub references: Vec<(u32, u64)>,
}

/// Circles of one shape.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cycle {
    /// Blocks in the largest of them.
    pub length: u64,
    /// How many there are.
    pub count: u64,
    /// So many of them something alive points into, still.
    pub pointed_at: u64,
    /// What does, of one of them.
    pub pointed_from: Option<String>,
    /// Bytes of their blocks.
    pub bytes: u64,
    /// With what they alone hold.
    pub retained_bytes: u64,
    /// Which block holds which.
    pub members: Vec<CycleMember>,
    /// What they hold, most bytes first.
    pub hanging: Vec<HangingBlocks>,
    /// The pointer that would not own: `std::weak_ptr`, where owners are counted.
    #[serde(default)]
    pub weak: Option<String>,
    /// Some of its pointers may not own already.
    #[serde(default)]
    pub doubtful: bool,
}

/// Where blocks were acquired, as far as a line of text can say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeIn {
    /// The function that is responsible.
    pub function: Option<String>,
    /// Source file and line of its call.
    pub place: Option<(String, u32)>,
}

/// A block of a circle, which holds another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CycleMember {
    /// Its type.
    pub type_name: Option<String>,
    /// The member that holds the next.
    pub field: Option<String>,
    /// Where in the block that is, bytes.
    pub offset: u32,
    /// Many of its places hold such: it is an array, and `offset` the first.
    #[serde(default)]
    pub is_array: bool,
    /// The type of the next.
    pub to: Option<String>,
    /// Bytes of the block.
    pub size: u64,
    /// Bytes of the next.
    pub to_size: u64,
    /// Its stack, by its place among those of the report.
    pub stack: Option<usize>,
    /// The next one's.
    #[serde(default)]
    pub to_stack: Option<usize>,
    /// Where it was acquired.
    pub made_in: MadeIn,
}

/// Blocks that hang off circles.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HangingBlocks {
    /// Their type.
    pub type_name: Option<String>,
    /// How many.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
    /// Where they were acquired.
    pub made_in: MadeIn,
}

/// What holds the blocks of a stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBy {
    /// The root: `global g_cache [server]`, `main's stack`.
    pub by: String,
    /// The blocks on the way, from the root on, by the member that holds the next.
    pub path: Vec<String>,
    /// Bytes of the blocks.
    pub bytes: u64,
    /// How many they are.
    pub count: u64,
    /// Where they were acquired.
    pub made_in: MadeIn,
}

/// What holds a block that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The address or type, as it was asked for.
    pub what: String,
    /// The block's address and bytes; `None` if there is none that was seen made.
    pub block: Option<(u64, u64)>,
    /// What became of it.
    pub class: Option<Class>,
    /// The root that holds it; `None` if nothing does for sure.
    pub by: Option<String>,
    /// The blocks from the root on, by the member that holds the next, up to itself. Of what no
    /// root holds, the one that points to it.
    pub path: Vec<String>,
    /// Where it was acquired.
    pub made_in: MadeIn,
}

/// Blocks of glibc's that were there before tracing began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeforeAttach {
    /// Bytes that they have room for.
    pub bytes: u64,
    /// How many.
    pub count: u64,
    /// Bytes of those that nothing holds.
    pub lost_bytes: u64,
    /// How many these are.
    pub lost_count: u64,
    /// Bytes that are free in the arenas.
    pub free: u64,
    /// What is lost of them, and what all of them are: those of most bytes.
    #[serde(default)]
    pub lost_kinds: Vec<BlockKind>,
    /// See above.
    #[serde(default)]
    pub kinds: Vec<BlockKind>,
    /// `kinds` are of each so many-th block, and an estimate therefore.
    #[serde(default)]
    pub each: u64,
}

/// Blocks of one type, or else of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockKind {
    /// The type, if they say it.
    pub name: Option<String>,
    /// Bytes of each, if not.
    pub size: u64,
    /// How many.
    pub count: u64,
    /// Bytes of all.
    pub bytes: u64,
}

/// Lost blocks of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostType {
    /// The type.
    pub name: String,
    /// How many.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

impl MadeIn {
    /// By the frames of a stack, callee first: the first that is no library's.
    pub fn of(frames: &[Frame]) -> Self {
        let mut named = frames.iter().filter(|frame| frame.function.is_some());
        let last = named.clone().next_back();
        let Some(frame) = named.find(|frame| !is_library(frame)).or(last) else { return Self::default() };
        let place = frame.file.clone().zip(frame.line);
        Self { function: frame.function.clone(), place }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbolize::NoSymbol;

    fn frame(function: &str, module: &str) -> Frame {
        let nameless = Frame::without_function(1, Some(module.to_owned()), Some(1), NoSymbol::Unmapped);
        let function = Some(function.to_owned());
        Frame { function, file: Some("a.cc".to_owned()), line: Some(7), no_symbol: None, ..nameless }
    }

    #[test]
    fn libraries_are_not_responsible() {
        let frames = [
            frame("operator new(unsigned long)", "/lib/libstdc++.so.6"),
            frame("std::__new_allocator<node>::allocate(unsigned long, void const*)", "/bin/x"),
            frame("std::shared_ptr<node> std::make_shared<node>()", "/bin/x"),
            frame("std::enable_if<true, int>::type std::make<node>()", "/bin/x"),
            frame("graph::add(std::string const&)", "/bin/x"),
            frame("main", "/bin/x"),
        ];
        let made = MadeIn::of(&frames);
        assert_eq!(made.function.as_deref(), Some("graph::add(std::string const&)"));
        assert_eq!(made.place, Some(("a.cc".to_owned(), 7)));
        assert_eq!(MadeIn::of(&frames[..2]).function, frames[1].function);
        assert_eq!(MadeIn::of(&[]), MadeIn::default());
        let nameless = Frame { function: None, ..frame("", "/bin/stripped") };
        assert_eq!(MadeIn::of(&[nameless, frame("main", "/bin/x")]).function.as_deref(), Some("main"));
    }
}
