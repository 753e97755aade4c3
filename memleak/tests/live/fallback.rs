//! `--unwind auto` where the kernel refuses the unwinder.
//!
//! What provokes it: a seccomp filter, as containers have them, that lets no type information (BTF)
//! into the kernel. The unwinder's step is checked once for all frames because its types are known;
//! without them the verifier follows it through every frame, and gives up.

use std::{io, os::unix::process::CommandExt as _, process::Command};

use crate::{
    guard::alone,
    ledger,
    process::Running,
    programs::{Link, build},
    tracer::{MEMLEAK, NEVER, Tracer},
};

/// `BPF_BTF_LOAD` of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_BTF_LOAD: u32 = 18;

/// Has the kernel refuse type information to the command and what it starts.
fn without_types(command: &mut Command) {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let jump = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let give = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // struct seccomp_data: the call's number at 0, the low half of its first argument at 16.
    let filter = [
        step(load, 0, 0, 0),
        step(jump, 0, 3, libc::SYS_bpf as u32),
        step(load, 0, 0, 16),
        step(jump, 0, 1, BPF_BTF_LOAD),
        step(give, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32),
        step(give, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: prctl(2) may be called between fork and exec; the filter lives in the closure.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
            match libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
}

fn tracer(pid: u32, unwind: &str) -> Tracer {
    let mut command = Command::new(MEMLEAK);
    command.args([
        "--json",
        "-v",
        "-o",
        "0",
        "-T",
        "100000",
        "--unwind",
        unwind,
        "-p",
        &pid.to_string(),
        NEVER,
    ]);
    without_types(&mut command);
    Tracer::run(&mut command)
}

#[test]
fn auto_goes_by_frame_pointers_and_says_so() {
    let _alone = alone();
    let program = build("known_leaks.cc", Link::Dynamic, &[]);
    let mut target = Running::start(Command::new(program).args(["1", "2000", "7"]));
    target.expect("READY");
    let mut tracer = tracer(target.pid(), "auto");
    let note = tracer.wait_note(|line| line.contains("frame pointers"));
    assert!(note.contains("this kernel refuses the unwinder"), "{note}");
    tracer.wait_attached();
    target.tell("go");
    let ledger = ledger::parse(&target.expect("END"));
    let report = tracer.stop_with_report();
    report.assert_equals(&ledger);
    report.assert_nothing_lost();
    target.tell("end");
    assert!(target.wait_status().success());
}

#[test]
fn dwarf_is_refused_with_one_line() {
    let _alone = alone();
    let program = build("known_leaks.cc", Link::Dynamic, &[]);
    let mut target = Running::start(Command::new(program).args(["1", "2000", "7"]));
    target.expect("READY");
    let outcome = tracer(target.pid(), "dwarf").wait();
    assert_eq!(outcome.code, 1, "{:?}", outcome.ended);
    let last = outcome.ended.stderr.last().map(String::as_str).unwrap_or_default();
    assert!(last.starts_with("memleak: cannot load the BPF programs: "), "{:?}", outcome.ended.stderr);
}
