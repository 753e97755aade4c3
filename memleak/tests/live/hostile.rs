//! Files that were made to do damage: each costs seconds and megabytes, is named in one line, and the report goes on.

use std::{
    fs::{self, File, Permissions},
    io::Write as _,
    os::unix::{
        fs::{FileExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    guard::alone,
    process::Running,
    programs::{Link, build, scratch_dir, text},
    tracer::{MEMLEAK, Tracer},
};

const GIB: u64 = 1 << 30;

/// What a tracer may use: its resident memory at most, and the time by its CPUs beyond that of a harmless target. A tracer
/// without optimization takes ten times as long.
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

const SH_OFFSET: usize = 24;
const SH_SIZE: usize = 32;
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

    fn write(&self, path: &Path) {
        let _ = fs::remove_file(path);
        let mut file = File::create(path).expect("a scratch file");
        file.write_all(&self.bytes).expect("written");
        file.set_len(self.length).expect("made sparse");
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("made executable");
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).expect("made somebody's");
    }
}

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

/// What a traced hostile target has cost.
#[derive(Debug)]
struct Cost {
    memory: u64,
    time: Duration,
    answer: Duration,
    notes: Vec<String>,
    functions: Vec<String>,
}

/// CPU time of a process, user and system.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("a name").split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 10) // USER_HZ is 100 on all machines that we run on
}

/// The most memory that a process has had, bytes.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
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
fn headers() {
    check_all(HEADERS);
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
    // The break of a lease is told by SIGIO.
    // SAFETY: ignoring a signal touches no memory.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    let begin = Instant::now();
    let mut tracer = Tracer::attach(target.pid());
    assert!(!tracer.running().has_ended());
    tracer.stop_with_report();
    let took = begin.elapsed();
    drop(file);
    fs::remove_file(map).expect("removed");
    assert!(took < Duration::from_secs(20), "{took:?}");
}

/// Limits of ours end in a report or in one line that says what to do, and what it says works.
#[test]
fn limits_of_ours() {
    let _alone = alone();
    let mut target = Running::start(&mut Command::new(program()));
    target.expect("READY");
    let pid = target.pid().to_string();
    for limit in ["-v 80000", "-v 120000", "-n 64", "-n 20", "-s 64", "-f 0"] {
        let run = |more: &str| {
            let line = format!("ulimit {limit}; exec {MEMLEAK} -o 0 {more} -p {pid} 0.2 1");
            let output = Command::new("bash").args(["-c", &line]).process_group(0).output().expect("bash");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            println!("ulimit {limit} {more}: {:?} {said}", output.status);
            (output.status, said)
        };
        let (status, said) = run("");
        assert!(
            matches!(status.code(), Some(0 | 1)) && !said.contains("panicked"),
            "{limit}: {status} {said}"
        );
        if status.code() == Some(1) {
            assert_eq!(said.lines().count(), 1, "{limit}: {said}");
            assert!(said.contains("--unwind fp") || said.contains("ulimit"), "{limit}: {said}");
            let (status, again) = run("--unwind fp");
            assert!(status.success() || !said.contains("--unwind fp"), "{limit}: {status} {again}");
        }
    }
    let _ = File::open("/dev/null").map(|file| file.read_at(&mut [0], 0));
}
