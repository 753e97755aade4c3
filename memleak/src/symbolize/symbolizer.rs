//! The mappings of processes, with the objects behind them, and the way from an address to frames.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::PathBuf,
    sync::Arc,
};

use super::{
    Frame, NoSymbol,
    kernel::KernelSymbols,
    object::{Call, Object},
    perf_map::PerfMap,
    regions::Regions,
};
use crate::{
    elf::debug_files::Roots,
    objects::{MEMORY, ObjectFile, ObjectStore, place_of},
    proc::{
        maps::{Backing, Mapping, read_maps},
        target::{LiveTarget, Target},
    },
    snapshot::KERNEL_PID,
};

/// What a [`Symbolizer`] may use.
#[derive(Clone, Debug)]
pub struct SymbolizerOptions {
    /// Our own directory of debug files.
    pub debug_directory: PathBuf,
    /// Bytes of symbol tables and debug information that may be held in memory.
    pub memory: u64,
}

impl Default for SymbolizerOptions {
    fn default() -> Self {
        Self { debug_directory: "/usr/lib/debug".into(), memory: MEMORY }
    }
}

/// Turns addresses of processes into frames.
///
/// Files are opened when [`Symbolizer::observe`] first sees them mapped and stay open; what is in them is read when an
/// address first asks for it.
#[derive(Debug)]
pub struct Symbolizer {
    store: ObjectStore,
    processes: HashMap<u32, Process>,
    /// By [`ObjectFile::id`].
    objects: HashMap<u64, Object>,
    kernel: Option<KernelSymbols>,
}

#[derive(Debug, Default)]
struct Process {
    latest: Vec<Mapping>,
    /// Executable mappings, those of the past included.
    code: Regions<Arc<Code>>,
    roots: Roots,
    perf_map: Option<PerfMap>,
}

/// A mapping, executable but for what [`Process::data`] finds.
#[derive(Debug)]
struct Code {
    /// `None` for anonymous memory.
    object: Option<Arc<ObjectFile>>,
    module: Option<String>,
    /// Its load bias; of one that cannot be read where the file's first byte is mapped, or would be, which it is of most.
    bias: u64,
}

impl Default for Symbolizer {
    fn default() -> Self {
        Self::new()
    }
}

impl Symbolizer {
    /// One that knows no process yet.
    pub fn new() -> Self {
        Self::with_options(&SymbolizerOptions::default())
    }

    /// The same, with other limits and places.
    pub fn with_options(options: &SymbolizerOptions) -> Self {
        Self::with_objects(ObjectStore::new(options.memory, &options.debug_directory))
    }

    /// One that shares what is open with others.
    pub fn with_objects(store: ObjectStore) -> Self {
        Self { store, processes: HashMap::new(), objects: HashMap::new(), kernel: None }
    }

    /// Makes stacks of process [`KERNEL_PID`] the kernel's.
    pub fn set_kernel(&mut self, symbols: KernelSymbols) {
        self.kernel = Some(symbols);
    }

    /// Takes over what modules the kernel has now, where its stacks are asked for; once for each report. What cannot be
    /// read leaves what was known.
    pub fn observe_kernel(&mut self) {
        if let Some(kernel) = &mut self.kernel {
            let _ = kernel.observe();
        }
    }

    /// Takes over what `pid` has mapped now and keeps those files open, so that its addresses can be symbolized after it has
    /// ended, after a dlclose and after the files were deleted or replaced. What was known before stays known, but
    /// where something new is mapped. Cheap while nothing changes.
    ///
    /// An error means that /proc/PID/maps could not be read; what was known stays known.
    pub fn observe(&mut self, pid: u32) -> io::Result<()> {
        let mappings = read_maps(pid)?;
        self.observe_mappings(pid, mappings, &LiveTarget(pid));
        Ok(())
    }

    /// The same, of any target, given what it has mapped (in order of address).
    pub fn observe_mappings(&mut self, pid: u32, mappings: Vec<Mapping>, target: &dyn Target) {
        let process = self.processes.entry(pid).or_default();
        if mappings != process.latest && !mappings.is_empty() {
            let roots = self.store.roots(target);
            if roots.target.is_some() {
                process.roots = roots;
            }
            let bases = bases(&mappings);
            for (mapping, base) in mappings.iter().zip(bases).filter(|(mapping, _)| mapping.executable) {
                let object = (mapping.backing != Backing::Other).then(|| self.store.open(mapping, target));
                if let Some(object) = &object {
                    self.objects
                        .entry(object.id())
                        .or_insert_with(|| Object::new(Arc::clone(object), process.roots.clone()));
                }
                process.code.insert(mapping.start, mapping.end, Arc::new(Code::new(mapping, object, base)));
            }
            process.latest = mappings;
            self.drop_unused_objects();
        }
        self.observe_perf_map(pid, target);
    }

    fn observe_perf_map(&mut self, pid: u32, target: &dyn Target) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if let Some(file) = target.perf_map()
            && !process.perf_map.as_ref().is_some_and(|known| known.is_same(&file))
        {
            process.perf_map = Some(PerfMap::new(file));
        }
    }

    /// A fork: `child` begins with what `parent` has mapped.
    pub fn inherit(&mut self, parent: u32, child: u32) {
        if let Some(parent) = self.processes.get(&parent) {
            let process = Process {
                latest: parent.latest.clone(),
                code: parent.code.clone(),
                roots: parent.roots.clone(),
                perf_map: None,
            };
            self.processes.insert(child, process);
        }
    }

    /// Forgets all that `pid` had mapped: after an exec none of it is there any more.
    pub fn forget(&mut self, pid: u32) {
        self.processes.remove(&pid);
        self.drop_unused_objects();
    }

    /// The same, of many.
    pub fn forget_all(&mut self, processes: &[u32]) {
        if processes.iter().filter_map(|one| self.processes.remove(one)).count() > 0 {
            self.drop_unused_objects();
        }
    }

    fn drop_unused_objects(&mut self) {
        let used: HashSet<u64> = self
            .processes
            .values()
            .flat_map(|process| process.code.values())
            .filter_map(|code| code.object.as_ref().map(|object| object.id()))
            .collect();
        self.objects.retain(|id, _| used.contains(id));
        self.store.drop_unused();
    }

    /// Frames of a list of return addresses, callee first. An address with inlined calls gives several, innermost first;
    /// each address gives at least one.
    ///
    /// What is looked up is the byte before each address: it belongs to the call, the address itself may be another
    /// line's or another function's.
    ///
    /// Of the kernel's stacks the frames that belong to tracing itself are left out ([`KernelSymbols::frames`]).
    pub fn symbolize(&mut self, pid: u32, ips: &[u64]) -> Vec<Frame> {
        if pid == KERNEL_PID
            && let Some(kernel) = &mut self.kernel
        {
            return kernel.frames(ips);
        }
        if let Some(perf_map) = self.processes.get_mut(&pid).and_then(|process| process.perf_map.as_mut()) {
            // What cannot be read any more is as good as it was.
            let _ = perf_map.refresh();
        }
        let mut frames = Vec::with_capacity(ips.len());
        for &ip in ips {
            self.symbolize_one(pid, ip, &mut frames);
        }
        frames
    }

    fn symbolize_one(&mut self, pid: u32, ip: u64, frames: &mut Vec<Frame>) {
        let (Some(process), Some(call)) = (self.processes.get(&pid), ip.checked_sub(1)) else {
            frames.push(unknown(ip, None, None, NoSymbol::Unmapped));
            return;
        };
        let Some(code) = process.code.get(call).cloned().or_else(|| process.data(call, &self.store)) else {
            frames.push(process.generated(ip).unwrap_or_else(|| unknown(ip, None, None, NoSymbol::Unmapped)));
            return;
        };
        let Some(object) = &code.object else {
            frames
                .push(process.generated(ip).unwrap_or_else(|| unknown(ip, None, None, NoSymbol::Anonymous)));
            return;
        };
        let (module, offset) = (code.module.clone(), ip.wrapping_sub(code.bias));
        if object.elf().is_err() {
            let named = process.generated(ip);
            let unreadable = || unknown(ip, module, Some(offset), NoSymbol::UnreadableObject);
            frames.push(named.unwrap_or_else(unreadable));
            return;
        }
        let vaddr = offset.wrapping_sub(1);
        let is_held = |object: &Object| object.has_names();
        if self.store.memory_left() < MEMORY / 2 && !self.objects.get(&object.id()).is_some_and(is_held) {
            self.objects.values_mut().for_each(Object::forget_names);
        }
        let object = self
            .objects
            .entry(object.id())
            .or_insert_with(|| Object::new(Arc::clone(object), process.roots.clone()));
        let calls = object.calls(vaddr);
        match &*calls {
            [] => frames.push(unknown(ip, module, Some(offset), NoSymbol::NotInSymbolTable)),
            calls => frames.extend(calls.iter().map(|call| frame(ip, module.clone(), offset, call))),
        }
    }
}

impl Process {
    /// The frame of an address in generated code, where the perf map names it.
    fn generated(&self, ip: u64) -> Option<Frame> {
        let function = self.perf_map.as_ref()?.find(ip.checked_sub(1)?)?;
        Some(Frame {
            ip,
            module: Some("[perf map]".to_owned()),
            offset: None,
            function: Some(function.name.to_string()),
            symbol: Some(function.name.to_string()),
            function_offset: Some(ip.wrapping_sub(function.start)),
            file: None,
            line: None,
            inlined: false,
            no_symbol: None,
        })
    }

    /// The mapping of an address where no code is or was: what a walk makes of a register that is no frame pointer.
    fn data(&self, address: u64, store: &ObjectStore) -> Option<Arc<Code>> {
        let index = self.latest.partition_point(|mapping| mapping.end <= address);
        let mapping = self.latest.get(index).filter(|mapping| mapping.start <= address)?;
        let base = bases(&self.latest).nth(index)?;
        Some(Arc::new(Code::new(mapping, store.known(mapping), base)))
    }
}

impl Code {
    fn new(mapping: &Mapping, object: Option<Arc<ObjectFile>>, base: u64) -> Self {
        let elf = object.as_ref().and_then(|object| object.elf().ok());
        let bias = elf.and_then(|elf| elf.load_bias(&place_of(mapping))).unwrap_or(base);
        Self { object, module: module_name(mapping), bias }
    }
}

/// For each mapping where the first byte of its file is mapped: by the nearest mapping of it before this one, or where it
/// would be.
fn bases(mappings: &[Mapping]) -> impl Iterator<Item = u64> {
    let mut first: Option<&Mapping> = None;
    mappings.iter().map(move |mapping| {
        if mapping.backing != Backing::Other {
            let same =
                first.is_some_and(|first| first.backing == mapping.backing && first.inode == mapping.inode);
            if mapping.file_offset == 0 {
                first = Some(mapping);
            } else if !same {
                first = None;
            }
        }
        match first {
            Some(first) if mapping.backing != Backing::Other => first.start,
            _ => mapping.start.wrapping_sub(mapping.file_offset),
        }
    })
}

fn module_name(mapping: &Mapping) -> Option<String> {
    match &mapping.backing {
        Backing::File { path, .. } => Some(super::demangle::printable_path(path)),
        Backing::Vdso => Some("[vdso]".to_owned()),
        Backing::Other => None,
    }
}

fn unknown(ip: u64, module: Option<String>, offset: Option<u64>, why: NoSymbol) -> Frame {
    Frame {
        ip,
        module,
        offset,
        function: None,
        symbol: None,
        function_offset: None,
        file: None,
        line: None,
        inlined: false,
        no_symbol: Some(why),
    }
}

fn frame(ip: u64, module: Option<String>, offset: u64, call: &Call) -> Frame {
    Frame {
        ip,
        module,
        offset: Some(offset),
        function: call.function.clone(),
        symbol: call.symbol.clone(),
        function_offset: call.start.map(|start| offset.wrapping_sub(start)),
        file: call.file.clone(),
        line: call.line,
        inlined: call.inlined,
        no_symbol: call.function.is_none().then_some(NoSymbol::NotInSymbolTable),
    }
}
