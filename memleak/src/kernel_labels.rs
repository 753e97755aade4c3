//! What objects of the kernel are, in words: `kmalloc-64`, `dentry`, `order 2`.

use memleak_common::kernel::{KmallocType, Label};

/// What stands before the size in the names of kmalloc's caches (`kmalloc_info` in mm/slab_common.c).
const fn kmalloc_prefix(kind: KmallocType) -> &'static str {
    match kind {
        KmallocType::Normal => "kmalloc-",
        KmallocType::Cgroup => "kmalloc-cg-",
        KmallocType::Reclaimable => "kmalloc-rcl-",
        KmallocType::Dma => "dma-kmalloc-",
    }
}

/// What stands before the order in the name of a block of pages.
const ORDER: &str = "order ";

/// Largest order that a block of pages could have: 2^52 pages are all that 64 bits can address.
const MAX_ORDER: u8 = 52;

/// The name of `label`; `cache_name` gives that of a cache by the address of its `struct kmem_cache`.
pub fn label_name(label: Label, cache_name: impl FnOnce(u64) -> Option<String>) -> Option<String> {
    match label {
        Label::Cache(address) => cache_name(address),
        Label::Kmalloc(kind, bytes) => Some(format!("{}{}", kmalloc_prefix(kind), kmalloc_bytes(bytes))),
        Label::Pages(order) => Some(format!("{ORDER}{order}")),
    }
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
        (label_name(label, |_| None).as_deref() == Some(name) && Label::decode(label.encode()) == Some(label))
            .then_some(label)
    })
}

/// N of `order N`, the name of a block of 2^N pages; `None` for all other names.
pub fn order_of_pages(name: &str) -> Option<u8> {
    name.strip_prefix(ORDER)?.parse().ok().filter(|order| *order <= MAX_ORDER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(label: Label) -> Option<String> {
        label_name(label, |address| (address == 0xffff_8881_0000_0000).then(|| "dentry".to_owned()))
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
        assert_eq!(order_of_pages("order 3"), Some(3));
        for name in ["order", "order ", "order x", "order 300", "order 53", "kmalloc-8"] {
            assert_eq!(order_of_pages(name), None, "{name}");
        }
    }

    /// The running kernel's own names, all of them, back and forth.
    #[test]
    fn names_are_those_of_the_running_kernel() {
        // Readable for everybody, unlike /proc/slabinfo; kernels built without SLUB's files have neither.
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
