//! Where a function returns: its `ret` instructions, and those of the functions that it jumps to.
//!
//! Where they are probed no return address is replaced on the target's stack. So the function may
//! throw, switch to another stack or be interrupted, and the target is as it was. A breakpoint in
//! the middle of an instruction would be the end of the target; so a function is taken only if
//! every byte of it is code and every jump in it comes to an instruction.

use std::collections::{BTreeSet, HashSet};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::arch::returns::Unclear;

/// A function jumps to no more functions than this.
const MAX_FUNCTIONS: usize = 16;
/// They have no more bytes in all than this.
const MAX_BYTES: usize = 1 << 16;
/// They have no more `ret` instructions than this: each is a probe.
const MAX_RETURNS: usize = 64;

/// Addresses (`vaddr`) of the instructions by which the function at `vaddr` returns.
/// `whole_function` gives all code of the function at an address: x86_64 code.
pub fn returns(
    vaddr: u64,
    whole_function: impl Fn(u64) -> Option<Vec<u8>>,
) -> Result<BTreeSet<u64>, Unclear> {
    let mut found = Found::default();
    let mut entries = vec![vaddr];
    let mut bytes = 0;
    for done in 0.. {
        let Some(entry) = entries.get(done).copied() else { break };
        let code = whole_function(entry).ok_or(Unclear::NoSize)?;
        bytes += code.len();
        if done >= MAX_FUNCTIONS || bytes > MAX_BYTES {
            return Err(Unclear::Extent);
        }
        found.read(&code, entry)?;
        // A part that was split off jumps back into the middle of the function.
        entries.extend(found.left.drain().filter(|target| !found.instructions.contains(target)));
        entries = unique(entries);
    }
    let is_instruction = |target: &u64| found.instructions.contains(target);
    if !found.targets.iter().all(is_instruction) {
        return Err(Unclear::NotCode);
    }
    match found.returns.len() {
        1..=MAX_RETURNS => Ok(found.returns),
        _ => Err(Unclear::Extent),
    }
}

fn unique(entries: Vec<u64>) -> Vec<u64> {
    let mut seen = HashSet::new();
    entries.into_iter().filter(|entry| seen.insert(*entry)).collect()
}

#[derive(Default)]
struct Found {
    instructions: HashSet<u64>,
    /// Where jumps lead to.
    targets: HashSet<u64>,
    /// Those that lead out of the function that was read.
    left: HashSet<u64>,
    returns: BTreeSet<u64>,
}

impl Found {
    /// Reads one function from its begin to its end.
    fn read(&mut self, code: &[u8], vaddr: u64) -> Result<(), Unclear> {
        let range = vaddr..vaddr.saturating_add(code.len() as u64);
        let mut recent: [Instruction; 6] = Default::default();
        for (n, instruction) in
            Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE).into_iter().enumerate()
        {
            if instruction.is_invalid() {
                return Err(Unclear::NotCode);
            }
            self.instructions.insert(instruction.ip());
            match instruction.flow_control() {
                FlowControl::Return if instruction.mnemonic() == Mnemonic::Ret => {
                    self.returns.insert(instruction.ip());
                }
                FlowControl::Return => return Err(Unclear::Leaves),
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                    let near = matches!(instruction.op_kind(0), OpKind::NearBranch32 | OpKind::NearBranch64);
                    let target = instruction.near_branch_target();
                    if !near {
                        return Err(Unclear::Leaves);
                    }
                    self.targets.insert(target);
                    if !range.contains(&target) {
                        self.left.insert(target);
                    }
                }
                FlowControl::IndirectBranch if !is_switch(&instruction, &recent) => {
                    return Err(Unclear::Leaves);
                }
                _ => {}
            }
            recent[n % 6] = instruction;
        }
        Ok(())
    }
}

/// An indirect jump to a case of a `switch`, which is in the function: through a table of
/// addresses, or of distances that are added to the table's own
/// (`movslq (table,index,4), r; add table, r; jmp r`). A tail call by address reads no table.
fn is_switch(jump: &Instruction, recent: &[Instruction]) -> bool {
    let reads_table = |instruction: &Instruction, scale: u32| {
        instruction.memory_index() != Register::None && instruction.memory_index_scale() == scale
    };
    match jump.op_kind(0) {
        OpKind::Memory => reads_table(jump, 8),
        _ => {
            recent.iter().any(|one| one.mnemonic() == Mnemonic::Movsxd && reads_table(one, 4))
                && recent.iter().any(|one| one.mnemonic() == Mnemonic::Add)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Functions by address.
    fn of(functions: &[(u64, &[u8])]) -> Result<Vec<u64>, Unclear> {
        let whole = |vaddr| {
            functions
                .iter()
                .find(|(at, code)| *at == vaddr && !code.is_empty())
                .map(|(_, code)| code.to_vec())
        };
        returns(functions[0].0, whole).map(|found| found.into_iter().collect())
    }

    #[test]
    fn every_ret_is_found() {
        // test edi, edi; je +1; ret; xor eax, eax; rep ret
        let code = [0x85, 0xff, 0x74, 0x01, 0xc3, 0x31, 0xc0, 0xf3, 0xc3];
        assert_eq!(of(&[(0x1000, &code)]), Ok(vec![0x1004, 0x1007]));
        // ret 8
        assert_eq!(of(&[(0x1000, &[0xc2, 0x08, 0x00])]), Ok(vec![0x1000]));
    }

    #[test]
    fn functions_that_it_jumps_to_return_in_its_stead() {
        // je 0x2000; jmp 0x3000 -- the first jumps back, to after the `je`; the second returns
        let function = [0x0f, 0x84, 0xfa, 0x0f, 0x00, 0x00, 0xe9, 0xf5, 0x1f, 0x00, 0x00];
        let part = [0xe9, 0x01, 0xf0, 0xff, 0xff];
        let jumped_to = [0x90, 0xc3];
        assert_eq!(of(&[(0x1000, &function), (0x2000, &part), (0x3000, &jumped_to)]), Ok(vec![0x3001]));
        assert_eq!(of(&[(0x1000, &function), (0x2000, &part)]), Err(Unclear::NoSize));
    }

    #[test]
    fn what_is_not_clear_is_not_probed() {
        // jmp rax; jmp [rip+0]: tail calls
        assert_eq!(of(&[(0x1000, &[0xff, 0xe0])]), Err(Unclear::Leaves));
        assert_eq!(of(&[(0x1000, &[0xff, 0x25, 0, 0, 0, 0])]), Err(Unclear::Leaves));
        // jmp +1, into an instruction: mov eax, 0xc3c3c3c3
        assert_eq!(of(&[(0x1000, &[0xeb, 0x01, 0xb8, 0xc3, 0xc3, 0xc3, 0xc3])]), Err(Unclear::NotCode));
        // An instruction without its end; one that does not exist.
        assert_eq!(of(&[(0x1000, &[0xc3, 0xb8, 0x00])]), Err(Unclear::NotCode));
        assert_eq!(of(&[(0x1000, &[0xc3, 0x06])]), Err(Unclear::NotCode));
        // ud2 alone
        assert_eq!(of(&[(0x1000, &[0x0f, 0x0b])]), Err(Unclear::Extent));
        assert_eq!(of(&[(0x1000, &[])]), Err(Unclear::NoSize));
    }

    #[test]
    fn a_switch_stays_in_its_function() {
        // jmp [rax*8 + 0x4000]; ret
        let table = [0xff, 0x24, 0xc5, 0x00, 0x40, 0x00, 0x00, 0xc3];
        assert_eq!(of(&[(0x1000, &table)]), Ok(vec![0x1007]));
        // movsxd rax, [rdx + rax*4]; add rax, rdx; jmp rax; ret
        let distances = [0x48, 0x63, 0x04, 0x82, 0x48, 0x01, 0xd0, 0xff, 0xe0, 0xc3];
        assert_eq!(of(&[(0x1000, &distances)]), Ok(vec![0x1009]));
    }
}
