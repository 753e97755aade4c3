//! Which instruction of a function is probed: function bodies by hand, and those of the machine's
//! own allocators, checked against objdump.

mod fixture;

use std::{collections::BTreeMap, path::Path};

use fixture::{Segments, dynamic_symbols, run};
use memleak::{
    arch::{
        placement::{Placement, Reason},
        x86_64::placement::{is_emulated, place},
    },
    probe::{
        plan::{PlanOptions, ProgramKind, plan, symbol_names},
        table::TABLE,
    },
    target::object::Object,
};

const RDI: u8 = 1;
const RDI_RSI: u8 = 0b11;
const ALL: u8 = 0b11_1111;
const AT: u64 = 0x98ef0;

/// Name, body in hex (one instruction a word), mask of arguments, offset, reason.
type Body = (&'static str, &'static str, u8, u32, Reason);

const BODIES: &[Body] = &[
    // test rdi,rdi; je +0x11; push rbp; lea rsi,[rdi-0x10]; push rbx; ...; ret (Debian 12's free,
    // cut short)
    ("glibc's free", "4885ff 7404 55 488d77f0 c3", RDI, 3, Reason::Emulated),
    // the same with a 32-bit displacement
    ("glibc's free, far", "4885ff 0f8401000000 c3 c3", RDI, 3, Reason::Emulated),
    // push r12; push rbp; push rbx; mov rbx,rdi (Debian 12's malloc)
    ("push first", "4154 55 53 4889fb 5b 5d 415c c3", RDI, 0, Reason::Emulated),
    // endbr64; push rbp; mov rbp,rsp
    ("landing pad", "f30f1efa 55 4889e5 5d c3", RDI, 4, Reason::Emulated),
    // endbr64; call +0
    ("landing pad and call", "f30f1efa e800000000 c3", RDI, 4, Reason::Emulated),
    // endbr64; test rdi,rdi; je +1
    ("landing pad and test", "f30f1efa 4885ff 7401 90 c3", RDI, 7, Reason::Emulated),
    // endbr64; mov rax,rdi; ret
    ("landing pad alone", "f30f1efa 4889f8 c3", RDI, 0, Reason::NoneEmulated),
    // sub rsp,8; test rdi,rdi; je +5
    ("stack pointer moved", "4883ec08 4885ff 7404 4883c408 c3", RDI, 0, Reason::NoneEmulated),
    // and rsp,-16; push rbp
    ("stack pointer aligned", "4883e4f0 55 c3", 0, 0, Reason::NoneEmulated),
    // mov rbp,rsp; push rax: the caller's frame pointer is gone
    ("frame pointer moved", "4889e5 50 c3", 0, 0, Reason::NoneEmulated),
    // mov [rsp],rax; push rbx
    ("return address changed", "48890424 53 c3", 0, 0, Reason::NoneEmulated),
    // mov [rsi],rax; push rbx
    ("memory changed", "488906 53 c3", RDI_RSI, 3, Reason::Emulated),
    // mov rdi,rsi; je +0
    ("argument clobbered", "4889f7 7400 c3", RDI, 0, Reason::NoneEmulated),
    // the same, in a function whose argument 0 nobody reads
    ("another argument clobbered", "4889f7 7400 c3", 0b10, 3, Reason::Emulated),
    // mov edi,edi: clears the upper half
    ("argument's lower half written", "89ff 7400 c3", RDI, 0, Reason::NoneEmulated),
    // mov dil,1
    ("argument's lowest byte written", "40b701 7400 c3", RDI, 0, Reason::NoneEmulated),
    // mul rsi; push rbx: writes rdx without naming it
    ("argument clobbered implicitly", "48f7e6 53 c3", 0b100, 0, Reason::NoneEmulated),
    ("nothing read clobbered implicitly", "48f7e6 53 c3", RDI_RSI, 3, Reason::Emulated),
    // xchg r8,rax is not a nop, whatever older kernels thought; it writes argument 4
    ("xchg", "4990 53 c3", 0b1_0000, 0, Reason::NoneEmulated),
    // mov eax,0xb; syscall (munmap)
    ("system call", "b80b000000 0f05 90 c3", 0, 0, Reason::NoneEmulated),
    // 2e prefix: the kernel refuses to probe it
    ("branch hint", "4885ff 2e7401 90 c3", RDI, 0, Reason::NoneEmulated),
    // nop dword [rax]; push rbx: long nops are single-stepped before Linux 6.17
    ("long nop", "0f1f00 53 c3", RDI, 3, Reason::Emulated),
    ("short nop after landing pad", "f30f1efa 6690 c3", RDI, 4, Reason::Emulated),
    // test rdi,rdi; je +5; dec rdi; jmp -7: back to the je
    ("jump back to the place", "4885ff 7405 48ffcf ebf9 c3", RDI, 0, Reason::JumpedOver),
    // mov rax,rdi; test rdi,rdi; je +2; jmp -7: back to between entry and place
    ("jump back into the prologue", "4889f8 4885ff 7402 ebf9 c3", RDI, 0, Reason::JumpedOver),
    // the same by a loop instruction
    ("loop back into the prologue", "4889f8 4885ff 7402 e2f9 c3", RDI, 0, Reason::JumpedOver),
    // test rdi,rdi; je +5; dec rdi; jmp -10: back to the entry, where a probe would be hit again as
    // well
    ("jump back to the entry", "4885ff 7405 48ffcf ebf6 c3", RDI, 3, Reason::Emulated),
    // the landing pad does not excuse a jump to after it: endbr64; push rax; pop rax; jmp -4
    ("jump back behind the landing pad", "f30f1efa 50 58 ebfc", RDI, 0, Reason::JumpedOver),
    // test rdi,rdi; je +2; jmp rax
    ("jump through a register", "4885ff 7402 ffe0 c3", RDI, 0, Reason::BodyUnclear),
    // test rdi,rdi; je +7; jmp [rdi*8+0]
    ("jump through a table", "4885ff 7407 ff24fd00000000 c3", RDI, 0, Reason::BodyUnclear),
    // endbr64; push rbp; jmp rax
    ("landing pad, jump through a register", "f30f1efa 55 ffe0", RDI, 4, Reason::Emulated),
    // test rdi,rdi; je +6; jmp [rip+0]: a tail call through a hook
    ("tail call through a pointer", "4885ff 7406 ff2500000000 c3", RDI, 3, Reason::Emulated),
    // test rdi,rdi; je +1; (no instruction in 64-bit mode); ret
    ("bytes that are no code", "4885ff 7401 06 c3", RDI, 0, Reason::BodyUnclear),
    ("no code at all", "06", RDI, 0, Reason::NoneEmulated),
    ("cut off in the first instruction", "48", RDI, 0, Reason::NoneEmulated),
    ("cut off in the branch", "4885ff 0f84bf00", RDI, 0, Reason::NoneEmulated),
    ("only a return", "c3", ALL, 0, Reason::NoneEmulated),
    ("only a jump", "e900000000", ALL, 0, Reason::Emulated),
    ("only a short jump", "eb10", ALL, 0, Reason::Emulated),
    // mov rax,rdi; jmp +0
    ("three bytes and a tail call", "4889f8 e900000000", ALL, 3, Reason::Emulated),
    ("size not known", "", RDI, 0, Reason::BodyUnknown),
];

fn from_hex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn chooses_the_first_emulated_instruction_that_is_safe() {
    for &(name, body, arguments, offset, reason) in BODIES {
        assert_eq!(place(&from_hex(body), AT, arguments), Placement { offset, reason }, "{name}: {body}");
    }
}

#[test]
fn follows_a_function_for_some_bytes_only() {
    // test rdi,rdi, again and again; je
    let mut body = "4885ff".repeat(100);
    body.push_str("7400c3");
    assert_eq!(place(&from_hex(&body), AT, RDI), Placement::entry(Reason::NoneEmulated));
}

#[test]
fn knows_what_the_kernel_emulates() {
    for emulated in
        ["50", "57", "4150", "4157", "90", "6690", "eb00", "7000", "7fff", "e800000000", "e900000000"]
    {
        assert!(is_emulated(&from_hex(emulated)), "{emulated}");
    }
    for not in [
        "58", "4850", "6650", "4190", "4990", "f30f1efa", "0f1f00", "ffd0", "e300", "66e90000", "ff30",
        "6a00",
    ] {
        assert!(!is_emulated(&from_hex(not)), "{not}");
    }
}

/// Address, mnemonic, operands of each instruction of a function, as objdump has them.
fn disassemble(path: &Path, start: u64, end: u64) -> BTreeMap<u64, (String, String)> {
    let text = run(
        "objdump",
        &[
            "-d",
            "--no-show-raw-insn",
            &format!("--start-address={start:#x}"),
            &format!("--stop-address={end:#x}"),
            path.to_str().unwrap(),
        ],
    );
    text.lines()
        .filter_map(|line| {
            let (address, code) = line.split_once(":\t")?;
            let address = u64::from_str_radix(address.trim(), 16).ok()?;
            let code = code.split('#').next()?.split('<').next()?.trim();
            let (mnemonic, operands) = code.split_once(' ').unwrap_or((code, ""));
            Some((address, (mnemonic.to_owned(), operands.trim().to_owned())))
        })
        .collect()
}

/// All names of the integer argument registers, as objdump writes them.
const ARGUMENT_NAMES: [&[&str]; 6] = [
    &["%rdi", "%edi", "%di", "%dil"],
    &["%rsi", "%esi", "%si", "%sil"],
    &["%rdx", "%edx", "%dx", "%dl", "%dh"],
    &["%rcx", "%ecx", "%cx", "%cl", "%ch"],
    &["%r8", "%r8d", "%r8w", "%r8b"],
    &["%r9", "%r9d", "%r9w", "%r9b"],
];

fn check_before(what: &str, (mnemonic, operands): &(String, String), arguments_read: u8) {
    assert!(
        !mnemonic.starts_with('j') && !mnemonic.contains("call") && mnemonic != "ret",
        "{what}: {mnemonic}"
    );
    assert!(!mnemonic.starts_with("pop") && !mnemonic.starts_with("push"), "{what}: {mnemonic}");
    if ["test", "cmp", "endbr64", "nop"].iter().any(|harmless| mnemonic.starts_with(harmless)) {
        return;
    }
    let target = operands.rsplit(',').next().unwrap_or_default();
    for kept in ["%rsp", "%rbp", "%rbx", "%r12", "%r13", "%r14", "%r15"] {
        assert_ne!(target, kept, "{what}: {mnemonic} {operands}");
    }
    for (n, names) in ARGUMENT_NAMES.iter().enumerate().filter(|(n, _)| arguments_read & (1 << n) != 0) {
        assert!(!names.contains(&target), "{what}: {mnemonic} {operands} writes argument {n}");
    }
    // These write registers that they do not name.
    for implicit in ["mul", "imul", "div", "idiv", "cpuid", "rep", "cqto", "xchg", "cmpxchg", "syscall"] {
        assert!(!mnemonic.starts_with(implicit) || arguments_read & 0b100 == 0, "{what}: {mnemonic}");
    }
}

/// Checks each shifted probe in `library`; returns how many there are.
fn check_library(library: &Path) -> usize {
    let options = PlanOptions::default();
    let object = Object::open(library, &symbol_names(&options)).unwrap();
    let plan = plan(&[object], &options, None);
    assert!(!plan.is_empty(), "{}", library.display());
    let segments = Segments::of(library);
    let symbols = dynamic_symbols(library);
    let mut shifted = 0;
    for point in &plan.points {
        let what = format!("{point}");
        let place = segments.vaddr_of(point.file_offset);
        let start = place - u64::from(point.placement.offset);
        let symbol = symbols.iter().find(|symbol| symbol.name == point.function && symbol.vaddr == start);
        let symbol = symbol.unwrap_or_else(|| panic!("{what}: nm has no such function"));
        let code = disassemble(library, start, start + symbol.size.max(1));
        let (mnemonic, operands) = code.get(&place).unwrap_or_else(|| panic!("{what}: not an instruction"));
        if place == start {
            continue;
        }
        if point.program == ProgramKind::CallExit {
            assert_eq!(mnemonic, "ret", "{what}");
            continue;
        }
        shifted += 1;
        let is_direct = !operands.contains('*');
        let emulated = matches!(mnemonic.as_str(), "push" | "nop")
            || (mnemonic == "xchg" && operands == "%ax,%ax")
            || (is_direct && (mnemonic.starts_with('j') || mnemonic == "call"));
        assert!(emulated, "{what}: {mnemonic} {operands}");
        let arguments_read = TABLE[point.row as usize].probe.arguments_read();
        for (_, instruction) in code.range(start..place) {
            check_before(&what, instruction, arguments_read);
        }
        for (mnemonic, operands) in code.values().filter(|(mnemonic, _)| mnemonic.starts_with('j')) {
            let target = u64::from_str_radix(operands, 16);
            let inside = target.is_ok_and(|target| target > start && target <= place);
            assert!(!inside, "{what}: {mnemonic} {operands}");
        }
    }
    shifted
}

#[test]
fn is_right_for_the_allocators_of_this_machine() {
    // At least so many of them start with an instruction that is not emulated and have one soon
    // after (Debian 12).
    for (library, least) in [
        ("libc.so.6", 1),
        ("libjemalloc.so.2", 1),
        ("libtcmalloc_minimal.so.4", 1),
        ("libmimalloc.so.2.0", 1),
    ] {
        let shifted = check_library(&Path::new("/usr/lib/x86_64-linux-gnu").join(library));
        assert!(shifted >= least, "{library}: {shifted}");
    }
    check_library(Path::new("/lib/ld-musl-x86_64.so.1"));
}

#[test]
fn puts_entry_and_return_probes_at_one_place() {
    let options = PlanOptions::default();
    let library = Path::new("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4");
    let object = Object::open(library, &symbol_names(&options)).unwrap();
    let plan = plan(&[object], &options, None);
    let places = |program: &str| -> Vec<_> {
        let mut places: Vec<_> = plan
            .points
            .iter()
            .filter(|point| point.program.name() == program)
            .map(|point| (point.file_offset, point.row))
            .collect();
        places.sort_unstable();
        places
    };
    assert_eq!(places("acquire_enter"), places("acquire_exit"));
    assert!(places("acquire_enter").len() > 10);
}
