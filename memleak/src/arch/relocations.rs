//! Relocations of ELF files.

use object::elf;

/// Relocation types that store an address.
#[derive(Clone, Copy, Debug)]
pub struct RelocationTypes {
    /// What a resolver returns.
    pub irelative: elf::RelocationType,
    /// A symbol's plain address.
    pub plain: [elf::RelocationType; 3],
}
