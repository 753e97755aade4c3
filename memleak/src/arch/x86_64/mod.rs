//! x86_64.

pub(crate) mod code;
pub(crate) mod constant;
#[cfg(target_arch = "x86_64")]
pub mod host;
pub(crate) mod masked;
pub mod placement;
pub mod probe_arguments;
pub mod returns;
pub(crate) mod signal_returns;
#[cfg(target_arch = "x86_64")]
pub mod vectors;

use object::elf;

use super::relocations::RelocationTypes;

/// System V ABI, AMD64, section 4.4.
pub const RELOCATIONS: RelocationTypes = RelocationTypes {
    irelative: elf::R_X86_64_IRELATIVE,
    plain: [elf::R_X86_64_JUMP_SLOT, elf::R_X86_64_GLOB_DAT, elf::R_X86_64_64],
};
