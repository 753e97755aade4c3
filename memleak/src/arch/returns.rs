//! Where functions go on, and why a function's returns are not known.

/// Why a function's `ret` instructions cannot be probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    /// The size of the function, or of one that it jumps to, is not in a symbol table.
    #[error("the end of its code is not known")]
    NoSize,
    /// Some bytes are not an instruction, or a jump comes to the middle of one.
    #[error("not all of it is code")]
    NotCode,
    /// It ends by a jump to an address that is known at run time only.
    #[error("it jumps to another function by its address")]
    Leaves,
    /// It has no `ret`, or too many.
    #[error("it is too large, or does not return")]
    Extent,
    /// It returns by instructions that the kernel cannot probe (arm64's `retaa`).
    #[error("it returns by instructions that cannot be probed")]
    Signed,
}

/// What a slot of the dynamic linker's leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotFunction {
    /// The object's own function at this `vaddr`, or another object's of the same name.
    Own(u64),
    /// A function that returns its first argument (memset).
    ReturnsArgument,
}
