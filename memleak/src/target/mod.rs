//! What is traced: the objects it has mapped and the allocators in them.

pub mod allocator;
mod elf;
pub mod ifunc;
pub mod object;
