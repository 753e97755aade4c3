//! The BPF programs fit the stack of kernels before 6.13, which is one for all functions of a chain
//! of calls (kernel/bpf/verifier.c, `check_max_stack_depth`). Newer kernels do not mind, so a
//! change is seen here, and not when somebody runs an old one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SymbolKind};

/// `MAX_BPF_STACK`, `MAX_CALL_FRAMES`.
const STACK: u32 = 512;
const CALLS: usize = 8;
/// Programs of newer kernels alone.
const NEWER: [&str; 1] = ["acquire_session"];

#[derive(Default)]
struct Function {
    stack: u32,
    calls: BTreeSet<String>,
}

/// Where a register points: bytes from the frame's end, if it points there.
type Registers = [Option<i64>; 16];

/// Bytes of stack that the instructions use. Of each, opcode, registers, offset and immediate
/// (Documentation/bpf/standardization/instruction-set.rst).
fn stack_of(code: &[u8]) -> u32 {
    const MOV: u8 = 0xbf;
    const ADD: u8 = 0x07;
    const CLASS: u8 = 0x07;
    const FRAME: usize = 10;
    let mut registers: Registers = [None; 16];
    registers[FRAME] = Some(0);
    let mut lowest = 0;
    for word in code.chunks_exact(8) {
        let (to, from) = ((word[1] & 15) as usize, (word[1] >> 4) as usize);
        let offset = i64::from(i16::from_le_bytes([word[2], word[3]]));
        let immediate = i64::from(i32::from_le_bytes([word[4], word[5], word[6], word[7]]));
        let place = match word[0] & CLASS {
            1 => registers[from].map(|at| at + offset),   // load
            2 | 3 => registers[to].map(|at| at + offset), // store
            _ => None,
        };
        match word[0] {
            MOV => registers[to] = registers[from],
            ADD => registers[to] = registers[to].map(|at| at + immediate),
            0x85 => registers[..6].fill(None), // call
            opcode if [0, 1, 4, 7].contains(&(opcode & CLASS)) => registers[to] = None,
            _ => {}
        }
        registers[FRAME] = Some(0);
        // What a helper or a function is handed counts, too.
        let handed = (word[0] == ADD).then(|| registers[to]).flatten();
        lowest = lowest.min(place.unwrap_or(0)).min(handed.unwrap_or(0));
    }
    u32::try_from(-lowest).expect("a stack that grows downwards")
}

fn functions(object: &Path) -> BTreeMap<String, Function> {
    let bytes = fs::read(object).expect("the object is read");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let mut functions = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let section = file.section_by_index(symbol.section_index().expect("a section")).expect("a section");
        let within = symbol.address()..symbol.address() + symbol.size();
        let code = section.data_range(symbol.address(), symbol.size()).expect("its code").expect("its code");
        let mut function = Function { stack: stack_of(code), calls: BTreeSet::new() };
        for (_, relocation) in section.relocations().filter(|(at, _)| within.contains(at)) {
            let RelocationTarget::Symbol(target) = relocation.target() else { continue };
            let target = file.symbol_by_index(target).expect("a symbol");
            if target.kind() == SymbolKind::Text {
                function.calls.insert(target.name().expect("a name").to_owned());
            }
        }
        functions.insert(symbol.name().expect("a name").to_owned(), function);
    }
    functions
}

/// The chain from this function on that takes most, and what it takes; those of too many calls too.
fn worst(functions: &BTreeMap<String, Function>, chain: &[&str]) -> (u32, Vec<String>) {
    let name = *chain.last().expect("a function");
    let Some(function) = functions.get(name) else { return (0, Vec::new()) };
    assert!(chain.len() <= CALLS, "too many calls: {chain:?}");
    let own = function.stack.max(1).next_multiple_of(32);
    let deeper = function.calls.iter().map(|call| worst(functions, &[chain, &[call]].concat()));
    let (stack, mut below) = deeper.max_by_key(|(stack, _)| *stack).unwrap_or_default();
    below.insert(0, format!("{name} {}", function.stack));
    (own + stack, below)
}

#[test]
fn every_chain_of_calls_fits_the_stack_of_older_kernels() {
    for machine in ["x86_64", "aarch64"] {
        let object = format!("memleak-{machine}.bpf.o");
        let functions = functions(&Path::new(env!("CARGO_MANIFEST_DIR")).join("ebpf").join(object));
        let called: BTreeSet<&String> = functions.values().flat_map(|function| &function.calls).collect();
        let programs =
            functions.keys().filter(|name| !called.contains(name) && !NEWER.contains(&name.as_str()));
        let mut seen = 0;
        for program in programs {
            let (stack, chain) = worst(&functions, &[program]);
            assert!(stack <= STACK, "{machine}: {stack} bytes: {}", chain.join(", "));
            seen += 1;
        }
        assert!(seen > 30, "{machine}: {seen}");
        // They are near it: if this is not so any more, it is not seen here what they take.
        assert!(worst(&functions, &["call_exit"]).0 > STACK / 2);
    }
}
