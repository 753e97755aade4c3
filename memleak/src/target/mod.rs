//! What is traced: processes, a command to start, the kernel, and the objects they have mapped.

pub mod allocator;
pub(crate) mod command;
pub mod ifunc;
pub(crate) mod kernel;
pub mod object;
pub(crate) mod process;
