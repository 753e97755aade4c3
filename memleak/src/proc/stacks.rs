//! Where a process has its heap and its stacks: /proc/PID/stat and /proc/PID/task/TID/syscall
//! (proc(5)).

use std::fs;

use super::{living::path_of, status::stat_fields};

/// Threads that are asked for their stack: a bound for processes with tens of thousands.
const MAX_THREADS: usize = 4096;

/// Two addresses that the kernel gave a program when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StackPlaces {
    /// Where the break began (brk(2)).
    pub break_start: u64,
    /// In the first thread's stack.
    pub stack: u64,
}

/// Reads them; `None` if they are hidden from us.
pub(crate) fn places(pid: u32) -> Option<StackPlaces> {
    parse_stat(&fs::read(path_of(pid, "stat")).ok()?)
}

/// Fields 28 (startstack) and 47 (start_brk).
fn parse_stat(stat: &[u8]) -> Option<StackPlaces> {
    let stat = String::from_utf8_lossy(stat);
    let (_, mut fields) = stat_fields(&stat)?;
    let stack = fields.nth(25)?.parse().ok()?;
    let break_start = fields.nth(18)?.parse().ok()?;
    (break_start != 0).then_some(StackPlaces { break_start, stack })
}

/// The stack pointers of those threads of `pid` that wait for something at this moment.
pub(crate) fn stack_pointers(pid: u32) -> Vec<u64> {
    system_calls(pid).filter_map(|text| parse_system_call(&text)).collect()
}

/// A thread that waits for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WaitingThread {
    /// Where it goes on.
    pub ip: u64,
    /// Its stack pointer.
    pub stack_pointer: u64,
    /// The arguments of the system call that it waits in.
    pub arguments: Vec<u64>,
}

/// What a thread had in its registers when it left its processor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ThreadRegisters {
    /// Its number, in whatever PID namespace.
    pub tid: u32,
    /// It has not left it, or come back meanwhile: these are others.
    pub runs: bool,
    /// How often it has left a processor.
    pub switches: u64,
    /// Its stack pointer.
    pub stack_pointer: u64,
    /// All registers that may be pointers.
    pub words: Vec<u64>,
}

/// What the threads of a process do at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Threads {
    /// Those that wait for something.
    pub waiting: Vec<WaitingThread>,
    /// How many do not.
    pub running: u64,
}

/// Those of `pid` at this moment.
pub(crate) fn threads(pid: u32) -> Threads {
    let mut threads = Threads::default();
    for text in system_calls(pid) {
        match parse_waiting(&text) {
            Some(thread) => threads.waiting.push(thread),
            None => threads.running += u64::from(text.starts_with("running")),
        }
    }
    threads
}

/// How many threads of `pid` wait in a call of accept(2) or accept4(2) at this moment.
pub(crate) fn accepting(pid: u32) -> usize {
    let waits = |text: &String| {
        let number =
            text.split_ascii_whitespace().next().and_then(|number| number.parse::<libc::c_long>().ok());
        number.is_some_and(|number| [libc::SYS_accept, libc::SYS_accept4].contains(&number))
    };
    system_calls(pid).filter(waits).count()
}

/// What each thread of `pid` is doing (/proc/PID/task/TID/syscall), of [`MAX_THREADS`] at most.
fn system_calls(pid: u32) -> impl Iterator<Item = String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.take(MAX_THREADS).filter_map(|thread| fs::read_to_string(thread.path().join("syscall")).ok())
}

/// The same as [`parse_system_call`], with the arguments.
fn parse_waiting(text: &str) -> Option<WaitingThread> {
    let stack_pointer = parse_system_call(text)?;
    let words = text.split_ascii_whitespace().skip(1).take(6);
    let number = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let has_call = !text.starts_with('-');
    let arguments = if has_call { words.filter_map(number).collect() } else { Vec::new() };
    let ip = text.split_ascii_whitespace().next_back().and_then(number)?;
    Some(WaitingThread { ip, stack_pointer, arguments })
}

/// `NUMBER ARGUMENTS SP PC`, `-1 SP PC` or `running`.
fn parse_system_call(text: &str) -> Option<u64> {
    let mut words = text.split_ascii_whitespace().rev();
    let _pc = words.next()?;
    u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_fields() {
        let mut fields: Vec<String> = (1..=52).map(|field: u32| field.to_string()).collect();
        fields[1] = "(a) b (c)".to_owned();
        let stat = fields.join(" ");
        assert_eq!(parse_stat(stat.as_bytes()), Some(StackPlaces { break_start: 47, stack: 28 }));
        assert_eq!(parse_stat(b"1 (x) S 1"), None);
    }

    #[test]
    fn finds_stack_pointers() {
        assert_eq!(parse_system_call("running\n"), None);
        assert_eq!(parse_system_call("-1 0x7ffd0 0x7f01\n"), Some(0x7_ffd0));
        assert_eq!(parse_system_call("0 0x3 0x4 0x1000 0x0 0x0 0x7f02 0x7ffd0 0x7f01\n"), Some(0x7_ffd0));
    }

    #[test]
    fn finds_arguments() {
        let waiting = parse_waiting("0 0x3 0x4 0x1000 0x0 0x0 0x7f02 0x7ffd0 0x7f01\n").unwrap();
        assert_eq!(waiting.arguments, [3, 4, 0x1000, 0, 0, 0x7f02]);
        assert_eq!((waiting.ip, waiting.stack_pointer), (0x7f01, 0x7_ffd0));
        assert_eq!(parse_waiting("-1 0x7ffd0 0x7f01\n").unwrap().arguments, [0; 0]);
        assert_eq!(parse_waiting("running\n"), None);
    }

    #[test]
    fn our_own_are_where_they_should_be() {
        let places = places(std::process::id()).unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
        let (start, end) = stack.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        assert!((number(start)..number(end)).contains(&places.stack), "{places:x?} {stack}");
    }
}
