//! 64-bit ARM.

pub(crate) mod code;
#[cfg(target_arch = "aarch64")]
pub(crate) mod host;
pub(crate) mod placement;
pub(crate) mod probe_arguments;
pub(crate) mod returns;
pub(crate) mod signal_returns;

use object::elf;

use super::relocations::RelocationTypes;

/// ELF for the Arm 64-bit Architecture (AAELF64), section 5.7.
pub(crate) const RELOCATIONS: RelocationTypes = RelocationTypes {
    irelative: elf::R_AARCH64_IRELATIVE,
    plain: [elf::R_AARCH64_JUMP_SLOT, elf::R_AARCH64_GLOB_DAT, elf::R_AARCH64_ABS64],
};
