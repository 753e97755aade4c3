//! What is traced: processes, a command to start, the kernel, and the objects they have mapped.

pub mod allocator;
pub(crate) mod command;
mod containers;
pub mod ifunc;
pub(crate) mod kernel;
pub mod object;
pub(crate) mod process;
pub mod selector;
pub mod signatures;
pub mod slots;
