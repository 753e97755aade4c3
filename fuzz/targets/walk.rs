//! Walks over any stack by a table of any rules: no access outside the table's place, an end after
//! at most so many frames, and a stack pointer that never goes back but out of a signal handler.
#![no_main]

use std::{io, sync::Arc};

use memleak::{
    proc::memory::ReadMemory,
    unwind::{Arrays, Layout, MappedObject, SharedTable, Shortage, UnwindTable, walk},
};
use memleak_common::unwind::{Mapping, NO_MASK, Regs, Step, Tables};
use memleak_fuzz::{MAPPED_AT, TEXT, elf_with_frames};

const STACK: u64 = 0x7ffc_0000_0000;
const MAX_DEPTH: usize = 127;

/// A stack at [`STACK`].
struct Stack<'a>(&'a [u8]);

impl ReadMemory for Stack<'_> {
    fn read_exact_at(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = address.checked_sub(STACK).ok_or(io::ErrorKind::InvalidInput)? as usize;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::InvalidInput)?;
        buffer.copy_from_slice(self.0.get(start..end).ok_or(io::ErrorKind::InvalidInput)?);
        Ok(())
    }
}

/// Arrays in which every access has to find something.
struct Strict(Arrays);

impl Tables for Strict {
    fn word(&self, index: u32) -> Option<u64> {
        Some(self.0.word(index).expect("a word of the table"))
    }

    fn mapping_start(&self, index: u32) -> Option<u64> {
        Some(self.0.mapping_start(index).expect("an entry of the list"))
    }

    fn mapping(&self, index: u32) -> Option<Mapping> {
        Some(self.0.mapping(index).expect("an entry of the list"))
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    // Where the registers point (two bytes each), the length of the stack, the stack, the unwind
    // section.
    let Some((registers, rest)) = input.split_first_chunk::<6>() else { return };
    let Some((&[stack_words], rest)) = rest.split_first_chunk::<1>() else { return };
    let (stack, section) = rest.split_at((usize::from(stack_words) * 8).min(rest.len()));
    let Some(file) = elf_with_frames(section) else { return };
    let table = UnwindTable::from_bytes(&file).expect("the file around it is sound");
    let machine = table.machine;
    let table = Arc::new(SharedTable::from(table));
    // Words that look like addresses of the text's first pages, whatever their upper half says.
    let mut stack = stack.to_vec();
    for word in stack.chunks_exact_mut(8) {
        match word[7] & 3 {
            0 => {
                word[2..].fill(0);
                let low = u64::from(u16::from_le_bytes([word[0], word[1]])) & 0x1fff;
                word.copy_from_slice(&(MAPPED_AT + low).to_le_bytes());
            }
            1 => {
                let low = u64::from(u16::from_le_bytes([word[0], word[1]])) & 0x7f8;
                word.copy_from_slice(&(STACK + low).to_le_bytes());
            }
            _ => {}
        }
    }
    let mut arrays = Arrays::default();
    let mut layout = Layout::new(1 << 20, 16);
    // Two mappings of one object, with a hole between them.
    let object = |start: u64, end: u64, file_offset: u64| MappedObject {
        start,
        end,
        file_offset,
        table: Arc::clone(&table),
    };
    let objects = [
        object(MAPPED_AT + TEXT.start, MAPPED_AT + TEXT.start + 0x800, TEXT.start),
        object(MAPPED_AT + TEXT.start + 0x900, MAPPED_AT + TEXT.end, TEXT.start + 0x900),
    ];
    let list = layout.set_process(1, &objects, Shortage::Fail, &mut arrays).expect("there is room");
    let register = |at: usize| u64::from(u16::from_le_bytes([registers[at], registers[at + 1]]));
    let regs = Regs {
        ip: MAPPED_AT + (register(0) & 0x1fff),
        sp: STACK + (register(2) & 0x7ff),
        fp: STACK + (register(4) & 0x7ff),
        lr: 0,
    };
    let walked = walk(machine, regs, NO_MASK, list, &Strict(arrays), &Stack(&stack), MAX_DEPTH);
    assert!(walked.frames.len() <= MAX_DEPTH && !walked.end.is_frame());
    assert!(walked.end != Step::TooDeep || walked.frames.len() == MAX_DEPTH);
});
