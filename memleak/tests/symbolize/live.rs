//! Real processes: this one, and children that end, or whose files go away.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use memleak::{
    proc::maps::{Backing, Mapping, read_maps},
    symbolize::{NoSymbol, Symbolizer},
};

use crate::tools::{
    BIAS, Directory, FileTarget, addr2line, fixture, mappings, return_addresses, run, symbolizer,
};

/// A child that waits, with the address of the function it waits in and that of its vdso.
struct Waiting {
    child: Child,
    function: u64,
    vdso: u64,
}

impl Waiting {
    fn start(file: &Path) -> Self {
        let mut child = Command::new(file).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let mut numbers = line
            .split_whitespace()
            .map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap());
        Self { function: numbers.next().unwrap(), vdso: numbers.next().unwrap(), child }
    }

    fn end(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn compile(directory: &Directory, options: &str) -> PathBuf {
    let file = directory.path("waits");
    run(&format!("gcc {options} -o {{}} {{}}"), &[&file, &fixture("waits.c")]);
    file
}

#[test]
fn after_the_process_has_ended_and_its_file_was_replaced() {
    let directory = Directory::new();
    let file = compile(&directory, "-g -fno-omit-frame-pointer");
    let mut waiting = Waiting::start(&file);
    // Deleted, and another program in its place, before we look.
    fs::remove_file(&file).unwrap();
    fs::copy("/bin/true", &file).unwrap();
    let pid = waiting.child.id();
    let mut symbolizer = Symbolizer::new();
    symbolizer.observe(pid).unwrap();
    waiting.end();
    assert!(symbolizer.observe(pid).is_err(), "it is gone");
    let frames = symbolizer.symbolize(pid, 0, &[waiting.function + 1]);
    let [frame] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(frame.function.as_deref(), Some("where_it_waits"));
    assert_eq!(frame.function_offset, Some(1));
    assert_eq!(frame.line, Some(6));
    assert_eq!(frame.module.as_deref(), file.to_str());
    symbolizer.forget(pid);
    let frames = symbolizer.symbolize(pid, 0, &[waiting.function + 1]);
    assert_eq!(frames[0].no_symbol, Some(NoSymbol::Unmapped));
}

#[test]
fn the_vdso_and_the_c_library() {
    let directory = Directory::new();
    let mut waiting = Waiting::start(&compile(&directory, "-g"));
    let pid = waiting.child.id();
    let mut symbolizer = Symbolizer::new();
    symbolizer.observe(pid).unwrap();
    // The truth about the vdso: its own copy in this process, by binutils.
    let maps = read_maps(std::process::id()).unwrap();
    let ours = maps.iter().find(|mapping| mapping.backing == Backing::Vdso).unwrap();
    let mut image = vec![0; (ours.end - ours.start) as usize];
    use std::os::unix::fs::FileExt as _;
    File::open("/proc/self/mem").unwrap().read_exact_at(&mut image, ours.start).unwrap();
    let copy = directory.path("vdso.so");
    fs::write(&copy, image).unwrap();
    let symbols = run("nm -D {}", &[&copy]);
    let line = symbols.lines().find(|line| line.contains("clock_gettime")).unwrap();
    let vaddr = u64::from_str_radix(line.split_whitespace().next().unwrap(), 16).unwrap();
    // The C library: malloc, by nm.
    let maps = read_maps(pid).unwrap();
    let libc = maps.iter().find(|it| it.path().is_some_and(|path| path.ends_with("libc.so.6"))).unwrap();
    let path = libc.path().unwrap().to_owned();
    let symbols = run("nm -D {}", &[&path]);
    let line = symbols.lines().find(|line| line.contains(" malloc@@")).unwrap();
    let malloc = u64::from_str_radix(line.split_whitespace().next().unwrap(), 16).unwrap();
    waiting.end();
    let frames = symbolizer.symbolize(pid, 0, &[waiting.vdso + vaddr + 1, libc.start + malloc + 5]);
    assert_eq!(frames[0].module.as_deref(), Some("[vdso]"));
    assert_eq!(frames[0].function.as_deref(), Some("__vdso_clock_gettime"));
    assert_eq!(frames[0].offset, Some(vaddr + 1));
    let last = frames.last().unwrap();
    assert_eq!(last.function.as_deref(), Some("malloc"));
    assert_eq!(last.function_offset, Some(5));
    assert_eq!(last.module.as_deref(), path.to_str());
}

#[test]
fn local_functions_of_the_c_library_come_from_its_debug_file() {
    let directory = Directory::new();
    let mut waiting = Waiting::start(&compile(&directory, "-g"));
    let pid = waiting.child.id();
    let mut symbolizer = Symbolizer::new();
    symbolizer.observe(pid).unwrap();
    let maps = read_maps(pid).unwrap();
    let libc = maps.iter().find(|it| it.path().is_some_and(|path| path.ends_with("libc.so.6"))).unwrap();
    let notes = run("readelf -nW {}", &[libc.path().unwrap()]);
    let id = notes.split("Build ID: ").nth(1).unwrap().split_whitespace().next().unwrap();
    let debug = PathBuf::from(format!("/usr/lib/debug/.build-id/{}/{}.debug", &id[..2], &id[2..]));
    assert!(debug.exists(), "this test needs the package libc6-dbg");
    let symbols = run("nm {}", &[&debug]);
    let line = symbols.lines().find(|line| line.ends_with(" t _int_malloc")).unwrap();
    let vaddr = u64::from_str_radix(line.split_whitespace().next().unwrap(), 16).unwrap();
    waiting.end();
    let frames = symbolizer.symbolize(pid, 0, &[libc.start + vaddr + 1]);
    let last = frames.last().unwrap();
    assert_eq!(last.function.as_deref(), Some("_int_malloc"));
    assert_eq!(last.file.as_deref(), Some("./malloc/malloc.c"));
    let lines: Vec<String> = frames.iter().filter_map(|frame| Some(frame.line?.to_string())).collect();
    let truth = &addr2line(&debug, &[vaddr])[0];
    let truth: Vec<&str> = truth.iter().filter_map(|(_, at)| Some(at.rsplit_once(':')?.1)).collect();
    assert_eq!(lines, truth);
}

#[test]
fn an_address_is_looked_up_in_the_mappings_of_its_time() {
    let directory = Directory::new();
    compile(&directory, "-g");
    let file = directory.path("waits");
    let maps = mappings(&file, "waits", BIAS);
    let ips: Vec<u64> = return_addresses(&file).iter().map(|ip| ip + BIAS).collect();
    let target = FileTarget { root: directory.0.clone() };
    let mut symbolizer = symbolizer(&directory);
    symbolizer.observe_mappings(1, 0, maps.clone(), &target);
    let before = symbolizer.symbolize(1, 0, &ips);
    assert!(before.iter().all(|frame| frame.function.is_some()));
    // dlclose: something that is not code in its place. The file is gone, too.
    fs::remove_file(&file).unwrap();
    let code = maps.iter().find(|mapping| mapping.executable).unwrap().clone();
    let heap = Mapping { executable: false, backing: Backing::Other, ..code.clone() };
    symbolizer.observe_mappings(1, 2, vec![heap], &target);
    assert_eq!(symbolizer.symbolize(1, 0, &ips), before);
    assert_eq!(symbolizer.symbolize(1, 2, &ips)[0].no_symbol, Some(NoSymbol::Anonymous));
    // Generated code in the place of its second half.
    let middle = ips[ips.len() / 2] - 1;
    let generated = Mapping { start: middle, backing: Backing::Other, ..code };
    fs::create_dir_all(directory.0.join("tmp")).unwrap();
    let map = directory.path("tmp/perf-1.map");
    fs::write(&map, format!("{middle:x} 1 JIT function\n")).unwrap();
    symbolizer.observe_mappings(1, 4, vec![generated], &target);
    assert_eq!(symbolizer.symbolize(1, 0, &ips), before);
    for (ip, after) in ips.iter().zip(symbolizer.symbolize(1, 4, &ips)) {
        match ip - 1 {
            call if call < middle => assert_eq!(after.no_symbol, Some(NoSymbol::Unmapped)),
            call if call == middle => {
                assert_eq!(after.function.as_deref(), Some("JIT function"));
                assert_eq!(after.function_offset, Some(1));
                assert_eq!(after.module.as_deref(), Some("[perf map]"));
            }
            _ => assert_eq!(after.no_symbol, Some(NoSymbol::Anonymous)),
        }
    }
    // Nobody has looked in between.
    assert_eq!(symbolizer.symbolize(1, 1, &ips)[0].no_symbol, Some(NoSymbol::Uncertain));
    // What is appended later is seen, though nothing was mapped.
    let last = *ips.last().unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(&map).unwrap();
    writeln!(file, "{:x} 10 later", last - 4).unwrap();
    assert_eq!(symbolizer.symbolize(1, 4, &[last])[0].function.as_deref(), Some("later"));
}

#[test]
fn an_object_that_cannot_be_read_is_named_with_an_offset() {
    let directory = Directory::new();
    compile(&directory, "-g");
    let file = directory.path("waits");
    let maps = mappings(&file, "waits", BIAS);
    let ips: Vec<u64> = return_addresses(&file).iter().map(|ip| ip + BIAS).collect();
    for content in [None, Some("no ELF file")] {
        fs::remove_file(&file).unwrap_or_default();
        if let Some(content) = content {
            fs::write(&file, content).unwrap();
        }
        let mut symbolizer = symbolizer(&directory);
        symbolizer.observe_mappings(1, 0, maps.clone(), &FileTarget { root: directory.0.clone() });
        let frame = &symbolizer.symbolize(1, 0, &ips[..1])[0];
        assert_eq!(frame.no_symbol, Some(NoSymbol::UnreadableObject));
        assert_eq!(frame.module.as_deref(), Some("/waits"));
        assert_eq!(frame.offset, Some(ips[0] - BIAS));
    }
}

#[test]
fn addresses_that_are_none() {
    let mut symbolizer = Symbolizer::new();
    let pid = std::process::id();
    for ip in [0, 1, u64::MAX, 0x1234] {
        let frames = symbolizer.symbolize(pid, 0, &[ip]);
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].no_symbol, Some(NoSymbol::Unmapped));
    }
    symbolizer.observe(pid).unwrap();
    let stack = &raw const pid as u64;
    for (ip, why) in [(0, NoSymbol::Unmapped), (u64::MAX, NoSymbol::Unmapped), (stack, NoSymbol::Anonymous)] {
        assert_eq!(symbolizer.symbolize(pid, 0, &[ip])[0].no_symbol, Some(why), "{ip:#x}");
    }
}

/// A C++ program of some size, built for debugging: this test's own process is one in Rust, larger
/// still.
#[test]
fn ten_thousand_addresses_again_are_cheap() {
    let pid = std::process::id();
    let mut symbolizer = Symbolizer::new();
    symbolizer.observe(pid).unwrap();
    let maps = read_maps(pid).unwrap();
    let code = maps.iter().find(|it| it.executable && it.path().is_some()).unwrap();
    let step = ((code.end - code.start) / 10_000).max(1);
    let ips: Vec<u64> = (0..10_000).map(|index| code.start + 1 + index * step).collect();
    let cold = symbolizer.symbolize(pid, 0, &ips);
    let start = Instant::now();
    assert_eq!(symbolizer.symbolize(pid, 0, &ips), cold);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let start = Instant::now();
    for _ in 0..10 {
        symbolizer.observe(pid).unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}
