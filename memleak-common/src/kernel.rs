//! Kernel mode: what both sides know of the kernel's own allocators.

/// Longest name of a slab cache that is kept, with the zero behind it.
pub const CACHE_NAME_LEN: usize = 32;

/// What a stack's objects are, as [`crate::stack::StackRecord::label`] carries it: 0 for user mode.
///
/// | label | meaning |
/// | --- | --- |
/// | 0 | nothing is known |
/// | `0xff..` | a `struct kmem_cache *`: its name is in the map `CACHES` |
/// | `1 << 56 \| type << 48 \| bytes` | a cache of kmalloc: [`KmallocType`], bytes of its objects |
/// | `2 << 56 \| order` | 2^order pages |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Label {
    /// A slab cache, by its address.
    Cache(u64),
    /// One of kmalloc's caches.
    Kmalloc(KmallocType, u64),
    /// 2^order pages.
    Pages(u8),
}

/// Which set of kmalloc's caches (include/linux/slab.h, `enum kmalloc_cache_type`).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KmallocType {
    /// `kmalloc-N`.
    Normal = 0,
    /// `kmalloc-cg-N`: charged to a control group.
    Cgroup = 1,
    /// `kmalloc-rcl-N`: reclaimable.
    Reclaimable = 2,
    /// `dma-kmalloc-N`.
    Dma = 3,
}

impl KmallocType {
    /// All of them, in order of their numbers.
    pub const ALL: &[Self] = &[Self::Normal, Self::Cgroup, Self::Reclaimable, Self::Dma];
}

const KIND_SHIFT: u32 = 56;
const TYPE_SHIFT: u32 = 48;
const KIND_KMALLOC: u64 = 1;
const KIND_PAGES: u64 = 2;
const KIND_POINTER: u64 = 0xff;

impl Label {
    /// As a [`crate::stack::StackRecord`] carries it.
    pub const fn encode(self) -> u64 {
        match self {
            Self::Cache(address) => address,
            Self::Kmalloc(kind, bytes) => KIND_KMALLOC << KIND_SHIFT | (kind as u64) << TYPE_SHIFT | bytes,
            Self::Pages(order) => KIND_PAGES << KIND_SHIFT | order as u64,
        }
    }

    /// The reverse of [`Self::encode`]; `None` for 0 and what is none.
    pub fn decode(label: u64) -> Option<Self> {
        let low = label & ((1 << TYPE_SHIFT) - 1);
        match label >> KIND_SHIFT {
            KIND_POINTER => Some(Self::Cache(label)),
            KIND_KMALLOC => {
                let kind = (label >> TYPE_SHIFT & 0xff) as usize;
                Some(Self::Kmalloc(*KmallocType::ALL.get(kind)?, low))
            }
            KIND_PAGES => Some(Self::Pages(low as u8)),
            _ => None,
        }
    }
}
