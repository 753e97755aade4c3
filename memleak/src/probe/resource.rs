//! What there is to acquire: each resource's name and how reports speak of it.

use std::sync::Arc;

use memleak_common::probe::Resource;
use rustc_hash::FxHashMap;

use super::spec::{Size, UserResource, Width};

/// How reports and `--list-resources` speak of a resource.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ResourceInfo {
    /// Its number.
    #[serde(with = "number")]
    pub resource: Resource,
    /// For `-r`, and `resource` in JSON.
    pub name: String,
    /// What it is, in one line.
    pub description: String,
    /// What several of them are called in a heading.
    pub unit: String,
    /// Reports also count bytes of it.
    pub has_size: bool,
    /// Its handles are small numbers (descriptors), not addresses.
    pub is_number: bool,
    /// Its handles are file descriptors: /proc says what they are now.
    pub is_descriptor: bool,
}

/// A resource as its number.
mod number {
    use memleak_common::probe::Resource;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(resource: &Resource, serializer: S) -> Result<S::Ok, S::Error> {
        resource.number().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Resource, D::Error> {
        let number = u32::deserialize(deserializer)?;
        Resource::from_u32(number)
            .ok_or_else(|| D::Error::custom(format!("no resource has the number {number}")))
    }
}

/// Built-in resources of processes, in the order in which they are listed.
pub const OF_PROCESSES: &[Resource] = &[
    Resource::Heap,
    Resource::Mmap,
    Resource::Fd,
    Resource::File,
    Resource::Dir,
    Resource::Sqlite,
    Resource::SqliteStmt,
    Resource::Thread,
    Resource::Mutex,
    Resource::Dl,
    Resource::Ssl,
    Resource::Python,
    Resource::Growth,
    Resource::OtelMemory,
];

/// What memory is called in a heading, as in bcc's.
const MEMORY: &str = "allocations";

impl ResourceInfo {
    /// Of a built-in resource.
    pub fn built_in(resource: Resource) -> Self {
        let (description, unit) = match resource {
            Resource::Heap => ("blocks of malloc and related functions, and of C++'s new", MEMORY),
            Resource::Mmap => ("ranges of addresses mapped by mmap", MEMORY),
            Resource::Slab => ("objects of the kernel's slab caches", MEMORY),
            Resource::Pages => ("the kernel's pages", MEMORY),
            Resource::Vmalloc => ("ranges of the kernel's vmalloc", MEMORY),
            Resource::Percpu => ("the kernel's per-CPU memory", MEMORY),
            Resource::Fd => ("file descriptors", "file descriptors"),
            Resource::File => ("the C library's streams (FILE)", "streams"),
            Resource::Dir => ("the C library's directory streams (DIR)", "directory streams"),
            Resource::Sqlite => ("connections to SQLite databases", "SQLite connections"),
            Resource::SqliteStmt => ("SQLite's prepared statements", "SQLite statements"),
            Resource::Thread => ("threads neither joined nor detached", "threads"),
            Resource::Mutex => ("POSIX mutexes that are locked", "locked mutexes"),
            Resource::Dl => ("objects loaded by dlopen", "loaded objects"),
            Resource::Ssl => ("OpenSSL's objects", "OpenSSL objects"),
            Resource::Python => ("blocks of Python's allocators", "Python allocations"),
            Resource::Growth => ("pages of memory, by what touched them first", MEMORY),
            Resource::OtelMemory => (
                "an allocator's own samples (USDT otel_memory), with the bytes that each stands for",
                "sampled allocations",
            ),
            Resource::Custom(_) => ("described by the user", "resources of the user"),
        };
        Self {
            resource,
            name: resource.name().to_owned(),
            description: description.to_owned(),
            unit: unit.to_owned(),
            has_size: resource.has_size(),
            is_number: resource == Resource::Fd,
            is_descriptor: resource == Resource::Fd,
        }
    }

    /// Of one that a user has described.
    pub fn of_user(resource: Resource, user: &UserResource) -> Self {
        let unit = if user.unit.is_empty() { &user.name } else { &user.unit };
        Self {
            resource,
            name: user.name.clone(),
            description: user.description.clone(),
            unit: unit.clone(),
            has_size: user.acquires.iter().any(|acquire| acquire.size != Size::None),
            is_number: user.width() == Width::Int,
            is_descriptor: false,
        }
    }

    /// The table that it is shown in: see [`table_of`].
    pub fn table(&self) -> Resource {
        table_of(self.resource)
    }
}

/// The resource that names the table in which `resource` is shown: all kinds of memory that bcc's
/// memleak counts together share one, and anything else has its own.
pub fn table_of(resource: Resource) -> Resource {
    match resource {
        Resource::Heap
        | Resource::Mmap
        | Resource::Slab
        | Resource::Pages
        | Resource::Vmalloc
        | Resource::Percpu => Resource::Heap,
        other => other,
    }
}

/// Picks the first entries of each table out of a list that is in order.
#[derive(Clone, Debug)]
pub struct TopOfTables {
    top: usize,
    seen: FxHashMap<Resource, usize>,
}

impl TopOfTables {
    /// So many of each table.
    pub fn new(top: usize) -> Self {
        Self { top, seen: FxHashMap::default() }
    }

    /// Whether the next entry, which is one of `resource`, is among them.
    pub fn takes(&mut self, resource: Resource) -> bool {
        let seen = self.seen.entry(table_of(resource)).or_default();
        *seen += 1;
        *seen <= self.top
    }
}

/// The resources of a run.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    traced: Vec<Arc<ResourceInfo>>,
}

impl Catalog {
    /// Of what is traced, in the order of reports.
    pub fn new(traced: impl IntoIterator<Item = ResourceInfo>) -> Self {
        Self { traced: traced.into_iter().map(Arc::new).collect() }
    }

    /// What is traced, in the order of reports.
    pub fn traced(&self) -> &[Arc<ResourceInfo>] {
        &self.traced
    }

    /// How reports speak of `resource`.
    pub fn get(&self, resource: Resource) -> Arc<ResourceInfo> {
        let known = self.traced.iter().find(|info| info.resource == resource);
        known.cloned().unwrap_or_else(|| Arc::new(ResourceInfo::built_in(resource)))
    }
}
