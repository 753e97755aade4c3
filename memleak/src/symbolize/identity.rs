//! What objects are, apart from where they are mapped and what they are called: equal files have
//! one number in a run, and one name on all machines.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
};

use sha2::{Digest as _, Sha256};

use crate::elf::ElfFile;

/// So much of each executable segment tells files without a build id apart, bytes.
const MAX_CONTENT: u64 = 1 << 20;

/// Names an object of a run: equal for files that are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectNumber(pub u32);

/// What makes two files the same object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum ObjectIdentity {
    /// The build id, and the executable segments (`p_vaddr`, `p_filesz`): a build may give all its
    /// files one id.
    BuildId(Vec<u8>, Vec<(u64, u64)>),
    /// SHA-256 of the length of the file and of the beginnings of its executable segments.
    Content([u8; 32]),
}

impl ObjectIdentity {
    /// Of a file.
    pub(super) fn of(elf: &ElfFile) -> Self {
        let code = elf.segments.iter().filter(|segment| segment.executable);
        match elf.build_id() {
            Some(id) => Self::BuildId(id, code.map(|segment| (segment.vaddr, segment.len)).collect()),
            None => Self::Content(content(elf)),
        }
    }

    /// What a place in the object is called on any machine.
    pub(super) fn anchor(&self, vaddr: u64) -> Anchor {
        match self {
            Self::BuildId(id, _) => Anchor::BuildId(id.as_slice().into(), vaddr),
            Self::Content(hash) => Anchor::Content(hash.as_slice().into(), vaddr),
        }
    }
}

/// What cannot be read counts as empty.
fn content(elf: &ElfFile) -> [u8; 32] {
    let (source, budget) = (elf.source(), elf.budget());
    let mut hash = Sha256::new();
    hash.update(source.length().to_le_bytes());
    for segment in elf.segments.iter().filter(|segment| segment.executable) {
        hash.update(segment.vaddr.to_le_bytes());
        if let Ok(bytes) = source.part(segment.file_offset, segment.len.min(MAX_CONTENT), &budget) {
            hash.update(&*bytes);
        }
    }
    hash.finalize().into()
}

/// What a frame is called on any machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// A build id and a vaddr.
    BuildId(Box<[u8]>, u64),
    /// A hash of an object's content and a vaddr.
    Content(Box<[u8]>, u64),
    /// The kernel, or a module of it ([`super::KernelSymbols::identity`]), and an offset.
    Kernel(Box<[u8]>, u64),
    /// An address, for want of anything better.
    Address(u64),
}

/// The objects of a run in which something was located, by their files (`F`), each with a `T` of
/// one of those.
#[derive(Debug)]
pub(super) struct Identities<F, T> {
    numbers: HashMap<ObjectIdentity, ObjectNumber>,
    /// `None` of what is not an ELF file that can be read.
    files: HashMap<F, Option<ObjectNumber>>,
    objects: HashMap<ObjectNumber, (ObjectIdentity, T)>,
    last: u32,
}

impl<F, T> Default for Identities<F, T> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), files: HashMap::new(), objects: HashMap::new(), last: 0 }
    }
}

impl<F: Clone + Eq + Hash, T: Clone> Identities<F, T> {
    /// The number of the object that `file` is; `None` if it has no identity. Each file is asked
    /// once.
    pub(super) fn number(
        &mut self,
        file: &F,
        of_file: &T,
        identity: impl FnOnce() -> Option<ObjectIdentity>,
    ) -> Option<ObjectNumber> {
        if let Some(number) = self.files.get(file) {
            return *number;
        }
        let number = identity().map(|identity| self.enter(identity, of_file));
        self.files.insert(file.clone(), number);
        number
    }

    fn enter(&mut self, identity: ObjectIdentity, of_file: &T) -> ObjectNumber {
        if let Some(number) = self.numbers.get(&identity) {
            return *number;
        }
        self.last += 1;
        let number = ObjectNumber(self.last);
        self.numbers.insert(identity.clone(), number);
        self.objects.insert(number, (identity, of_file.clone()));
        number
    }

    /// What was given for a file of this object.
    pub(super) fn get(&self, number: ObjectNumber) -> Option<&T> {
        self.objects.get(&number).map(|(_, of_file)| of_file)
    }

    /// What a place in an object is called on any machine.
    pub(super) fn anchor(&self, number: ObjectNumber, vaddr: u64) -> Anchor {
        match self.objects.get(&number) {
            Some((identity, _)) => identity.anchor(vaddr),
            None => Anchor::Address(vaddr),
        }
    }

    /// All of [`Self::get`].
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.objects.values().map(|(_, of_file)| of_file)
    }

    /// Forgets all objects but these.
    pub(super) fn retain(&mut self, used: &HashSet<ObjectNumber>) {
        self.objects.retain(|number, _| used.contains(number));
        self.numbers.retain(|_, number| used.contains(number));
        self.files.retain(|_, number| number.is_some_and(|number| used.contains(&number)));
    }
}
