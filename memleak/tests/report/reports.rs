//! Reports to write: one for each thing that can be in them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::tz::{TimeZone, offset};
use memleak::{
    account::{Finding, Memory},
    kernel_labels::Tag,
    probe::resource::ResourceInfo,
    report::{
        format::Options,
        model::{
            AllocationLine, Frames, Note, OomKilled, OtherProcesses, ProcessCount, Processes, Report,
            ResourceTotal, StackReport, TargetInfo, TemporaryStack, Totals,
        },
    },
    sampling::Sampling,
    snapshot::{Cut, KERNEL_PID, Lost},
    symbolize::{Frame, NoSymbol},
    verdict::{History, judge},
};
use memleak_common::probe::Resource;

/// 2026-01-02T03:04:05.678Z
pub(crate) fn time() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_767_323_045_678)
}

/// A place two hours east of Greenwich: its time of day is not UTC.
pub(crate) fn options(top: usize) -> Options {
    Options { time_zone: TimeZone::fixed(offset(2)), ..Options::new(top) }
}

pub(crate) fn frame(ip: u64, function: &str, function_offset: u64, place: Option<(&str, u32)>) -> Frame {
    Frame {
        ip,
        module: Some("/tmp/leak".to_owned()),
        offset: Some(ip - 0x55fc_a689_9000),
        function: Some(function.to_owned()),
        symbol: Some(function.to_owned()),
        function_offset: Some(function_offset),
        file: place.map(|(file, _)| file.to_owned()),
        directory: None,
        line: place.map(|(_, line)| line),
        inlined: false,
        no_symbol: None,
        with_arguments: None,
    }
}

fn unknown(ip: u64, module: Option<&str>, offset: Option<u64>, reason: NoSymbol) -> Frame {
    Frame::without_function(ip, module.map(str::to_owned), offset, reason)
}

/// A stack of a report, with its frames.
#[derive(Clone)]
pub(crate) struct Stack {
    pub pid: u32,
    /// The processes that hold it, where they are several.
    pub shared: Vec<ProcessCount>,
    pub resource: Arc<ResourceInfo>,
    pub bytes: u64,
    pub count: u64,
    pub oldest_ms: Option<u64>,
    pub newest_ms: Option<u64>,
    pub tag: Option<Tag>,
    pub cut: Option<Cut>,
    pub frames: Vec<Frame>,
    pub now: Option<String>,
    pub history: History,
    pub allocations: Option<Vec<AllocationLine>>,
}

impl Stack {
    fn report(self, frames: &mut Frames) -> StackReport {
        let one = ProcessCount { pid: self.pid, bytes: self.bytes, count: self.count };
        let notes = [self.cut.map(Note::Cut), self.now.map(Note::Now)];
        StackReport {
            others: OtherProcesses::default(),
            threads: Vec::new(),
            stack_id: (!self.frames.is_empty()).then_some(0x0123_4567_89ab_cdef),
            resource: self.resource,
            bytes: self.bytes,
            count: self.count,
            margin: None,
            processes: if self.shared.is_empty() { vec![one] } else { self.shared },
            growth_bytes: 0,
            growth_count: 0,
            verdict: judge(&self.history),
            history: History {
                oldest_ms: self.oldest_ms,
                newest_ms: self.newest_ms,
                watched_ms: 5000,
                ..self.history
            },
            oldest_ms: self.oldest_ms,
            newest_ms: self.newest_ms,
            tag: self.tag,
            frames: self.frames.into_iter().map(|frame| frames.intern(frame)).collect(),
            notes: notes.into_iter().flatten().collect(),
            blocks: self.allocations.clone().unwrap_or_default(),
            why: None,
            allocations: self.allocations,
        }
    }
}

/// The stack of the documented text form.
pub(crate) fn leaky() -> Stack {
    Stack {
        pid: 123,
        shared: Vec::new(),
        resource: info(Resource::Heap),
        bytes: 80,
        count: 5,
        oldest_ms: Some(4000),
        newest_ms: Some(900),
        tag: None,
        cut: None,
        frames: vec![
            Frame {
                symbol: Some("_Z5leakym".to_owned()),
                ..frame(0x55fc_a689_a188, "leaky(unsigned long)", 15, Some(("leak.c", 5)))
            },
            frame(0x55fc_a689_a1cc, "main", 0x2e, Some(("/home/me/src/leak.c", 7))),
        ],
        now: None,
        history: History::default(),
        allocations: None,
    }
}

pub(crate) fn mapping() -> Stack {
    Stack {
        resource: info(Resource::Mmap),
        bytes: 4096,
        count: 1,
        oldest_ms: Some(1000),
        newest_ms: Some(1000),
        frames: vec![frame(0x55fc_a689_a200, "map_it", 0x10, None)],
        ..leaky()
    }
}

pub(crate) fn info(resource: Resource) -> Arc<ResourceInfo> {
    Arc::new(ResourceInfo::built_in(resource))
}

pub(crate) fn report(stacks: Vec<Stack>) -> Report {
    report_of(&[Resource::Heap, Resource::Mmap].map(info), stacks)
}

fn report_of(resources: &[Arc<ResourceInfo>], stacks: Vec<Stack>) -> Report {
    let total = |resource: &Arc<ResourceInfo>| {
        let of_it = || stacks.iter().filter(|stack| stack.resource == *resource);
        ResourceTotal {
            resource: resource.clone(),
            bytes: of_it().map(|stack| stack.bytes).sum(),
            count: of_it().map(|stack| stack.count).sum(),
        }
    };
    let mut frames = Frames::default();
    Report {
        by_resource: resources.iter().map(total).collect(),
        time: time(),
        elapsed_ms: 5000,
        cut_ns: 77_000_000_000,
        cut_within_ns: 90,
        is_final: false,
        target: TargetInfo {
            kind: "process".into(),
            pids: vec![123],
            comm: "leak".to_owned(),
            comms: std::collections::BTreeMap::new(),
        },
        processes: Processes::default(),
        moments: Vec::new(),
        totals: Totals {
            bytes: stacks.iter().map(|stack| stack.bytes).sum(),
            count: stacks.iter().map(|stack| stack.count).sum(),
            acquired: 12,
            released: 7,
        },
        lost: Lost::default(),
        suppressed: None,
        oom_killed: Vec::new(),
        temporary: Vec::new(),
        threads: std::collections::BTreeMap::new(),
        if_empty: None,
        memory: None,
        why: None,
        sampling: Sampling::All,
        margin: None,
        stacks: stacks.into_iter().map(|stack| stack.report(&mut frames)).collect(),
        frames,
    }
}

/// What a user has described: without a size, its handles numbers or addresses.
pub(crate) fn user(name: &str, unit: &str, is_number: bool) -> Arc<ResourceInfo> {
    Arc::new(ResourceInfo {
        resource: Resource::Custom(u16::from(is_number)),
        name: name.to_owned(),
        description: String::new(),
        unit: unit.to_owned(),
        has_size: false,
        is_number,
        is_descriptor: false,
    })
}

fn line(address: u64, age_ms: u64, now: Option<&str>) -> AllocationLine {
    AllocationLine { pid: 123, tid: None, address, size: 0, age_ms, now: now.map(str::to_owned) }
}

/// Three tables: that of memory, descriptors with what they are now, and a user's own.
pub(crate) fn resources() -> Report {
    let fd = info(Resource::Fd);
    let lease = user("lease", "leases \x1b[1m", false);
    let unused = user("slot", "slot", true);
    let resources = [info(Resource::Heap), fd.clone(), info(Resource::Mmap), lease.clone(), unused];
    let opened = Stack {
        resource: fd,
        bytes: 0,
        now: Some("1 file (/tmp/a\nb), 1 socket".to_owned()),
        count: 3,
        frames: vec![frame(0x55fc_a689_a200, "open_it", 0x10, None)],
        allocations: Some(vec![
            line(5, 84_000, Some("socket:[123]")),
            line(6, 1200, Some("/tmp/a\nb")),
            line(7, 900, None),
        ]),
        ..leaky()
    };
    let leased = Stack { resource: lease, bytes: 0, count: 1, allocations: None, ..leaky() };
    let leased_more = Stack {
        count: 2,
        allocations: Some(vec![line(0x7f00, 5, None), line(0x7f10, 4, None)]),
        ..leased.clone()
    };
    let lost = Lost { allocations: 1, ..Lost::default() };
    Report { lost, ..report_of(&resources, vec![leaky(), mapping(), opened, leased_more, leased]) }
}

fn memory() -> Memory {
    Memory {
        rss: 41_000_000,
        rss_growth: 30_500_000,
        outstanding_resident: 15_000_000,
        allocator_free: Some(12_000_000),
        allocator_free_at_least: None,
        unread_allocator: None,
        allocator: 500_000,
        thread_stacks: 40_960,
        files: 10_000_000,
        before_attach: 1_000_000,
        unaccounted: 2_459_040,
        older_growth: 0,
        finding: Some(Finding::FreeInside),
    }
}

fn inlined() -> Report {
    let push = Frame {
        inlined: true,
        file: Some("/usr/include/c++/12/bits/stl_vector.h".to_owned()),
        line: Some(1287),
        ..frame(0x55fc_a689_a1f0, "std::vector<int>::push_back(int&&)", 0x40, None)
    };
    let no_line = Frame { file: Some("gen.c".to_owned()), ..frame(0x55fc_a689_a2f0, "generated", 4, None) };
    let no_offset = Frame { function_offset: None, ..frame(0x55fc_a689_a3f0, "plt_entry", 0, None) };
    let host = frame(0x55fc_a689_a1f0, "fill(std::vector<int>&)", 0x40, Some(("fill.cc", 12)));
    report(vec![Stack { frames: vec![push, host, no_line, no_offset], ..leaky() }])
}

pub(crate) fn no_symbols() -> Report {
    let frames = vec![
        unknown(0x7f00_0000_1234, Some("/usr/lib/libfoo.so.1"), Some(0x1234), NoSymbol::NotInSymbolTable),
        unknown(0x7f00_0000_2345, Some("/gone/libbar.so"), Some(0x2345), NoSymbol::UnreadableObject),
        unknown(0x7f00_0000_3456, Some("/gone/libbar.so"), None, NoSymbol::UnreadableObject),
        unknown(0x7ffd_0000_0a10, Some("[vdso]"), Some(0xa10), NoSymbol::NotInSymbolTable),
        unknown(0x7f11_0000_0000, None, None, NoSymbol::Anonymous),
        unknown(0x3, None, None, NoSymbol::Unmapped),
        Frame {
            module: Some("[perf map]".to_owned()),
            offset: None,
            ..frame(0x7f11_0000_1000, "LazyCompile:~f /app/x.js:3", 0x10, None)
        },
    ];
    let no_stack = Stack { bytes: 16, count: 1, frames: vec![], ..leaky() };
    report(vec![Stack { frames, cut: Some(Cut::TooDeep), ..leaky() }, no_stack])
}

/// What kernel mode gives: no process, and stacks that say what their objects are.
pub(crate) fn kernel() -> Report {
    let frame = |ip: u64, function: &str, function_offset, module: &str| Frame {
        module: Some(module.to_owned()),
        offset: Some(ip & 0xff_ffff),
        ..frame(ip, function, function_offset, None)
    };
    let of = |resource, bytes, count, tag: Option<Tag>, frames| Stack {
        pid: KERNEL_PID,
        resource: info(resource),
        bytes,
        count,
        tag,
        frames,
        ..leaky()
    };
    let cache = |name: &str| Some(Tag::Cache(name.to_owned()));
    let epoll = vec![
        frame(0xffff_ffff_815c_9f4a, "__kmalloc_cache_noprof", 0x2aa, "[kernel]"),
        frame(0xffff_ffff_8173_1b2c, "do_epoll_create", 0x2c, "[kernel]"),
        frame(0xffff_ffff_8100_012b, "entry_SYSCALL_64_after_hwframe", 0x71, "[kernel]"),
    ];
    let table = vec![frame(0xffff_ffff_c0a0_1010, "nft_do_chain", 0x10, "[nf_tables]")];
    let pages = vec![unknown(0xffff_ffff_c030_0100, None, None, NoSymbol::NotInSymbolTable)];
    let resources = [Resource::Slab, Resource::Pages, Resource::Vmalloc].map(info);
    let stacks = vec![
        of(Resource::Slab, 4096, 16, cache("kmalloc-256"), epoll),
        of(Resource::Pages, 16384, 1, Some(Tag::Pages(2)), pages),
        of(Resource::Slab, 192, 1, cache("dentry"), table.clone()),
        of(Resource::Slab, 16, 1, cache("a\n\t9 bytes\x1b[2J"), vec![]),
        of(Resource::Vmalloc, 8192, 1, None, table),
    ];
    let mut report = report_of(&resources, stacks);
    report.target = TargetInfo::kernel();
    report
}

pub(crate) fn hostile() -> Report {
    let forged = "x\n\t999 bytes in 9 allocations from stack\n\t\t0x0000000000000000\ty";
    let frames = vec![
        frame(0x55fc_a689_a188, forged, 1, Some(("/a/\x1b]0;owned\x07.c", 1))),
        Frame {
            module: Some("/tmp/\u{9b}31m\r[evil]".to_owned()),
            ..frame(0x55fc_a689_a189, "\u{202e}gnp.exe \"quoted\\\"", 2, Some(("/", 2)))
        },
        Frame { module: Some("/tmp/dir\n/".to_owned()), ..unknown(1, None, Some(1), NoSymbol::Unmapped) },
        Frame { module: Some(String::new()), ..frame(0x55fc_a689_a18a, "\u{fffd}", 3, Some(("", 3))) },
    ];
    let mut report = report(vec![Stack { frames, ..leaky() }]);
    report.target.comm = "a\x1b[2J\"\n\u{2028}\u{85}".to_owned();
    report
}

/// Stacks that several processes hold: two, with their blocks, and thirty.
pub(crate) fn merged() -> Report {
    let of = |pid, bytes, count| ProcessCount { pid, bytes, count };
    let with_blocks = Stack {
        shared: vec![of(124, 64, 4), of(123, 16, 1)],
        allocations: Some(vec![
            AllocationLine { pid: 124, tid: None, address: 0x55_fcc0, size: 64, age_ms: 4000, now: None },
            AllocationLine { pid: 123, tid: None, address: 0x55_fca0, size: 16, age_ms: 900, now: None },
        ]),
        ..leaky()
    };
    let many = Stack {
        bytes: 30 << 20,
        count: 30,
        shared: (200..230).map(|pid| of(pid, 1 << 20, 1)).collect(),
        cut: Some(Cut::TooDeep),
        ..mapping()
    };
    let opened = Stack {
        resource: info(Resource::Fd),
        bytes: 0,
        count: 3,
        shared: vec![of(123, 0, 2), of(124, 0, 1)],
        ..leaky()
    };
    report_of(&[Resource::Heap, Resource::Mmap, Resource::Fd].map(info), vec![many, with_blocks, opened])
}

pub(crate) fn cases() -> Vec<(&'static str, Report)> {
    let with_allocations = Stack {
        allocations: Some(vec![
            AllocationLine { pid: 123, tid: None, address: 0x55_fca0, size: 16, age_ms: 4000, now: None },
            AllocationLine { pid: 123, tid: None, address: 0x55_fcc0, size: 64, age_ms: 900, now: None },
        ]),
        ..leaky()
    };
    let combined = Stack { oldest_ms: None, newest_ms: None, ..leaky() };
    let all_lost = Lost {
        allocations: 12_004,
        stacks: 1,
        events: 34,
        trace_lines: 30,
        processes: 6,
        moved: 7,
        missed_returns: 2,
        skipped_runs: 5,
        mass_releases: 1,
        cut_stacks: 3,
    };
    vec![
        ("plain", report(vec![mapping(), leaky()])),
        ("empty", report(vec![])),
        (
            "empty_said",
            Report { if_empty: Some("nothing is outstanding yet (29 probes)".to_owned()), ..report(vec![]) },
        ),
        ("memory", Report { memory: Some(memory()), ..report(vec![leaky()]) }),
        ("inlined", inlined()),
        ("sampled", Report { sampling: Sampling::OneIn(100), ..report(vec![leaky()]) }),
        ("lost", Report { lost: all_lost, ..report(vec![leaky()]) }),
        ("lost_one", Report { lost: Lost { allocations: 1, ..Lost::default() }, ..report(vec![]) }),
        ("allocations", report(vec![with_allocations])),
        ("combined", Report { is_final: true, ..report(vec![combined]) }),
        ("no_symbols", no_symbols()),
        ("hostile", hostile()),
        ("resources", resources()),
        ("user", report_of(&[user("lease", "leases", false)], vec![])),
        ("kernel", kernel()),
        ("merged", merged()),
        ("killed", {
            let mut killed = report(vec![leaky()]);
            killed.is_final = true;
            killed.oom_killed = vec![OomKilled { pid: 123, time: time() }];
            let frames = killed.stacks[0].frames.clone();
            killed.temporary =
                vec![TemporaryStack { released: 12_004, at_once: 11_990, bytes: 480_160, frames }];
            killed
        }),
        ("processes", {
            let mut two = report(vec![leaky(), Stack { pid: 124, ..leaky() }]);
            two.target.kind = "command".into();
            two
        }),
    ]
}

/// What examples/wordcount.cc holds, as GCC 12 builds it.
pub(crate) fn wordcount() -> Report {
    const VECTOR: &str = "std::vector<std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >, \
                          std::allocator<std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> > > >";
    let at = |line: u32| Some(("/root/examples/wordcount.cc", line));
    let of_library = |ip: u64, name: &str| Frame {
        module: Some("/usr/lib/x86_64-linux-gnu/libstdc++.so.6.0.30".to_owned()),
        ..frame(ip, name, 28, None)
    };
    let new = of_library(0x55fc_a689_a001, "operator new(unsigned long)");
    let start = Frame {
        module: Some("/usr/lib/x86_64-linux-gnu/libc.so.6".to_owned()),
        ..frame(0x55fc_a689_a900, "__libc_start_main_impl", 133, None)
    };
    let main = |line| frame(0x55fc_a689_a800 + u64::from(line), "main", 0x93, at(line));
    let count = || frame(0x55fc_a689_a700, "word_counter::word_count()", 0x8f, at(64));
    let in_vector = |number: u64, name: &str| {
        frame(0x55fc_a689_a100 + number, &format!("void {VECTOR}::{name}(int&&)"), 1, None)
    };
    let words = vec![
        new.clone(),
        frame(0x55fc_a689_a010, "std::__new_allocator<char>::allocate(unsigned long, void const*)", 1, None),
        in_vector(1, "_M_realloc_insert<int>"),
        in_vector(2, "emplace_back<int>"),
        frame(0x55fc_a689_a020, &format!("std::back_insert_iterator<{VECTOR} >::operator=(int&&)"), 1, None),
        count(),
        main(80),
        start.clone(),
    ];
    let text = vec![
        new.clone(),
        in_vector(3, "_M_create"),
        in_vector(4, "push_back"),
        count(),
        main(80),
        start.clone(),
    ];
    let shared = |line, make: &str| {
        vec![new.clone(), frame(0x55fc_a689_a030, make, 1, None), main(line), start.clone()]
    };
    let stacks = [
        (1_572_864, 6, words),
        (1020, 60, text),
        (528, 6, shared(78, "std::make_shared<word_counter>()")),
        (96, 2, shared(74, "std::make_unique<x>()")),
    ];
    let stacks = stacks.map(|(bytes, count, frames)| Stack { bytes, count, frames, ..leaky() });
    let mut report = report(stacks.to_vec());
    report.target.comm = "wordcount".to_owned();
    report.target.pids = vec![4711];
    report.memory = Some(Memory { finding: None, unaccounted: 0, ..memory() });
    report
}
