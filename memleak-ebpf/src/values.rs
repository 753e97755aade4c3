//! What a row says of a call: whether it counts, what its arguments and its result name.

use aya_ebpf::helpers::bpf_probe_read_user;
use memleak_common::{
    probe::{ProbeRow, flags, handle, only, size, success},
    stats::Stat,
    thread::PendingCall,
};

use crate::{
    args::Arguments,
    maps::{count, has},
};

/// The call is one of those that count: see [`only`].
#[inline(always)]
pub fn applies(row: &ProbeRow, args: &Arguments) -> bool {
    let arg = args.get(row.only_arg);
    match row.only {
        only::ARG_IN => row.only_values[0] == arg as u32 || row.only_values[1] == arg as u32,
        only::ARGS_DIFFER => arg as u32 != args.get(row.only_values[0] as u8) as u32,
        only::BEHIND_ARG_CLEAR => {
            let address = arg.wrapping_add(row.only_values[0] as u64);
            // SAFETY: the helper checks the address.
            arg == 0
                || unsafe { bpf_probe_read_user(address as *const u32) }.unwrap_or(0) & row.only_values[1]
                    == 0
        }
        only::ARG_IN_BITS => {
            let bits = row.only_values[0] as u64 | (row.only_values[1] as u64) << 32;
            arg < 64 && bits >> (arg & 63) & 1 != 0
        }
        only::ARG_HAS => arg as u32 & row.only_values[0] != 0,
        only::ARGS_ARE => {
            row.only_values[0] == arg as u32 && row.only_values[1] == args.get(row.only_arg + 1) as u32
        }
        only::ARENA_SWEEP => names_arena_sweep(arg),
        only::BEHIND_ARG_HAS => {
            let address = arg.wrapping_add(row.only_values[0] as u64);
            // SAFETY: the helper checks the address.
            unsafe { bpf_probe_read_user(address as *const u32) }.unwrap_or(0) & row.only_values[1] != 0
        }
        _ => true,
    }
}

/// Whether the string at `address` is `arena.N.reset` or `arena.N.destroy`.
#[inline(always)]
fn names_arena_sweep(address: u64) -> bool {
    const ARENA: u64 = u64::from_ne_bytes(*b"arena.\0\0");
    const DIGITS: u64 = 8;
    let first = read_word(address, 8).unwrap_or(0);
    if first & u64::from_ne_bytes([255, 255, 255, 255, 255, 255, 0, 0]) != ARENA {
        return false;
    }
    let mut at = address.wrapping_add(6);
    for _ in 0..DIGITS {
        // SAFETY: the helper checks the address.
        let digit = unsafe { bpf_probe_read_user(at as *const u8) }.unwrap_or(0);
        if !digit.is_ascii_digit() {
            break;
        }
        at = at.wrapping_add(1);
    }
    // SAFETY: as above.
    let word = unsafe { bpf_probe_read_user(at as *const u32) }.unwrap_or(0);
    word == u32::from_ne_bytes(*b".res") || word == u32::from_ne_bytes(*b".des")
}

/// The handle that the call is about to release; 0 if it cannot be read.
#[inline(always)]
pub fn handle_to_release(row: &ProbeRow, args: &Arguments) -> u64 {
    let arg = args.get(row.release_arg);
    if !has(row, flags::RELEASE_BEHIND) || arg == 0 {
        return narrow(row, arg);
    }
    read_word(arg.wrapping_add(row.release_offset as u64), row.handle_width).unwrap_or(0)
}

/// As much of a word as is the row's handle.
#[inline(always)]
pub fn narrow(row: &ProbeRow, word: u64) -> u64 {
    if row.handle_width == 4 { word & 0xffff_ffff } else { word }
}

/// The handle names nothing: null.
#[inline(always)]
pub fn is_none(row: &ProbeRow, handle: u64) -> bool {
    handle == 0 && !has(row, flags::ZERO_IS_HANDLE)
}

/// Most handles that one call is seen to acquire. (A message can have more: they are found
/// otherwise.)
pub const MAX_HANDLES: u64 = 16;

/// Where a call has stored its handles.
pub struct Handles {
    /// The first.
    pub address: u64,
    /// How many there are.
    pub number: u64,
}

/// The handles of a call that stores them; none of one that returns it. `None` for a message
/// without descriptors.
#[inline(always)]
pub fn handles(row: &ProbeRow, call: &PendingCall) -> Option<Handles> {
    match row.handle {
        handle::BEHIND_ARG => Some(Handles {
            address: call.out_pointer.wrapping_add(row.handle_offset as u64),
            number: row.handle_count as u64,
        }),
        handle::IN_MESSAGE => descriptors_in(call.out_pointer),
        _ => Some(Handles { address: 0, number: 0 }),
    }
}

/// The descriptors in a message. include/linux/socket.h, `struct user_msghdr` and `struct cmsghdr`:
/// the kernel puts those of a message into one header.
#[inline(always)]
fn descriptors_in(message: u64) -> Option<Handles> {
    const CONTROL: u64 = 32;
    const HEADER: u64 = 16;
    const MAX_HEADERS: usize = 4;
    const SOL_SOCKET_SCM_RIGHTS: u64 = 1 | 1 << 32;
    let mut at = read_word(message.wrapping_add(CONTROL), 8)?;
    let mut left = read_word(message.wrapping_add(CONTROL + 8), 8)?;
    for _ in 0..MAX_HEADERS {
        if left < HEADER + 4 {
            return None;
        }
        let (length, kind) = (read_word(at, 8)?, read_word(at.wrapping_add(8), 8)?);
        if length < HEADER || length > left {
            return None;
        }
        if kind == SOL_SOCKET_SCM_RIGHTS {
            return Some(Handles { address: at.wrapping_add(HEADER), number: (length - HEADER) / 4 });
        }
        let step = length.wrapping_add(7) & !7;
        at = at.wrapping_add(step);
        left = left.saturating_sub(step);
    }
    None
}

#[inline(always)]
pub fn size_or_address(row: &ProbeRow, args: &Arguments) -> u64 {
    match row.size {
        size::ARG => args.get(row.size_arg),
        size::PRODUCT => product(args.get(row.size_arg), args.get(row.size_arg2)),
        // Read when the call returns.
        size::BEHIND_ARG => args.get(row.size_arg),
        size::CONSTANT => row.constant,
        _ => 0,
    }
}

/// A product that overflows makes the call fail; wrapped to 0 it would look like a release of
/// size 0. (There is no 128-bit multiplication here to ask.) What is not computed is 2^48 or more:
/// more than any address space.
#[inline(always)]
fn product(a: u64, b: u64) -> u64 {
    let fits =
        (a >> 32 == 0 && b >> 32 == 0) || (a >> 48 == 0 && b >> 16 == 0) || (a >> 16 == 0 && b >> 48 == 0);
    if fits || a == 0 || b == 0 { a.wrapping_mul(b) } else { u64::MAX }
}

/// What says success does so.
#[inline(always)]
fn succeeded(row: &ProbeRow, returned: u64) -> bool {
    if row.success == success::HANDLE {
        return true; // the usual case: the handle will tell
    }
    let value = if has(row, flags::WIDE_RETURN) { returned as i64 } else { returned as i32 as i64 };
    match row.success {
        success::EQUAL => value == row.success_value,
        success::NOT_EQUAL => value != row.success_value,
        success::AT_LEAST => value >= row.success_value,
        success::AT_MOST => value <= row.success_value,
        success::NEVER => false,
        _ => true,
    }
}

/// What the call handed out, or `None` if it failed. A row without a handle gives 0.
#[inline(always)]
pub fn acquired_handle(row: &ProbeRow, call: &PendingCall, returned: u64) -> Option<u64> {
    if !succeeded(row, returned) || (row.success == success::SIZE_OR_MORE && returned < call.size_or_address) {
        return None;
    }
    let word = match row.handle {
        handle::RETURN => returned,
        handle::NONE => return Some(0),
        handle::ARG => call.out_pointer,
        handle::BEHIND_ARG | handle::BEHIND_RETURN => {
            let base = if row.handle == handle::BEHIND_ARG { call.out_pointer } else { returned };
            if base == 0 || base == u64::MAX {
                return None;
            }
            let Some(word) = read_word(base.wrapping_add(row.handle_offset as u64), row.handle_width) else {
                count(Stat::LostAllocations);
                return None;
            };
            word
        }
        _ => {
            let Handles { address, number } = descriptors_in(call.out_pointer)?;
            if number == 0 {
                return None;
            }
            read_word(address, row.handle_width)?
        }
    };
    let acquired = narrow(row, word);
    if is_none(row, acquired) || (row.success == success::HANDLE && acquired == u64::MAX) {
        None
    } else {
        Some(acquired)
    }
}

/// A word of 4 or 8 bytes of the target's memory.
#[inline(always)]
pub fn read_word(address: u64, width: u8) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe {
        if width == 4 {
            bpf_probe_read_user(address as *const u32).ok().map(u64::from)
        } else {
            bpf_probe_read_user(address as *const u64).ok()
        }
    }
}
