//! Cached walks (map `CACHED_WALKS`): a stack that was walked before is looked up by what the walk
//! has read.
//!
//! What a walk by unwind tables finds follows from three registers, the tables, and the words of
//! the stack that it reads. A cached walk has all of them. If they are the same again, so is the
//! stack: a comparison of each word in turn is exact, and takes a tenth of the walk's time.
//!
//! Registers and process choose the one place where a walk can be. A walk takes it at the third
//! time that it comes by in vain, if no other stack has in between: what comes once does not pay
//! for it.

/// Places. A power of two.
pub const CACHED_WALKS: u32 = 2048;
/// Most words of the stack that a cached walk has read: two for each frame.
pub const WALK_WORDS: usize = 256;

/// The registers from which a walk begins, and what decides on where it leads beside the stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WalkStart {
    /// The instruction pointer; 0: nothing is cached here.
    pub ip: u64,
    /// The stack pointer.
    pub sp: u64,
    /// The frame pointer.
    pub fp: u64,
    /// [`crate::unwind::PublishedList::generation`] of the process's tables: no two processes have
    /// the same one.
    pub tables: u64,
    /// The generation of what is mapped ([`crate::mappings`]).
    pub mappings: u64,
}

/// A walk.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CachedWalk {
    /// Odd while somebody writes here.
    pub version: u64,
    /// The last stack that came by in vain.
    pub candidate: u64,
    /// Where it begins.
    pub start: WalkStart,
    /// The stack that it leads to.
    pub stack_id: u64,
    /// Words that it reads.
    pub len: u32,
    /// How often `candidate` has, with no other in between.
    pub seen: u32,
    /// Words from the stack pointer to the last of them.
    pub span: u32,
    /// Fills up; 0.
    pub reserved: u32,
    /// Which: in words from the stack pointer on.
    pub at: [u16; WALK_WORDS],
    /// What is there.
    pub words: [u64; WALK_WORDS],
}
