//! What differs from machine to machine. Each has a folder with the same names in it:
//! `RELOCATIONS`, `SIGNAL_RETURNS`, `placement::place`, `probe_arguments::parse`, and in `host`,
//! which is compiled for this machine alone, `MACHINE`, `OLDEST_LINUX`, `VALGRIND`, `QEMU`,
//! `STACK_POINTER`, `SYSTEM_CALLS`, `vector_words` and `Breakpoint`. Nothing outside of here asks
//! for `target_arch` or decodes instructions.

pub(crate) mod aarch64;
pub mod placement;
pub(crate) mod relocations;
pub mod returns;
pub(crate) mod text;
pub mod x86_64;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("memleak knows x86_64 and aarch64");

use std::collections::BTreeSet;

#[cfg(target_arch = "aarch64")]
pub use aarch64::host::vector_words;
#[cfg(target_arch = "aarch64")]
pub use aarch64::host::{
    Breakpoint, MACHINE as HOST, OLD_FILE_CALLS, OLDEST_LINUX, QEMU, STACK_POINTER, SYSTEM_CALLS, VALGRIND,
};
use memleak_common::usdt::Argument;
use object::elf;
use placement::Placement;
use relocations::RelocationTypes;
use returns::{SlotFunction, Unclear};
#[cfg(target_arch = "x86_64")]
pub use x86_64::host::{
    Breakpoint, MACHINE as HOST, OLD_FILE_CALLS, OLDEST_LINUX, QEMU, STACK_POINTER, SYSTEM_CALLS, VALGRIND,
};
#[cfg(target_arch = "x86_64")]
pub use x86_64::vectors::vector_words;

/// The machines whose code can be traced and whose stacks can be walked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Machine {
    /// x86_64.
    X86_64,
    /// 64-bit ARM, little-endian.
    Aarch64,
}

impl Machine {
    /// By `e_machine` of an ELF file.
    pub fn from_elf(machine: elf::Machine) -> Option<Self> {
        match machine {
            elf::EM_X86_64 => Some(Self::X86_64),
            elf::EM_AARCH64 => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// Relocation types, psABI of each machine.
    pub fn relocation_types(self) -> RelocationTypes {
        match self {
            Self::X86_64 => x86_64::RELOCATIONS,
            Self::Aarch64 => aarch64::RELOCATIONS,
        }
    }

    /// Chooses the place for the probes of one function: `code` is the whole of it, this machine's
    /// code found at `vaddr`. Bit N of `arguments_read` is set if the programs read argument N.
    pub fn place(self, code: &[u8], vaddr: u64, arguments_read: u8) -> Placement {
        match self {
            Self::X86_64 => x86_64::placement::place(code, vaddr, arguments_read),
            Self::Aarch64 => aarch64::placement::place(code, vaddr, arguments_read),
        }
    }

    /// Where an argument of a probe is that a program defines itself, from the words of its note.
    pub fn probe_argument(self, text: &str) -> Option<Argument> {
        let (width, at) = text.split_once('@')?;
        let width: i8 = width.parse().ok()?;
        let argument =
            Argument { width: width.unsigned_abs(), is_signed: u8::from(width < 0), ..Argument::default() };
        if ![1, 2, 4, 8].contains(&argument.width) {
            return None;
        }
        match self {
            Self::X86_64 => x86_64::probe_arguments::parse(at, argument),
            Self::Aarch64 => aarch64::probe_arguments::parse(at, argument),
        }
    }

    /// The way back from a signal handler begins with this code: what the handler returns to is an
    /// instruction that nothing has called from before it.
    pub fn is_signal_return(self, code: &[u8]) -> bool {
        match self {
            Self::X86_64 => starts_with_one(code, &x86_64::signal_returns::SIGNAL_RETURNS),
            Self::Aarch64 => starts_with_one(code, &aarch64::signal_returns::SIGNAL_RETURNS),
        }
    }

    /// The address that the function at `vaddr` returns, if it does nothing else.
    pub fn returned_address(self, code: &[u8], vaddr: u64) -> Option<u64> {
        match self {
            Self::X86_64 => x86_64::constant::returned_address(code, vaddr),
            Self::Aarch64 => None,
        }
    }

    /// The code of the function at `vaddr` without what a linker writes into it, so that it is the
    /// same in each program. `None` of what is no code, and of machines for which nobody needs it.
    pub fn masked(self, code: &[u8], vaddr: u64) -> Option<Vec<u8>> {
        match self {
            Self::X86_64 => x86_64::masked::masked(code, vaddr),
            Self::Aarch64 => None,
        }
    }

    /// Where the function at `vaddr` goes on that ends with a jump to another one; the same
    /// machines.
    pub fn jumps_to(self, code: &[u8], vaddr: u64) -> Option<u64> {
        match self {
            Self::X86_64 => x86_64::masked::jumps_to(code, vaddr),
            Self::Aarch64 => None,
        }
    }

    /// Addresses (`vaddr`) of the instructions by which the function at `vaddr` returns.
    /// `whole_function` gives all code of the function at an address, `code_from` so many bytes of
    /// code from an address on, or what there is, `function_of_slot` what a
    /// slot of the dynamic linker's leads to.
    pub fn returns(
        self,
        vaddr: u64,
        whole_function: impl Fn(u64) -> Option<Vec<u8>>,
        code_from: impl Fn(u64, u64) -> Vec<u8>,
        function_of_slot: impl Fn(u64) -> Option<SlotFunction>,
    ) -> Result<BTreeSet<u64>, Unclear> {
        match self {
            Self::X86_64 => x86_64::returns::returns(vaddr, whole_function),
            Self::Aarch64 => {
                let code = aarch64::returns::Code { whole_function, code_from, function_of_slot };
                aarch64::returns::returns(vaddr, &code)
            }
        }
    }

    /// The function that the one at `vaddr` is another name of, since all that it does is to jump
    /// to it, from the same as [`Self::returns`]. Where return addresses are replaced nobody needs
    /// to know.
    pub fn other_name_of(
        self,
        vaddr: u64,
        code_from: impl Fn(u64, u64) -> Vec<u8>,
        function_of_slot: impl Fn(u64) -> Option<SlotFunction>,
    ) -> Option<u64> {
        match self {
            Self::X86_64 => None,
            Self::Aarch64 => {
                let code = aarch64::returns::Code { whole_function: (), code_from, function_of_slot };
                aarch64::returns::other_name_of(vaddr, &code)
            }
        }
    }

    /// The kernel has tracepoints of page faults.
    pub const fn tells_page_faults(self) -> bool {
        matches!(self, Self::X86_64)
    }

    /// The kernel may have replaced the return addresses of calls that are probed. Where not, the
    /// `ret` instructions of all functions are probed.
    pub const fn replaces_returns(self) -> bool {
        matches!(self, Self::X86_64)
    }
}

fn starts_with_one(code: &[u8], beginnings: &[&[u8]]) -> bool {
    beginnings.iter().any(|beginning| code.starts_with(beginning))
}
