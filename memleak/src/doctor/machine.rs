//! What this machine offers, and what follows from it.

use std::{env, fs, path::Path};

use aya::util::KernelVersion;
use serde::Serialize;

use crate::{
    arch::{HOST, OLDEST_LINUX},
    bpf::can_write_to_targets,
    proc::{
        limits::most_open_files,
        memory_limit::{memory_available, memory_left},
        status::in_first_pid_namespace,
    },
};

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Check {
    /// What.
    pub name: &'static str,
    /// What was found.
    pub value: String,
    /// Nothing is missing.
    pub ok: bool,
    /// What follows.
    pub means: String,
}

fn check(name: &'static str, value: impl Into<String>, ok: bool, means: impl Into<String>) -> Check {
    Check { name, value: value.into(), ok, means: means.into() }
}

/// All of them.
pub(super) fn checks() -> Vec<Check> {
    vec![
        kernel(),
        types(),
        rights(),
        lockdown(),
        seccomp(),
        perf_event_paranoid(),
        pointers(),
        pid_namespace(),
        groups(),
        open_files(),
        locked_memory(),
        kernel_mode(),
        proc_events(),
        debuginfod(),
    ]
}

fn first_line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.trim().to_owned())
}

fn kernel() -> Check {
    let release = first_line("/proc/sys/kernel/osrelease").unwrap_or_default();
    let Ok(version) = KernelVersion::current() else {
        return check("kernel", release, false, "its version cannot be read");
    };
    let since = |major, minor| version >= KernelVersion::new(major, minor, 0);
    let (major, minor, _) = OLDEST_LINUX;
    if !since(major, minor) {
        let means = format!("too old: Linux {major}.{minor} is the oldest that can be used");
        return check("kernel", release, false, means);
    }
    let means = match () {
        () if since(6, 13) && HOST.replaces_returns() => {
            "one link for many probes, and one program for both ends of calls"
        }
        () if since(6, 6) => "one link for many probes",
        () if since(5, 17) => "a link for each probe: attaching takes longer",
        () => "a link for each probe; nothing is stopped at its birth: the first calls may be missed",
    };
    check("kernel", release, true, means)
}

fn types() -> Check {
    match Path::new("/sys/kernel/btf/vmlinux").exists() {
        true => check("types (BTF)", "yes", true, "--follow-forks, and the table of blocks"),
        false => {
            let means =
                "no --follow-forks; blocks are in hash maps, which costs more (CONFIG_DEBUG_INFO_BTF)";
            check("types (BTF)", "no", false, means)
        }
    }
}

/// Capabilities by number (include/uapi/linux/capability.h), and what each is for.
const CAPABILITIES: [(u32, &str, &str); 6] = [
    (39, "CAP_BPF", "nothing can be loaded"),
    (38, "CAP_PERFMON", "nothing can be attached"),
    (19, "CAP_SYS_PTRACE", "only your own processes can be looked into"),
    (21, "CAP_SYS_ADMIN", "C++ exceptions out of tcmalloc's operator new end the target"),
    (34, "CAP_SYSLOG", "no --kernel: it hides its addresses"),
    (12, "CAP_NET_ADMIN", "--name and its like find newcomers by looking each second"),
];

fn rights() -> Check {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    let missing: Vec<String> = CAPABILITIES
        .iter()
        .filter(|(number, ..)| bits & (1 << number) == 0)
        .map(|(_, name, means)| format!("{name}: {means}"))
        .collect();
    match missing.as_slice() {
        [] => check("rights", "all that are used", true, "everything"),
        missing => check("rights", "some are missing", false, missing.join("; ") + "; run as root (sudo)"),
    }
}

fn lockdown() -> Check {
    let text = first_line("/sys/kernel/security/lockdown").unwrap_or_default();
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(chosen, _)| chosen);
    match chosen {
        Some("confidentiality") => {
            check("lockdown", "confidentiality", false, "no program may read memory: nothing works")
        }
        chosen => match can_write_to_targets() {
            true => check("lockdown", chosen.unwrap_or("none"), true, "return addresses can be put back"),
            false => {
                let means =
                    "no program may write to a target: exceptions out of tcmalloc's operator new end it";
                check("lockdown", chosen.unwrap_or("none that is shown"), false, means)
            }
        },
    }
}

fn seccomp() -> Check {
    match first_line("/proc/sys/kernel/seccomp/actions_avail") {
        Some(actions) if actions.contains("errno") => {
            check("seccomp", "yes", true, "a filter is put up once probes are in")
        }
        _ => check("seccomp", "no", true, "no filter is put up once probes are in"),
    }
}

fn perf_event_paranoid() -> Check {
    let value = first_line("/proc/sys/kernel/perf_event_paranoid").unwrap_or_else(|| "unknown".to_owned());
    check("perf_event_paranoid", value, true, "of no matter with CAP_PERFMON or as root")
}

fn pointers() -> Check {
    let value = first_line("/proc/sys/kernel/kptr_restrict").unwrap_or_else(|| "unknown".to_owned());
    let hides = value == "2";
    let means = match hides {
        true => "no --kernel: it hides its addresses; sysctl kernel.kptr_restrict=1",
        false => "--kernel can name functions, as root",
    };
    check("kptr_restrict", value, !hides, means)
}

fn pid_namespace() -> Check {
    match in_first_pid_namespace() {
        true => check("PID namespace", "the machine's", true, "all processes can be traced"),
        false => {
            let means = "processes of this container alone, and no --follow-forks; give it the machine's (--pid=host)";
            check("PID namespace", "its own", false, means)
        }
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn groups() -> Check {
    /// What a run of a large program takes, with its maps.
    const NEEDED: u64 = 256 << 20;
    let left = memory_available().unwrap_or(u64::MAX);
    let value = match memory_left() {
        Some(left) => format!("{} left in our control group", mebibytes(left)),
        None => format!("{} available, no limit by control groups", mebibytes(left)),
    };
    let ok = left >= NEEDED;
    check("memory", value, ok, if ok { "enough" } else { "little: --unwind fp and --max-memory take less" })
}

fn open_files() -> Check {
    const NEEDED: u64 = 4096;
    let most = most_open_files();
    let means = "each object of a target is held open; raise it with ulimit -n if there are many";
    check("open files", most.to_string(), most >= NEEDED, means)
}

fn locked_memory() -> Check {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let value = line.and_then(|line| line.split_ascii_whitespace().next()).unwrap_or("unknown").to_owned();
    check("memlock", value, true, "of no matter since Linux 5.11: maps count as memory of the control group")
}

fn kernel_mode() -> Check {
    let places = ["/sys/kernel/tracing/events/kmem", "/sys/kernel/debug/tracing/events/kmem"];
    // The types name each tracepoint, whether or not a file system shows it.
    let types = fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
    let has_type = memchr::memmem::find(&types, b"\0btf_trace_kmem_cache_alloc\0").is_some();
    let tracepoints = has_type || places.iter().any(|place| Path::new(place).exists());
    let kprobes = Path::new("/sys/bus/event_source/devices/kprobe").exists();
    let uprobes = Path::new("/sys/bus/event_source/devices/uprobe").exists();
    let yes = |is: bool| if is { "yes" } else { "no" };
    let value =
        format!("uprobes {}, tracepoints {}, kprobes {}", yes(uprobes), yes(tracepoints), yes(kprobes));
    let means = match (uprobes, tracepoints || kprobes) {
        (false, _) => "without uprobes no process can be traced (CONFIG_UPROBE_EVENTS)",
        (true, true) => "processes, and --kernel",
        (true, false) => "processes; for --kernel mount -t tracefs tracefs /sys/kernel/tracing",
    };
    check("probes", value, uprobes, means)
}

fn proc_events() -> Check {
    let open = crate::proc::exec_watch::ExecWatch::open();
    let value = if open.is_ok() { "yes" } else { "no" };
    check("process events", value, open.is_ok(), "--name and its like are told of new programs")
}

fn debuginfod() -> Check {
    let urls = env::var("DEBUGINFOD_URLS").unwrap_or_default();
    let value = if urls.trim().is_empty() { "DEBUGINFOD_URLS is not set".to_owned() } else { urls };
    check("debuginfod", value, true, "never asked: names come from the files that are here")
}
