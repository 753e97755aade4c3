//! What a thread had in its registers when it left its processor, as the kernel keeps it.

/// Words of `struct pt_regs` that are kept: x86_64 has 21, aarch64's `user_pt_regs` 34.
pub const GENERAL_WORDS: usize = 34;
/// Words of the state of the vector unit that are kept: all up to and with AVX-512's, as XSAVES
/// lays it out (576 bytes, then 256, 64, 512, 1024 and what is small).
pub const VECTOR_WORDS: usize = 352;

/// A thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedRegisters {
    /// Its number in the first PID namespace.
    pub tid: u32,
    /// It was on a processor, before or after this was read: the registers are not to be believed.
    pub runs: u32,
    /// How often it has left its processor.
    pub switches: u64,
    /// Bytes of `vectors` that are known.
    pub vector_bytes: u64,
    /// `struct pt_regs`.
    pub general: [u64; GENERAL_WORDS],
    /// `struct fpstate::regs`.
    pub vectors: [u64; VECTOR_WORDS],
}

impl SavedRegisters {
    /// Of nobody.
    pub const EMPTY: Self = Self {
        tid: 0,
        runs: 1,
        switches: 0,
        vector_bytes: 0,
        general: [0; GENERAL_WORDS],
        vectors: [0; VECTOR_WORDS],
    };
}

/// Byte offsets of members of the kernel's structures (BTF).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RegisterOffsets {
    /// `task_struct::pid`.
    pub pid: u32,
    /// `task_struct::on_cpu`.
    pub on_cpu: u32,
    /// `task_struct::nvcsw`: how often it has waited.
    pub nvcsw: u32,
    /// `task_struct::nivcsw`: how often others had the processor instead.
    pub nivcsw: u32,
    /// Where a task's `struct fpstate` is named; 0: that is not known.
    pub fpstate: u32,
    /// `fpstate::size`.
    pub fpstate_size: u32,
    /// `fpstate::regs`.
    pub fpstate_regs: u32,
    /// Fills up; 0.
    pub reserved: u32,
}
