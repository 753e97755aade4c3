//! Which instruction of a function is probed.
//!
//! A breakpoint costs one trap if the kernel can emulate the instruction it replaced, and two
//! if it has to single-step a copy of it (arch/x86/kernel/uprobes.c, `branch_setup_xol_ops` and
//! `push_setup_xol_ops`). So the probe goes to the first instruction of the function's first basic
//! block that the kernel emulates, provided that by then nothing that our programs read has changed
//! and that each call passes it exactly once.
//!
//! A function's entry and return probes sit at the same place: the kernel arms the return probe
//! when the breakpoint is hit and takes the return address from where the stack pointer is then.
//!
//! What is not seen: a jump into the first block from another function. Compilers make none: a
//! split-off part (`malloc.cold`) comes back after the branch that left, and the first block ends
//! at the first branch.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register,
};

use crate::arch::placement::{Placement, Reason};

/// No function's first instructions are followed further than this: in bytes.
const REACH: usize = 64;

/// Integer arguments of the x86_64 System V ABI, section 3.2.3, in order.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// What must be as at entry besides the arguments: the stack pointer, below which the return
/// address is, and what the caller keeps in callee-saved registers (section 3.2.1), since its stack
/// is walked from there.
const PRESERVED: [Register; 7] =
    [Register::RSP, Register::RBP, Register::RBX, Register::R12, Register::R13, Register::R14, Register::R15];

/// Chooses the place for the probes of one function: `code` is the whole of it, x86_64 code found
/// at `vaddr`. Bit N of `arguments_read` is set if the programs read argument N.
pub fn place(code: &[u8], vaddr: u64, arguments_read: u8) -> Placement {
    if code.is_empty() {
        return Placement::entry(Reason::BodyUnknown);
    }
    match first_emulated(code, vaddr, arguments_read) {
        None => Placement::entry(Reason::NoneEmulated),
        Some(Candidate { offset: 0, .. }) => Placement::entry(Reason::Emulated),
        Some(candidate) => match body_reenters(code, vaddr, &candidate) {
            None => Placement { offset: candidate.offset, reason: Reason::Emulated },
            Some(reason) => Placement::entry(reason),
        },
    }
}

struct Candidate {
    offset: u32,
    /// Nothing but `endbr64` comes before it.
    after_landing_pad_only: bool,
}

/// Follows the straight line from the entry to the first instruction that the kernel emulates.
fn first_emulated(code: &[u8], vaddr: u64, arguments_read: u8) -> Option<Candidate> {
    let mut infos = InstructionInfoFactory::new();
    let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut after_landing_pad_only = true;
    while decoder.can_decode() && decoder.position() < REACH {
        let start = decoder.position();
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            return None;
        }
        let bytes = code.get(start..decoder.position())?;
        if is_emulated(bytes) {
            return Some(Candidate { offset: u32::try_from(start).ok()?, after_landing_pad_only });
        }
        if instruction.flow_control() != FlowControl::Next
            || disturbs(&mut infos, &instruction, arguments_read)
        {
            return None;
        }
        after_landing_pad_only &= bytes == ENDBR64;
    }
    None
}

const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// The kernel emulates this instruction, from 5.15 to now: `push` of a register without prefix or
/// with REX.B alone, the one-byte nop (also as `66 90`), and near jumps, conditional jumps and
/// calls relative to the instruction pointer.
///
/// Left out, since it depends on the kernel: long nops (`0f 1f`, from 6.17), and prefixed jumps,
/// some of which it refuses to probe at all. `41 90` is an `xchg` that older kernels took for a
/// nop.
pub fn is_emulated(instruction: &[u8]) -> bool {
    matches!(
        instruction,
        [0x50..=0x57]
            | [0x41, 0x50..=0x57]
            | [0x90]
            | [0x66, 0x90]
            | [0xeb | 0x70..=0x7f, _]
            | [0xe8 | 0xe9, _, _, _, _]
            | [0x0f, 0x80..=0x8f, _, _, _, _]
    )
}

/// After `instruction` something that our programs read is no longer as it was at entry.
fn disturbs(infos: &mut InstructionInfoFactory, instruction: &Instruction, arguments_read: u8) -> bool {
    let info = infos.info(instruction);
    let is_needed = |register: Register| {
        PRESERVED.contains(&register)
            || ARGUMENTS
                .iter()
                .enumerate()
                .any(|(n, argument)| *argument == register && arguments_read & (1 << n) != 0)
    };
    let writes_register = info
        .used_registers()
        .iter()
        .any(|used| is_write(used.access()) && is_needed(used.register().full_register()));
    // The return address is at the stack pointer; code that scrambles it (a shadow stack of the
    // compiler's) is rare.
    let writes_stack =
        info.used_memory().iter().any(|used| is_write(used.access()) && used.base() == Register::RSP);
    writes_register || writes_stack
}

fn is_write(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// Why the body may come back to a place after the entry and not after the candidate; `None`
/// if it never does. A jump to the entry itself is no matter: a probe at the entry would be hit
/// again, too.
fn body_reenters(code: &[u8], vaddr: u64, candidate: &Candidate) -> Option<Reason> {
    let between = 1..=u64::from(candidate.offset);
    let mut unclear = false;
    for instruction in Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE) {
        if instruction.is_invalid() {
            unclear = true;
        }
        unclear |= may_jump_through_table(&instruction);
        if has_near_target(&instruction)
            && between.contains(&instruction.near_branch_target().wrapping_sub(vaddr))
        {
            return Some(Reason::JumpedOver);
        }
    }
    (unclear && !candidate.after_landing_pad_only).then_some(Reason::BodyUnclear)
}

fn has_near_target(instruction: &Instruction) -> bool {
    instruction.op_count() > 0
        && matches!(
            instruction.op_kind(0),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        )
}

/// An indirect jump, but for one through a single pointer next to the code: that is a tail call by
/// way of the PLT or of a hook, and leads to some function's entry.
fn may_jump_through_table(instruction: &Instruction) -> bool {
    let is_single_pointer =
        instruction.is_ip_rel_memory_operand() && instruction.memory_index() == Register::None;
    instruction.flow_control() == FlowControl::IndirectBranch && !is_single_pointer
}
