//! Files that were made to do damage: each costs seconds and megabytes, is named in one line, and
//! the report goes on.

use std::{
    ffi::CString,
    fs::{self, File, Permissions},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    guard::{alone, cpu_time, status_kb},
    process::{Running, rounds, wait_for_end},
    programs::{Link, build, scratch_dir, text},
    tracer::Tracer,
};

const GIB: u64 = 1 << 30;

/// What a tracer may use: its resident memory at most, and the time by its CPUs beyond that of a
/// harmless target. A tracer without optimization takes ten times as long.
const MEMORY: u64 = 300 << 20;
const TIME: Duration = Duration::from_secs(if cfg!(debug_assertions) { 30 } else { 3 });
/// From SIGTERM to the end, by the clock.
const ANSWER: Duration = Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 1 });

/// An ELF file of 64 bits to be damaged.
struct Image {
    bytes: Vec<u8>,
    /// Length of the file, which is sparse beyond the bytes.
    length: u64,
}

/// Offsets within a section header and a program header.
const SH_TYPE: usize = 4;
const SH_FLAGS: usize = 8;
const SH_OFFSET: usize = 24;
const SH_SIZE: usize = 32;
const SH_LINK: usize = 40;
const P_OFFSET: usize = 8;
const P_FILESZ: usize = 32;

impl Image {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).expect("the program was built");
        Self { length: bytes.len() as u64, bytes }
    }

    fn number(&self, at: usize, size: usize) -> u64 {
        self.bytes[at..at + size].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn put(&mut self, at: usize, size: usize, value: u64) {
        self.bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }

    /// Where the header of the section `name` is.
    fn section(&self, name: &str) -> usize {
        let (table, count) = (self.number(40, 8) as usize, self.number(60, 2) as usize);
        let names = table + 64 * self.number(62, 2) as usize;
        let names = self.number(names + SH_OFFSET, 8) as usize;
        let header = |index: usize| table + 64 * index;
        let is_it = |at: &usize| {
            let start = names + self.number(*at, 4) as usize;
            self.bytes[start..].starts_with(format!("{name}\0").as_bytes())
        };
        (0..count).map(header).find(is_it).unwrap_or_else(|| panic!("no section {name}"))
    }

    /// Where the first program header of this type is.
    fn segment(&self, kind: u64) -> usize {
        let (table, count) = (self.number(32, 8) as usize, self.number(56, 2) as usize);
        let header = |index: usize| table + 56 * index;
        (0..count).map(header).find(|at| self.number(*at, 4) == kind).expect("it has such a segment")
    }

    /// Appends bytes at a page of their own; gives their offset.
    fn append(&mut self, bytes: &[u8]) -> u64 {
        let at = self.bytes.len().next_multiple_of(4096);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(bytes);
        self.length = self.length.max(self.bytes.len() as u64);
        at as u64
    }

    /// A hole of so many bytes at the end of the file; gives its offset.
    fn hole(&mut self, size: u64) -> u64 {
        let at = (self.bytes.len() as u64).next_multiple_of(4096);
        self.length = self.length.max(at + size);
        at
    }

    fn set(&mut self, section: &str, offset: u64, size: u64) {
        let at = self.section(section);
        self.put(at + SH_OFFSET, 8, offset);
        self.put(at + SH_SIZE, 8, size);
    }

    /// Makes the section a hole of so many bytes.
    fn make_sparse(&mut self, section: &str, size: u64) {
        let at = self.hole(size);
        self.set(section, at, size);
    }

    /// Makes the section these bytes.
    fn make_dense(&mut self, section: &str, bytes: &[u8]) {
        let at = self.append(bytes);
        self.set(section, at, bytes.len() as u64);
    }

    /// Gives the section another name of the same length at most.
    fn rename(&mut self, section: &str, name: &str) {
        let (at, names) = (self.section(section), self.section(".shstrtab"));
        let start = (self.number(names + SH_OFFSET, 8) + self.number(at, 4)) as usize;
        self.bytes[start..start + name.len()].copy_from_slice(name.as_bytes());
        self.bytes[start + name.len()] = 0;
    }

    fn write(&self, path: &Path) {
        let _ = fs::remove_file(path);
        let mut file = File::create(path).expect("a scratch file");
        file.write_all(&self.bytes).expect("written");
        file.set_len(self.length).expect("made sparse");
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("made executable");
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).expect("made somebody's");
    }
}

/// A symbol table of `count` functions at one address, with names that overlap.
fn symbols(image: &Image, count: u32) -> Vec<u8> {
    let (address, mut table) = (image.number(image.section(".text") + 16, 8), vec![0; 24]);
    for name in 0..count {
        table.extend((1 + name % 60_000).to_le_bytes());
        table.extend([0x12, 0, 1, 0]);
        table.extend((address + u64::from(name % 1000)).to_le_bytes());
        table.extend(8_u64.to_le_bytes());
    }
    table
}

/// Call frame information in which each entry has `len` bytes of instructions and names the CIE
/// that `cie` says.
fn entries(count: u32, len: u32, cie: impl Fn(u32) -> u32) -> Vec<u8> {
    // A CIE (LSB Core 10.6.1): length, 0, version 1, no augmentation, code 1, data -8, return
    // address 16, CFA rsp+8.
    let mut bytes = vec![0x14, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0x78, 16, 0x0c, 7, 8, 0x90, 1, 0, 0, 0, 0, 0, 0];
    for number in 0..count {
        let at = bytes.len() as u32;
        bytes.extend((20 + len).to_le_bytes());
        bytes.extend((at + 4 - cie(number)).to_le_bytes());
        bytes.extend((0x1000 + u64::from(number)).to_le_bytes());
        bytes.extend(1000_u64.to_le_bytes());
        // advance_loc 1, def_cfa_offset: a row for each three bytes.
        let row = |at: u32| [0x41, 0x0e, 8 + (at % 100) as u8];
        bytes.extend((0..len).flat_map(row).take(len as usize));
    }
    bytes
}

/// What `command` makes of `input`.
fn packed(command: &[&str], input: &[u8]) -> Vec<u8> {
    let path = scratch_dir().join("hostile-input");
    fs::write(&path, input).expect("written");
    let output =
        Command::new(command[0]).args(&command[1..]).stdin(File::open(&path).expect("is there")).output();
    output.unwrap_or_else(|error| panic!("{command:?}: {error}")).stdout
}

/// A compressed section: `Elf64_Chdr` and data.
fn compressed(kind: u32, size: u64, data: &[u8]) -> Vec<u8> {
    let head = [u64::from(kind), size, 1].map(u64::to_le_bytes).concat();
    [&head, data].concat()
}

/// Makes `section` debug information that is compressed.
fn compress(image: &mut Image, kind: u32, size: u64, data: &[u8]) {
    image.make_dense(".debug_info", &compressed(kind, size, data));
    let at = image.section(".debug_info") + SH_FLAGS;
    image.put(at, 8, 0x800);
}

const ZLIB: &str = "import sys,zlib; z=zlib.compressobj(1); [sys.stdout.buffer.write(z.compress(bytes(1<<20))) for _ in \
                    range(2000)]; sys.stdout.buffer.write(z.flush())";

/// A way to damage a file, and what is said of it.
struct Kind {
    name: &'static str,
    damage: fn(&mut Image),
    /// It is named on standard error.
    named: bool,
    /// Its functions have names all the same.
    symbolized: bool,
}

const fn kind(name: &'static str, named: bool, symbolized: bool, damage: fn(&mut Image)) -> Kind {
    Kind { name, damage, named, symbolized }
}

/// Sections of call frame information.
const FRAMES: &[Kind] = &[
    kind("eh_frame of 8 GiB", true, true, |image| image.make_sparse(".eh_frame", 8 * GIB)),
    kind("eh_frame of 47 MB of nothing", false, true, |image| image.make_sparse(".eh_frame", 47 << 20)),
    // Few of them are of code, and those are what counts.
    kind("eh_frame of two million entries", false, true, |image| {
        image.make_dense(".eh_frame", &entries(1_900_000, 0, |_| 0))
    }),
    kind("eh_frame of many rows", false, true, |image| {
        image.make_dense(".eh_frame", &entries(50_000, 700, |_| 0))
    }),
    kind("eh_frame in which each entry names another CIE", false, true, |image| {
        image.make_dense(".eh_frame", &entries(200_000, 40, |number| number * 7))
    }),
    kind("debug_frame of 3 GiB", true, true, |image| {
        image.rename(".debug_aranges", ".debug_frame");
        image.make_sparse(".debug_frame", 3 * GIB);
    }),
    kind("a header of eh_frame alone", false, true, |image| {
        image.rename(".eh_frame", ".xx_frame");
        let at = image.segment(0x6474_e550) + P_FILESZ;
        image.put(at, 8, 4 * GIB);
    }),
];

/// Headers, notes, segments.
const HEADERS: &[Kind] = &[
    kind("a note of 8 GiB", false, true, |image| {
        let (at, hole) = (image.segment(4), image.hole(8 * GIB));
        image.put(at + P_OFFSET, 8, hole);
        image.put(at + P_FILESZ, 8, 8 * GIB);
    }),
    kind("a section of notes of 8 GiB", false, true, |image| {
        image.make_sparse(".note.gnu.build-id", 8 * GIB)
    }),
    kind("section names of 4 GiB", true, false, |image| {
        let at = image.section(".shstrtab");
        let hole = image.hole(4 * GIB);
        image.put(at + SH_OFFSET, 8, hole);
        image.put(at + SH_SIZE, 8, 4 * GIB);
    }),
    kind("four billion sections", true, false, |image| {
        let first = image.number(40, 8) as usize;
        image.put(60, 2, 0);
        image.put(first + SH_SIZE, 8, 0xffff_ffff);
    }),
    kind("a dynamic section of 4 GiB", false, true, |image| {
        let at = image.section(".dynamic");
        image.put(at + SH_SIZE, 8, 4 * GIB);
    }),
    kind("relocations of 4 GiB", false, true, |image| image.make_sparse(".rela.dyn", 4 * GIB)),
];

/// Symbols and strings.
const SYMBOLS: &[Kind] = &[
    kind("symtab of 4 GiB", true, true, |image| image.make_sparse(".symtab", 4 * GIB)),
    kind("symtab of 26 million symbols", true, true, |image| image.make_sparse(".symtab", 26_000_000 * 24)),
    kind("symtab of 8 million symbols of nothing", false, true, |image| {
        image.make_sparse(".symtab", 8_000_000 * 24)
    }),
    // By this table other functions are where the leak is.
    kind("symtab of 3 million functions", true, false, |image| {
        let table = symbols(image, 3_000_000);
        image.make_dense(".symtab", &table);
    }),
    kind("strings of 4 GiB", false, true, |image| image.make_sparse(".strtab", 4 * GIB)),
    // By this table there are other functions, too.
    kind("names that overlap and have no end", false, false, |image| {
        let table = symbols(image, 1_000_000);
        image.make_dense(".symtab", &table);
        image.make_dense(".strtab", &vec![b'_'; 64_000]);
    }),
    kind("a symbol table that is its own strings", false, false, |image| {
        let (at, table) = (image.section(".symtab"), image.number(40, 8) as usize);
        let index = (at - table) / 64;
        image.put(at + SH_LINK, 4, index as u64);
    }),
    kind("two thousand symbol tables", false, true, |image| {
        for name in [".comment", ".strtab", ".debug_line", ".debug_str", ".debug_aranges", ".debug_abbrev"] {
            let at = image.section(name);
            image.put(at + SH_TYPE, 4, 2);
        }
    }),
];

/// Debug information.
const DWARF: &[Kind] = &[
    kind("debug information of 4 GiB", true, true, |image| {
        for section in [".debug_info", ".debug_line", ".debug_abbrev", ".debug_str"] {
            image.make_sparse(section, 4 * GIB);
        }
    }),
    kind("debug information of 100 MB of ones", false, true, |image| {
        image.make_dense(".debug_info", &vec![1; 100 << 20])
    }),
    kind("debug information that says 16 GiB when unpacked", true, true, |image| {
        compress(image, 1, 16 * GIB, &packed(&["python3", "-c", ZLIB], b""))
    }),
    kind("a zlib bomb that says one byte", false, true, |image| {
        compress(image, 1, 1, &packed(&["python3", "-c", ZLIB], b""))
    }),
    kind("a zstd bomb that says one byte", false, true, |image| {
        compress(image, 2, 1, &packed(&["zstd", "-c", "-q"], &vec![0; 1 << 30]))
    }),
    kind("a MiniDebugInfo of 1 GiB", false, false, |image| {
        image.rename(".symtab", ".xx");
        let at = image.section(".xx") + SH_TYPE;
        image.put(at, 4, 1);
        let at = image.section(".debug_aranges") + SH_TYPE;
        image.put(at, 4, 1);
        // 14 bytes are what `.debug_aranges` has room for.
        image.rename(".debug_aranges", ".gnu_debugdata");
        image.make_dense(".gnu_debugdata", &packed(&["xz", "-0", "-c", "-T1"], &vec![0; 1 << 30]));
    }),
];

/// What a traced hostile target has cost.
#[derive(Debug)]
struct Cost {
    memory: u64,
    time: Duration,
    answer: Duration,
    notes: Vec<String>,
    functions: Vec<String>,
}

/// The most memory that a process has had, bytes.
fn peak(pid: u32) -> u64 {
    status_kb(pid, "VmHWM") << 10
}

/// Traces `program`, lets it go on, reads a report and ends the tracer by SIGTERM.
fn trace(program: &Path, arguments: &[&str]) -> Cost {
    let mut target = Running::start(Command::new(program).args(arguments));
    target.expect("READY");
    let pid = target.pid().to_string();
    let mut tracer = Tracer::start(&["--json", "-v", "-o", "0", "-z", "100", "-Z", "100", "-p", &pid, "0.3"]);
    tracer.wait_attached();
    target.tell("go");
    target.expect("DONE");
    let report = tracer.wait_report(|report| report.totals.count >= 10);
    assert_eq!((report.totals.bytes, report.totals.count), (1000, 10), "{}", report.describe());
    let (memory, time) = (peak(tracer.running().pid()), cpu_time(tracer.running().pid()));
    let frames = report.stacks.iter().flat_map(|stack| &stack.frames);
    let functions = frames.map(|frame| frame.bare_function().to_owned()).collect();
    let begin = Instant::now();
    tracer.running().signal(libc::SIGTERM);
    let outcome = tracer.wait();
    let answer = begin.elapsed();
    assert_eq!(outcome.code, 0, "{:?}", outcome.ended.stderr);
    target.end();
    Cost { memory, time, answer, notes: outcome.ended.stderr, functions }
}

fn program() -> PathBuf {
    build("hostile.c", Link::Dynamic, &["-ldl"])
}

fn library() -> PathBuf {
    build("hostile.c", Link::Library, &["-DLIBRARY"])
}

fn check(what: &str, cost: &Cost, harmless: &Cost, file: &Path, kind: &Kind) {
    let time = cost.time.saturating_sub(harmless.time);
    println!("{what}: {} MB, {time:?} more, answered after {:?}", cost.memory >> 20, cost.answer);
    let notes = cost.notes.join("\n");
    assert!(cost.memory < MEMORY && time < TIME && cost.answer < ANSWER, "{what}: {cost:?}");
    let naming = cost.notes.iter().filter(|line| line.contains(text(file)) && line.contains("one object"));
    assert_eq!(naming.count(), usize::from(kind.named), "{what}: {notes}");
    let is_named = cost.functions.iter().any(|function| function == "hostile_leak");
    assert!(is_named || !kind.symbolized, "{what}: {:?}\n{notes}", cost.functions);
}

/// Each kind, as a library that is loaded and as a program.
fn check_all(kinds: &[Kind]) {
    let _alone = alone();
    let harmless = trace(&program(), &[text(&library())]);
    println!(
        "harmless: {} MB, {:?}, answered after {:?}",
        harmless.memory >> 20,
        harmless.time,
        harmless.answer
    );
    let path = scratch_dir().join("hostile-file");
    for kind in kinds {
        let mut image = Image::read(&library());
        (kind.damage)(&mut image);
        image.write(&path);
        check(kind.name, &trace(&program(), &[text(&path)]), &harmless, &path, kind);
        let mut image = Image::read(&program());
        (kind.damage)(&mut image);
        image.write(&path);
        check(&format!("{}, a program", kind.name), &trace(&path, &[]), &harmless, &path, kind);
    }
    fs::remove_file(path).expect("removed");
}

#[test]
fn call_frame_information() {
    check_all(FRAMES);
}

#[test]
fn headers() {
    check_all(HEADERS);
}

#[test]
fn symbol_tables() {
    check_all(SYMBOLS);
}

#[test]
fn debug_information() {
    check_all(DWARF);
}

/// SIGTERM is answered at any moment of the work that a file costs: before it, amid it, after it.
#[test]
fn an_end_at_any_moment() {
    const MOMENTS: usize = 8;
    let _alone = alone();
    let path = scratch_dir().join("hostile-file");
    let costly = ["names that overlap and have no end", "symtab of 3 million functions"];
    for kind in SYMBOLS.iter().filter(|kind| costly.contains(&kind.name)) {
        let mut image = Image::read(&program());
        (kind.damage)(&mut image);
        image.write(&path);
        for moment in rounds(MOMENTS) {
            let mut target = Running::start(&mut Command::new(&path));
            target.expect("READY");
            let mut tracer = Tracer::start(&["-o", "0", "-p", &target.pid().to_string(), "0.3"]);
            // No event stands for "amid the work": the moments are spread.
            assert!(!wait_for_end(tracer.running().pid(), Duration::from_millis(50 + moment * 250)));
            target.tell("go");
            let begin = Instant::now();
            tracer.running().signal(libc::SIGTERM);
            tracer.running().wait_status();
            let answer = begin.elapsed();
            println!("{}, {moment}: {answer:?}", kind.name);
            assert!(answer < ANSWER, "{}, {moment}: {answer:?}", kind.name);
        }
    }
    fs::remove_file(path).expect("removed");
}

/// What a `.gnu_debuglink` leads to: 4 GiB, a pipe, a device. Without a build id all of it would
/// have to be read.
#[test]
fn debug_links() {
    let _alone = alone();
    let harmless = trace(&program(), &[text(&library())]);
    let (path, link) = (scratch_dir().join("hostile-file"), scratch_dir().join("hostile.debug"));
    let pipe = |path: &Path| {
        let path = CString::new(text(path)).expect("a path");
        // SAFETY: `path` is NUL-terminated and lives through the call.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    };
    /// What it is, whether the object is named, and how it is made.
    type Made<'a> = (&'static str, bool, &'a dyn Fn(&Path));
    let make: [Made<'_>; 3] = [
        ("a link to 4 GiB", true, &|path| {
            let mut image = Image::read(&library());
            let at = image.section(".note.gnu.build-id") + SH_TYPE;
            image.put(at, 4, 1);
            image.length = 4 * GIB;
            image.write(path);
        }),
        ("a link to a pipe", false, &pipe),
        ("a link to a device", false, &|path| symlink("/dev/zero", path).expect("a link")),
    ];
    for (name, named, make) in make {
        let mut image = Image::read(&library());
        for section in [".note.gnu.build-id", ".symtab"] {
            let at = image.section(section) + SH_TYPE;
            image.put(at, 4, 1);
        }
        let at = image.segment(4);
        image.put(at, 4, 0);
        image.rename(".debug_aranges", ".gnu_debuglink");
        image.make_dense(".gnu_debuglink", b"hostile.debug\0\0\0\x01\x02\x03\x04");
        image.write(&path);
        make(&link);
        let kind = kind(name, named, false, |_| {});
        check(name, &trace(&program(), &[text(&path)]), &harmless, &path, &kind);
        fs::remove_file(&link).expect("removed");
    }
    fs::remove_file(path).expect("removed");
}

/// The map of generated code: sparse, of 70 MB of lines, a pipe, and under a lease.
#[test]
fn perf_maps() {
    let _alone = alone();
    let harmless = trace(&program(), &["generated"]);
    let lines: &dyn Fn(&Path) = &|path| {
        let mut file = std::io::BufWriter::new(File::create(path).expect("a map"));
        for number in 0..600_000_u64 {
            let name = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            writeln!(file, "{:x} 10 {name:032x}{name:016x}", 0x1000 + number * 16).expect("written");
        }
    };
    let sparse: &dyn Fn(&Path) = &|path| File::create(path).expect("a map").set_len(8 * GIB).expect("sparse");
    for (name, said, make) in [("8 GiB of nothing", true, sparse), ("too many lines", true, lines)] {
        let mut target = Running::start(Command::new(program()).arg("generated"));
        target.expect("READY");
        let map = PathBuf::from(format!("/tmp/perf-{}.map", target.pid()));
        make(&map);
        let mut tracer = Tracer::start(&["--json", "-v", "-o", "0", "-p", &target.pid().to_string(), "0.3"]);
        tracer.wait_attached();
        target.tell("go");
        target.expect("DONE");
        tracer.wait_report(|report| report.totals.count == 10);
        let (memory, time) = (peak(tracer.running().pid()), cpu_time(tracer.running().pid()));
        let time = time.saturating_sub(harmless.time);
        let outcome = tracer.stop();
        fs::remove_file(&map).expect("removed");
        println!("{name}: {} MB, {time:?} more", memory >> 20);
        assert!(memory < MEMORY && time < TIME, "{name}: {} MB, {time:?}", memory >> 20);
        let notes = outcome.ended.stderr.iter().filter(|line| line.contains("perf map")).count();
        assert_eq!(notes, usize::from(said), "{name}: {:?}", outcome.ended.stderr);
    }
}

/// A write lease on its own perf map would hold whoever opens it for 45 s (fcntl(2), F_SETLEASE).
#[test]
fn a_lease_does_not_hold_us() {
    let _alone = alone();
    let target = Running::start(Command::new("sleep").arg("60"));
    let map = PathBuf::from(format!("/tmp/perf-{}.map", target.pid()));
    let file = File::create(&map).expect("a map");
    // SAFETY: two integers; the descriptor is open.
    let leased =
        unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&file), libc::F_SETLEASE, libc::F_WRLCK) };
    assert_eq!(leased, 0, "{}", std::io::Error::last_os_error());
    // The break of a lease is told by SIGIO. Programs that are started inherit that a signal is
    // ignored, and that it has a handler they do not.
    extern "C" fn nothing(_: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: the handler does nothing, wherever it interrupts.
    unsafe { libc::signal(libc::SIGIO, handler as libc::sighandler_t) };
    let begin = Instant::now();
    let mut tracer = Tracer::attach(target.pid());
    assert!(!tracer.running().has_ended());
    tracer.stop_with_report();
    let took = begin.elapsed();
    drop(file);
    fs::remove_file(map).expect("removed");
    assert!(took < Duration::from_secs(20), "{took:?}");
}

/// As many mappings as the kernel allows, half of them executable and all of one file.
#[test]
fn sixty_five_thousand_mappings() {
    let _alone = alone();
    let harmless = trace(&program(), &[]);
    let cost = trace(&program(), &["maps", "65300"]);
    let time = cost.time.saturating_sub(harmless.time);
    println!("mappings: {} MB, {time:?} more, answered after {:?}", cost.memory >> 20, cost.answer);
    assert!(cost.memory < MEMORY && time < TIME && cost.answer < ANSWER, "{cost:?}");
    assert!(cost.functions.iter().any(|function| function == "hostile_leak"), "{:?}", cost.functions);
}
