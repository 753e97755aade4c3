//! What objects of the kernel are, in words: `kmalloc-64`, `dentry`, `order 2`.

use std::fmt;

use memleak_common::kernel::{KmallocType, Label};

/// What stands before the size in the names of kmalloc's caches (`kmalloc_info` in
/// mm/slab_common.c).
const fn kmalloc_prefix(kind: KmallocType) -> &'static str {
    match kind {
        KmallocType::Normal => "kmalloc-",
        KmallocType::Cgroup => "kmalloc-cg-",
        KmallocType::Reclaimable => "kmalloc-rcl-",
        KmallocType::Dma => "dma-kmalloc-",
    }
}

/// What the objects of a stack of the kernel's are. Its text form is the cache's name, or
/// `order 2`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Tag {
    /// Objects of the slab cache of this name.
    Cache(String),
    /// Blocks of 2^N pages.
    Pages(u8),
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cache(name) => f.write_str(name),
            Self::Pages(order) => write!(f, "order {order}"),
        }
    }
}

/// What `label` stands for; `cache_name` gives the name of a cache by the address of its
/// `struct kmem_cache`.
pub fn tag_of(label: Label, cache_name: impl FnOnce(u64) -> Option<String>) -> Option<Tag> {
    match label {
        Label::Cache(address) => cache_name(address).map(Tag::Cache),
        Label::Kmalloc(kind, bytes) => Some(Tag::Cache(kmalloc_name(kind, bytes))),
        Label::Pages(order) => Some(Tag::Pages(order)),
    }
}

/// The name of the cache of kmalloc's for objects of so many bytes.
fn kmalloc_name(kind: KmallocType, bytes: u64) -> String {
    format!("{}{}", kmalloc_prefix(kind), kmalloc_bytes(bytes))
}

/// As the kernel writes sizes in these names: 512, 1k, 2M.
fn kmalloc_bytes(bytes: u64) -> String {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    match bytes {
        bytes if bytes >= MIB && bytes % MIB == 0 => format!("{}M", bytes / MIB),
        bytes if bytes >= KIB && bytes % KIB == 0 => format!("{}k", bytes / KIB),
        bytes => bytes.to_string(),
    }
}

/// The label of the cache of kmalloc's that is called `name`; `None` for all other names.
pub fn kmalloc_label(name: &str) -> Option<Label> {
    KmallocType::ALL.iter().find_map(|kind| {
        let size = name.strip_prefix(kmalloc_prefix(*kind))?;
        let (digits, shift) = match size.as_bytes().last()? {
            b'k' => (size.strip_suffix('k')?, 10),
            b'M' => (size.strip_suffix('M')?, 20),
            _ => (size, 0),
        };
        let bytes = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?;
        let label = Label::Kmalloc(*kind, bytes);
        // One name for each: neither `kmalloc-1024` nor `kmalloc-+8`.
        (kmalloc_name(*kind, bytes) == name && Label::decode(label.encode()) == Some(label)).then_some(label)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(label: Label) -> Option<String> {
        let cache = |address| (address == 0xffff_8881_0000_0000).then(|| "dentry".to_owned());
        tag_of(label, cache).map(|tag| tag.to_string())
    }

    #[test]
    fn names() {
        for (label, expected) in [
            (Label::Kmalloc(KmallocType::Normal, 8), "kmalloc-8"),
            (Label::Kmalloc(KmallocType::Normal, 192), "kmalloc-192"),
            (Label::Kmalloc(KmallocType::Normal, 1024), "kmalloc-1k"),
            (Label::Kmalloc(KmallocType::Cgroup, 2048), "kmalloc-cg-2k"),
            (Label::Kmalloc(KmallocType::Reclaimable, 96), "kmalloc-rcl-96"),
            (Label::Kmalloc(KmallocType::Dma, 8192), "dma-kmalloc-8k"),
            (Label::Kmalloc(KmallocType::Normal, 4 << 20), "kmalloc-4M"),
            (Label::Pages(0), "order 0"),
            (Label::Pages(10), "order 10"),
            (Label::Cache(0xffff_8881_0000_0000), "dentry"),
        ] {
            assert_eq!(name(label).as_deref(), Some(expected));
        }
        assert_eq!(name(Label::Cache(0xffff_8881_0000_0040)), None);
    }

    #[test]
    fn no_other_name_is_one_of_kmallocs() {
        for name in [
            "kmalloc-",
            "kmalloc-cg-",
            "kmalloc-1024",
            "kmalloc-+8",
            "kmalloc-08",
            "kmalloc-k",
            "kmalloc-1K",
            "kmalloc-rnd-01-64",
            "kmalloc-99999999999999999999",
            "kmalloc-18014398509481984k",
            "kmalloc_buckets",
            "dentry",
            "",
        ] {
            assert_eq!(kmalloc_label(name), None, "{name}");
        }
    }

    #[test]
    fn a_cache_that_is_called_as_pages_are_stays_a_cache() {
        let tag = tag_of(Label::Cache(1), |_| Some("order 2".to_owned()));
        assert_eq!(tag, Some(Tag::Cache("order 2".to_owned())));
        assert_ne!(tag, tag_of(Label::Pages(2), |_| None));
    }

    /// The running kernel's own names, all of them, back and forth.
    #[test]
    fn names_are_those_of_the_running_kernel() {
        // Readable for everybody, unlike /proc/slabinfo; kernels built without SLUB's files have
        // neither.
        let entries = std::fs::read_dir("/sys/kernel/slab").expect("the kernel shows its caches");
        let names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("kmalloc-") || name.starts_with("dma-kmalloc-"))
            .filter(|name| !name.starts_with("kmalloc-rnd-"))
            .collect();
        assert!(names.len() >= 13, "{names:?}");
        for known in names {
            let label = kmalloc_label(&known).unwrap_or_else(|| panic!("{known} is not understood"));
            assert_eq!(name(label), Some(known));
        }
    }
}
