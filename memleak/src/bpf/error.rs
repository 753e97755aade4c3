//! What can go wrong between us and the kernel.

use aya::programs::ProgramError;

use crate::arch::OLDEST_LINUX;

fn remedy(without_tables: Option<u64>) -> String {
    match without_tables {
        Some(needed) => format!("type --unwind fp, which takes {needed} MB, or raise the limit"),
        None => "raise the limit, or lower --max-allocs".to_owned(),
    }
}

/// What can go wrong between us and the kernel. Each message is one line: what, why, what to do.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// What the programs cannot do without came later.
    #[error("cannot trace on Linux {0}: {lacks} are missing; boot Linux {major}.{minor} or newer", major = OLDEST_LINUX.0,
        minor = OLDEST_LINUX.1, lacks = OLDEST_LINUX.2)]
    KernelTooOld(String),
    /// Page faults are told of on some machines alone.
    #[error(
        "cannot trace growth: the kernel has no tracepoints of page faults on this machine; leave out --growth"
    )]
    NoPageFaults,
    /// Ranges are counted in pages of this size.
    #[error(
        "cannot trace with pages of {0} bytes: boot a kernel with pages of 4096 bytes (CONFIG_ARM64_4K_PAGES)"
    )]
    PageSize(usize),
    /// `bpf()` said EPERM.
    #[error(
        "cannot load BPF programs: permission denied; run as root (sudo memleak ...) or give CAP_BPF, CAP_PERFMON and \
         CAP_SYS_PTRACE{0}"
    )]
    NotPermitted(&'static str),
    /// The kernel was built without type information.
    #[error(
        "cannot follow forks: this kernel has no type information (/sys/kernel/btf/vmlinux: {0}); boot a kernel with \
         CONFIG_DEBUG_INFO_BTF, or leave out --follow-forks"
    )]
    NoBtf(String),
    /// The same, for kernel mode.
    #[error(
        "cannot trace the kernel: it has no type information (/sys/kernel/btf/vmlinux: {0}); boot a kernel with \
         CONFIG_DEBUG_INFO_BTF"
    )]
    NoKernelTypes(String),
    /// The BPF side learns a child's number in the first PID namespace, not the one that it has
    /// here.
    #[error(
        "cannot follow forks from within a PID namespace: start memleak outside of it, or leave out --follow-forks"
    )]
    ForksInNamespace,
    /// The kernel ran out of memory for our maps, or a limit forbids it.
    #[error(
        "cannot make the BPF maps: not enough memory; type --unwind fp, lower --max-allocs or --stack-storage-size, or \
         raise the memory limit (ulimit -l, or the control group's)"
    )]
    NoMemory,
    /// The kernel would kill us.
    #[error(
        "cannot trace: the control group's memory limit leaves {left} MB, and this takes about {needed} MB; {}",
        remedy(*without)
    )]
    LittleMemory {
        /// What there is, MB.
        left: u64,
        /// What is needed, MB.
        needed: u64,
        /// What is needed without unwind tables, if there is as much.
        without: Option<u64>,
    },
    /// No descriptor was available.
    #[error("cannot load BPF programs: too many open files; raise the limit (ulimit -n)")]
    TooManyFiles,
    /// Anything else while loading.
    #[error("cannot load the BPF programs: {0}; run with -vv for the verifier log")]
    Load(String),
    /// A program or map that must be there is not: a build that went wrong.
    #[error("the embedded BPF object has no {0}; rebuild memleak (cargo xtask build-ebpf)")]
    Missing(&'static str),
    /// A probe could not be attached.
    #[error("cannot attach to {function} in {object}: {reason}")]
    Attach {
        /// The function.
        function: String,
        /// The object.
        object: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A map could not be read or written.
    #[error("cannot access the BPF map {map}: {reason}")]
    Map {
        /// The map's name.
        map: &'static str,
        /// Why.
        reason: String,
    },
}

/// All causes of an error in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    // The verifier's log has many lines; the first says which program it was about.
    let first = text.lines().next().unwrap_or_default().trim_end();
    first.strip_suffix(" Verifier output:").unwrap_or(first).trim_end_matches('.').to_owned()
}

/// The operating system's error number behind an error, if there is one.
pub(super) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
            return Some(code);
        }
        // aya's errors are transparent around a system call's, which hides it from `source`.
        if let Some(ProgramError::SyscallError(call)) = error.downcast_ref::<ProgramError>()
            && let Some(code) = call.io_error.raw_os_error()
        {
            return Some(code);
        }
        next = error.source();
    }
    None
}

/// Why a program or map was not taken in.
pub(super) fn load_error(error: &(dyn std::error::Error + 'static)) -> BpfError {
    match os_error(error) {
        Some(libc::EPERM) => BpfError::NotPermitted(why_not_permitted()),
        Some(libc::ENOMEM) => BpfError::NoMemory,
        Some(libc::EMFILE | libc::ENFILE) => BpfError::TooManyFiles,
        // The verifier's EACCES, too, which is not about permissions: an access that it finds
        // wrong.
        _ => {
            log::debug!("{error}"); // with the verifier's log, where there is one
            BpfError::Load(chain(error))
        }
    }
}

/// What root may still lack.
fn why_not_permitted() -> &'static str {
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return "";
    }
    let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if lockdown.contains("[confidentiality]") {
        "; this kernel is locked down (confidentiality), which forbids it to root too"
    } else {
        "; root lacks them here, as in a container that was started without --privileged"
    }
}

/// Why a map could not be read or written.
pub(super) fn map_error(map: &'static str, error: &(dyn std::error::Error + 'static)) -> BpfError {
    let mut reason = chain(error);
    if os_error(error) == Some(libc::ENOMEM) {
        reason += "; raise the limit on memory (ulimit -v, or the control group's)";
    }
    BpfError::Map { map, reason }
}
