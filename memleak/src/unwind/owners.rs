//! Which functions may have values in registers that are nowhere in memory.
//!
//! A thread that waits in the kernel has its registers there, and nobody tells us. But its calls
//! have saved on its stack what they needed registers for (call frame information, DWARF 5 section
//! 6.4): what a register has now is the value of the innermost function that has saved its
//! caller's.

use std::{collections::HashMap, ops::Range, sync::Arc};

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, LittleEndian, Register, RegisterRule, UnwindContext,
    UnwindSection,
};
use object::elf::PT_GNU_EH_FRAME;

use super::sections::{MAX_SECTION, Sections};
use crate::{
    arch::Machine,
    elf::Bytes,
    objects::{ObjectFile, ObjectStore, place_of},
    proc::{
        maps::Mapping,
        memory::{ProcessMemory, ReadMemory},
        target::LiveTarget,
    },
};

/// Calls of one thread that are looked at.
const MOST_CALLS: usize = 64;
/// Bytes above a stack pointer in which a saved frame pointer is looked for, and between two.
const FARTHEST_FRAME: u64 = 4096;
const LARGEST_FRAME: u64 = 1 << 20;
/// Registers that the function which the thread has left for the kernel may use besides: those that
/// a call may change.
const CHANGED_BY_CALLS: u32 = 16;

/// A function with values in registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RegisterOwner {
    /// Its code, in the process's addresses.
    pub code: Range<u64>,
    /// How many registers.
    pub registers: u32,
}

/// DWARF's numbers of registers (System V psABI x86_64 figure 3.36; AADWARF64 section 4.1).
struct RegisterNumbers {
    sp: Register,
    fp: Register,
    ra: Register,
    /// Those that a function saves before it uses them, but for the frame pointer.
    saved: &'static [u16],
}

const fn numbers_of(machine: Machine) -> RegisterNumbers {
    match machine {
        Machine::X86_64 => RegisterNumbers {
            sp: Register(7),
            fp: Register(6),
            ra: Register(16),
            saved: &[3, 12, 13, 14, 15],
        },
        Machine::Aarch64 => RegisterNumbers {
            sp: Register(31),
            fp: Register(29),
            ra: Register(30),
            saved: &[19, 20, 21, 22, 23, 24, 25, 26, 27, 28],
        },
    }
}

/// What call frame information says of an instruction.
#[derive(Clone, Debug)]
struct CallRules {
    code: Range<u64>,
    /// It makes nothing for itself that a register alone holds, and all stacks pass through it: it
    /// calls `main`, and what threads run.
    is_of_c_library: bool,
    cfa: (Register, i64),
    /// Where callers' registers are saved, from the CFA on.
    saved: Vec<(Register, i64)>,
}

/// An object's sections.
struct LoadedFrames {
    machine: Machine,
    header: (u64, Bytes),
    eh_frame: (u64, Bytes),
}

/// Finds the owners of registers in one process.
pub(crate) struct RegisterOwners<'a> {
    memory: ProcessMemory,
    target: LiveTarget,
    mappings: &'a [Mapping],
    store: &'a ObjectStore,
    frames: HashMap<u64, Option<LoadedFrames>>,
    rules: HashMap<(u64, bool), Option<CallRules>>,
}

impl<'a> RegisterOwners<'a> {
    /// Of a process with these mappings, in order.
    pub(crate) fn new(pid: u32, mappings: &'a [Mapping], store: &'a ObjectStore) -> std::io::Result<Self> {
        let (frames, rules) = (HashMap::new(), HashMap::new());
        Ok(Self {
            memory: ProcessMemory::open(pid)?,
            target: LiveTarget(pid),
            mappings,
            store,
            frames,
            rules,
        })
    }

    /// Of a thread that waits at `ip`, as far as its calls can be followed.
    pub(crate) fn of(&mut self, ip: u64, sp: u64) -> Vec<RegisterOwner> {
        let numbers = numbers_of(crate::arch::HOST);
        let mut free: Vec<Register> = numbers.saved.iter().map(|number| Register(*number)).collect();
        free.push(numbers.fp);
        let (mut ip, mut sp, mut fp, mut owners) = (ip, sp, None, Vec::new());
        for call in 0..MOST_CALLS {
            let Some(rules) = self.rules(ip, call == 0) else { break };
            let (register, offset) = rules.cfa;
            let has_saved = |it: &Register| rules.saved.iter().any(|(saved, _)| saved == it);
            let uses = |it: &&Register| has_saved(it) && (**it != numbers.fp || register != numbers.fp);
            let mut registers = free.iter().filter(uses).count() as u32;
            free.retain(|it| !has_saved(it));
            if call == 0 {
                registers += CHANGED_BY_CALLS;
            }
            if registers > 0 && !rules.is_of_c_library {
                owners.push(RegisterOwner { code: rules.code.clone(), registers });
            }
            let base = match register {
                it if it == numbers.sp => Some(sp),
                it if it == numbers.fp => fp.or_else(|| self.frame_above(sp)),
                _ => None,
            };
            let Some(cfa) = base.and_then(|base| base.checked_add_signed(offset)) else { break };
            let saved = |it: Register| rules.saved.iter().find(|(saved, _)| *saved == it).map(|(_, at)| *at);
            let word = |at: i64| self.memory.read_u64(cfa.checked_add_signed(at)?).ok();
            if let Some(at) = saved(numbers.fp) {
                fp = word(at);
            }
            let Some(caller) = saved(numbers.ra).and_then(word) else { break };
            if cfa <= sp || free.is_empty() {
                break;
            }
            (ip, sp) = (caller, cfa);
        }
        owners
    }

    /// The frame pointer of a call that has one, if no callee has saved it: where the next saved
    /// one is, with a return address beside it.
    fn frame_above(&self, sp: u64) -> Option<u64> {
        let places = (sp..sp.saturating_add(FARTHEST_FRAME)).step_by(8);
        let is_frame = |at: &u64| {
            let (Ok(next), Ok(ip)) = (self.memory.read_u64(*at), self.memory.read_u64(at + 8)) else {
                return false;
            };
            next > *at && next - at < LARGEST_FRAME && next.is_multiple_of(8) && self.mapping(ip).is_some()
        };
        places.into_iter().find(is_frame)
    }

    /// The executable mapping of an address.
    fn mapping(&self, address: u64) -> Option<&'a Mapping> {
        let at = self.mappings.partition_point(|mapping| mapping.end <= address);
        self.mappings.get(at).filter(|it| it.start <= address && it.executable)
    }

    /// The rules at an instruction, or (if it is not `exact`) at the call before it.
    fn rules(&mut self, ip: u64, exact: bool) -> Option<CallRules> {
        if let Some(known) = self.rules.get(&(ip, exact)) {
            return known.clone();
        }
        let found = self.find_rules(if exact { ip } else { ip.checked_sub(1)? });
        self.rules.insert((ip, exact), found.clone());
        found
    }

    fn find_rules(&mut self, ip: u64) -> Option<CallRules> {
        let mapping = self.mapping(ip)?;
        let object: Arc<ObjectFile> = self.store.open(mapping, &self.target);
        let bias = object.elf().ok()?.load_bias(&place_of(mapping))?;
        let frames = self.frames.entry(object.id()).or_insert_with(|| LoadedFrames::of(&object));
        let mut rules = frames.as_ref()?.rules(ip.wrapping_sub(bias), bias)?;
        rules.is_of_c_library = mapping.is_of_c_library();
        Some(rules)
    }
}

impl LoadedFrames {
    fn of(object: &ObjectFile) -> Option<Self> {
        let elf = object.elf().ok()?;
        let machine = Machine::from_elf(object::elf::Machine(elf.machine))?;
        let header = elf.other_segment(PT_GNU_EH_FRAME)?;
        let length = header.len.min(MAX_SECTION);
        let bytes = elf.source().part(header.file_offset, length, &elf.budget()).ok()?;
        Some(Self { machine, header: (header.vaddr, bytes), eh_frame: Sections::read(elf).eh_frame? })
    }

    /// The rules at `vaddr` of an object that is mapped `bias` higher.
    fn rules(&self, vaddr: u64, bias: u64) -> Option<CallRules> {
        let bases = BaseAddresses::default().set_eh_frame_hdr(self.header.0).set_eh_frame(self.eh_frame.0);
        let header = EhFrameHdr::new(&self.header.1, LittleEndian).parse(&bases, 8).ok()?;
        let mut section = EhFrame::new(&self.eh_frame.1, LittleEndian);
        section.set_address_size(8);
        let entry =
            header.table()?.fde_for_address(&section, &bases, vaddr, EhFrame::cie_from_offset).ok()?;
        let mut context = UnwindContext::new();
        let row = entry.unwind_info_for_address(&section, &bases, &mut context, vaddr).ok()?;
        let CfaRule::RegisterAndOffset { register, offset } = row.cfa() else { return None };
        let numbers = numbers_of(self.machine);
        let asked = numbers.saved.iter().map(|number| Register(*number)).chain([numbers.fp, numbers.ra]);
        let saved = asked.filter_map(|it| match row.register(it) {
            Some(RegisterRule::Offset(at)) => Some((it, at)),
            _ => None,
        });
        let start = entry.initial_address().wrapping_add(bias);
        let code = start..start.saturating_add(entry.len());
        Some(CallRules { code, is_of_c_library: false, cfa: (*register, *offset), saved: saved.collect() })
    }
}
