//! Walks of stopped threads against gdb's, at the same stops.
//!
//! gdb runs the program and stops it; this test reads the registers that gdb prints, and the memory
//! and the mappings of the stopped process, and walks with the step function of the BPF programs.
//! Frames have to be gdb's.

mod unwind_fixtures;

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
};

use memleak::{
    objects::ObjectFile,
    proc::{
        maps::{Backing, read_maps},
        memory::{ProcessMemory, ReadMemory as _},
    },
    unwind::{Arrays, Layout, Machine, MappedObject, Shortage, TableCache, Walk, walk},
};
use memleak_common::unwind::{MappingList, NO_MASK, Regs, Step};
use unwind_fixtures::{compile, source};

/// More than any scene has.
const MAX_DEPTH: usize = 400;
const MAX_VDSO: u64 = 1 << 20;

/// gdb, with a program in it.
struct Gdb {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What gdb says of a stopped thread.
struct Stop {
    pid: u32,
    regs: Regs,
    ips: Vec<u64>,
}

impl Gdb {
    fn start(program: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new("gdb")
            .args(["-nx", "-q", "-x"])
            .arg(source("gdb_truth.py"))
            .arg("--args")
            .arg(program)
            .args(arguments)
            .env_remove("LD_BIND_NOW")
            .env("DEBUGINFOD_URLS", "")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("gdb is installed");
        let input = child.stdin.take().expect("it has a standard input");
        let output = BufReader::new(child.stdout.take().expect("it has a standard output"));
        Self { child, input, output }
    }

    fn command(&mut self, command: &str) {
        writeln!(self.input, "{command}").expect("gdb reads its commands");
    }

    /// Where the thread is stopped; `None` if the program has ended.
    fn truth(&mut self) -> Option<Stop> {
        self.command("truth");
        let mut before = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).expect("gdb prints text"), 0, "gdb ended: {before}");
            // The prompt may stand before it.
            let Some((_, truth)) = line.split_once("TRUTH ") else {
                before.push_str(&line);
                continue;
            };
            if truth.trim() == "gone" {
                return None;
            }
            let [ids, registers, frames]: [&str; 3] =
                truth.trim().split(';').collect::<Vec<_>>().try_into().expect("three parts");
            let numbers = |text: &str| -> Vec<u64> {
                text.split(' ').map(|word| u64::from_str_radix(word, 16).expect(text)).collect()
            };
            let [ip, sp, fp] = numbers(registers).try_into().expect("three registers");
            let pid = ids.split(' ').next().and_then(|pid| pid.parse().ok()).expect(ids);
            return Some(Stop { pid, regs: Regs { ip, sp, fp, lr: 0 }, ips: numbers(frames) });
        }
    }
}

impl Drop for Gdb {
    fn drop(&mut self) {
        // It kills its program when it quits. A gdb that is gone has nothing to hear.
        let _ = writeln!(self.input, "kill\nquit");
        let _ = self.child.wait();
    }
}

/// A process's tables, brought up to date when its mappings change.
struct Tables {
    cache: TableCache,
    layout: Layout,
    arrays: Arrays,
    known: Vec<(u64, u64)>,
}

impl Tables {
    fn new() -> Self {
        Self {
            cache: TableCache::default(),
            layout: Layout::new(1 << 26, 1 << 12),
            arrays: Arrays::default(),
            known: vec![],
        }
    }

    fn list(&mut self, pid: u32, memory: &ProcessMemory) -> MappingList {
        let maps = read_maps(pid).expect("the stopped process has mappings");
        let executable: Vec<_> =
            maps.into_iter().filter(|map| map.executable && map.backing != Backing::Other).collect();
        let ranges: Vec<_> = executable.iter().map(|map| (map.start, map.end)).collect();
        if ranges == self.known {
            return self.arrays.list(pid);
        }
        let sources: Vec<_> = executable
            .iter()
            .map(|map| match map.path() {
                Some(path) => Arc::new(ObjectFile::new(File::open(map.map_files_path(pid)), path)),
                None => {
                    let mut bytes =
                        vec![0; usize::try_from((map.end - map.start).min(MAX_VDSO)).expect("small")];
                    memory.read_exact_at(map.start, &mut bytes).expect("the vdso can be read");
                    Arc::new(ObjectFile::from_memory(bytes, Path::new("[vdso]")))
                }
            })
            .collect();
        let objects: Vec<_> = self
            .cache
            .get_many(&sources)
            .into_iter()
            .zip(&executable)
            .map(|(table, map)| MappedObject {
                start: map.start,
                end: map.end,
                file_offset: map.file_offset,
                table: table.expect("what is mapped has a table"),
            })
            .collect();
        self.known = ranges;
        self.layout.set_process(pid, &objects, Shortage::Fail, &mut self.arrays).expect("there is room")
    }

    /// Walks from a stop. gdb goes on from the bottom of a makecontext stack to words that happen
    /// to lie there: what is in no executable mapping, and what follows it, is taken from its
    /// frames.
    fn walk(&mut self, stop: &mut Stop) -> Walk {
        let memory = ProcessMemory::open(stop.pid).expect("the stopped process's memory opens");
        let list = self.list(stop.pid, &memory);
        let executable = |ip: &u64| self.known.iter().any(|(start, end)| (start..end).contains(&ip));
        let frames = stop.ips.iter().take_while(|ip| executable(ip)).count();
        stop.ips.truncate(frames);
        walk(Machine::X86_64, stop.regs, NO_MASK, list, &self.arrays, &memory, MAX_DEPTH)
    }
}

/// How walks compared with gdb's.
#[derive(Default, Debug)]
struct Score {
    stops: usize,
    frames: usize,
    equal_frames: usize,
    equal_stacks: usize,
    complete: usize,
    ends: HashMap<Step, usize>,
    deepest: usize,
    /// Texts of the first stacks that differ.
    differences: Vec<String>,
}

impl Score {
    fn add(&mut self, stop: &Stop, walked: &Walk) {
        let ips: Vec<u64> = walked.frames.iter().map(|frame| frame.ip).collect();
        let equal = ips.iter().zip(&stop.ips).take_while(|(ours, theirs)| ours == theirs).count();
        self.stops += 1;
        self.frames += stop.ips.len();
        self.equal_frames += equal;
        self.deepest = self.deepest.max(ips.len());
        self.complete += usize::from(walked.end == Step::Complete);
        *self.ends.entry(walked.end).or_default() += 1;
        if ips == stop.ips {
            self.equal_stacks += 1;
        } else if self.differences.len() < 5 {
            self.differences.push(format!("{:?}\n  ours {ips:x?}\n  gdb  {:x?}", walked.end, stop.ips));
        }
    }

    /// All stacks equal and complete.
    fn assert_perfect(&self, name: &str, stops: usize) {
        println!("{name}: {} stops, {} frames, {} equal", self.stops, self.frames, self.equal_frames);
        assert!(self.stops >= stops, "{name}: {} stops", self.stops);
        let differences = self.differences.join("\n");
        assert_eq!(
            (self.equal_stacks, self.complete),
            (self.stops, self.stops),
            "{name}: {self:?}\n{differences}"
        );
    }
}

/// Runs a program to each hit of `breakpoints` and compares there; at most `limit` hits.
fn compare_at(program: &Path, arguments: &[&str], breakpoints: &[&str], limit: usize) -> Score {
    let mut gdb = Gdb::start(program, arguments);
    let mut tables = Tables::new();
    let mut score = Score::default();
    gdb.command("break main");
    gdb.command("run > /dev/null 2>&1");
    for breakpoint in breakpoints {
        gdb.command(&format!("break {breakpoint}"));
    }
    while let Some(mut stop) = gdb.truth().filter(|_| score.stops < limit) {
        let walked = tables.walk(&mut stop);
        score.add(&stop, &walked);
        gdb.command("continue");
    }
    score
}

#[test]
fn torture_is_walked_as_gdb_walks_it() {
    for (name, compiler, flags) in [
        ("gcc-O2", "g++", "-O2 -fomit-frame-pointer"),
        ("gcc-O0", "g++", "-O0"),
        ("gcc-lto", "g++", "-O3 -flto -fomit-frame-pointer"),
        ("gcc-static", "g++", "-O2 -static"),
        ("gcc-nopie", "g++", "-O2 -fno-pie -no-pie"),
        ("clang-O2", "clang++", "-O2 -fomit-frame-pointer"),
    ] {
        let program = compile(&format!("walk-{name}"), compiler, "torture.cc", &format!("{flags} -pthread"));
        let score = compare_at(&program, &[], &["malloc", "stop_here"], 500);
        score.assert_perfect(name, 30);
        assert!(score.deepest > 103, "{name}: recursion of 100 was seen: {}", score.deepest);
    }
}

#[test]
fn stripped_program_is_walked_as_gdb_walks_it() {
    // gdb finds the breakpoint in the dynamic symbols; nobody finds anything else.
    let program = compile("walk-stripped", "g++", "torture.cc", "-O2 -pthread -Wl,-s -rdynamic");
    compare_at(&program, &[], &["malloc", "stop_here"], 500).assert_perfect("stripped", 30);
}

/// Every instruction of a lazy call through the dynamic linker, of a call into the vdso and of the
/// ways back.
#[test]
fn every_instruction_of_a_lazy_call_is_walked() {
    let program = compile("walk-lazy", "g++", "torture.cc", "-O2 -pthread -Wl,-z,lazy -no-pie");
    let mut gdb = Gdb::start(&program, &[]);
    let mut tables = Tables::new();
    let mut score = Score::default();
    gdb.command("break step_from_here");
    gdb.command("run > /dev/null 2>&1");
    let mut in_vdso = 0;
    let vdso =
        |pid| read_maps(pid).expect("it is stopped").into_iter().find(|map| map.backing == Backing::Vdso);
    let first = gdb.truth().expect("it stops at the breakpoint");
    let vdso = vdso(first.pid).expect("the kernel maps a vdso");
    for _ in 0..2500 {
        let Some(mut stop) = gdb.truth() else { break };
        in_vdso += usize::from((vdso.start..vdso.end).contains(&stop.regs.ip));
        let walked = tables.walk(&mut stop);
        score.add(&stop, &walked);
        gdb.command("stepi");
    }
    println!("{score:?}, {in_vdso} in the vdso");
    assert!(score.stops > 1000 && in_vdso > 10, "{score:?}, {in_vdso} in the vdso");
    // _dl_runtime_resolve keeps its CFA in rbx, which no row can say: those stacks are cut, none is
    // wrong.
    let unsupported = score.ends.get(&Step::Unsupported).copied().unwrap_or(0);
    assert_eq!(score.equal_stacks + unsupported, score.stops, "{}", score.differences.join("\n"));
}

#[test]
fn python_is_walked_as_gdb_walks_it() {
    let script = "import ctypes, json, re\n\
        kept = [json.loads(json.dumps({'a': [n] * 50})) for n in range(30)]\n\
        libc = ctypes.CDLL(None)\n\
        Compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))\n\
        def compare(a, b):\n    kept.append(bytes(2000)); return a[0] - b[0]\n\
        values = (ctypes.c_int * 8)(5, 3, 9, 1, 7, 2, 8, 4)\n\
        libc.qsort(values, 8, 4, Compare(compare))\n\
        kept.append(re.compile('(a|b)*c{1,9}').match('ababc'))\n";
    let mut gdb = Gdb::start(Path::new("/usr/bin/python3"), &["-S", "-E", "-c", script]);
    let mut tables = Tables::new();
    let mut score = Score::default();
    gdb.command("set breakpoint pending on");
    gdb.command("break qsort");
    gdb.command("run > /dev/null 2>&1");
    gdb.command("break malloc");
    while let Some(mut stop) = gdb.truth().filter(|_| score.stops < 120) {
        let walked = tables.walk(&mut stop);
        score.add(&stop, &walked);
        gdb.command("continue");
    }
    score.assert_perfect("python3", 75);
}
