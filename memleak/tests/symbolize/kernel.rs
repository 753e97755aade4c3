//! The kernel's symbols: texts in the form of /proc/kallsyms, hostile ones too, and the running
//! kernel's.

use std::{
    collections::BTreeMap,
    io,
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use memleak::{
    snapshot::KERNEL_PID,
    symbolize::{Frame, KernelSymbols, KernelSymbolsError, KernelTexts, NoSymbol, Symbolizer},
};

/// Texts that a test can exchange.
#[derive(Clone, Debug, Default)]
struct Texts(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    kallsyms: Vec<u8>,
    modules: Vec<u8>,
    reads: usize,
}

impl KernelTexts for Texts {
    fn kallsyms(&self) -> io::Result<Vec<u8>> {
        let mut shown = self.lock();
        shown.reads += 1;
        Ok(shown.kallsyms.clone())
    }

    fn modules(&self) -> Vec<u8> {
        self.lock().modules.clone()
    }
}

impl Texts {
    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, kallsyms: &str, modules: &str) {
        let mut shown = self.lock();
        (shown.kallsyms, shown.modules) = (kallsyms.into(), modules.into());
    }

    fn reads(&self) -> usize {
        self.lock().reads
    }
}

fn texts(kallsyms: &str, modules: &str) -> Texts {
    let texts = Texts::default();
    texts.show(kallsyms, modules);
    texts
}

fn kernel(kallsyms: &str, modules: &str) -> KernelSymbols {
    KernelSymbols::of(Box::new(texts(kallsyms, modules))).unwrap_or_else(|error| panic!("{error}"))
}

/// A small kernel: in no order, with aliases, data, and two modules that lie far from each other.
const KALLSYMS: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000000 T __pi__text
ffffffff81000300 t do_epoll_create
ffffffff81000100 T __x64_sys_getpid
ffffffff81000100 t __do_sys_getpid
ffffffff81000100 T __ia32_sys_getpid
ffffffff81000200 T __pfx_kmem_cache_alloc_noprof
ffffffff81000210 T kmem_cache_alloc_noprof
ffffffff81000400 T bpf_trace_run5
ffffffff81000480 t __bpf_trace_kmem_cache_alloc
ffffffff81000500 T __traceiter_kmem_cache_alloc
ffffffff81000600 t new_slab.isra.0
ffffffff81000680 t ___slab_alloc
ffffffff81000700 t ___slab_alloc.cold
ffffffff81000780 T memset
ffffffff81000780 T __memset
ffffffff81000800 t _RNvCs6_4rust4leak
ffffffff81000900 t local_one.llvm.1234567
ffffffff81000a00 T asm_exc_page_fault
ffffffff81001000 T _etext
ffffffff81800000 D some_data
ffffffffc0a01000 t nft_do_chain\t[nf_tables]
ffffffffc0a01000 t $x\t[nf_tables]
ffffffffc0a01800 T nft_register\t[nf_tables]
ffffffffc0201000 t ftrace_trampoline\t[__builtin__ftrace]
ffffffffc0300000 t bpf_prog_0123456789abcdef_kmem_cache_alloc\t[bpf]
";
const MODULES: &str = "nf_tables 8192 1 - Live 0xffffffffc0a00000\n";

const ALLOC: u64 = 0xffff_ffff_8100_0250;
const EPOLL: u64 = 0xffff_ffff_8100_0320;

fn shown(frames: &[Frame]) -> Vec<String> {
    let show = |frame: &Frame| match (&frame.symbol, &frame.module, frame.function_offset) {
        (Some(symbol), Some(module), Some(offset)) => format!("{symbol}+{offset:#x} {module}"),
        _ => format!("{:#x} {:?}", frame.ip, frame.no_symbol),
    };
    frames.iter().map(show).collect()
}

#[track_caller]
fn assert_frames(kernel: &mut KernelSymbols, ips: &[u64], expected: &[&str]) {
    assert_eq!(shown(&kernel.frames(ips)), expected);
}

#[test]
fn addresses_become_frames() {
    let mut kernel = kernel(KALLSYMS, MODULES);
    let frames = kernel.frames(&[ALLOC, 0xffff_ffff_c0a0_1010, 0xffff_ffff_8100_0801]);
    let expected = Frame {
        ip: ALLOC,
        module: Some("[kernel]".into()),
        offset: Some(0x250),
        function: Some("kmem_cache_alloc_noprof".into()),
        symbol: Some("kmem_cache_alloc_noprof".into()),
        function_offset: Some(0x40),
        file: None,
        directory: None,
        line: None,
        inlined: false,
        no_symbol: None,
        with_arguments: None,
    };
    assert_eq!(frames[0], expected);
    assert_eq!((frames[1].module.as_deref(), frames[1].offset), (Some("[nf_tables]"), Some(0x1010)));
    assert_eq!(frames[2].function.as_deref(), Some("rust::leak"));
    let local = &kernel.frames(&[0xffff_ffff_8100_0910])[0];
    assert_eq!(local.function.as_deref(), Some("local_one"));
    assert_eq!(local.symbol.as_deref(), Some("local_one.llvm.1234567"));
}

#[test]
fn a_return_address_belongs_to_the_call_before_it() {
    // The last instruction of nft_do_chain is a call that never returns.
    let ends = 0xffff_ffff_c0a0_1800;
    let mut kernel = kernel(KALLSYMS, MODULES);
    assert_frames(
        &mut kernel,
        &[ALLOC, ends, EPOLL],
        &[
            "kmem_cache_alloc_noprof+0x40 [kernel]",
            "nft_do_chain+0x800 [nf_tables]",
            "do_epoll_create+0x20 [kernel]",
        ],
    );
    // A kprobe has stopped a function where it begins; and so has an interrupt.
    let begins = 0xffff_ffff_8100_0210;
    let fault = 0xffff_ffff_8100_0a10;
    assert_frames(
        &mut kernel,
        &[begins, fault, ends],
        &[
            "kmem_cache_alloc_noprof+0x0 [kernel]",
            "asm_exc_page_fault+0x10 [kernel]",
            "nft_register+0x0 [nf_tables]",
        ],
    );
}

#[test]
fn the_best_of_several_names() {
    for (address, name) in [
        (0xffff_ffff_8100_0101, "__x64_sys_getpid+0x1 [kernel]"),
        (0xffff_ffff_8100_0781, "memset+0x1 [kernel]"),
        (0xffff_ffff_8100_0001, "_text+0x1 [kernel]"),
        (0xffff_ffff_c0a0_1001, "nft_do_chain+0x1 [nf_tables]"),
    ] {
        assert_frames(&mut kernel(KALLSYMS, MODULES), &[address], &[name]);
    }
}

#[test]
fn nothing_is_named_outside_of_code() {
    let mut kernel = kernel(KALLSYMS, MODULES);
    let outside = [
        0,
        1,
        0x7fff_ffff_ffff,
        0xffff_ffff_8000_0000,
        0xffff_ffff_8100_1001, // behind _etext
        0xffff_ffff_8180_0010, // data
        0xffff_ffff_c0a0_2001, // behind the module
        0xffff_ffff_c050_0000, // far behind the BPF program
        u64::MAX,
    ];
    for frame in kernel.frames(&[&[ALLOC], outside.as_slice()].concat()).iter().skip(1) {
        assert_eq!((frame.function.as_deref(), frame.module.as_deref()), (None, None), "{:#x}", frame.ip);
        assert_eq!(frame.no_symbol, Some(NoSymbol::NotInSymbolTable));
    }
}

#[test]
fn frames_of_tracing_itself_are_left_out() {
    const PROGRAM: u64 = 0xffff_ffff_c030_0100;
    const NO_SYMBOL: u64 = 0xffff_ffff_c110_0000;
    let run = 0xffff_ffff_8100_0440;
    let traceiter = 0xffff_ffff_8100_0540;
    let kept = ["kmem_cache_alloc_noprof+0x40 [kernel]", "do_epoll_create+0x20 [kernel]"];
    for before in [
        &[] as &[u64],
        &[PROGRAM, run],
        &[PROGRAM, run, traceiter],
        &[PROGRAM, run, 0xffff_ffff_8100_0490],
        &[NO_SYMBOL, run, traceiter], // net.core.bpf_jit_kallsyms is 0
        &[PROGRAM, 0xffff_ffff_c020_1010],
    ] {
        let stack = [before, &[ALLOC, EPOLL]].concat();
        assert_frames(&mut kernel(KALLSYMS, MODULES), &stack, &kept);
    }
    // Only at the callee end; and code without a symbol that tracing did not call stays.
    let callers = [ALLOC, run, EPOLL];
    assert_eq!(kernel(KALLSYMS, MODULES).frames(&callers).len(), 3);
    assert_eq!(kernel(KALLSYMS, MODULES).frames(&[NO_SYMBOL, EPOLL]).len(), 2);
}

#[test]
fn ranges_and_functions_by_name() {
    let kernel = kernel(KALLSYMS, MODULES);
    let at = |from: u64, to: u64| 0xffff_ffff_8100_0000 + from..0xffff_ffff_8100_0000 + to;
    assert_eq!(
        kernel.address_ranges(&["new_slab", "___slab_alloc", "nothing"]),
        [at(0x600, 0x680), at(0x680, 0x700), at(0x700, 0x780)]
    );
    assert_eq!(kernel.address_ranges(&["kmem_cache_alloc"]), [at(0x210, 0x300)]);
    assert_eq!(kernel.address_ranges(&["__memset", "memset"]), [at(0x780, 0x800)]);
    let last = 0xffff_ffff_c0a0_1800..0xffff_ffff_c0a0_2000;
    assert_eq!(kernel.address_ranges(&["nft_register"]), [last], "the module's end bounds its last function");
    assert_eq!(
        kernel.function("kmem_cache_alloc").map(|(name, _)| name).as_deref(),
        Some("kmem_cache_alloc_noprof")
    );
    assert_eq!(kernel.function("memset").map(|(name, _)| name).as_deref(), Some("memset"));
    assert!(kernel.function("__do_sys_getpid").is_some(), "an alias is a name, too");
    assert!(kernel.function("new_slab").is_none(), "a kprobe goes by the whole name");
    assert!(kernel.function("kmem_cache_alloc_nop").is_none());
}

#[test]
fn a_module_that_comes_later_is_read() {
    const NEW: u64 = 0xffff_ffff_c0c0_0010;
    let texts = texts(KALLSYMS, MODULES);
    let mut kernel = KernelSymbols::of(Box::new(texts.clone())).expect("reads");
    assert_eq!(kernel.frames(&[ALLOC, NEW])[1].function, None);
    assert_eq!(texts.reads(), 2, "an address without a symbol is looked for once more");
    kernel.frames(&[NEW, ALLOC]);
    assert_eq!(texts.reads(), 2, "and not again");
    texts.show(
        &format!("{KALLSYMS}ffffffffc0c00000 t tls_init\t[tls]\n"),
        &format!("{MODULES}tls 4096 0 - Live 0xffffffffc0c00000\n"),
    );
    kernel.observe().expect("reads");
    assert_frames(&mut kernel, &[NEW], &["tls_init+0x10 [tls]"]);
    kernel.observe().expect("reads");
    assert_eq!(texts.reads(), 3, "nothing has changed");
}

#[test]
fn a_module_that_is_gone_stays_known() {
    const IN_IT: u64 = 0xffff_ffff_c0a0_1010;
    let texts = texts(KALLSYMS, MODULES);
    let mut kernel = KernelSymbols::of(Box::new(texts.clone())).expect("reads");
    let without: String =
        KALLSYMS.lines().filter(|line| !line.contains("nf_tables")).map(|line| format!("{line}\n")).collect();
    texts.show(&without, "");
    kernel.observe().expect("reads");
    assert_frames(&mut kernel, &[IN_IT], &["nft_do_chain+0x10 [nf_tables]"]);
    // Another one in its place ends that.
    texts.show(
        &format!("{without}ffffffffc0a01000 t other\t[usurper]\n"),
        "usurper 8192 0 - Live 0xffffffffc0a01000\n",
    );
    kernel.observe().expect("reads");
    assert_frames(&mut kernel, &[IN_IT], &["other+0x10 [usurper]"]);
    assert!(kernel.function("nft_register").is_none());
}

#[test]
fn hidden_addresses_are_explained_in_one_line() {
    let hidden = "0000000000000000 T _stext\n0000000000000000 t kfree\n";
    let error = KernelSymbols::of(Box::new(texts(hidden, ""))).expect_err("nothing to go by");
    assert!(matches!(error, KernelSymbolsError::HiddenFromUs { .. } | KernelSymbolsError::HiddenFromAll(_)));
    let line = error.to_string();
    assert!(line.contains("kptr_restrict") && line.contains("sysctl"), "{line}");
    for error in [error, KernelSymbolsError::HiddenFromAll(2), KernelSymbolsError::Empty] {
        let line = error.to_string();
        assert!(
            line.contains(": ") && line.contains("; ") && !line.contains('\n') && !line.contains("  "),
            "{line}"
        );
    }
    for text in ["", "ffffffff81000000 D data_alone\n", "\0\0\0"] {
        let error = KernelSymbols::of(Box::new(texts(text, ""))).expect_err("nothing to go by");
        assert!(matches!(error, KernelSymbolsError::Empty), "{text:?}: {error}");
    }
}

#[test]
fn hostile_text_does_no_harm() {
    let long = "x".repeat(200_000);
    let text = format!(
        "ffffffffffffffff T at_the_very_end\n0000000000000001 t {long}\n0000000000000001 t ok\n\
         ffffffff81000000 T a\x1b[2J\u{202e}b\t[mo\x07dule]\nffffffff81000000 T \t[\n\x00\n"
    );
    let modules = "at 18446744073709551615 0 - Live 0xffffffffffffffff\nmo 1 1 1 1 1\n\n\n";
    let mut kernel = kernel(&text, modules);
    for ip in [0, 1, 2, u64::MAX, 0xffff_ffff_8100_0000, 0xffff_ffff_8100_0001] {
        for frame in kernel.frames(&[ip]) {
            let texts = [frame.function, frame.symbol, frame.module];
            assert!(!texts.iter().flatten().any(|text| text.contains(char::is_control)), "{texts:?}");
        }
    }
    let many: String = (0..70_000).map(|n| format!("{n:016x} t f\t[m{n}]\n")).collect();
    assert!(KernelSymbols::of(Box::new(texts(&many, ""))).is_ok());
    let mut bytes = KALLSYMS.as_bytes().to_vec();
    for at in 0..bytes.len() {
        let old = std::mem::replace(&mut bytes[at], 0xff);
        let texts = Texts::default();
        texts.lock().kallsyms.clone_from(&bytes);
        if let Ok(mut kernel) = KernelSymbols::of(Box::new(texts)) {
            kernel.frames(&[ALLOC, EPOLL, 0xffff_ffff_c0a0_1010]);
        }
        bytes[at] = old;
    }
}

#[test]
fn the_symbolizer_hands_the_kernels_stacks_on() {
    let mut symbolizer = Symbolizer::new();
    assert_eq!(symbolizer.symbolize(KERNEL_PID, 0, &[ALLOC])[0].function, None);
    let texts = texts(KALLSYMS, MODULES);
    symbolizer.set_kernel(KernelSymbols::of(Box::new(texts.clone())).expect("reads"));
    let frames = symbolizer.symbolize(KERNEL_PID, 0, &[ALLOC, EPOLL]);
    assert_eq!(shown(&frames), ["kmem_cache_alloc_noprof+0x40 [kernel]", "do_epoll_create+0x20 [kernel]"]);
    assert_eq!(symbolizer.symbolize(1, 0, &[ALLOC])[0].no_symbol, Some(NoSymbol::Unmapped));
    texts.show(&KALLSYMS.replace("do_epoll_create", "renamed"), "other 4096 0 - Live 0xffffffffc0c00000\n");
    symbolizer.observe_kernel();
    assert_eq!(shown(&symbolizer.symbolize(KERNEL_PID, 0, &[EPOLL])), ["renamed+0x20 [kernel]"]);
}

/// The running kernel, as nm's readers would have it: awk sorts, we compare with each name it has
/// at an address.
#[test]
fn the_running_kernel() {
    let awk = Command::new("awk")
        // Labels of the assembler's (`.E_copy` in copy_mc_enhanced_fast_string) are places in
        // functions.
        .args(["$2 ~ /^[tTwW]$/ && NF == 3 && $3 !~ /^[.$]/ { print $1, $3 }", "/proc/kallsyms"])
        .output()
        .expect("awk runs");
    let text = String::from_utf8(awk.stdout).expect("names are text");
    let mut names: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for (address, name) in text.lines().filter_map(|line| line.split_once(' ')) {
        names.entry(u64::from_str_radix(address, 16).expect("a number")).or_default().push(name);
    }
    if names.keys().all(|address| *address == 0) {
        // Not root: then the message is what there is to see.
        let error = KernelSymbols::read().expect_err("hidden");
        assert!(error.to_string().contains("kptr_restrict"), "{error}");
        return;
    }
    names.remove(&0);
    let mut kernel = KernelSymbols::read().expect("reads");
    let starts: Vec<u64> = names.keys().copied().collect();
    let text =
        |name: &str| names.iter().find(|(_, names)| names.contains(&name)).map(|(address, _)| *address);
    let (first, last) = (text("_stext").expect("_stext"), text("_etext").expect("_etext"));
    let mut checked = 0;
    // A distance of a megabyte is padding, and no function.
    let is_function = |pair: &&[u64]| pair[0] >= first && pair[1] <= last && pair[1] - pair[0] < 1 << 20;
    for pair in starts.windows(2).filter(is_function).step_by(17) {
        // A call in the middle and the last byte; a stack that begins elsewhere, so that nothing is
        // left out.
        for ip in [pair[0] + (pair[1] - pair[0]) / 2 + 1, pair[1]] {
            let frame = kernel.frames(&[first + 1, ip.min(pair[1] - 1)]).pop().expect("a frame");
            let symbol = frame.symbol.expect("a name");
            assert!(
                names[&pair[0]].contains(&symbol.as_str()),
                "{ip:#x}: {symbol}, not {:?}",
                names[&pair[0]]
            );
            assert_eq!(frame.offset.map(|offset| offset + first), Some(frame.ip));
            checked += 1;
        }
    }
    assert!(checked > 1000, "{checked}");
    assert!(
        ["kfree", "kmem_cache_alloc", "vfree", "__kmalloc"]
            .iter()
            .all(|name| kernel.function(name).is_some())
    );
    let kfree = kernel.address_ranges(&["kfree"]);
    assert!(kfree.iter().any(|range| names[&range.start].contains(&"kfree")), "{kfree:x?}");
}
