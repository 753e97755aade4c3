//! Ways back from signal handlers. What is described by nothing is known by its code: the kernel's
//! vdso has no unwind information here (arch/arm64/kernel/vdso/vdso.lds.S), nor has musl.

/// `mov x8, #139; svc #0`: rt_sigreturn.
const SIGRETURN: [u8; 8] = [0x68, 0x11, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4];

/// The same, as what a code can begin with.
pub(crate) const SIGNAL_RETURNS: [&[u8]; 1] = [&SIGRETURN];

/// Where ways back begin and end in code that begins with an instruction, byte by byte. A handler
/// returns to the first instruction, and a walk looks up the byte before.
pub(crate) fn signal_returns(code: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let windows = code.windows(SIGRETURN.len()).enumerate().step_by(4);
    let found = windows.filter(|(_, window)| *window == SIGRETURN);
    found.map(|(at, _)| (at.saturating_sub(1), at + SIGRETURN.len()))
}
