//! Signals that the standard library or we handle, where they come of our own work: a fault, a pipe
//! that nobody reads, a file that may not become larger. Sent by others they end us at the first,
//! as they do every program that does not know them.

use std::{io, mem, sync::OnceLock};

/// What they were handled by before: the standard library's look whether a stack has overflown.
static FAULTS: OnceLock<[(libc::c_int, libc::sigaction); 2]> = OnceLock::new();

/// Sets the handlers.
///
/// A report beyond the limit on the size of files (`ulimit -f`) is to be an error, EFBIG, and not
/// our end by SIGXFSZ, as one to a closed pipe is EPIPE. By a handler, since a command that we
/// start would inherit that the signal is ignored (signal(7)).
pub fn install() -> io::Result<()> {
    let (bus, segv) = (handled_by(libc::SIGBUS)?, handled_by(libc::SIGSEGV)?);
    FAULTS.get_or_init(|| [(libc::SIGBUS, bus), (libc::SIGSEGV, segv)]);
    for (signal, before) in [(libc::SIGBUS, bus), (libc::SIGSEGV, segv)] {
        // Without the library's handler they end us by themselves.
        if ![libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction) {
            handle(signal, fault)?;
        }
    }
    handle(libc::SIGPIPE, refused_write)?;
    handle(libc::SIGXFSZ, refused_write)
}

type Handler = extern "C" fn(libc::c_int, *const libc::siginfo_t, *const libc::c_void);

fn handled_by(signal: libc::c_int) -> io::Result<libc::sigaction> {
    // SAFETY: plain integers and pointers, for which all zeroes is a value.
    let mut before: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: `before` is valid for the call, which changes nothing else.
    match unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut before) } {
        0 => Ok(before),
        _ => Err(io::Error::last_os_error()),
    }
}

fn handle(signal: libc::c_int, handler: Handler) -> io::Result<()> {
    // SAFETY: as in `handled_by`.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    // On the stack that the library has made for it: a thread's own may be what is full.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handlers make system calls only (signal-safety(7)).
    match unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// SIGSEGV, SIGBUS.
extern "C" fn fault(signal: libc::c_int, info: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the kernel gives a valid one. Codes from 1 on are the kernel's own (sigaction(2)).
    if unsafe { (*info).si_code } <= 0 {
        return end_by(signal);
    }
    let before = FAULTS.get().and_then(|all| all.iter().find(|(of, _)| *of == signal));
    if let Some((_, before)) = before {
        // SAFETY: what the library had set. The instruction is done again, and faults again.
        unsafe { libc::sigaction(signal, before, std::ptr::null_mut()) };
    }
}

/// SIGPIPE, SIGXFSZ: the kernel sends them to a writer as if it did so itself.
extern "C" fn refused_write(signal: libc::c_int, info: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the kernel gives a valid one, in which a signal of this kind has a sender.
    if unsafe { (*info).si_pid() != libc::getpid() } {
        end_by(signal);
    }
}

/// Ends us by this signal, once its handler has returned: until then it is blocked.
fn end_by(signal: libc::c_int) {
    // SAFETY: system calls, which a handler may make.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        env, fs,
        hint::black_box,
        io::{Read as _, Write as _},
        os::unix::process::ExitStatusExt as _,
        process::{Child, Command, Stdio},
    };

    use super::*;

    const WHAT: &str = "MEMLEAK_TEST_OF_SIGNALS";

    fn deeper(depth: u64) -> u64 {
        let on_the_stack = [depth; 64];
        black_box(&on_the_stack);
        if depth == u64::MAX {
            return 0;
        }
        deeper(depth + 1) + on_the_stack[depth as usize % 64]
    }

    /// What the children of the tests below do; by itself nothing.
    #[test]
    fn in_a_child() {
        let Ok(what) = env::var(WHAT) else { return };
        install().expect("handlers");
        match what.as_str() {
            "overflow" => assert!(deeper(0) == 0, "it has come to an end"),
            // SAFETY: no address is valid there: the test is about what comes of it.
            "fault" => assert_eq!(unsafe { black_box(std::ptr::null::<u8>()).read_volatile() }, 1),
            "pipe" => {
                let (reads, mut writes) = io::pipe().expect("a pipe");
                drop(reads);
                let error = writes.write_all(b"x").expect_err("nobody reads");
                assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
            }
            "size" => {
                let limit = libc::rlimit { rlim_cur: 10, rlim_max: 10 };
                // SAFETY: `limit` is valid for the call.
                assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
                let path = env::temp_dir().join(format!("memleak-size-{}", std::process::id()));
                let written = fs::write(&path, [0; 100]);
                fs::remove_file(&path).expect("it is there");
                assert_eq!(written.expect_err("too large").raw_os_error(), Some(libc::EFBIG));
            }
            _ => {
                io::stderr().write_all(b"ready\n").expect("a pipe");
                let _ = io::stdin().read(&mut [0]);
            }
        }
    }

    fn child(what: &str) -> Child {
        let mut command = Command::new(env::current_exe().expect("we run"));
        command.args(["--exact", "signals::tests::in_a_child", "--nocapture"]).env(WHAT, what);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("ourselves")
    }

    #[test]
    fn what_comes_of_our_own_work_is_as_before() {
        for (what, ends_by) in [
            ("overflow", Some(libc::SIGABRT)),
            ("fault", Some(libc::SIGSEGV)),
            ("pipe", None),
            ("size", None),
        ] {
            let output = child(what).wait_with_output().expect("it ends");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), ends_by, "{what}: {said}");
            assert_eq!(output.status.success(), ends_by.is_none(), "{what}: {said}");
            assert_eq!(said.contains("has overflowed its stack"), what == "overflow", "{what}: {said}");
        }
    }

    #[test]
    fn what_others_send_ends_us_at_the_first() {
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGPIPE, libc::SIGXFSZ] {
            let mut child = child("wait");
            let mut ready = [0; 6];
            child.stderr.as_mut().expect("a pipe").read_exact(&mut ready).expect("it says so");
            assert_eq!(&ready, b"ready\n");
            // SAFETY: kill(2) takes two integers; the process is our own child.
            assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
            // One that goes on ends by this.
            drop(child.stdin.take());
            assert_eq!(child.wait().expect("it ends").signal(), Some(signal));
        }
    }
}
