//! Where in a function a probe sits, and why there.

/// Why a place was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The instruction there is emulated.
    Emulated,
    /// The entry: no instruction of the first block is both emulated and early enough.
    NoneEmulated,
    /// The entry: the body jumps back to between the entry and the place, so a call could pass it
    /// twice.
    JumpedOver,
    /// The entry: a jump through a table, or bytes that are not code, could hide such a jump.
    BodyUnclear,
    /// The entry: the code or its extent is not known, or is for another machine.
    BodyUnknown,
    /// The function returns there.
    Return,
    /// The program has a probe of its own there.
    Own,
}

/// Where to probe a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Bytes from the function's entry.
    pub offset: u32,
    /// Why there.
    pub reason: Reason,
}

impl Placement {
    /// At the entry.
    pub const fn entry(reason: Reason) -> Self {
        Self { offset: 0, reason }
    }
}
