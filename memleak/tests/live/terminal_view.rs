//! The view on a real terminal, tmux's: keys, sizes, the target's end, and that the terminal is as
//! it was before, whatever ends us.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    guard::alone,
    human::wordcount,
    programs::{Link, build, scratch_dir, text},
    tracer::MEMLEAK,
};

/// A terminal of tmux's, with a server of its own.
struct Tmux {
    name: String,
    folder: PathBuf,
}

impl Tmux {
    /// Runs memleak in it; before and after the terminal's settings are noted.
    fn start(name: &str, size: (u16, u16), arguments: &str) -> Self {
        let name = format!("memleak-{}-{name}", std::process::id());
        let folder = scratch_dir().join(&name);
        fs::create_dir_all(&folder).expect("a folder");
        let tmux = Self { name, folder };
        let (width, height) = (size.0.to_string(), size.1.to_string());
        let at = |file: &str| tmux.folder.join(file).display().to_string();
        // By sh, which does not set the terminal itself.
        let script = format!(
            "stty -a > {}; {MEMLEAK} {arguments}; echo status $?; sleep 0.5; stty -a > {}; sleep 1000",
            at("before"),
            at("after"),
        );
        let new = ["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height, &script];
        tmux.run(&new);
        tmux
    }

    fn run(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.name]).args(arguments).env("LC_ALL", "C.UTF-8").env_remove("TMUX");
        let output = command.output().expect("tmux: is it installed?");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn screen(&self) -> String {
        self.run(&["capture-pane", "-p"])
    }

    /// The screen, once it shows all of this.
    fn wait_for(&self, wanted: &[&str]) -> String {
        let begin = Instant::now();
        loop {
            let screen = self.screen();
            if wanted.iter().all(|text| screen.contains(text)) {
                return screen;
            }
            assert!(begin.elapsed() < Duration::from_secs(30), "no {wanted:?} in\n{screen}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn keys(&self, keys: &[&str]) {
        self.run(&[&["send-keys"], keys].concat());
    }

    /// A terminal's bytes, such as those of a mouse.
    fn bytes(&self, bytes: &str) {
        let hex: Vec<String> = bytes.bytes().map(|byte| format!("{byte:x}")).collect();
        let hex: Vec<&str> = hex.iter().map(String::as_str).collect();
        self.run(&[&["send-keys", "-H"], hex.as_slice()].concat());
    }

    fn asks(&self, format: &str) -> String {
        self.run(&["display-message", "-p", format]).trim().to_owned()
    }

    /// The process of memleak.
    fn memleak(&self) -> libc::pid_t {
        let shell = self.asks("#{pane_pid}");
        let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).expect("children");
        children.trim().parse().expect("one child")
    }

    /// The terminal is as it was.
    fn is_as_before(&self, after: &str) {
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        let begin = Instant::now();
        while read("after").is_empty() && begin.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(100));
        }
        assert!(!read("before").is_empty(), "{after}");
        assert_eq!(read("before"), read("after"), "after {after}");
        let modes = "#{alternate_on} #{cursor_flag} #{mouse_any_flag}";
        assert_eq!(self.asks(modes), "0 1 0", "after {after}");
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-L", &self.name, "kill-server"]).status();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// wordcount, and what it reads.
fn target() -> (Child, ChildStdin) {
    let mut target = wordcount();
    let input = target.stdin.take().expect("a pipe");
    (target, input)
}

fn feed(input: &mut ChildStdin) {
    for _ in 0..6 {
        input.write_all(b"constitution.txt\n").expect("it reads");
    }
}

fn end((mut target, input): (Child, ChildStdin)) {
    drop(input);
    target.wait().expect("waiting");
}

#[test]
fn keys_on_terminals_of_two_sizes() {
    let _alone = alone();
    let (target, mut input) = target();
    for (width, height) in [(80, 24), (200, 50)] {
        let arguments = format!("--tui --with-source --color always -o 0 -p {} 0.5", target.id());
        let tmux = Tmux::start(&format!("keys{width}"), (width, height), &arguments);
        tmux.wait_for(&["traced for", "SITE ("]);
        feed(&mut input);
        let screen = tmux.wait_for(&["word_counter::w", "VERDICT", "q quit"]);
        assert_eq!(screen.lines().count(), usize::from(height), "{screen}");
        assert!(screen.lines().all(|line| line.chars().count() <= usize::from(width)), "{screen}");
        tmux.keys(&["Enter"]);
        tmux.wait_for(&["wordcount.cc:64", "bytes in", "Esc back", ">   64  "]);
        tmux.keys(&["Escape"]);
        tmux.wait_for(&["SITE ("]);
        tmux.keys(&["?"]);
        tmux.wait_for(&["search as you type"]);
        tmux.keys(&["x", "/", "s", "h", "a", "r", "e", "d"]);
        tmux.wait_for(&["search: shared"]);
        tmux.keys(&["Escape", "m"]);
        tmux.wait_for(&["since the mark"]);
        tmux.keys(&["p"]);
        tmux.wait_for(&[" paused"]);
        tmux.keys(&["p", "w"]);
        tmux.wait_for(&["write to: memleak-"]);
        let file = tmux.folder.join("now.json");
        tmux.keys(&["BSpace"; 30]);
        tmux.keys(&[text(&file), "Enter"]);
        tmux.wait_for(&["written: "]);
        let saved = Command::new(MEMLEAK).args(["report", text(&file), "--json"]).output().expect("memleak");
        let saved: Value = serde_json::from_slice(&saved.stdout).expect("JSON");
        assert!(saved["totals"]["bytes"].as_u64() > Some(1 << 20), "{saved}");
        // Another size, while it runs.
        tmux.run(&["resize-window", "-x", "60", "-y", "20"]);
        let narrow = tmux.wait_for(&["VERDICT", "word_counter"]);
        assert!(
            !narrow.contains("LAST") && narrow.lines().all(|line| line.chars().count() <= 60),
            "{narrow}"
        );
        // stty tells the size as well.
        tmux.run(&["resize-window", "-x", &width.to_string(), "-y", &height.to_string()]);
        tmux.wait_for(&["LAST", "VERDICT"]);
        tmux.keys(&["q"]);
        tmux.wait_for(&["status 0"]);
        tmux.is_as_before("q");
        let printed = tmux.run(&["capture-pane", "-p", "-S", "-200"]);
        assert!(printed.contains("] Top 10 stacks with outstanding allocations:"), "{printed}");
    }
    end((target, input));
}

/// Each of three threads holds a block, and is a row of its own; a mouse selects and opens.
#[test]
fn threads_by_themselves_and_a_mouse() {
    let _alone = alone();
    let program = build("many_threads.c", Link::Dynamic, &[]);
    let arguments = format!("--tui -o 0 0.5 -- {} 3", text(&program));
    let tmux = Tmux::start("threads", (80, 24), &arguments);
    tmux.wait_for(&["sleeper", "VERDICT"]);
    assert_eq!(tmux.asks("#{mouse_any_flag} #{mouse_sgr_flag}"), "1 1");
    let target = children(tmux.memleak()).into_iter().find(|child| {
        fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|comm| comm.starts_with("many_threads"))
    });
    let target = target.expect("the command");
    let threads = fs::read_dir(format!("/proc/{target}/task")).expect("threads").flatten();
    let threads: Vec<String> =
        threads.map(|thread| thread.file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(threads.len(), 4, "{threads:?}");
    tmux.keys(&["t"]);
    tmux.wait_for(&["each process by itself", &format!(" {target}  sleeper")]);
    tmux.keys(&["t", "/", "s", "l", "e", "e", "p", "e", "r", "Enter"]);
    let held: Vec<String> = threads
        .iter()
        .filter(|thread| **thread != target.to_string())
        .map(|thread| format!(" {thread}  sleeper"))
        .collect();
    let held: Vec<&str> = held.iter().map(String::as_str).collect();
    let screen = tmux.wait_for(&held);
    let rows: Vec<&str> = screen.lines().filter(|line| held.iter().any(|row| line.contains(row))).collect();
    assert!(rows.len() == 3 && rows.iter().all(|row| row.contains("2.9 KiB")), "{screen}");
    // The second row below the heading, twice.
    tmux.bytes("\x1b[<0;9;7M\x1b[<0;9;7m\x1b[<0;9;7M\x1b[<0;9;7m");
    tmux.wait_for(&["3,001 bytes in 1 allocation", "Esc back"]);
    tmux.keys(&["q", "q"]);
    tmux.wait_for(&["status "]);
    tmux.is_as_before("a mouse");
}

/// The children of all threads of a process.
fn children(pid: libc::pid_t) -> Vec<libc::pid_t> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
    let of_thread = |path: PathBuf| fs::read_to_string(path.join("children")).unwrap_or_default();
    let all: Vec<String> = threads.map(|thread| of_thread(thread.path())).collect();
    all.iter().flat_map(|line| line.split_whitespace()).filter_map(|child| child.parse().ok()).collect()
}

/// Signals that end a program which does not know them (signal(7)), each at the first one.
const ENDING: [libc::c_int; 24] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGKILL,
    libc::SIGUSR1,
    libc::SIGSEGV,
    libc::SIGUSR2,
    libc::SIGPIPE,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSYS,
    // The first of those that have no name, as programs see them.
    34,
];

/// Most of them leave us no time for it.
#[test]
fn no_signal_breaks_the_terminal() {
    let _alone = alone();
    let (target, input) = target();
    for signal in ENDING {
        let arguments = format!("--tui -p {} 0.5", target.id());
        let tmux = Tmux::start(&format!("signal{signal}"), (80, 24), &arguments);
        tmux.wait_for(&["traced for", "q quit"]);
        assert_eq!(tmux.asks("#{alternate_on} #{cursor_flag}"), "1 0");
        let memleak = tmux.memleak();
        // It does not stop.
        for signal in [libc::SIGTSTP, signal] {
            // SAFETY: kill(2) takes two integers; the process is memleak's, which its shell waits
            // for.
            assert_eq!(unsafe { libc::kill(memleak, signal) }, 0);
        }
        let wanted = match signal {
            libc::SIGINT | libc::SIGTERM => 0,
            signal => 128 + signal,
        };
        tmux.wait_for(&[&format!("status {wanted}\n")]);
        tmux.is_as_before(&format!("signal {signal}"));
    }
    end((target, input));
}

/// The last report stays until somebody has seen it; a command's own output does not get into it.
#[test]
fn the_end_of_a_target_waits_for_the_user() {
    let _alone = alone();
    let saved = scratch_dir().join(format!("end-{}.save.gz", std::process::id()));
    let arguments = format!(
        "--tui -o 0 --save {} 0.3 -- sh -c 'echo noise; head -c 100000 /dev/zero | tail -c 1; sleep 1; exit 7'",
        saved.display()
    );
    let tmux = Tmux::start("end", (80, 24), &arguments);
    let screen = tmux.wait_for(&[" ended: the last report"]);
    assert!(!screen.contains("noise"), "{screen}");
    thread::sleep(Duration::from_millis(700));
    tmux.wait_for(&[" ended: the last report"]);
    let screen = tmux.screen();
    tmux.keys(&["q"]);
    tmux.wait_for(&["status 7"]);
    tmux.is_as_before("the target's end");
    // The same numbers as in a file of the same report.
    let report = Command::new(MEMLEAK).args(["report", "--json"]).arg(&saved).output().expect("memleak");
    let report: Value = serde_json::from_slice(&report.stdout).expect("JSON");
    let count = report["totals"]["count"].as_u64().expect("a number");
    assert!(screen.contains(&format!(" in {count} blocks")), "{count} blocks\n{screen}");
    let _ = fs::remove_file(saved);
}

/// A dropped ssh: the terminal goes, and what was to be kept is kept.
#[test]
fn tracing_outlives_the_terminal() {
    let _alone = alone();
    for option in ["--save", "--detach --output"] {
        let (target, mut input) = target();
        let kept = scratch_dir().join(format!("kept-{}", std::process::id()));
        let _ = fs::remove_file(&kept);
        let arguments = format!("--tui -o 0 -p {} {option} {} 0.3", target.id(), text(&kept));
        let tmux = Tmux::start("gone", (80, 24), &arguments);
        tmux.wait_for(&["traced for", "q quit"]);
        let memleak = tmux.memleak();
        drop(tmux);
        thread::sleep(Duration::from_millis(500));
        let lives = || Path::new(&format!("/proc/{memleak}")).exists();
        assert!(lives(), "{option}: it has ended with its terminal");
        feed(&mut input);
        thread::sleep(Duration::from_millis(700));
        end((target, input));
        let begin = Instant::now();
        while lives() && begin.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(50));
        }
        let report = fs::read_to_string(&kept).expect(option);
        assert!(report.contains("word_counter::word_count"), "{option}: {report}");
    }
}

/// A terminal that takes nothing (Ctrl-S) holds the view, and not the tracing.
#[test]
fn a_stopped_terminal_does_not_stop_tracing() {
    let _alone = alone();
    let (target, mut input) = target();
    let kept = scratch_dir().join(format!("stopped-{}", std::process::id()));
    let arguments = format!("--tui -o 0 -p {} --output {} 0.3", target.id(), text(&kept));
    let tmux = Tmux::start("stopped", (80, 24), &arguments);
    tmux.wait_for(&["traced for", "q quit"]);
    let memleak = tmux.memleak();
    // The other end is stopped: what is written fills the terminal's buffer.
    let server: libc::pid_t = tmux.asks("#{pid}").parse().expect("a number");
    // SAFETY: kill(2) takes two integers; the server is ours.
    let signal = |pid, signal| assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    signal(server, libc::SIGSTOP);
    let reports = || fs::read_to_string(&kept).unwrap_or_default().matches("] Top ").count();
    let before = reports();
    for _ in 0..10 {
        feed(&mut input);
        thread::sleep(Duration::from_millis(200));
    }
    let made = reports() - before;
    signal(memleak, libc::SIGTERM);
    let begin = Instant::now();
    while Path::new(&format!("/proc/{memleak}/fd/1")).exists() && begin.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(20));
    }
    let took = begin.elapsed();
    signal(server, libc::SIGCONT);
    assert!(made >= 3, "{made} reports in 2 s");
    assert!(took < Duration::from_secs(10), "it did not end: {took:?}");
    tmux.wait_for(&["status "]);
    tmux.is_as_before("a stopped terminal");
    let _ = fs::remove_file(&kept);
    end((target, input));
}
