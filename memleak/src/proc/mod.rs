//! Reading /proc and another process's memory. Nothing else in the program does.

pub mod btf;
pub(crate) mod cgroup;
pub(crate) mod clock;
pub(crate) mod copied;
pub(crate) mod cpu_times;
pub(crate) mod descriptors;
pub(crate) mod dynamic_linker;
pub(crate) mod exec_watch;
pub(crate) mod io;
pub mod kallsyms;
pub(crate) mod limits;
pub(crate) mod living;
pub mod maps;
pub mod memory;
pub(crate) mod memory_limit;
pub(crate) mod oom;
pub(crate) mod pagemap;
pub(crate) mod ptrace;
pub(crate) mod readable;
pub mod root;
pub(crate) mod slab;
pub(crate) mod stacks;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod target;

/// Bytes of a page. A kernel with others is refused (`bpf::object`).
pub(crate) const PAGE_SIZE: u64 = 4096;
