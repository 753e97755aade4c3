//! Functions that return the address of a constant, and do nothing else.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, Register};

/// The address that the function at `vaddr` returns: `lea rax, [rip + x]; ret`, maybe behind an
/// `endbr64`, and in the frame that a compiler without optimization makes. `None` of all others.
pub(crate) fn returned_address(code: &[u8], vaddr: u64) -> Option<u64> {
    let decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
    let mut instructions = decoder.into_iter().filter(|one| one.code() != Code::Endbr64).peekable();
    let is_frame = instructions
        .next_if(|one| one.code() == Code::Push_r64 && one.op0_register() == Register::RBP)
        .is_some();
    if is_frame {
        let moved = instructions.next()?;
        let is_pointer = moved.mnemonic() == Mnemonic::Mov
            && (moved.op0_register(), moved.op1_register()) == (Register::RBP, Register::RSP);
        is_pointer.then_some(())?;
    }
    let address = instructions.next()?;
    let is_address = address.code() == Code::Lea_r64_m
        && address.op0_register() == Register::RAX
        && address.is_ip_rel_memory_operand();
    is_address.then_some(())?;
    if is_frame {
        let pop = instructions.next()?;
        (pop.code() == Code::Pop_r64 && pop.op0_register() == Register::RBP).then_some(())?;
    }
    let is_end = |end: Instruction| end.code() == Code::Retnq;
    instructions.next().filter(|end| is_end(*end)).map(|_| address.ip_rel_memory_address())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEA: [u8; 7] = [0x48, 0x8d, 0x05, 0x10, 0, 0, 0];
    const RET: [u8; 1] = [0xc3];
    const ENDBR: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    const FRAME: [u8; 4] = [0x55, 0x48, 0x89, 0xe5];
    const POP: [u8; 1] = [0x5d];

    #[test]
    fn a_plain_address_is_known() {
        assert_eq!(returned_address(&[&LEA[..], &RET].concat(), 0x1000), Some(0x1017));
        assert_eq!(returned_address(&[&ENDBR[..], &LEA, &RET].concat(), 0x1000), Some(0x101b));
        let framed = [&ENDBR[..], &FRAME, &LEA, &POP, &RET].concat();
        assert_eq!(returned_address(&framed, 0x1000), Some(0x101f));
    }

    #[test]
    fn anything_else_is_not_guessed() {
        let call = [0xe8, 0, 0, 0, 0];
        for code in [
            &RET[..],
            &LEA,
            &[],
            &[&LEA[..], &call, &RET].concat(),
            &[&call[..], &LEA, &RET].concat(),
            &[&FRAME[..], &LEA, &RET].concat(),
            // To another register; a load; without the frame's beginning.
            &[&[0x48, 0x8d, 0x0d, 0x10, 0, 0, 0], &RET[..]].concat(),
            &[&[0x48, 0x8b, 0x05, 0x10, 0, 0, 0], &RET[..]].concat(),
            &[&LEA[..], &POP, &RET].concat(),
        ] {
            assert_eq!(returned_address(code, 0x1000), None, "{code:x?}");
        }
    }
}
