//! The form for people, on a real terminal: wordcount's report fits one screen of 80 columns, and a
//! pipe gets bcc's form as ever.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{FromRawFd as _, OwnedFd},
    process::{Child, Command, Stdio},
    thread,
};

use crate::{
    guard::alone,
    programs::{scratch_dir, text},
    tracer::MEMLEAK,
};

/// A terminal of 24 rows and 80 columns: ours, and what a program gets.
pub(crate) fn terminal() -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let (name, settings) = (std::ptr::null_mut(), std::ptr::null());
    // SAFETY: openpty(3) writes two descriptors, which are ours from then on, and reads the size.
    let result = unsafe { libc::openpty(&raw mut ours, &raw mut theirs, name, settings, &raw const size) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: both are open, and nobody else's.
    unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

/// examples/wordcount.cc, which waits for names of files.
pub(crate) fn wordcount() -> Child {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let program = scratch_dir().join("wordcount");
    let source = format!("{examples}/wordcount.cc");
    let built = Command::new("g++").args(["-g", "-O0", "-o", text(&program), &source]).status();
    assert!(built.expect("g++").success());
    let mut command = Command::new(program);
    command.current_dir(format!("{examples}/data")).stdin(Stdio::piped()).stdout(Stdio::null());
    command.spawn().expect("wordcount")
}

#[test]
fn a_terminal_gets_the_form_for_people_and_a_pipe_that_of_bcc() {
    let _alone = alone();
    let mut target = wordcount();
    let mut input = target.stdin.take().expect("a pipe");
    let pid = target.id().to_string();
    let (mut ours, theirs) = terminal();
    let mut memleak = Command::new(MEMLEAK);
    memleak.args(["-p", &pid, "-T", "4", "-o", "0", "-v", "0.7", "4"]).stdin(Stdio::null());
    memleak.env("TERM", "xterm").env_remove("NO_COLOR").stdout(theirs).stderr(Stdio::null());
    let mut running = memleak.spawn().expect("memleak");
    // It has the terminal's other end: a read would wait for ever.
    drop(memleak);
    let feeder = thread::spawn(move || {
        // Until it has ended: the pipe breaks.
        while input.write_all(b"constitution.txt\n").is_ok() {
            thread::sleep(std::time::Duration::from_millis(100));
        }
    });
    let mut shown = Vec::new();
    let mut part = [0; 4096];
    // EIO: nobody has the other end any more.
    while let Ok(length @ 1..) = ours.read(&mut part) {
        shown.extend_from_slice(&part[..length]);
    }
    assert!(running.wait().expect("waiting").success());
    let shown = String::from_utf8(shown).expect("UTF-8");
    assert!(shown.contains("\x1b[1m"), "there are no colours: {shown}");
    let attributes = regex::Regex::new("\x1b\\[[0-9;]*m").expect("regex");
    let plain = attributes.replace_all(&shown, "").replace("\r\n", "\n");
    let reports: Vec<&str> = plain.split("wordcount (").skip(1).collect();
    assert_eq!(reports.len(), 4, "{plain}");
    for report in &reports {
        assert!(report.trim_end().lines().count() <= 23, "{plain}");
        assert!(report.lines().all(|line| line.chars().count() <= 80), "{plain}");
        assert!(
            report.contains("] Top 4 stacks with outstanding allocations: 99.9 %, of 5 sites\n"),
            "{plain}"
        );
        assert_eq!(report.matches("-> ").count(), 4, "{plain}");
        assert!(report.contains("-> word_counter::word_count()             wordcount.cc:64\n"), "{plain}");
    }
    let last = reports.last().expect("a report");
    assert!(last.contains("growing: none of "), "{plain}");
    // To a pipe, without a word about a form.
    let piped = Command::new(MEMLEAK).args(["-p", &pid, "-T", "4", "-o", "0", "0.2", "1"]).output();
    let piped = String::from_utf8(piped.expect("memleak").stdout).expect("UTF-8");
    assert!(piped.contains(" allocations from stack\n\t\t0x") && !piped.contains("-> "), "{piped}");
    target.kill().expect("killing");
    target.wait().expect("waiting");
    feeder.join().expect("the feeder ends");
}
