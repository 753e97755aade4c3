//! Ways back from signal handlers, which are known by their code.

/// `mov $15, %rax; syscall` and `mov $15, %eax; syscall`: rt_sigreturn.
pub(crate) const SIGNAL_RETURNS: [&[u8]; 2] =
    [&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]];
