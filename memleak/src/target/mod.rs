//! What is traced: processes, a command to start, the kernel, and the objects they have mapped.

pub mod allocator;
pub mod command;
pub mod ifunc;
pub mod kernel;
pub mod object;
pub mod process;
