//! The mappings of processes, with the objects behind them, and the way from an address to frames.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Frame, NoSymbol,
    bytes::{Budget, Bytes, Source},
    debug_files::Roots,
    kernel::KernelSymbols,
    object::{Call, Object},
    perf_map::PerfMap,
    regions::Regions,
    target::{LiveTarget, Target},
};
use crate::{
    proc::{
        maps::{Backing, Mapping, read_maps},
        root::Root,
    },
    snapshot::KERNEL_PID,
};

/// Most objects that are held open, for all processes together.
const MAX_OBJECTS: usize = 16 << 10;

/// Largest vdso, bytes. They are a few pages.
const MAX_VDSO: u64 = 1 << 20;

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
        Self { debug_directory: "/usr/lib/debug".into(), memory: 2 << 30 }
    }
}

/// Turns addresses of processes into frames.
///
/// Files are opened when [`Symbolizer::observe`] first sees them mapped and stay open; what is in them is read when an
/// address first asks for it.
#[derive(Debug)]
pub struct Symbolizer {
    budget: Budget,
    host_debug: Option<Arc<Root>>,
    processes: HashMap<u32, Process>,
    objects: HashMap<ObjectKey, Object>,
    kernel: Option<KernelSymbols>,
}

/// The path is part of it: subvolumes of one btrfs have the same device in /proc/PID/maps, and inodes of their own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ObjectKey {
    File { device: (i32, i32), inode: u64, path: Arc<Path> },
    Vdso(u32),
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
    object: Option<ObjectKey>,
    module: Option<String>,
    start: u64,
    file_offset: u64,
    /// Where the file's first byte is mapped, or would be: the load bias of most objects, for when they cannot be read.
    base: u64,
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
        Self {
            budget: Budget::new(options.memory),
            host_debug: Root::at(&options.debug_directory).ok().map(Arc::new),
            processes: HashMap::new(),
            objects: HashMap::new(),
            kernel: None,
        }
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
            if let Ok(root) = target.root() {
                process.roots = Roots { target: Some(Arc::new(root)), host_debug: self.host_debug.clone() };
            }
            for mapping in mappings.iter().filter(|mapping| mapping.executable) {
                let code = Code::new(pid, mapping, &mappings);
                if let Some(key) = &code.object
                    && self.objects.get(key).is_none_or(Object::is_unreadable)
                    && self.objects.len() < MAX_OBJECTS
                {
                    let object = open_object(mapping, target, &process.roots, &self.budget);
                    self.objects.insert(key.clone(), object);
                }
                process.code.insert(mapping.start, mapping.end, Arc::new(code));
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
        let used: HashSet<&ObjectKey> = self
            .processes
            .values()
            .flat_map(|process| process.code.values())
            .filter_map(|code| code.object.as_ref())
            .collect();
        self.objects.retain(|key, _| used.contains(key));
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
        let Some(code) = process.code.get(call).cloned().or_else(|| process.data(pid, call)) else {
            frames.push(process.generated(ip).unwrap_or_else(|| unknown(ip, None, None, NoSymbol::Unmapped)));
            return;
        };
        let Some(key) = &code.object else {
            frames
                .push(process.generated(ip).unwrap_or_else(|| unknown(ip, None, None, NoSymbol::Anonymous)));
            return;
        };
        let module = code.module.clone();
        let file_offset = (call - code.start).wrapping_add(code.file_offset);
        let object = self.objects.get_mut(key);
        let placed = object.and_then(|object| object.vaddr_of(file_offset).map(|vaddr| (object, vaddr)));
        let Some((object, vaddr)) = placed else {
            let offset = Some(ip.wrapping_sub(code.base));
            let named = process.generated(ip);
            frames.push(named.unwrap_or_else(|| unknown(ip, module, offset, NoSymbol::UnreadableObject)));
            return;
        };
        let offset = vaddr.wrapping_add(1);
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
    fn data(&self, pid: u32, address: u64) -> Option<Arc<Code>> {
        let index = self.latest.partition_point(|mapping| mapping.end <= address);
        let mapping = self.latest.get(index).filter(|mapping| mapping.start <= address)?;
        Some(Arc::new(Code::new(pid, mapping, &self.latest)))
    }
}

impl Code {
    fn new(pid: u32, mapping: &Mapping, all: &[Mapping]) -> Self {
        let object = match &mapping.backing {
            Backing::File { path, .. } => Some(ObjectKey::File {
                device: mapping.device,
                inode: mapping.inode,
                path: path.as_path().into(),
            }),
            Backing::Vdso => Some(ObjectKey::Vdso(pid)),
            Backing::Other => None,
        };
        Self {
            object,
            module: module_name(mapping),
            start: mapping.start,
            file_offset: mapping.file_offset,
            base: base(mapping, all),
        }
    }
}

/// Where the first byte of the file is mapped: by the nearest mapping of it before this one, or where it would be.
fn base(mapping: &Mapping, all: &[Mapping]) -> u64 {
    let before = all.partition_point(|other| other.start <= mapping.start);
    all.get(..before)
        .unwrap_or_default()
        .iter()
        .rev()
        .take_while(|other| other.backing == Backing::Other || other.inode == mapping.inode)
        .find(|other| other.file_offset == 0 && other.backing == mapping.backing)
        .map_or_else(|| mapping.start.wrapping_sub(mapping.file_offset), |first| first.start)
}

fn module_name(mapping: &Mapping) -> Option<String> {
    match &mapping.backing {
        Backing::File { path, .. } => Some(super::demangle::printable_path(path)),
        Backing::Vdso => Some("[vdso]".to_owned()),
        Backing::Other => None,
    }
}

fn open_object(mapping: &Mapping, target: &dyn Target, roots: &Roots, budget: &Budget) -> Object {
    let source = match mapping.backing {
        Backing::Vdso => {
            let size = (mapping.end - mapping.start).min(MAX_VDSO) as usize;
            let memory = target.memory(mapping.start, size);
            memory.and_then(|memory| Bytes::new(memory, budget)).map(Source::Memory)
        }
        _ => target.open(mapping).and_then(Source::from_file),
    };
    Object::new(source, mapping.path().unwrap_or(Path::new("[vdso]")), roots.clone(), budget)
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
