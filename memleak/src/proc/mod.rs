//! Reading /proc and another process's memory. Nothing else in the program does.

pub mod btf;
pub mod clock;
pub mod descriptors;
pub mod dynamic_linker;
pub mod kallsyms;
pub mod limits;
pub mod maps;
pub mod memory;
pub mod pagemap;
pub mod ptrace;
pub mod readable;
pub mod root;
pub mod slab;
pub mod stacks;
pub mod status;
pub mod target;
