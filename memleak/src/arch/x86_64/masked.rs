//! Code without what a linker writes into it, so that a function is the same in every program that
//! it is linked into.

use std::ops::Range;

use iced_x86::{Code, ConstantOffsets, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// The code of the function at `vaddr`, with zeros for addresses, for offsets of thread-local
/// variables, and for `nop`s, which assemblers write in different ways. `None` if not all of it is
/// code.
pub(crate) fn masked(code: &[u8], vaddr: u64) -> Option<Vec<u8>> {
    let function = vaddr..vaddr.checked_add(code.len() as u64)?;
    let mut masked = code.to_vec();
    let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        let start = decoder.position();
        decoder.decode_out(&mut instruction);
        (!instruction.is_invalid()).then_some(())?;
        let bytes = masked.get_mut(start..decoder.position())?;
        if instruction.mnemonic() == Mnemonic::Nop {
            bytes.fill(0);
            continue;
        }
        let offsets = decoder.get_constant_offsets(&instruction);
        let (displacement, immediate) = places(&offsets);
        if is_linked_displacement(&instruction, &offsets) {
            bytes.get_mut(displacement)?.fill(0);
        }
        if is_linked_immediate(&instruction, &offsets, &function) {
            bytes.get_mut(immediate)?.fill(0);
        }
    }
    Some(masked)
}

/// Where the function goes on that ends with a jump to another one.
pub(crate) fn jumps_to(code: &[u8], vaddr: u64) -> Option<u64> {
    let last = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE).into_iter().last()?;
    let function = vaddr..vaddr.checked_add(code.len() as u64)?;
    let target = last.near_branch_target();
    (last.code() == Code::Jmp_rel32_64 && !function.contains(&target)).then_some(target)
}

/// Where in the instruction its displacement and its immediate operand are.
fn places(offsets: &ConstantOffsets) -> (Range<usize>, Range<usize>) {
    let place = |offset: usize, size: usize| offset..offset + size;
    (
        place(offsets.displacement_offset(), offsets.displacement_size()),
        place(offsets.immediate_offset(), offsets.immediate_size()),
    )
}

/// An address, or the offset of a thread-local variable: those of a program are negative (ELF
/// Handling for Thread-Local Storage, variant II).
fn is_linked_displacement(instruction: &Instruction, offsets: &ConstantOffsets) -> bool {
    if offsets.displacement_size() != 4 {
        return false;
    }
    if instruction.is_ip_rel_memory_operand() {
        return true;
    }
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let is_negative = (instruction.memory_displacement64() as i64) < 0;
    let is_absolute = (base, index) == (Register::None, Register::None);
    let is_local = is_absolute && instruction.segment_prefix() == Register::FS;
    // What linkers make of `add variable@gottpoff(%rip), %reg` and of calls of __tls_get_addr.
    let is_added = instruction.code() == Code::Lea_r64_m
        && index == Register::None
        && base == instruction.op0_register();
    is_negative && (is_local || is_added)
}

/// Where another function is, or the offset of a thread-local variable: `mov` and `add` of it are
/// what linkers make of reading it from the global offset table.
fn is_linked_immediate(instruction: &Instruction, offsets: &ConstantOffsets, function: &Range<u64>) -> bool {
    if offsets.immediate_size() != 4 {
        return false;
    }
    if instruction.op0_kind() == OpKind::NearBranch64 {
        return !function.contains(&instruction.near_branch_target());
    }
    let is_of_register = instruction.op0_kind() == OpKind::Register
        && instruction.op0_register() != Register::RSP
        && matches!(instruction.code(), Code::Mov_rm64_imm32 | Code::Add_rm64_imm32 | Code::Add_RAX_imm32);
    is_of_register && instruction.immediate(1) as i64 <= -8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As linkers wrote it in two programs: a call, an address, a thread-local variable.
    #[test]
    fn what_a_linker_writes_is_no_part_of_it() {
        let function = |call: u8, address: u8, local: u8, nop: &[u8; 4]| {
            let head = [0xe8, call, 1, 0, 0, 0x48, 0x8d, 0x05, address, 1, 0, 0];
            let local = [
                0x48, 0xc7, 0xc1, local, 0xf5, 0xff, 0xff, 0x64, 0x48, 0x8b, 0x04, 0x25, local, 0xff, 0xff,
                0xff,
            ];
            [&head[..], &local, nop, &[0xc3]].concat()
        };
        let one = function(0x10, 0x20, 0xb8, &[0x0f, 0x1f, 0x40, 0]);
        let other = function(0x14, 0x2c, 0xa0, &[0x66, 0x66, 0x66, 0x90]);
        assert_ne!(one, other);
        assert_eq!(masked(&one, 0x1000).unwrap(), masked(&other, 0x7000).unwrap());
    }

    /// Jumps within the function, members of structures, constants, the stack's protector.
    #[test]
    fn what_a_compiler_writes_is() {
        for code in [
            &[0x0f, 0x84, 0x01, 0, 0, 0, 0x90, 0xc3][..],
            &[0x48, 0x8b, 0x83, 0x38, 0x03, 0, 0],
            &[0x48, 0xc7, 0xc1, 0x38, 0x03, 0, 0],
            &[0x48, 0x81, 0xc4, 0x38, 0xff, 0xff, 0xff],
            &[0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0],
            &[0x48, 0x8d, 0x83, 0x38, 0xff, 0xff, 0xff],
        ] {
            let without_nops: Vec<u8> =
                code.iter().map(|byte| if *byte == 0x90 { 0 } else { *byte }).collect();
            assert_eq!(masked(code, 0x1000).unwrap(), without_nops, "{code:x?}");
        }
    }

    #[test]
    fn a_jump_at_the_end_leads_on() {
        assert_eq!(jumps_to(&[0x31, 0xc9, 0xe9, 0x10, 0, 0, 0], 0x1000), Some(0x1017));
        for code in [
            &[0xe9, 0x10, 0, 0, 0, 0xc3][..],
            &[0xe8, 0x10, 0, 0, 0],
            &[0x90, 0xe9, 0xfa, 0xff, 0xff, 0xff],
            &[],
        ] {
            assert_eq!(jumps_to(code, 0x1000), None, "{code:x?}");
        }
    }

    #[test]
    fn what_is_no_code_has_none() {
        assert_eq!(masked(&[0x06], 0x1000), None);
        assert_eq!(masked(&[0xe8, 0, 0], 0x1000), None, "cut short");
        assert_eq!(masked(&[0xc3], u64::MAX), None);
    }
}
