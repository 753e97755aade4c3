//! The mappings of address spaces, with the objects behind them, and the way from an address to its
//! object, and to frames.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Frame, NoSymbol,
    identity::{Anchor, Identities, ObjectIdentity, ObjectNumber},
    kernel::KernelSymbols,
    mapped::{Mapped, MappingAt, Observed, Region},
    members::{Holder, MemberAt},
    object::{Call, NamedObject, Variable},
    perf_map::PerfMap,
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
/// Files are opened when [`Symbolizer::observe`] first sees them mapped and stay open; what is in
/// them is read when an address first asks for it.
#[derive(Debug)]
pub struct Symbolizer {
    store: ObjectStore,
    processes: HashMap<u32, AddressSpace>,
    /// By [`ObjectFile::id`].
    objects: HashMap<u64, NamedObject>,
    /// Objects in which something was located, by their files.
    identities: Identities<u64, Arc<CodeMapping>>,
    kernel: Option<KernelSymbols>,
}

/// Where a frame is: equal of equal code, in whatever process, wherever it is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Location {
    /// In an object.
    Object {
        /// Which.
        object: ObjectNumber,
        /// The return address as the object names it.
        vaddr: u64,
    },
    /// In code that belongs to no object, or nowhere: an address means what it does in its own
    /// space alone.
    Elsewhere {
        /// Address space.
        space: u32,
        /// Return address.
        ip: u64,
    },
    /// In an object that was not seen while it was mapped.
    Uncertain {
        /// Address space.
        space: u32,
        /// Return address.
        ip: u64,
    },
    /// In the kernel.
    Kernel {
        /// Return address.
        ip: u64,
    },
}

#[derive(Debug, Default)]
struct AddressSpace {
    latest: Vec<Mapping>,
    /// The executable mappings of `latest`.
    regions: Vec<Region<Arc<CodeMapping>>>,
    /// Those of the program itself.
    program: Vec<Region<Arc<CodeMapping>>>,
    /// Those of all times.
    code: Mapped<Arc<CodeMapping>>,
    roots: Roots,
    perf_map: Option<PerfMap>,
}

/// A mapping, executable but for what [`AddressSpace::data`] finds.
#[derive(Debug)]
struct CodeMapping {
    /// `None` for anonymous memory.
    object: Option<Arc<ObjectFile>>,
    module: Option<String>,
    /// Its load bias; of one that cannot be read where the file's first byte is mapped, or would
    /// be, which it is of most.
    bias: u64,
}

impl PartialEq for CodeMapping {
    /// The same code at the same place; all generated code counts as the same.
    fn eq(&self, other: &Self) -> bool {
        let id = |code: &Self| code.object.as_ref().map(|object| object.id());
        id(self) == id(other) && (self.object.is_none() || self.bias == other.bias)
    }
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
        let (processes, objects, identities) = (HashMap::new(), HashMap::new(), Identities::default());
        Self { store, processes, objects, identities, kernel: None }
    }

    /// Makes stacks of process [`KERNEL_PID`] the kernel's.
    pub fn set_kernel(&mut self, symbols: KernelSymbols) {
        self.kernel = Some(symbols);
    }

    /// Takes over what modules the kernel has now, if its stacks are asked for; once for each
    /// report. What cannot be read leaves what was known.
    pub fn observe_kernel(&mut self) {
        if let Some(kernel) = &mut self.kernel {
            let _ = kernel.observe();
        }
    }

    /// Takes over what `pid` has mapped now and keeps those files open, so that its addresses can
    /// be symbolized after it has ended, after a dlclose and after the files were deleted or
    /// replaced. Cheap while nothing changes.
    ///
    /// An error means that /proc/PID/maps could not be read; what was known stays known.
    pub fn observe(&mut self, pid: u32) -> io::Result<()> {
        let mappings = read_maps(pid)?;
        self.observe_mappings(pid, 0, mappings, &LiveTarget(pid));
        Ok(())
    }

    /// The same, of any target, given what it has mapped (in order of address) in a generation
    /// ([`Mapped`]) that had not ended when it was read.
    pub fn observe_mappings(
        &mut self,
        space: u32,
        generation: u64,
        mappings: Vec<Mapping>,
        target: &dyn Target,
    ) -> Observed {
        let mut observed = Observed::Grown;
        let process = self.processes.entry(space).or_default();
        if !mappings.is_empty() {
            let changed = mappings != process.latest;
            if changed {
                let roots = self.store.roots(target);
                if roots.target.is_some() {
                    process.roots = roots;
                }
                process.regions = Vec::new();
                let exe = target.executable();
                let started_as = target.started_as();
                for (mapping, base) in mappings.iter().zip(bases(&mappings)) {
                    if !mapping.executable {
                        continue;
                    }
                    let object =
                        (mapping.backing != Backing::Other).then(|| self.store.open(mapping, target));
                    if let Some(object) = &object {
                        self.objects
                            .entry(object.id())
                            .or_insert_with(|| NamedObject::new(Arc::clone(object), process.roots.clone()));
                    }
                    let mut code = CodeMapping::new(mapping, object, base);
                    if let (Some(exe), Some(name)) = (&exe, &started_as)
                        && code.is_at(exe)
                    {
                        code.module = Some(super::demangle::printable_path(name));
                    }
                    let code = Arc::new(code);
                    process.regions.push(Region { range: mapping.start..mapping.end, code });
                }
                process.latest = mappings;
                let is_program = |region: &&Region<Arc<CodeMapping>>| {
                    exe.as_ref().is_some_and(|exe| region.code.is_at(exe))
                };
                process.program = process.regions.iter().filter(is_program).cloned().collect();
            }
            process.code.keep(generation, &process.program);
            // Generated code comes and goes, and is not located in anything.
            observed = process.code.observe(generation, &process.regions, |code| code.object.is_some());
            if changed {
                self.drop_unused_objects();
            }
        }
        self.observe_perf_map(space, target);
        observed
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
            let process = AddressSpace {
                latest: parent.latest.clone(),
                regions: parent.regions.clone(),
                program: parent.program.clone(),
                code: parent.code.clone(),
                roots: parent.roots.clone(),
                perf_map: None,
            };
            self.processes.insert(child, process);
        }
    }

    /// Forgets all that `process` had mapped.
    pub fn forget(&mut self, process: u32) {
        self.processes.remove(&process);
        self.drop_unused_objects();
    }

    /// Forgets which objects nothing is located in but `used`, and what only addresses of
    /// generations that are over were looked up in: all that is outstanding was located.
    pub fn forget_located(&mut self, used: &HashSet<ObjectNumber>) {
        self.identities.retain(used);
        self.processes.values_mut().for_each(|process| process.code.forget_old());
        self.drop_unused_objects();
    }

    /// Forgets what processes had mapped that are not to be kept.
    pub fn retain(&mut self, is_kept: impl Fn(u32) -> bool) {
        let before = self.processes.len();
        self.processes.retain(|process, _| is_kept(*process));
        if self.processes.len() < before {
            self.drop_unused_objects();
        }
    }

    fn drop_unused_objects(&mut self) {
        let mapped = self.processes.values().flat_map(|process| process.code.code());
        let located = self.identities.iter();
        let object = |code: &Arc<CodeMapping>| code.object.as_ref().map(|object| object.id());
        let used: HashSet<u64> = mapped.chain(located).filter_map(object).collect();
        self.objects.retain(|id, _| used.contains(id));
        self.store.drop_unused();
    }

    /// Where the return addresses of a stack of an address space are, which was recorded in a
    /// generation.
    ///
    /// What is looked up is the byte before each address, which belongs to the call. A walk gives
    /// the address plus 1 of an instruction that a signal has interrupted.
    pub fn locate(&mut self, space: u32, generation: u64, ips: &[u64]) -> Vec<Location> {
        if space == KERNEL_PID && self.kernel.is_some() {
            return ips.iter().map(|ip| Location::Kernel { ip: *ip }).collect();
        }
        let Some(process) = self.processes.get(&space) else {
            return ips.iter().map(|ip| Location::Elsewhere { space, ip: *ip }).collect();
        };
        let identities = &mut self.identities;
        let locate = |ip: &u64| {
            let ip = *ip;
            match process.code.find(generation, ip.wrapping_sub(1)) {
                MappingAt::Code(code) => {
                    let file =
                        code.object.as_ref().and_then(|object| Some((object.id(), object.elf().ok()?)));
                    let placed = file.and_then(|(id, elf)| {
                        let object = identities.number(&id, code, || Some(ObjectIdentity::of(elf)))?;
                        Some(Location::Object { object, vaddr: ip.wrapping_sub(code.bias) })
                    });
                    // Where generated code is in a file, that is not an object.
                    placed.unwrap_or(Location::Elsewhere { space, ip })
                }
                MappingAt::Nothing => Location::Elsewhere { space, ip },
                MappingAt::Uncertain => Location::Uncertain { space, ip },
            }
        };
        ips.iter().map(locate).collect()
    }

    /// What these locations are called on any machine. Of the kernel's stacks the frames that
    /// belong to tracing itself have no name.
    pub fn anchors(&mut self, locations: &[Location]) -> Vec<Anchor> {
        if let (Some(kernel), Some(ips)) = (&mut self.kernel, kernel_ips(locations)) {
            let frames = kernel.frames(&ips).into_iter();
            let anchor = |frame: Frame| match (frame.module, frame.offset) {
                (Some(module), Some(offset)) => Anchor::Kernel(kernel.identity(&module), offset),
                _ => Anchor::Address(frame.ip),
            };
            return frames.map(anchor).collect();
        }
        let anchor = |location: &Location| match *location {
            Location::Object { object, vaddr } => self.identities.anchor(object, vaddr),
            Location::Elsewhere { ip, .. } | Location::Uncertain { ip, .. } | Location::Kernel { ip } => {
                Anchor::Address(ip)
            }
        };
        locations.iter().map(anchor).collect()
    }

    /// Frames of a list of return addresses, callee first. An address with inlined calls gives
    /// several, innermost first; each address gives at least one.
    ///
    /// Of the kernel's stacks the frames that belong to tracing itself are left out
    /// ([`KernelSymbols::frames`]).
    pub fn symbolize(&mut self, space: u32, generation: u64, ips: &[u64]) -> Vec<Frame> {
        let locations = self.locate(space, generation, ips);
        self.frames(&locations, ips)
    }

    /// The same, of what was located. `ips` are the addresses in one of the processes.
    pub fn frames(&mut self, locations: &[Location], ips: &[u64]) -> Vec<Frame> {
        if let (Some(kernel), Some(ips)) = (&mut self.kernel, kernel_ips(locations)) {
            return kernel.frames(&ips);
        }
        let elsewhere = locations.iter().find_map(|location| match location {
            Location::Elsewhere { space, .. } => Some(*space),
            _ => None,
        });
        if let Some(process) = elsewhere.and_then(|space| self.processes.get_mut(&space))
            && let Some(perf_map) = &mut process.perf_map
        {
            // What cannot be read any more is as good as it was.
            let _ = perf_map.refresh();
        }
        let mut frames = Vec::with_capacity(ips.len());
        for (location, ip) in locations.iter().zip(ips) {
            self.symbolize_one(location, *ip, &mut frames);
        }
        frames
    }

    /// The members of types and variables of a process, by the object that has data at `address`,
    /// and by its program. Names are taken without their spaces.
    pub fn members(
        &mut self,
        space: u32,
        address: u64,
        wanted: &HashSet<Holder>,
    ) -> HashMap<Holder, Vec<MemberAt>> {
        let wanted: HashSet<Holder> = wanted.iter().map(Holder::plain).collect();
        let Some(process) = self.processes.get(&space) else { return HashMap::new() };
        let of_data = process.data(address, &self.store);
        let program = process.program.first().map(|region| region.code.clone());
        let mut found: HashMap<Holder, Vec<MemberAt>> = HashMap::new();
        for code in [of_data, program].into_iter().flatten() {
            let id = code.object.as_ref().map(|object| object.id());
            if let Some(object) = id.and_then(|id| self.objects.get(&id)) {
                let left: HashSet<Holder> =
                    wanted.iter().filter(|name| !found.contains_key(*name)).cloned().collect();
                if !left.is_empty() {
                    found.extend(object.members(&left));
                }
            }
        }
        found
    }

    /// The variable at an address of a process, and its object.
    pub fn variable(&self, space: u32, address: u64) -> Option<Variable> {
        let code = self.processes.get(&space)?.code_beside(address, &self.store)?;
        let object = self.objects.get(&code.object.as_ref()?.id())?;
        let found = object.variable(address.wrapping_sub(code.bias))?;
        Some(Variable { module: code.module.clone(), ..found })
    }

    fn symbolize_one(&mut self, location: &Location, ip: u64, frames: &mut Vec<Frame>) {
        match *location {
            Location::Object { object, vaddr } => match self.identities.get(object).cloned() {
                Some(code) => self.code_frames(&code, vaddr, ip, frames),
                None => frames.push(Frame::without_function(ip, None, None, NoSymbol::Unmapped)),
            },
            Location::Uncertain { .. } => {
                frames.push(Frame::without_function(ip, None, None, NoSymbol::Uncertain))
            }
            Location::Elsewhere { space, ip } => self.elsewhere(space, ip, frames),
            Location::Kernel { ip } => {
                frames.push(Frame::without_function(ip, None, None, NoSymbol::Unmapped))
            }
        }
    }

    /// Code of no object: the perf map may name it. What a walk makes of a register that is no
    /// frame pointer may be data.
    fn elsewhere(&mut self, space: u32, ip: u64, frames: &mut Vec<Frame>) {
        let (Some(process), Some(call)) = (self.processes.get(&space), ip.checked_sub(1)) else {
            frames.push(Frame::without_function(ip, None, None, NoSymbol::Unmapped));
            return;
        };
        if let Some(named) = process.generated(ip) {
            frames.push(named);
            return;
        }
        let Some(code) = process.data(call, &self.store) else {
            frames.push(Frame::without_function(ip, None, None, NoSymbol::Unmapped));
            return;
        };
        let Some(object) = &code.object else {
            frames.push(Frame::without_function(ip, None, None, NoSymbol::Anonymous));
            return;
        };
        let vaddr = ip.wrapping_sub(code.bias);
        match object.elf() {
            Ok(_) => self.code_frames(&code, vaddr, ip, frames),
            Err(_) => {
                frames.push(Frame::without_function(
                    ip,
                    code.module.clone(),
                    Some(vaddr),
                    NoSymbol::UnreadableObject,
                ));
            }
        }
    }

    fn code_frames(&mut self, code: &CodeMapping, vaddr: u64, ip: u64, frames: &mut Vec<Frame>) {
        let id = code.object.as_ref().map(|object| object.id());
        let is_held = id.is_some_and(|id| self.objects.get(&id).is_some_and(NamedObject::has_names));
        if !is_held && self.store.is_short_of_memory() {
            self.objects.values_mut().for_each(NamedObject::forget_names);
        }
        let object = id.and_then(|id| self.objects.get_mut(&id));
        let calls = object.map(|object| object.calls(vaddr)).unwrap_or_default();
        let module = code.module.clone();
        match &*calls {
            [] => frames.push(Frame::without_function(ip, module, Some(vaddr), NoSymbol::NotInSymbolTable)),
            calls => frames.extend(calls.iter().map(|call| frame(ip, module.clone(), vaddr, call))),
        }
    }
}

/// The addresses of a stack of the kernel's.
fn kernel_ips(locations: &[Location]) -> Option<Vec<u64>> {
    let ip = |location: &Location| match location {
        Location::Kernel { ip } => Some(*ip),
        _ => None,
    };
    locations.iter().map(ip).collect()
}

impl AddressSpace {
    /// The frame of an address in generated code, if the perf map names it.
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
            directory: None,
            line: None,
            inlined: false,
            no_symbol: None,
            with_arguments: None,
        })
    }

    /// The mapping of an address where no code is or was: what a walk makes of a register that is
    /// no frame pointer.
    fn data(&self, address: u64, store: &ObjectStore) -> Option<Arc<CodeMapping>> {
        let index = self.latest.partition_point(|mapping| mapping.end <= address);
        let mapping = self.latest.get(index).filter(|mapping| mapping.start <= address)?;
        let base = bases(&self.latest).nth(index)?;
        Some(Arc::new(CodeMapping::new(mapping, store.known(mapping), base)))
    }

    /// The code of the object that has its variables at an address: in a file's mapping, or in the
    /// memory of no file that follows it (`.bss`). By where its code is one knows where all of it
    /// is: segments of data may share a page of the file.
    fn code_beside(&self, address: u64, store: &ObjectStore) -> Option<Arc<CodeMapping>> {
        let index = self.latest.partition_point(|mapping| mapping.end <= address);
        let (before, _) = self.latest.split_at_checked(index + 1)?;
        let mut end = before.last().filter(|mapping| mapping.start <= address)?.end;
        let mut connected = before.iter().rev().take_while(|mapping| {
            let touches = mapping.end == end;
            end = mapping.start;
            touches
        });
        let owner = connected.find(|mapping| mapping.backing != Backing::Other)?;
        let is_same = |mapping: &&Mapping| mapping.backing == owner.backing && mapping.inode == owner.inode;
        let is_code = |mapping: &&Mapping| mapping.executable && is_same(mapping);
        let distance = |mapping: &&Mapping| mapping.start.abs_diff(owner.start);
        let code = self.latest.iter().filter(is_code).min_by_key(distance).unwrap_or(owner);
        let object = store.known(code)?;
        Some(Arc::new(CodeMapping::new(code, Some(object), code.start.wrapping_sub(code.file_offset))))
    }
}

impl CodeMapping {
    fn new(mapping: &Mapping, object: Option<Arc<ObjectFile>>, base: u64) -> Self {
        let elf = object.as_ref().and_then(|object| object.elf().ok());
        let bias = elf.and_then(|elf| elf.load_bias(&place_of(mapping))).unwrap_or(base);
        Self { object, module: module_name(mapping), bias }
    }

    /// Its file is the one at this path.
    fn is_at(&self, path: &Path) -> bool {
        self.object.as_ref().is_some_and(|object| object.path() == path)
    }
}

/// For each mapping where the first byte of its file is mapped: by the nearest mapping of it before
/// this one, or where it would be.
fn bases(mappings: &[Mapping]) -> impl Iterator<Item = u64> {
    let mut first: Option<&Mapping> = None;
    mappings.iter().map(move |mapping| {
        if mapping.backing == Backing::Other {
            return mapping.start.wrapping_sub(mapping.file_offset);
        }
        let is_same = |first: &&Mapping| first.backing == mapping.backing && first.inode == mapping.inode;
        first = if mapping.file_offset == 0 { Some(mapping) } else { first.filter(is_same) };
        first.map_or_else(|| mapping.start.wrapping_sub(mapping.file_offset), |first| first.start)
    })
}

fn module_name(mapping: &Mapping) -> Option<String> {
    match &mapping.backing {
        Backing::File { path, .. } => Some(super::demangle::printable_path(path)),
        Backing::Vdso => Some("[vdso]".to_owned()),
        Backing::Other => None,
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
        directory: call.directory.clone(),
        line: call.line,
        inlined: call.inlined,
        no_symbol: call.function.is_none().then_some(NoSymbol::NotInSymbolTable),
        with_arguments: call.with_arguments.clone(),
    }
}
