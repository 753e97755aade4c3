//! Probes that a program defines itself (`memleak_common::usdt`): what an allocator says of the
//! blocks that it has chosen as samples.

use aya_ebpf::{
    helpers::{
        bpf_probe_read_kernel, bpf_probe_read_user, generated::bpf_get_attach_cookie,
    },
    programs::ProbeContext,
};
use memleak_common::{
    probe::{ProbeRow, row_of, slot_of},
    usdt::{ARGUMENTS, Argument, SiteRow, place},
};

use crate::{
    arch::Registers,
    args::{Arguments, Return},
    cut,
    maps::{PROBES, USDT_SITES},
    records::{Acquired, record},
    stack::kernel_walk,
    thread::{current_thread, owner},
    track::release,
};

/// Something was acquired: it is outstanding from now on.
#[inline(always)]
pub fn acquire(ctx: &ProbeContext) -> Option<()> {
    let (site, slot, row) = site(ctx)?;
    let thread = current_thread(slot)?;
    let args = arguments(ctx, site);
    let (handle, size) = (args.get(row.handle_arg), args.get(row.size_arg));
    if handle == 0 {
        return None;
    }
    thread.epoch = cut::epoch();
    let mut caller = Registers(ctx.regs as u64).caller();
    // A walk looks before each address, which is where a call returns to: the place itself is
    // meant.
    caller.ip = caller.ip.wrapping_add(1);
    let at = Return { caller, returned: handle, kernel_stack: kernel_walk(ctx.regs.cast()) };
    record(&at, thread, row, &Acquired { handle, size, entered_ns: 0, is_chosen: false })?;
    Some(())
}

/// Something was released.
#[inline(always)]
pub fn releases(ctx: &ProbeContext) -> Option<()> {
    let (site, slot, row) = site(ctx)?;
    release(owner(slot)?, row, &arguments(ctx, site))
}

/// What the attach cookie names: a place, the slot of the process, and the row.
#[inline(always)]
fn site(ctx: &ProbeContext) -> Option<(&'static SiteRow, u32, &'static ProbeRow)> {
    // SAFETY: the helper takes the program's context.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.regs.cast()) };
    let site = USDT_SITES.get(row_of(cookie))?;
    Some((site, slot_of(cookie), PROBES.get(site.row)?))
}

#[inline(always)]
fn arguments(ctx: &ProbeContext, site: &SiteRow) -> Arguments {
    let mut values = [0; 8];
    for (value, argument) in values.iter_mut().zip(&site.arguments).take(ARGUMENTS) {
        *value = argument.of_word(read(ctx, argument));
    }
    Arguments(values)
}

#[inline(always)]
fn read(ctx: &ProbeContext, argument: &Argument) -> u64 {
    let register = |offset: u16| {
        // SAFETY: the helper checks the address, which is within the registers.
        unsafe { bpf_probe_read_kernel((ctx.regs as u64 + offset as u64) as *const u64) }.unwrap_or(0)
    };
    if argument.place == place::CONSTANT {
        return argument.value as u64;
    }
    let base = register(argument.register);
    if argument.place == place::REGISTER {
        return base;
    }
    let index = if argument.place == place::INDEXED { register(argument.index) << (argument.shift & 3) } else { 0 };
    let address = base.wrapping_add(argument.value as u64).wrapping_add(index);
    // Only as many bytes as there are: the next ones may be those of no page.
    // SAFETY, of all: the helper checks the address.
    unsafe {
        match argument.width {
            1 => bpf_probe_read_user(address as *const u8).map(u64::from),
            2 => bpf_probe_read_user(address as *const u16).map(u64::from),
            4 => bpf_probe_read_user(address as *const u32).map(u64::from),
            _ => bpf_probe_read_user(address as *const u64),
        }
    }
    .unwrap_or(0)
}
