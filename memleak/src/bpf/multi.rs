//! Programs that are attached to many places by one link (`uprobe_multi`), and those that one link
//! attaches to both ends of calls (uprobe sessions, Linux 6.13).
//!
//! A link of the older kind is one place, and the kernel waits for two grace periods at the end of
//! each: three seconds for thirty probes. One link for all places of a file ends in a tenth of a
//! second, and its probes cost less at each hit. The program must be loaded for it
//! (`expected_attach_type`), which aya 0.14 cannot; so it is loaded here, from the same object and
//! onto the same maps. `BPF_LINK_CREATE`: include/uapi/linux/bpf.h; kernel/trace/bpf_trace.c.

use std::{
    collections::{HashMap, HashSet},
    ffi::{CString, c_char},
    io,
    mem::offset_of,
    os::{
        fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

use aya::{Ebpf, maps::Map};
use aya_obj::{
    Function, Object,
    generated::{
        bpf_attach_type::BPF_TRACE_UPROBE_MULTI, bpf_attr, bpf_cmd, bpf_prog_type::BPF_PROG_TYPE_KPROBE,
    },
};

use super::{
    error::{BpfError, chain},
    maker::{AttrLayout, Maker, MakerCall, make_here},
    perf_events,
    sys::{new_fd, words},
};

/// Programs of the object, loaded for `uprobe_multi`.
pub(super) struct MultiPrograms {
    object: Object,
    btf: Option<OwnedFd>,
    loaded: HashMap<&'static str, (Ends, OwnedFd)>,
    /// `None` if there is none: links are made by ourselves then.
    maker: Option<Maker>,
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProbePlace {
    /// Of the instruction: bytes.
    pub file_offset: u64,
    /// What the program is told.
    pub cookie: u64,
    /// Offset in the file of the counter that the kernel raises while a probe is there; 0 if there
    /// is none.
    pub counter_offset: u64,
}

/// Where in calls a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// At their entries or at their returns.
    One,
    /// At both: at the entry it says whether it is to run at the return.
    Both,
}

impl Ends {
    /// `enum bpf_attach_type`, of the program as of its links.
    const fn attach_type(self) -> u32 {
        /// include/uapi/linux/bpf.h, from 6.13 on.
        const BPF_TRACE_UPROBE_SESSION: u32 = 57;
        match self {
            Self::One => BPF_TRACE_UPROBE_MULTI as u32,
            Self::Both => BPF_TRACE_UPROBE_SESSION,
        }
    }
}

/// The part of `union bpf_attr` that BPF_LINK_CREATE uses for this kind of link.
#[repr(C)]
#[derive(Default)]
struct LinkAttributes {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    cnt: u32,
    multi_flags: u32,
    pid: u32,
    reserved: u32,
}

impl LinkAttributes {
    const LAYOUT: AttrLayout = AttrLayout {
        call: MakerCall::Bpf(bpf_cmd::BPF_LINK_CREATE as i32),
        size: size_of::<Self>(),
        addresses: &[
            offset_of!(Self, path),
            offset_of!(Self, offsets),
            offset_of!(Self, ref_ctr_offsets),
            offset_of!(Self, cookies),
        ],
    };

    /// Writes them to the beginning of a message.
    fn write_to(&self, message: &mut [u64]) {
        assert!(size_of_val(message) >= size_of::<Self>());
        // SAFETY: there is room for them, aligned as they are; they are integers.
        unsafe { message.as_mut_ptr().cast::<Self>().write(ptr::read(self)) };
    }
}

impl MultiPrograms {
    /// Prepares the programs of `object`, whose maps `ebpf` has made; none is loaded yet.
    pub(super) fn prepare(object: &[u8], ebpf: &Ebpf) -> Result<Self, BpfError> {
        let failed = |error: &dyn std::error::Error| BpfError::Load(chain(error));
        let mut object = Object::parse(object).map_err(|error| failed(&error))?;
        let features = aya::features();
        let mut btf = None;
        if let Some(features) = features.btf()
            && let Some(types) = object.fixup_and_sanitize_btf(features).map_err(|error| failed(&error))?
        {
            btf = Some(load_btf(&types.to_bytes()).map_err(|error| failed(&error))?);
        }
        let text_sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let definitions = object.maps.clone();
        let maps: Vec<(&str, RawFd, &aya_obj::Map)> = definitions
            .iter()
            .filter_map(|(name, definition)| Some((name.as_str(), map_fd(ebpf.map(name)?)?, definition)))
            .collect();
        object.relocate_maps(maps.into_iter(), &text_sections).map_err(|error| failed(&error))?;
        object.relocate_calls(&text_sections).map_err(|error| failed(&error))?;
        object.sanitize_functions(features);
        Ok(Self { object, btf, loaded: HashMap::new(), maker: None })
    }

    /// Has the kernel verify programs and take them in, on a thread each: some take the verifier
    /// tens of milliseconds. One result for each of them.
    pub(super) fn load_at_once(&mut self, wanted: &[(&'static str, Ends)]) -> Vec<io::Result<()>> {
        let this = &*self;
        let loaded: Vec<io::Result<OwnedFd>> = match wanted {
            [(name, ends)] => vec![this.load_apart(name, *ends)],
            _ => std::thread::scope(|scope| {
                let threads: Vec<_> =
                    wanted.iter().map(|(name, ends)| scope.spawn(|| this.load_apart(name, *ends))).collect();
                let join = |thread: std::thread::ScopedJoinHandle<'_, io::Result<OwnedFd>>| {
                    thread.join().unwrap_or_else(|_| Err(io::Error::other("the loading thread has panicked")))
                };
                threads.into_iter().map(join).collect()
            }),
        };
        let keep = |(fd, (name, ends)): (io::Result<OwnedFd>, &(&'static str, Ends))| {
            self.loaded.insert(name, (*ends, fd?));
            Ok(())
        };
        loaded.into_iter().zip(wanted).map(keep).collect()
    }

    fn load_apart(&self, name: &'static str, ends: Ends) -> io::Result<OwnedFd> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no program {name}"));
        let program = self.object.programs.get(name).ok_or_else(missing)?;
        let function = self.object.functions.get(&program.function_key()).ok_or_else(missing)?;
        load_program(name, &program.license, function, self.btf.as_ref(), ends)
    }

    /// All is loaded: links are made by a child of ours from now on.
    pub(super) fn start_maker(&mut self) {
        let programs: Vec<RawFd> = self.loaded().map(|program| program.as_raw_fd()).collect();
        let maker = Maker::start(&[LinkAttributes::LAYOUT, perf_events::LAYOUT], &programs);
        self.maker = maker.inspect_err(|error| log::debug!("links are made by ourselves: {error}")).ok();
    }

    /// Loads a program that few targets need, if it is not there yet. The child that makes links
    /// does not know of it: there is another one from now on.
    pub(super) fn load_late(&mut self, name: &'static str) -> io::Result<()> {
        if self.loaded.contains_key(name) {
            return Ok(());
        }
        self.load_at_once(&[(name, Ends::One)]).into_iter().collect::<io::Result<()>>()?;
        self.start_maker();
        Ok(())
    }

    /// Opens a perf event of this layout's message, with rights that we may have given up.
    pub(super) fn open_event(&self, message: &mut [u64]) -> io::Result<OwnedFd> {
        match &self.maker {
            Some(maker) => maker.make(1, message),
            None => make_here(&perf_events::LAYOUT, message),
        }
    }

    /// All that were loaded.
    pub(super) fn loaded(&self) -> impl Iterator<Item = &OwnedFd> {
        self.loaded.values().map(|(_, fd)| fd)
    }

    /// One program serves both ends of calls.
    pub(super) fn serves_both_ends(&self) -> bool {
        self.loaded.values().any(|(ends, _)| *ends == Ends::Both)
    }

    /// Attaches a program to places of one file, in one process.
    pub(super) fn attach(
        &self,
        name: &str,
        is_return: bool,
        path: &Path,
        places: &[ProbePlace],
        pid: u32,
    ) -> io::Result<OwnedFd> {
        const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;
        const HEAD: usize = size_of::<LinkAttributes>() / size_of::<u64>();
        let (ends, program) = self.loaded.get(name).ok_or(io::ErrorKind::NotFound)?;
        let path = CString::new(path.as_os_str().as_bytes())?;
        // What the attributes point to comes after them: offsets, cookies, the path.
        let words_of = |of: fn(&ProbePlace) -> u64| places.iter().map(of).collect::<Vec<u64>>();
        let counters = words_of(|place| place.counter_offset);
        let are_counted = counters.iter().any(|offset| *offset != 0);
        let (offsets, cookies) = (words_of(|place| place.file_offset), words_of(|place| place.cookie));
        let counters = if are_counted { counters } else { Vec::new() };
        let mut message = [vec![0; HEAD], offsets, cookies, counters].concat();
        let path_at = message.len();
        message.extend(words(path.as_bytes_with_nul()));
        let place = |word: usize| (word * size_of::<u64>()) as u64;
        let attributes = LinkAttributes {
            prog_fd: program.as_raw_fd() as u32,
            attach_type: ends.attach_type(),
            path: place(path_at),
            offsets: place(HEAD),
            cookies: place(HEAD + places.len()),
            ref_ctr_offsets: if are_counted { place(HEAD + 2 * places.len()) } else { 0 },
            cnt: places.len() as u32,
            multi_flags: if is_return { BPF_F_UPROBE_MULTI_RETURN } else { 0 },
            pid,
            ..LinkAttributes::default()
        };
        attributes.write_to(&mut message);
        match &self.maker {
            Some(maker) => maker.make(0, &message),
            None => make_here(&LinkAttributes::LAYOUT, &mut message),
        }
    }
}

fn load_btf(types: &[u8]) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` that BPF_BTF_LOAD uses.
    #[repr(C)]
    struct BtfAttributes {
        btf: u64,
        log_buf: u64,
        size: u32,
        log_size: u32,
        log_level: u32,
    }
    let mut attributes = BtfAttributes {
        btf: types.as_ptr() as u64,
        log_buf: 0,
        size: types.len() as u32,
        log_size: 0,
        log_level: 0,
    };
    new_fd(bpf_cmd::BPF_BTF_LOAD, &mut attributes)
}

fn load_program(
    name: &str,
    license: &std::ffi::CStr,
    function: &Function,
    btf: Option<&OwnedFd>,
    ends: Ends,
) -> io::Result<OwnedFd> {
    // SAFETY: integers and arrays of them: all zeroes is a value.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    let function_info = function.func_info.func_info_bytes();
    let line_info = function.line_info.line_info_bytes();
    // SAFETY: the member that BPF_PROG_LOAD reads; all of the union is zeroed.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    let room = load.prog_name.len() - 1;
    for (to, from) in load.prog_name.iter_mut().take(room).zip(name.bytes()) {
        *to = from as c_char;
    }
    load.prog_type = BPF_PROG_TYPE_KPROBE as u32;
    load.expected_attach_type = ends.attach_type();
    load.insns = function.instructions.as_ptr() as u64;
    load.insn_cnt = function.instructions.len() as u32;
    load.license = license.as_ptr() as u64;
    if let Some(btf) = btf {
        load.prog_btf_fd = btf.as_raw_fd() as u32;
        load.func_info = function_info.as_ptr() as u64;
        load.func_info_cnt = function.func_info.len() as u32;
        load.func_info_rec_size = function.func_info_rec_size as u32;
        load.line_info = line_info.as_ptr() as u64;
        load.line_info_cnt = function.line_info.len() as u32;
        load.line_info_rec_size = function.line_info_rec_size as u32;
    }
    let loaded = new_fd(bpf_cmd::BPF_PROG_LOAD, &mut attributes);
    if loaded.is_err() && log::log_enabled!(log::Level::Debug) {
        log::debug!("{name}: {}", verifier_log(attributes));
    }
    loaded
}

/// What the verifier says of a program that the kernel has refused: the end of it.
fn verifier_log(mut attributes: bpf_attr) -> String {
    const ROOM: usize = 16 << 20;
    const SHOWN: usize = 64 << 10;
    let mut text = vec![0u8; ROOM];
    // SAFETY: as in `load_program`, which has filled it.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    (load.log_level, load.log_size, load.log_buf) = (1, ROOM as u32, text.as_mut_ptr() as u64);
    let _ = new_fd(bpf_cmd::BPF_PROG_LOAD, &mut attributes);
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(ROOM);
    String::from_utf8_lossy(text.get(end.saturating_sub(SHOWN)..end).unwrap_or_default()).into_owned()
}

/// The descriptor of a map of a kind that our object has.
fn map_fd(map: &Map) -> Option<RawFd> {
    let (Map::Array(data)
    | Map::ArrayOfMaps(data)
    | Map::HashMap(data)
    | Map::PerCpuArray(data)
    | Map::RingBuf(data)
    | Map::StackTraceMap(data)) = map
    else {
        return None;
    };
    use std::os::fd::AsFd as _;
    let fd: BorrowedFd<'_> = data.fd().as_fd();
    Some(fd.as_raw_fd())
}
