//! Where the arguments of probes are that programs define themselves, in GNU as's words: `8@%rdi`,
//! `-4@$5`, `8@-16(%rbp,%rax,8)`.

use memleak_common::usdt::{Argument, place};

/// Registers in the order of `struct pt_regs` (arch/x86/include/asm/ptrace.h), by all their names.
const REGISTERS: [&[&str]; 20] = [
    &["r15", "r15d", "r15w", "r15b"],
    &["r14", "r14d", "r14w", "r14b"],
    &["r13", "r13d", "r13w", "r13b"],
    &["r12", "r12d", "r12w", "r12b"],
    &["rbp", "ebp", "bp", "bpl"],
    &["rbx", "ebx", "bx", "bl"],
    &["r11", "r11d", "r11w", "r11b"],
    &["r10", "r10d", "r10w", "r10b"],
    &["r9", "r9d", "r9w", "r9b"],
    &["r8", "r8d", "r8w", "r8b"],
    &["rax", "eax", "ax", "al"],
    &["rcx", "ecx", "cx", "cl"],
    &["rdx", "edx", "dx", "dl"],
    &["rsi", "esi", "si", "sil"],
    &["rdi", "edi", "di", "dil"],
    &[], // orig_rax
    &["rip"],
    &[], // cs
    &[], // eflags
    &["rsp", "esp", "sp", "spl"],
];

/// Reads where one is, `at`, whose width is known. `None` if it is of a kind that is not read: in a
/// vector register, or at the address of a symbol.
pub fn parse(at: &str, argument: Argument) -> Option<Argument> {
    if let Some(value) = at.strip_prefix('$') {
        return Some(Argument { place: place::CONSTANT, value: number(value)?, ..argument });
    }
    if at.starts_with('%') {
        return Some(Argument { place: place::REGISTER, register: register(at)?, ..argument });
    }
    let (displacement, address) = at.strip_suffix(')')?.split_once('(')?;
    let value = if displacement.is_empty() { 0 } else { number(displacement)? };
    let mut parts = address.split(',').map(str::trim);
    let argument = Argument { place: place::MEMORY, register: register(parts.next()?)?, value, ..argument };
    let Some(index) = parts.next() else { return Some(argument) };
    let scale: u32 = parts.next().map_or(Some(1), |scale| scale.parse().ok())?;
    let shift = [1, 2, 4, 8].iter().position(|known| *known == scale)? as u8;
    Some(Argument { place: place::INDEXED, index: register(index)?, shift, ..argument })
}

/// Where a register is in `struct pt_regs`, in bytes.
fn register(name: &str) -> Option<u16> {
    let name = name.strip_prefix('%')?;
    let at = REGISTERS.iter().position(|names| names.contains(&name))?;
    u16::try_from(at * 8).ok()
}

fn number(text: &str) -> Option<i64> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok().map(|value| (value as i64).wrapping_mul(sign)),
        None => digits.parse::<u64>().ok().map(|value| (value as i64).wrapping_mul(sign)),
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::arch::Machine;

    fn parse(text: &str) -> Option<Argument> {
        Machine::X86_64.probe_argument(text)
    }

    #[test]
    fn what_assemblers_write() {
        let argument = |place, width, is_signed| Argument { place, width, is_signed, ..Argument::default() };
        let at = |offset: usize| (offset / 8 * 8) as u16;
        let rdi = at(offset_of!(libc::user_regs_struct, rdi));
        let (rbp, rax) =
            (at(offset_of!(libc::user_regs_struct, rbp)), at(offset_of!(libc::user_regs_struct, rax)));
        assert_eq!(parse("8@%rdi"), Some(Argument { register: rdi, ..argument(place::REGISTER, 8, 0) }));
        assert_eq!(parse("-4@%eax"), Some(Argument { register: rax, ..argument(place::REGISTER, 4, 1) }));
        assert_eq!(parse("-4@$-5"), Some(Argument { value: -5, ..argument(place::CONSTANT, 4, 1) }));
        assert_eq!(
            parse("8@-16(%rbp)"),
            Some(Argument { register: rbp, value: -16, ..argument(place::MEMORY, 8, 0) })
        );
        assert_eq!(
            parse("2@0x10(%rbp,%rax,4)"),
            Some(Argument {
                register: rbp,
                index: rax,
                shift: 2,
                value: 16,
                ..argument(place::INDEXED, 2, 0)
            })
        );
        assert_eq!(parse("8@(%rax)"), Some(Argument { register: rax, ..argument(place::MEMORY, 8, 0) }));
        for wrong in
            ["", "8@", "8@%xmm0", "8f@%xmm0", "8@table(%rip)", "3@%rax", "8@4(%rax", "8@(%rax,%rbx,3)"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
