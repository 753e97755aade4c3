//! Unwind tables: stacks without frame pointers.
//!
//! An [`UnwindTable`] holds the rows of one object, made from its `.eh_frame` ([`eh_frame`]). A
//! [`TableCache`] builds those of a process's objects in parallel, once for each build id. A
//! [`Layout`] gives tables and processes their places in the arrays that the BPF programs search
//! (their words are there then, and no longer here), and [`mod@walk`] walks a stopped thread's
//! stack with the very step they use. All of it is plain data: no aya, no root.

mod cache;
pub(crate) mod cfi;
mod code_symbols;
pub(crate) mod eh_frame;
pub(crate) mod functions;
mod gaps;
mod layout;
mod owners;
mod process;
mod sections;
mod segments;
mod shared;
mod table;
mod walk;

pub use crate::arch::Machine;
pub use cache::{TableCache, TableResult};
pub use cfi::Unsupported;
pub use layout::{Arrays, Layout, LayoutError, MappedObject, Shortage, Store};

pub(crate) use owners::{RegisterOwner, RegisterOwners};
pub use process::{ProcessTables, Sums};
pub use segments::ExecSegments;
pub use shared::SharedTable;
pub use table::UnwindTable;
pub use walk::{Frame, ReadsFrom, Walked, walk};

/// Why an object has no table.
#[derive(Debug, thiserror::Error)]
pub enum UnwindError {
    /// It could not be opened or read.
    #[error("cannot read it: {0}")]
    Read(String),
    /// It is not a 64-bit little-endian ELF file, or a broken one.
    #[error("not a 64-bit little-endian ELF file")]
    NotElf,
    /// It is for another machine (`e_machine`).
    #[error("its machine ({0}) is neither x86_64 nor aarch64")]
    Machine(u16),
    /// Nothing in it can be executed.
    #[error("it has no executable segment")]
    NoText,
    /// Rows count text in 32 bits, and holes in it cost memory.
    #[error("its executable segments span {span} bytes, more than a table can")]
    TextTooLarge {
        /// From the first to the last byte.
        span: u64,
    },
}
