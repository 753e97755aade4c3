//! What there is to acquire: each resource's name and how reports speak of it.

use memleak_common::probe::Resource;

/// How reports and `--list-resources` speak of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceInfo {
    /// For `-r`, and `resource` in JSON.
    pub name: String,
    /// What it is, in one line.
    pub description: String,
    /// What several of them are called.
    pub unit: String,
    /// Reports count bytes of it, too.
    pub has_size: bool,
}

/// Built-in resources of processes, in the order in which they are listed.
pub const OF_PROCESSES: &[Resource] = &[Resource::Heap, Resource::Mmap];

/// How reports speak of a built-in resource.
pub fn built_in(resource: Resource) -> ResourceInfo {
    let (description, unit, has_size) = match resource {
        Resource::Heap => ("blocks of malloc and its kin, and of C++'s new", "allocations", true),
        Resource::Mmap => ("ranges of addresses mapped by mmap", "allocations", true),
        Resource::Slab => ("objects of the kernel's slab caches", "allocations", true),
        Resource::Pages => ("the kernel's pages", "allocations", true),
        Resource::Vmalloc => ("ranges of the kernel's vmalloc", "allocations", true),
        Resource::Percpu => ("the kernel's per-CPU memory", "allocations", true),
    };
    ResourceInfo {
        name: resource.name().to_owned(),
        description: description.to_owned(),
        unit: unit.to_owned(),
        has_size,
    }
}
