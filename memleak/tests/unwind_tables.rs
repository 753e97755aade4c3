//! Unwind tables against readelf's reading of the same files, row by row, over several compilers.

mod unwind_fixtures;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    path::Path,
    process::Command,
};

use memleak::unwind::{Machine, Unsupported, UnwindTable};
use memleak_common::unwind::{Kind, Row, SLOT_AT_FP, SLOT_AT_SP};
use unwind_fixtures::{built, compile, compile_aarch64, library, run};

/// What `readelf --debug-dump=frames-interp` says of one address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Truth {
    cfa: String,
    fp: String,
    ra: String,
}

/// All rows of a file, and the ranges of its entries.
#[derive(Default)]
struct Truths {
    rows: BTreeMap<u64, Truth>,
    ranges: Vec<(u64, u64)>,
}

/// What readelf prints of this very file. Its status is 1 if a debug file that the object names
/// is not installed.
fn readelf(path: &Path, dump: &str) -> String {
    let output = Command::new("readelf")
        .args([dump, "--debug-dump=no-follow-links", "-W"])
        .arg(path)
        .output()
        .expect("binutils is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Reads the table of readelf. An entry without instructions has no rows there: it is its CIE's.
fn readelf_rows(path: &Path) -> Truths {
    let text = readelf(path, "--debug-dump=frames-interp");
    let mut truths = Truths::default();
    let mut cies: HashMap<(u32, u64), Truth> = HashMap::new();
    let (mut section, mut cie, mut columns) = (0, None, Vec::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let hex = |word: &str| u64::from_str_radix(word, 16).expect("readelf prints hexadecimal numbers");
        match words.as_slice() {
            ["Contents", ..] => section += 1,
            [offset, _, _, "CIE", ..] => cie = Some(hex(offset)),
            [_, _, _, "FDE", cie_word, range] => {
                cie = None;
                let of = hex(cie_word.strip_prefix("cie=").expect("an entry names its CIE"));
                let (start, end) =
                    range.strip_prefix("pc=").and_then(|range| range.split_once("..")).expect(line);
                truths.ranges.push((hex(start), hex(end)));
                // A signal trampoline's CIE says nothing, and has no row.
                if let Some(truth) = cies.get(&(section, of)) {
                    truths.rows.insert(hex(start), truth.clone());
                }
            }
            ["LOC", rest @ ..] => columns = rest.iter().map(|word| word.to_string()).collect(),
            [loc, values @ ..] if loc.len() == 16 && values.len() == columns.len() && !values.is_empty() => {
                let value = |name: &str| {
                    let at = columns.iter().position(|column| column == name);
                    at.map_or("u", |at| values[at]).to_string()
                };
                let fp = if columns.iter().any(|name| name == "rbp") { value("rbp") } else { value("x29") };
                // aarch64's return address column is its register's.
                let truth = Truth { cfa: value("CFA"), fp, ra: value("ra") };
                match cie {
                    Some(offset) => cies.insert((section, offset), truth),
                    None => truths.rows.insert(hex(loc), truth),
                };
            }
            _ => {}
        }
    }
    assert!(!truths.rows.is_empty(), "readelf finds rows in {}", path.display());
    truths
}

/// `c-16` as a slot; 0 for a register that is where it was.
fn slot(place: &str) -> Option<i8> {
    match place {
        "u" | "s" => Some(0),
        _ => i8::try_from(place.strip_prefix('c')?.parse::<i64>().ok()? / 8).ok(),
    }
}

/// `c-16` in bytes.
fn from_cfa(place: &str) -> Option<i64> {
    place.strip_prefix('c')?.parse().ok()
}

/// The row of registers that are apart from each other, as the documentation of rows has it: 18
/// bits of the CFA's offset, and two places of 5 bits each.
fn apart(truth: &Truth, offset: i64, pc: u32) -> Option<Row> {
    let (fp, ra) = (from_cfa(&truth.fp)?, from_cfa(&truth.ra)?);
    let in_reach = |words: [i64; 2]| words.iter().all(|word| (0..32).contains(word)).then_some(words);
    let from_base = |from_cfa: i64| (from_cfa + offset) / 8;
    let below = in_reach([-fp / 8 - 1, -ra / 8 - 1]).map(|places| (1, places));
    let (kind, [f, r]) = below.or(in_reach([from_base(fp), from_base(ra)]).map(|places| (2, places)))?;
    let kind = if truth.cfa.starts_with("sp") { kind } else { kind + 2 };
    let places = (f | r << 5) as u32;
    let rule = (offset / 8) as u32 | (places & 3) << 18 | kind << 20 | (places >> 2) << 24;
    (offset / 8 < 1 << 18).then_some(Row::from_rule(pc, rule))
}

/// The row that has to be at `pc`, or `None` if readelf says no more than "an expression".
fn expected(truth: &Truth, machine: Machine, pc: u32) -> Option<Row> {
    if truth.ra == "u" && machine == Machine::X86_64 {
        return Some(Row::bare(pc, Kind::END));
    }
    if [&truth.cfa, &truth.fp, &truth.ra].iter().any(|place| place.as_str() == "exp") {
        return None;
    }
    let at = truth.cfa.find(['+', '-']).expect("a CFA is a register and an offset");
    let (register, offset) = truth.cfa.split_at(at);
    let offset: i64 = offset.parse().expect("a CFA's offset is a number");
    let fp = slot(&truth.fp);
    let row = match (machine, register) {
        (Machine::X86_64, "rsp") if truth.ra == "c-8" => fp.and_then(|fp| Row::new(pc, Kind::SP, offset, fp)),
        (Machine::X86_64, "rbp") if truth.ra == "c-8" => fp.and_then(|fp| Row::new(pc, Kind::FP, offset, fp)),
        (Machine::Aarch64, "sp" | "x29") => {
            let [leaf, pair, ra_only] = match register {
                "sp" => [Kind::SP_LEAF, Kind::SP_PAIR, Kind::SP_RA],
                _ => [Kind::FP_LEAF, Kind::FP_PAIR, Kind::FP_RA],
            };
            let base = if register == "sp" { SLOT_AT_SP } else { SLOT_AT_FP };
            let at_base = |place: &str| place == format!("c{:+}", -offset);
            // `c-16` at the bottom of a frame too large for a slot: counted from the register.
            let above_base = |place: &str| {
                let from_cfa: i64 = place.strip_prefix('c')?.parse().ok()?;
                i8::try_from((from_cfa + offset) / 8).ok().filter(|slot| (1..=125).contains(slot))
            };
            let place = |place: &str| match slot(place) {
                _ if at_base(place) => Some(base),
                None => above_base(place),
                found => found,
            };
            let is_same = |place: &str| (slot(place) == Some(0)).then_some(0);
            match (is_same(&truth.fp), is_same(&truth.ra)) {
                (Some(0), Some(0)) => Row::new(pc, leaf, offset, 0),
                (_, Some(0)) => place(&truth.fp).and_then(|slot| Row::new(pc, leaf, offset, slot)),
                (Some(0), _) => place(&truth.ra).and_then(|slot| Row::new(pc, ra_only, offset, slot)),
                _ if from_cfa(&truth.ra)? != from_cfa(&truth.fp)? + 8 => apart(truth, offset, pc),
                _ => place(&truth.fp).and_then(|slot| Row::new(pc, pair, offset, slot)),
            }
        }
        _ => None,
    };
    Some(row.unwrap_or(Row::bare(pc, Kind::UNSUPPORTED)))
}

/// How many rows of each kind were found equal.
type Counts = HashMap<Kind, usize>;

/// Holds a table against readelf's rows. Rows that readelf cannot spell out are counted by the kind
/// that they have.
fn compare(path: &Path, table: &UnwindTable, truths: &Truths) -> Counts {
    let base = table.segments.text_base;
    let mut counts = Counts::new();
    let mut ends: BTreeMap<u64, bool> = truths.ranges.iter().map(|(_, end)| (*end, false)).collect();
    for (&vaddr, truth) in &truths.rows {
        let pc = u32::try_from(vaddr - base).expect("text is below 4 GiB");
        let found = table.lookup(pc).unwrap_or(Row::bare(pc, Kind::NONE));
        match expected(truth, table.machine, pc) {
            // Its slot says why.
            Some(row) if row.kind() == Kind::UNSUPPORTED => {
                assert!(Unsupported::of(found).is_some(), "{path:?} {vaddr:#x}: {found:?}, not {truth:?}")
            }
            Some(row) => {
                assert_eq!(found.rule(), row.rule(), "{path:?} {vaddr:#x}: {found:?}, not {truth:?}")
            }
            None => assert!(
                [Kind::DEREF_FP, Kind::PLT, Kind::SIGNAL, Kind::UNSUPPORTED].contains(&found.kind())
                    || (truth.fp == "exp" && [SLOT_AT_FP, SLOT_AT_SP].contains(&found.slot())),
                "{path:?} {vaddr:#x}: {found:?}, not {truth:?}"
            ),
        }
        *counts.entry(found.kind()).or_default() += 1;
    }
    for (start, end) in &truths.ranges {
        for (_, covered) in ends.range_mut(start..end) {
            *covered = true;
        }
    }
    for (end, _) in ends.iter().filter(|(_, covered)| !**covered) {
        let row = table.lookup((end - base) as u32);
        let found = row.map(Row::kind);
        // Code at the entry ends a stack, if nothing else is said of it; what else is read from
        // code is a function.
        let at_entry = *end == entry_of(path) && found == Some(Kind::END);
        let begins = row.map(Row::rule) == Row::new(0, Kind::SP, 8, 0).map(Row::rule);
        assert!(
            at_entry || begins || matches!(found, None | Some(Kind::NONE)),
            "{path:?}: {end:#x} is behind an entry: {found:?}"
        );
    }
    counts
}

/// `e_entry`, the word at 24 of an ELF file.
fn entry_of(path: &Path) -> u64 {
    let bytes = fs::read(path).expect("the fixture can be read");
    u64::from_le_bytes(bytes[24..32].try_into().expect("eight bytes"))
}

fn table_of(path: &Path) -> UnwindTable {
    let table =
        UnwindTable::from_file(&File::open(path).expect("the fixture opens")).expect("it has a table");
    assert_eq!(table.stats.malformed, 0, "{path:?}: {:?}", table.stats);
    check_order(&table);
    table
}

/// What every table promises, whatever the file says.
fn check_order(table: &UnwindTable) {
    assert!(table.rows.first().is_none_or(|row| row.pc() == 0));
    assert!(
        table.rows.windows(2).all(|pair| pair[0].pc() < pair[1].pc() && pair[0].rule() != pair[1].rule())
    );
    assert!(table.rows.iter().all(|row| row.pc() <= table.segments.text_len()));
    assert_eq!(table.pages.len(), table.rows.last().map_or(0, |row| row.pc() as usize / 256 + 1));
}

fn agree(path: &Path) -> Counts {
    compare(path, &table_of(path), &readelf_rows(path))
}

#[test]
fn gcc_and_clang_agree_at_every_level() {
    for compiler in ["g++", "clang++"] {
        for (name, flags) in [
            ("O0", "-O0 -pthread"),
            ("O2", "-O2 -fomit-frame-pointer -pthread"),
            ("fp", "-O2 -fno-omit-frame-pointer -pthread"),
            ("lto", "-O3 -flto -fomit-frame-pointer -pthread"),
            ("nopie", "-O2 -fno-pie -no-pie -pthread"),
            ("cet", "-O2 -fcf-protection -pthread -Wl,-z,lazy"),
            ("static", "-O2 -static -pthread"),
        ] {
            // Debian's clang 14 has no LTO plugin for ld.
            if compiler == "clang++" && name == "lto" {
                continue;
            }
            let path = compile(&format!("torture-{compiler}-{name}"), compiler, "torture.cc", flags);
            let counts = agree(&path);
            assert!(counts[&Kind::SP] > 50, "{counts:?}");
            // _start has no caller.
            assert!(counts[&Kind::END] >= 1, "{counts:?}");
            if name == "static" {
                assert_eq!(counts.get(&Kind::SIGNAL), Some(&1), "glibc's rt_sigreturn");
            }
            if compiler == "g++" && name == "O2" {
                assert!(counts[&Kind::DEREF_FP] >= 1 && counts[&Kind::PLT] == 1, "{counts:?}");
            }
        }
    }
}

#[test]
fn rustc_agrees() {
    for (name, flags) in [("debug", "-g"), ("release", "-O"), ("lto", "-O -C lto=fat -C panic=unwind")] {
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
        let counts = agree(&compile(&format!("plain-rs-{name}"), &rustc, "plain.rs", flags));
        assert!(counts[&Kind::SP] > 1000, "{counts:?}");
    }
}

#[test]
fn system_libraries_agree() {
    for name in ["libc.so.6", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"] {
        let counts = agree(&library(name));
        assert!(counts[&Kind::SP] > 500, "{name}: {counts:?}");
    }
    assert_eq!(agree(&library("libc.so.6")).get(&Kind::SIGNAL), Some(&1));
}

#[test]
fn aarch64_agrees() {
    for (name, flags) in [
        ("O0", "-O0"),
        ("O2", "-O2 -fomit-frame-pointer"),
        ("fp", "-O2 -fno-omit-frame-pointer"),
        ("pac", "-O2 -mbranch-protection=standard"),
    ] {
        let path = compile_aarch64(&format!("plain-aarch64-{name}.so"), flags);
        let table = table_of(&path);
        assert_eq!(table.machine, Machine::Aarch64);
        let counts = compare(&path, &table, &readelf_rows(&path));
        assert!(counts[&Kind::SP_LEAF] >= 5, "{name}: {counts:?}");
        let pairs = counts.get(&Kind::SP_PAIR).unwrap_or(&0) + counts.get(&Kind::FP_PAIR).unwrap_or(&0);
        assert!(pairs >= 3, "{name}: {counts:?}");
        assert!(counts[&Kind::SP_APART] >= 2 && counts[&Kind::SP_APART_ABOVE] >= 1, "{name}: {counts:?}");
        // One place of `apart_below`.
        assert_eq!(counts.get(&Kind::UNSUPPORTED), Some(&1), "{name}: {counts:?}");
        let pc_of = |function| (address_of(&path, function) - table.segments.text_base) as u32;
        // Its call, where x30 is saved above what is at the bottom.
        let row = table.lookup(pc_of("large_by_gcc") + 12).map(Row::rule);
        assert_eq!(row, Row::new(0, Kind::SP_RA, 716_800, 2).map(Row::rule), "{name}");
        let pc = pc_of("restore");
        let is_signal = |pc| table.lookup(pc).map(Row::kind) == Some(Kind::SIGNAL);
        // From the byte before on, and no further than the call.
        assert_eq!([pc - 2, pc - 1, pc + 7, pc + 8].map(is_signal), [false, true, true, false], "{name}");
    }
}

/// The address of a function, by nm.
fn address_of(path: &Path, function: &str) -> u64 {
    let symbols = run(Command::new("nm").arg(path));
    let mut lines = symbols.lines().map(str::split_whitespace);
    let words = lines.find(|words| words.clone().nth(2) == Some(function));
    let address = words.and_then(|mut words| words.next()).unwrap_or_else(|| panic!("{function}: {symbols}"));
    u64::from_str_radix(address, 16).expect("nm writes hexadecimal numbers")
}

/// readelf's raw listing spells out the expressions that its table calls "exp".
#[test]
fn expressions_are_recognized() {
    let path = compile("torture-expressions", "g++", "torture.cc", "-O2 -fomit-frame-pointer -Wl,-z,lazy");
    let table = table_of(&path);
    let text = readelf(&path, "--debug-dump=frames");
    let (mut loc, mut seen) = (0, Vec::new());
    for line in text.lines() {
        if let Some((_, range)) = line.split_once(" pc=") {
            loc = u64::from_str_radix(&range[..16], 16).expect(line);
        } else if let Some((_, to)) = line.split_once("DW_CFA_advance_loc") {
            let (_, address) = to.rsplit_once(' ').expect(line);
            loc = u64::from_str_radix(address, 16).expect(line);
        } else if let Some((_, expression)) = line.split_once("DW_CFA_def_cfa_expression ") {
            let row = table.lookup((loc - table.segments.text_base) as u32).expect("a row covers it");
            seen.push((expression.to_string(), row.kind(), row.cfa_offset(), row.slot()));
        }
    }
    let plt = "(DW_OP_breg7 (rsp): 8; DW_OP_breg16 (rip): 0; DW_OP_lit15; DW_OP_and; DW_OP_lit11; DW_OP_ge; \
               DW_OP_lit3; DW_OP_shl; DW_OP_plus)";
    let drap = "(DW_OP_breg6 (rbp): -8; DW_OP_deref)";
    seen.sort();
    seen.dedup();
    let expected = [(drap.to_string(), Kind::DEREF_FP, -8, SLOT_AT_FP), (plt.to_string(), Kind::PLT, 8, 11)];
    assert_eq!(seen, expected);
}

#[test]
fn debug_frame_serves_where_eh_frame_does_not() {
    let flags = "-O2 -g -fno-asynchronous-unwind-tables -fno-unwind-tables";
    let plain = compile("plain-debug-frame", "gcc", "plain.c", flags);
    let truths = readelf_rows(&plain);
    let counts = compare(&plain, &table_of(&plain), &truths);
    assert!(counts[&Kind::SP] >= 15, "{counts:?}");
    // The second as binutils before 2.26 and Go before 1.19 do it.
    for (how, name, mark) in [("zlib", ".debug_frame", " C "), ("zlib-gnu", ".zdebug_frame", "")] {
        let compressed = built(&format!("plain-debug-frame-{how}"));
        let how = format!("--compress-debug-sections={how}");
        run(Command::new("objcopy").arg(how).arg(&plain).arg(&compressed));
        let sections = run(Command::new("readelf").args(["-SW"]).arg(&compressed));
        let is_it = |line: &str| line.contains(&format!(" {name} ")) && line.contains(mark);
        assert!(sections.lines().any(is_it), "{sections}");
        assert_eq!(table_of(&compressed).rows, table_of(&plain).rows);
    }
}

#[test]
fn sections_without_headers_are_found() {
    let path = compile("torture-sections", "g++", "torture.cc", "-O2 -pthread");
    let whole = table_of(&path);
    let mut bytes = fs::read(&path).expect("the fixture can be read");
    // e_shoff, then e_shentsize, e_shnum, e_shstrndx.
    bytes[0x28..0x30].fill(0);
    bytes[0x3a..0x40].fill(0);
    let table = UnwindTable::from_bytes(&bytes).expect("program headers are enough");
    assert_eq!(table, whole);
    assert_eq!(table.build_id.as_ref().map(Vec::len), Some(20));
}

/// musl describes its rt_sigreturn by no row, and debuggers know it by its bytes.
#[test]
fn musl_has_a_signal_row() {
    let path = compile("plain-musl", "musl-gcc", "plain.c", "-O2 -static -fasynchronous-unwind-tables");
    let table = table_of(&path);
    compare(&path, &table, &readelf_rows(&path));
    let user = compile_signal_user();
    let vaddr = address_of(&user, "__restore_rt");
    let table = table_of(&user);
    let pc = (vaddr - table.segments.text_base) as u32;
    // From the byte before on: that is where a walk looks up the return address of a handler.
    assert_eq!(table.lookup(pc - 1), Some(Row::bare(pc - 1, Kind::SIGNAL)));
    assert_eq!(table.lookup(pc + 8).map(Row::kind), Some(Kind::SIGNAL));
    assert_ne!(table.lookup(pc + 9).map(Row::kind), Some(Kind::SIGNAL));
}

fn compile_signal_user() -> std::path::PathBuf {
    let source = built("signal.c");
    fs::write(
        &source,
        "#include <signal.h>\nint main(void) { return signal(SIGINT, SIG_IGN) == SIG_ERR; }\n",
    )
    .expect("a source can be written");
    let output = built("signal-musl");
    run(Command::new("musl-gcc").args(["-O2", "-static"]).arg(source).arg("-o").arg(&output));
    output
}

/// A small generator of numbers: tests have to fail the same way twice.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Bits flipped in the unwind sections and the headers: a table or an error, rows in order and
/// inside the text.
#[test]
fn corrupt_files_give_rows_inside_the_text_or_an_error() {
    let path = compile("torture-corrupt", "g++", "torture.cc", "-O2 -pthread");
    let good = fs::read(&path).expect("the fixture can be read");
    let sections = run(Command::new("readelf").args(["-SW"]).arg(&path));
    let section = |name: &str| {
        let line = sections.lines().find(|line| line.contains(name)).expect(name);
        let words: Vec<&str> = line.split(name).nth(1).expect(name).split_whitespace().collect();
        let number = |word: &str| usize::from_str_radix(word, 16).expect(word);
        (number(words[2]), number(words[3]))
    };
    let places = [section(".eh_frame "), section(".eh_frame_hdr "), (0, 0x400), (good.len() - 0x800, 0x800)];
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (mut tables, mut partial) = (0, 0);
    for round in 0..4000 {
        let mut bytes = good.clone();
        let (start, len) = places[round % 8 % places.len()];
        for _ in 0..1 + round % 7 {
            let at = start + numbers.below(len);
            bytes[at] ^= 1 << numbers.below(8);
        }
        if round % 50 == 0 {
            bytes.truncate(numbers.below(good.len()));
        }
        if let Ok(table) = UnwindTable::from_bytes(&bytes) {
            check_order(&table);
            tables += 1;
            partial += usize::from(table.stats.malformed > 0);
        }
    }
    assert!(tables > 2000 && partial > 200, "{tables} tables, {partial} of them partial");
}
