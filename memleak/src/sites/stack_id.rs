//! The stable id of a stack: equal wherever the same code does the same, over restarts, address
//! layouts and machines.
//!
//! It is the first 8 bytes (big-endian, printed as 16 hexadecimal digits) of
//! `SHA-256(D, resource, 0x00, tag)`, where `D` is the SHA-256 of all frames, callee first. A frame
//! is one byte for its kind, the length of a name (4 bytes), the name, and a number (8 bytes),
//! lengths and numbers little-endian:
//!
//! | kind | name | number |
//! | --- | --- | --- |
//! | 1, an object with a build id | the build id (note `NT_GNU_BUILD_ID`) | the return address as the file has it (vaddr) |
//! | 2, an object without | SHA-256 of its length and code (`symbolize::Identity`) | the same |
//! | 3, the kernel or a module of it | its name, as in `[ext4]`; if it has a build id, a zero byte and that | from its first byte, as in System.map |
//! | 4, code of no object | none | the return address, which is that process's own |
//!
//! `resource` is its name (`heap`); `tag` is a kernel stack's cache or order (`kmalloc-64`,
//! `order 2`), else empty.

use sha2::{Digest as _, Sha256};

use crate::{kernel_labels::Tag, symbolize::Anchor};

/// Kind, name and number of a frame.
fn parts(anchor: &Anchor) -> (u8, &[u8], u64) {
    match anchor {
        Anchor::BuildId(id, vaddr) => (1, id, *vaddr),
        Anchor::Content(hash, vaddr) => (2, hash, *vaddr),
        Anchor::Kernel(module, offset) => (3, module, *offset),
        Anchor::Address(ip) => (4, &[], *ip),
    }
}

/// The hash of a stack's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackDigest([u8; 32]);

impl StackDigest {
    /// Of these frames, callee first.
    pub fn of(frames: impl IntoIterator<Item = Anchor>) -> Self {
        let mut hash = Sha256::new();
        for frame in frames {
            let (kind, name, number) = parts(&frame);
            hash.update([kind]);
            hash.update(u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes());
            hash.update(name);
            hash.update(number.to_le_bytes());
        }
        Self(hash.finalize().into())
    }

    /// The id of what is acquired there: no two entries of a report share one.
    pub fn stack_id(&self, resource: &str, tag: Option<&Tag>) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(resource);
        hash.update([0]);
        hash.update(tag.map(Tag::to_string).unwrap_or_default());
        let hash: [u8; 32] = hash.finalize().into();
        let [a, b, c, d, e, f, g, h, ..] = hash;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(frames: &[Anchor]) -> u64 {
        StackDigest::of(frames.iter().cloned()).stack_id("heap", None)
    }

    /// Computed by Python's hashlib from the description above.
    #[test]
    fn fixed_vectors() {
        let build = b"\xd1\xce\x0d\x3d\x1a\x3c\xd2\xf4\xb1\xaa\x1c\x1b\x8f\x2a\x4d\x7e\x90\x01\x02\x03";
        let build = |vaddr| Anchor::BuildId(build.as_slice().into(), vaddr);
        assert_eq!(id(&[]), 0x29a5_a713_a692_f608);
        assert_eq!(id(&[build(0x1188), build(0x11cc)]), 0xb2e9_156d_8f97_88e8);
        let content: [u8; 32] = Sha256::digest("x").into();
        let odd = [Anchor::Content(content.into(), 0x40), Anchor::Address(0x7f00_0000_1000)];
        assert_eq!(StackDigest::of(odd).stack_id("fd", None), 0x22fa_9512_1590_ed7b);
        let kernel = StackDigest::of([Anchor::Kernel(b"[ext4]".as_slice().into(), 0x1234)]);
        let tag = Tag::Cache("kmalloc-64".to_owned());
        assert_eq!(kernel.stack_id("slab", Some(&tag)), 0x301e_76db_5df6_68d7);
    }

    #[test]
    fn all_parts_count() {
        let build = |id: &[u8], vaddr| Anchor::BuildId(id.into(), vaddr);
        let frames = [build(&[1, 2], 3), build(&[4], 5)];
        let mut ids = vec![
            id(&frames),
            id(&[frames[1].clone(), frames[0].clone()]),
            id(&frames[..1]),
            id(&[build(&[1, 2], 4), frames[1].clone()]),
            id(&[build(&[1, 3], 3), frames[1].clone()]),
            id(&[Anchor::Content([1, 2].into(), 3), frames[1].clone()]),
            id(&[]),
            StackDigest::of(frames.iter().cloned()).stack_id("mmap", None),
            StackDigest::of(frames.iter().cloned()).stack_id("heap", Some(&Tag::Pages(1))),
        ];
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all);
    }
}
