//! What threads that do not run have in their registers (`memleak-ebpf/src/registers.rs`): an
//! iterator over the threads of a process (Linux 6.1; before, there was one over all threads only).

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use aya::{Btf, Ebpf, programs::Iter};
use log::debug;
use memleak_common::registers::{RegisterOffsets, SavedRegisters};

use super::{access::program, error::chain, sys::bpf};
use crate::{
    arch::{STACK_POINTER, vector_words},
    proc::{btf, stacks::ThreadRegisters},
};

const PROGRAM: &str = "thread_registers";
/// Words that are below point nowhere: what is not mapped begins every process's memory.
const LOWEST: u64 = 4096;

/// Reads registers. It has a program of its own, which runs when it is asked, and for us alone.
#[derive(Debug)]
pub(crate) struct RegisterReader(OwnedFd);

impl RegisterReader {
    /// Loads the program; `None`, and a line for those who ask for more, if the kernel has no such
    /// iterator, or refuses it.
    pub(super) fn load(ebpf: &mut Ebpf) -> Option<Self> {
        let loaded = Self::try_load(ebpf);
        loaded.inspect_err(|error| debug!("--why: registers of threads are not known: {error}")).ok()
    }

    fn try_load(ebpf: &mut Ebpf) -> Result<Self, String> {
        let program: &mut Iter = program(ebpf, PROGRAM).map_err(|error| error.to_string())?;
        let btf = Btf::from_sys_fs().map_err(|error| chain(&error))?;
        program.load("task", &btf).map_err(|error| chain(&error))?;
        let fd = program.fd().map_err(|error| chain(&error))?.as_fd().try_clone_to_owned();
        Ok(Self(fd.map_err(|error| error.to_string())?))
    }

    /// Those of all threads of `pid`, at this moment.
    pub(crate) fn read(&self, pid: u32) -> io::Result<Vec<ThreadRegisters>> {
        let link = link(self.0.as_fd(), pid)?;
        let mut bytes = Vec::new();
        File::from(iterator(link.as_fd())?).read_to_end(&mut bytes)?;
        let records = bytes.chunks_exact(size_of::<SavedRegisters>());
        // SAFETY: as many bytes as the type has, of which any are good for it.
        let record = |bytes: &[u8]| unsafe { bytes.as_ptr().cast::<SavedRegisters>().read_unaligned() };
        Ok(records.map(|bytes| known(&record(bytes))).collect())
    }
}

fn known(saved: &SavedRegisters) -> ThreadRegisters {
    let state = saved.vectors.get(..saved.vector_bytes as usize / 8).unwrap_or_default();
    let vectors = if state.is_empty() { Vec::new() } else { vector_words(state) };
    let words = saved.general.iter().copied().chain(vectors);
    ThreadRegisters {
        tid: saved.tid,
        runs: saved.runs != 0,
        switches: saved.switches,
        stack_pointer: saved.general.get(STACK_POINTER).copied().unwrap_or(0),
        words: words.filter(|word| *word >= LOWEST).collect(),
    }
}

/// A link of `program` to the iterator over the threads of `pid`.
fn link(program: BorrowedFd<'_>, pid: u32) -> io::Result<OwnedFd> {
    const BPF_LINK_CREATE: i32 = 28;
    const BPF_TRACE_ITER: u32 = 28;
    /// `bpf_iter_link_info::task` (include/uapi/linux/bpf.h): all threads of a process.
    #[repr(C)]
    struct TaskInfo {
        tid: u32,
        pid: u32,
        pid_fd: u32,
    }
    /// The part of `union bpf_attr` that BPF_LINK_CREATE uses for iterators.
    #[repr(C)]
    struct IteratorLink {
        prog_fd: u32,
        target_fd: u32,
        attach_type: u32,
        flags: u32,
        iter_info: u64,
        iter_info_len: u32,
        padding: u32,
    }
    let info = TaskInfo { tid: 0, pid, pid_fd: 0 };
    let mut attributes = IteratorLink {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        iter_info: (&raw const info) as u64,
        iter_info_len: size_of::<TaskInfo>() as u32,
        padding: 0,
    };
    owned(bpf(BPF_LINK_CREATE, &mut attributes)?)
}

/// What is read to go through a link's iterator once.
fn iterator(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const BPF_ITER_CREATE: i32 = 33;
    #[repr(C)]
    struct IteratorAttributes {
        link_fd: u32,
        flags: u32,
    }
    owned(bpf(BPF_ITER_CREATE, &mut IteratorAttributes { link_fd: link.as_raw_fd() as u32, flags: 0 })?)
}

fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: a command has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Where the running kernel keeps registers. Those of the vector unit may not be known.
pub(super) fn offsets() -> Option<RegisterOffsets> {
    let btf = btf::Btf::kernel().ok()?;
    let task = |member: &str| btf.member_offset("task_struct", member);
    let vectors = vectors(&btf).unwrap_or_default();
    Some(RegisterOffsets {
        pid: task("pid")?,
        on_cpu: task("on_cpu")?,
        nvcsw: task("nvcsw")?,
        nivcsw: task("nivcsw")?,
        ..vectors
    })
}

/// `struct fpu` is within the task (arch/x86/include/asm/processor.h) or, from 6.16 on, after it
/// (`x86_task_fpu`).
fn vectors(btf: &btf::Btf) -> Option<RegisterOffsets> {
    let within = btf.holds("thread_struct", "fpu").then(|| {
        Some(btf.member_offset("task_struct", "thread")? + btf.member_offset("thread_struct", "fpu")?)
    });
    let fpu = within.unwrap_or_else(|| btf.size("task_struct"))?;
    Some(RegisterOffsets {
        fpstate: fpu + btf.member_offset("fpu", "fpstate")?,
        fpstate_size: btf.member_offset("fpstate", "size")?,
        fpstate_regs: btf.member_offset("fpstate", "regs")?,
        ..RegisterOffsets::default()
    })
}
