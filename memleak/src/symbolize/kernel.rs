//! Addresses of the kernel turned into frames, by /proc/kallsyms.

use std::{collections::HashSet, io, ops::Range};

use rustc_hash::FxHashMap;

use super::{
    Frame, NoSymbol,
    demangle::{demangle, printable_bytes},
};
use crate::proc::kallsyms::{
    KernelSymbol, ModulePlace, kernel_setting, modules, read_kallsyms, read_modules, read_notes, symbols,
};

/// Longest function that is believed in, bytes: where nothing says how long the last one before a
/// gap is. Programs of BPF are the longest: 128 KiB or so.
const MAX_FUNCTION: u64 = 1 << 20;

/// Addresses without a symbol that are remembered, so that they are not looked for again and again.
const MAX_UNKNOWN: usize = 4096;

/// Why there are no kernel symbols: one line, `<what>: <why>; <what to do>`.
#[derive(Debug, thiserror::Error)]
pub enum KernelSymbolsError {
    /// /proc/kallsyms cannot be read, or the kernel has none (`CONFIG_KALLSYMS`).
    #[error(
        "/proc/kallsyms: cannot be read, and without it kernel stacks have no names: {0}; mount /proc, or boot a kernel \
         with CONFIG_KALLSYMS"
    )]
    Unreadable(io::Error),
    /// There is not a symbol in it.
    #[error(
        "/proc/kallsyms: it holds no symbols, so kernel stacks have no names; boot a kernel with CONFIG_KALLSYMS"
    )]
    Empty,
    /// All addresses are 0, for everybody.
    #[error(
        "/proc/kallsyms: kernel.kptr_restrict is {0}, which hides kernel addresses even from root; type: sysctl \
         kernel.kptr_restrict=0"
    )]
    HiddenFromAll(i64),
    /// All addresses are 0, for us.
    #[error(
        "/proc/kallsyms: the kernel hides its addresses from users without CAP_SYSLOG (kernel.kptr_restrict is {kptr_restrict}, \
         kernel.perf_event_paranoid {perf_event_paranoid}); run as root, or type: sysctl kernel.kptr_restrict=0 \
         kernel.perf_event_paranoid=1"
    )]
    HiddenFromUs {
        /// `kernel.kptr_restrict`.
        kptr_restrict: i64,
        /// `kernel.perf_event_paranoid`.
        perf_event_paranoid: i64,
    },
}

/// Where the texts come from: the running kernel, or a test.
pub trait KernelTexts: std::fmt::Debug + Send {
    /// In the form of /proc/kallsyms.
    fn kallsyms(&self) -> io::Result<Vec<u8>>;

    /// In the form of /proc/modules; empty if there are none.
    fn modules(&self) -> Vec<u8>;

    /// ELF notes of the kernel (`[kernel]`) or of a module of it (`[ext4]`); empty if they are not
    /// known.
    fn notes(&self, _module: &str) -> Vec<u8> {
        Vec::new()
    }
}

/// /proc.
#[derive(Debug)]
struct RunningKernel;

impl KernelTexts for RunningKernel {
    fn kallsyms(&self) -> io::Result<Vec<u8>> {
        read_kallsyms()
    }

    fn modules(&self) -> Vec<u8> {
        read_modules()
    }

    fn notes(&self, module: &str) -> Vec<u8> {
        read_notes(module.trim_matches(['[', ']']))
    }
}

/// The build id among notes of this machine's byte order (elf(5), `NT_GNU_BUILD_ID`).
fn build_id(mut notes: &[u8]) -> Option<&[u8]> {
    const NT_GNU_BUILD_ID: u32 = 3;
    loop {
        let (header, rest) = notes.split_first_chunk::<12>()?;
        let [name, len, kind] = [0, 4, 8].map(|at| header.get(at..at + 4));
        let word = |bytes: Option<&[u8]>| Some(u32::from_ne_bytes(bytes?.try_into().ok()?));
        let (name, len, kind) = (word(name)? as usize, word(len)? as usize, word(kind)?);
        let data = rest.get(name.next_multiple_of(4)..)?;
        if kind == NT_GNU_BUILD_ID && rest.starts_with(b"GNU\0") {
            return data.get(..len);
        }
        notes = data.get(len.next_multiple_of(4)..)?;
    }
}

/// The kernel's functions, by address.
#[derive(Debug)]
pub struct KernelSymbols {
    texts: Box<dyn KernelTexts>,
    table: KernelTable,
    /// The text of the modules when the table was read.
    modules: Vec<u8>,
    /// Addresses that had no symbol when they were looked for.
    unknown: HashSet<u64>,
    /// What [`Self::identity`] gave.
    identities: FxHashMap<String, Box<[u8]>>,
}

impl KernelSymbols {
    /// Reads /proc/kallsyms. Nearly all of the time that it takes (60 ms or so) is the kernel's. Do
    /// it after the BPF programs are loaded, so that they are in it.
    pub fn read() -> Result<Self, KernelSymbolsError> {
        Self::of(Box::new(RunningKernel))
    }

    /// The same, of texts that come from somewhere else.
    pub fn of(texts: Box<dyn KernelTexts>) -> Result<Self, KernelSymbolsError> {
        let (table, modules) = read_table(&*texts)?;
        Ok(Self { texts, table, modules, unknown: HashSet::new(), identities: FxHashMap::default() })
    }

    /// Reads /proc/kallsyms again. What was known of modules that are gone stays known, as long as
    /// nothing else is where they were: what they have leaked is still there. An error leaves all
    /// as it was.
    pub fn refresh(&mut self) -> Result<(), KernelSymbolsError> {
        let (mut table, modules) = read_table(&*self.texts)?;
        table.keep_modules_of(&self.table);
        (self.table, self.modules) = (table, modules);
        Ok(())
    }

    /// The same, if modules have come or gone. Cheap while none have: once for each report.
    pub fn observe(&mut self) -> Result<(), KernelSymbolsError> {
        if self.texts.modules() == self.modules {
            return Ok(());
        }
        self.unknown.clear();
        self.identities.clear();
        self.refresh()
    }

    /// Frames of a stack of the kernel, callee first; one for each address, but for the tracer's
    /// own at the callee end: the BPF program and what led to it. Reads the table again if it
    /// has no symbol for an address.
    ///
    /// As everywhere the byte before a return address is looked up. The address itself is, if it
    /// is not a return address: in the frame that a probe has stopped, and in one that an interrupt
    /// has.
    pub fn frames(&mut self, ips: &[u64]) -> Vec<Frame> {
        let is_known =
            |table: &KernelTable, ip: &u64| table.find_call(*ip).or_else(|| table.find(*ip)).is_some();
        if ips.iter().any(|ip| !is_known(&self.table, ip) && !self.unknown.contains(ip)) {
            // Where it cannot be read again, what was read before has to do.
            let _ = self.refresh();
            if self.unknown.len() >= MAX_UNKNOWN {
                self.unknown.clear();
            }
            self.unknown.extend(ips.iter().filter(|ip| !is_known(&self.table, ip)));
        }
        let own = tracing_frames(ips, &self.table);
        let mut exact = true;
        let mut frames = Vec::with_capacity(ips.len().saturating_sub(own));
        for ip in ips.iter().skip(own) {
            let frame = self.table.frame(*ip, exact);
            exact = frame.symbol.as_deref().is_some_and(|name| name.starts_with("asm_"));
            frames.push(frame);
        }
        frames
    }

    /// What the kernel (`[kernel]`) or a module of it is on any machine: its name, and after a
    /// zero its build id, if it has one.
    pub fn identity(&mut self, module: &str) -> Box<[u8]> {
        if let Some(known) = self.identities.get(module) {
            return known.clone();
        }
        let notes = self.texts.notes(module);
        let mut name = module.as_bytes().to_vec();
        if let Some(id) = build_id(&notes) {
            name.push(0);
            name.extend_from_slice(id);
        }
        self.identities.insert(module.to_owned(), name.clone().into());
        name.into()
    }

    /// Where the code of these functions is, in order of address: each from its first byte to the
    /// next function's. Variants that the compiler has made of a function count as that function
    /// (`new_slab.isra.0`, `.part.0`, `.constprop.0`, `.cold`), and so does the one with the suffix
    /// `_noprof` that it has from Linux 6.10 on if allocations are profiled.
    pub fn address_ranges(&self, names: &[&str]) -> Vec<Range<u64>> {
        let is_one = |name: &[u8]| names.iter().any(|wanted| is_variant(name, wanted));
        let found = (0..self.table.symbols.len()).filter(|&at| is_one(self.table.name(at)));
        let mut ranges: Vec<_> = found.filter_map(|at| self.table.range(at)).collect();
        ranges.dedup();
        ranges
    }

    /// The name under which the kernel has the function `name` (that name, or the same with the
    /// suffix `_noprof`), and its address.
    pub fn function(&self, name: &str) -> Option<(String, u64)> {
        [name.to_owned(), format!("{name}_noprof")].into_iter().find_map(|name| {
            let place =
                (0..self.table.symbols.len()).find(|place| self.table.name(*place) == name.as_bytes())?;
            let address = self.table.symbols.get(place)?.address;
            Some((name, address))
        })
    }
}

fn read_table(texts: &dyn KernelTexts) -> Result<(KernelTable, Vec<u8>), KernelSymbolsError> {
    // Modules first: one that comes between the two is in the symbols and shows as a change next
    // time.
    let modules = texts.modules();
    let table = parse_table(&texts.kallsyms().map_err(KernelSymbolsError::Unreadable)?, &modules)?;
    Ok((table, modules))
}

fn parse_table(kallsyms: &[u8], modules_text: &[u8]) -> Result<KernelTable, KernelSymbolsError> {
    let table = KernelTable::new(symbols(kallsyms), &modules(modules_text));
    if !table.symbols.is_empty() {
        return Ok(table);
    }
    if symbols(kallsyms).all(|symbol| !symbol.is_text()) {
        return Err(KernelSymbolsError::Empty);
    }
    // kallsyms_show_value() in kernel/ksyms_common.c: 0 shows them if perf_event_paranoid is 1
    // or less, 0 and 1 to who has CAP_SYSLOG, 2 to nobody.
    let kptr_restrict = kernel_setting("kptr_restrict").unwrap_or(0);
    Err(match kptr_restrict {
        0 | 1 => KernelSymbolsError::HiddenFromUs {
            kptr_restrict,
            perf_event_paranoid: kernel_setting("perf_event_paranoid").unwrap_or(2),
        },
        other => KernelSymbolsError::HiddenFromAll(other),
    })
}

/// A function.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    address: u64,
    /// Where its name begins in [`KernelTable::names`].
    name: u32,
    /// Bytes of its name.
    len: u16,
    /// Index into [`KernelTable::modules`].
    module: u16,
    /// Known outside of its file.
    global: bool,
}

/// Where a function's code belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Module {
    /// In its brackets.
    name: String,
    /// What offsets count from; `None` if there is nothing sensible (`[bpf]`).
    start: Option<u64>,
    /// The address after its last byte, if that is known.
    end: Option<u64>,
}

const CORE: u16 = 0;

/// Symbols in order of address, of several at one address the best one last.
#[derive(Debug)]
struct KernelTable {
    symbols: Vec<Symbol>,
    /// All names, one after the other.
    names: Vec<u8>,
    /// The first is the kernel itself.
    modules: Vec<Module>,
}

impl KernelTable {
    fn new<'a>(symbols: impl Iterator<Item = KernelSymbol<'a>>, places: &[ModulePlace]) -> Self {
        let core = Module { name: "[kernel]".to_owned(), start: None, end: None };
        let mut table = Self { symbols: Vec::new(), names: Vec::new(), modules: vec![core] };
        let mut known: FxHashMap<&[u8], u16> = FxHashMap::default();
        for symbol in symbols.filter(|symbol| symbol.is_text() && symbol.address != 0) {
            let module = match symbol.module {
                None => CORE,
                Some(name) => match known.get(name).copied().or_else(|| table.add_module(name, places)) {
                    Some(index) => *known.entry(name).or_insert(index),
                    None => continue,
                },
            };
            table.push(symbol.address, symbol.name, module, symbol.kind.is_ascii_uppercase());
        }
        table.sort();
        table.place_core();
        table
    }

    fn push(&mut self, address: u64, name: &[u8], module: u16, global: bool) {
        let (Ok(start), Ok(len)) = (u32::try_from(self.names.len()), u16::try_from(name.len())) else {
            return;
        };
        self.names.extend(name);
        self.symbols.push(Symbol { address, name: start, len, module, global });
    }

    /// Enters a module (in its brackets) and gives its index; `None` if there are too many.
    fn add_module(&mut self, name: &[u8], places: &[ModulePlace]) -> Option<u16> {
        let index = u16::try_from(self.modules.len()).ok()?;
        let name = printable_bytes(name);
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        let place = places.iter().find(|place| place.name == bare && place.start != 0);
        self.modules.push(Module {
            start: place.map(|place| place.start),
            end: place.map(|place| place.start.saturating_add(place.size)),
            name,
        });
        Some(index)
    }

    fn sort(&mut self) {
        // The kernel prints them nearly in order, which this sort makes use of.
        self.symbols.sort_by_key(|symbol| symbol.address);
        let names = &self.names;
        for same in self.symbols.chunk_by_mut(|a, b| a.address == b.address) {
            if same.len() > 1 {
                same.sort_by(|a, b| badness(b, names).cmp(&badness(a, names)));
            }
        }
    }

    /// The core kernel's offsets count from `_text`, as in System.map and vmlinux, wherever it was
    /// loaded.
    fn place_core(&mut self) {
        let text = (0..self.symbols.len()).find(|&at| matches!(self.name(at), b"_text" | b"_stext"));
        let start = text.and_then(|at| self.symbols.get(at)).map(|symbol| symbol.address);
        if let Some(core) = self.modules.first_mut() {
            core.start = start;
        }
    }

    fn name(&self, at: usize) -> &[u8] {
        self.symbols.get(at).map_or(&[], |symbol| name_of(symbol, &self.names))
    }

    /// The best symbol of the code at `address`, as an index.
    fn find(&self, address: u64) -> Option<usize> {
        let at = self.symbols.partition_point(|symbol| symbol.address <= address).checked_sub(1)?;
        // After these there is no code, or none that is in use.
        let is_code = !matches!(self.name(at), b"_etext" | b"_einittext");
        (is_code && self.range(at)?.contains(&address)).then_some(at)
    }

    /// The function that made a call which returns to `ip`.
    fn find_call(&self, ip: u64) -> Option<usize> {
        self.find(ip.checked_sub(1)?)
    }

    /// From a symbol's address to the next one's, or to the end of its module.
    fn range(&self, at: usize) -> Option<Range<u64>> {
        let symbol = self.symbols.get(at)?;
        let start = symbol.address;
        let next = self.symbols.get(at..)?.iter().find(|next| next.address > start);
        let end = next.map_or(u64::MAX, |next| next.address).min(start.saturating_add(MAX_FUNCTION));
        let of_module = self.modules.get(usize::from(symbol.module))?.end.filter(|end| *end > start);
        Some(start..of_module.map_or(end, |limit| end.min(limit)))
    }

    /// The frame of `ip`, a return address or (`exact`) an instruction that was about to run.
    fn frame(&self, ip: u64, exact: bool) -> Frame {
        let found = if exact { self.find(ip).or_else(|| self.find_call(ip)) } else { self.find_call(ip) };
        let found = found.and_then(|at| Some((at, self.symbols.get(at)?)));
        let module = found.and_then(|(_, symbol)| self.modules.get(usize::from(symbol.module)));
        let name = found.map(|(at, _)| printable_bytes(self.name(at)));
        Frame {
            ip,
            module: module.map(|module| module.name.clone()),
            offset: module.and_then(|module| ip.checked_sub(module.start?)),
            function: name.as_deref().map(readable),
            symbol: name,
            function_offset: found.map(|(_, symbol)| ip.wrapping_sub(symbol.address)),
            file: None,
            directory: None,
            line: None,
            inlined: false,
            no_symbol: found.is_none().then_some(NoSymbol::NotInSymbolTable),
            with_arguments: None,
        }
    }

    /// Takes over the modules that `older` knew and that are gone.
    fn keep_modules_of(&mut self, older: &Self) {
        let mut kept = Vec::new();
        for (index, module) in older.modules.iter().enumerate() {
            let (Some(start), Some(end)) = (module.start, module.end) else { continue };
            let overlaps = |other: &Module| match (other.start, other.end) {
                (Some(other_start), Some(other_end)) => start < other_end && other_start < end,
                _ => false,
            };
            let Ok(new) = u16::try_from(self.modules.len()) else { break };
            if !self.modules.iter().any(overlaps) {
                self.modules.push(module.clone());
                kept.push((index, new));
            }
        }
        for (index, new) in &kept {
            for symbol in older.symbols.iter().filter(|symbol| usize::from(symbol.module) == *index) {
                self.push(symbol.address, name_of(symbol, &older.names), *new, symbol.global);
            }
        }
        if !kept.is_empty() {
            self.sort();
        }
    }
}

fn name_of<'a>(symbol: &Symbol, names: &'a [u8]) -> &'a [u8] {
    let start = symbol.name as usize;
    names.get(start..start + usize::from(symbol.len)).unwrap_or_default()
}

/// How little a name says, of several at one address: the smallest is shown. Marks of the linker
/// come after functions, aliases for another place or another ABI after what they are aliases of,
/// local names after global ones.
fn badness<'a>(symbol: &Symbol, names: &'a [u8]) -> (bool, bool, bool, bool, usize, usize, &'a [u8]) {
    /// Padding before functions, code that runs before relocation, bounds of sections, static
    /// calls.
    const MARKS: &[&[u8]] =
        &[b"__pfx_", b"__cfi_", b"__pi_", b"__start_", b"__stop_", b"__SCT__", b"__hot_text_"];
    const BOUNDS: &[&[u8]] =
        &[b"_text_start", b"_text_end", b"_start", b"_end", b"_text", b"_stext", b"_sinittext"];
    let name = name_of(symbol, names);
    let is_mark =
        MARKS.iter().any(|mark| name.starts_with(mark)) || BOUNDS.iter().any(|bound| name.ends_with(bound));
    let underscores = name.iter().take_while(|byte| **byte == b'_').count();
    let has_suffix = name.contains(&b'.');
    (is_mark, !symbol.global, name.starts_with(b"__ia32_"), has_suffix, underscores, name.len(), name)
}

/// A name as people write it: Rust's demangled, and without the number that LLVM gives to a local
/// function.
fn readable(symbol: &str) -> String {
    demangle(symbol.split_once(".llvm.").map_or(symbol, |(name, _)| name))
}

/// Whether `name` is `wanted`, or what the compiler or the kernel's build has made of it.
fn is_variant(name: &[u8], wanted: &str) -> bool {
    let base = name.split(|byte| *byte == b'.').next().unwrap_or_default();
    base == wanted.as_bytes() || base.strip_suffix(b"_noprof") == Some(wanted.as_bytes())
}

/// How many frames at the callee end belong to tracing itself. Code without a symbol counts with
/// what called it: if `net.core.bpf_jit_kallsyms` is 0 our own program has none.
fn tracing_frames(ips: &[u64], table: &KernelTable) -> usize {
    let mut count = 0;
    for (index, ip) in ips.iter().enumerate() {
        match table.find_call(*ip).or_else(|| table.find(*ip)) {
            None => {}
            Some(at) if is_tracing(table, at) => count = index + 1,
            Some(_) => break,
        }
    }
    count
}

fn is_tracing(table: &KernelTable, at: usize) -> bool {
    /// Of the kernel itself: raw tracepoints, perf's, kprobes by breakpoint and by ftrace, return
    /// probes, the walk.
    const PREFIXES: &[&[u8]] = &[
        b"__traceiter_",
        b"__probestub_",
        b"__bpf_trace_",
        b"bpf_trace_run",
        b"perf_trace_",
        b"trace_event_raw_event_",
        b"__bpf_prog_",
        b"___bpf_prog_run",
        b"bpf_prog_run",
        b"bpf_dispatcher_",
        b"trace_call_bpf",
        b"bpf_get_stack",
        b"__bpf_get_stack",
        b"bpf_raw_tp_",
        b"get_perf_callchain",
        b"perf_callchain_",
        b"kprobe_",
        b"kretprobe_",
        b"__kretprobe_",
        b"rethook_",
        b"arch_rethook_",
        b"fprobe_",
        b"ftrace_",
        b"aggr_pre_handler",
        b"pre_handler_kretprobe",
        b"opt_pre_handler",
        b"optimized_callback",
        b"asm_exc_int3",
        b"exc_int3",
        b"do_int3",
    ];
    /// Code that is made at run time: programs, their trampolines, ftrace's and kprobes'.
    const MODULES: &[&str] = &["[bpf]", "[__builtin__ftrace]", "[__builtin__kprobes]"];
    let module = table.symbols.get(at).and_then(|symbol| table.modules.get(usize::from(symbol.module)));
    let Some(module) = module else { return false };
    let name = table.name(at);
    MODULES.contains(&module.name.as_str())
        || module.name == "[kernel]" && PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::build_id;

    #[test]
    fn a_build_id_is_found_among_notes() {
        let note = |owner: &[u8; 4], kind: u32, data: &[u8]| -> Vec<u8> {
            let words = [4, data.len() as u32, kind].map(u32::to_ne_bytes).concat();
            let padding = vec![0; data.len().next_multiple_of(4) - data.len()];
            [words, owner.to_vec(), data.to_vec(), padding].concat()
        };
        let both = [note(b"Xen\0", 3, &[9; 6]), note(b"GNU\0", 1, b"x"), note(b"GNU\0", 3, &[1, 2, 3, 4, 5])]
            .concat();
        assert_eq!(build_id(&both), Some(&[1, 2, 3, 4, 5][..]));
        for cut in 0..both.len() - 3 {
            assert_eq!(build_id(&both[..cut]), None, "{cut}");
        }
        assert_eq!(build_id(&[0xff; 40]), None);
    }
}
