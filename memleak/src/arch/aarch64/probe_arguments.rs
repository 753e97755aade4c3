//! Where the arguments of probes are that programs define themselves, in GNU as's words: `8@x0`,
//! `-4@5`, `8@[sp, 16]`.

use memleak_common::usdt::{Argument, place};

/// Reads where one is, `at`, whose width is known. `None` if it is of a kind that is not read.
pub(crate) fn parse(at: &str, argument: Argument) -> Option<Argument> {
    if let Ok(value) = at.parse() {
        return Some(Argument { place: place::CONSTANT, value, ..argument });
    }
    let Some(address) = at.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) else {
        return Some(Argument { place: place::REGISTER, register: register(at)?, ..argument });
    };
    let (base, displacement) = address.split_once(',').unwrap_or((address, "0"));
    let value = displacement.trim().trim_start_matches('#').parse().ok()?;
    Some(Argument { place: place::MEMORY, register: register(base.trim())?, value, ..argument })
}

/// Where a register is in `struct pt_regs` (arch/arm64/include/asm/ptrace.h: x0 to x30, sp), in
/// bytes.
fn register(name: &str) -> Option<u16> {
    if name == "sp" {
        return Some(31 * 8);
    }
    let number: u16 = name.strip_prefix(['x', 'w'])?.parse().ok()?;
    (number <= 30).then_some(number * 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Machine;

    fn parse(text: &str) -> Option<Argument> {
        Machine::Aarch64.probe_argument(text)
    }

    #[test]
    fn what_assemblers_write() {
        let argument = |place, width, is_signed| Argument { place, width, is_signed, ..Argument::default() };
        assert_eq!(parse("8@x19"), Some(Argument { register: 152, ..argument(place::REGISTER, 8, 0) }));
        assert_eq!(parse("-4@w0"), Some(argument(place::REGISTER, 4, 1)));
        assert_eq!(parse("4@7"), Some(Argument { value: 7, ..argument(place::CONSTANT, 4, 0) }));
        assert_eq!(
            parse("8@[sp, 16]"),
            Some(Argument { register: 248, value: 16, ..argument(place::MEMORY, 8, 0) })
        );
        assert_eq!(parse("8@[x29]"), Some(Argument { register: 232, ..argument(place::MEMORY, 8, 0) }));
        for wrong in ["8@x31", "8@[x0, x1]", "8@v0", "16@x0"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
