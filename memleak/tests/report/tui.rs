//! The view on a terminal: what it shows of a report, and what keys do.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use memleak::{
    escape::acts_on_terminal,
    report::model::{Report, ThreadCount},
    tui::{Action, Decoder, Keystroke, SortColumn, State, ViewLook, ViewRequest, draw},
    verdict::Point,
};
use ratatui::{Terminal, backend::TestBackend};
use regex::Regex;

use crate::reports::{cases, hostile, leaky, mapping, merged, report, resources, wordcount};

/// The view, with this report in it.
pub(crate) fn state(report: &Report) -> State {
    let mut state = State::new(ViewLook::default());
    state.show(Arc::new(report.clone()));
    state
}

/// A screen of so many columns and rows, line by line.
fn screen(state: &mut State, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(frame, state)).expect("drawn");
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(line).collect()
}

/// The table and the first row in full, as they are at 80 columns.
pub(crate) fn screens(report: &Report) -> String {
    let mut state = state(report);
    let table = screen(&mut state, 80, 24);
    typed(&mut state, b"\r");
    let detail = screen(&mut state, 80, 24);
    [table, detail].map(|lines| lines.join("\n") + "\n").join(&format!("{}\n", "=".repeat(80)))
}

/// What is typed; gives what the last key asks for.
fn typed(state: &mut State, bytes: &[u8]) -> Action {
    let mut decoder = Decoder::default();
    decoder.feed(bytes);
    let mut action = Action::None;
    while let Some(key) = decoder.next(true) {
        action = state.key(key);
    }
    action
}

fn has(lines: &[String], text: &str) -> bool {
    lines.iter().any(|line| line.contains(text))
}

#[test]
fn wordcount_at_80_columns() {
    let mut state = state(&wordcount());
    let lines = screen(&mut state, 80, 24);
    let text = lines.join("\n");
    assert!(lines[0].starts_with(" wordcount (4711), traced for 5 s"), "{text}");
    assert!(lines[1].starts_with(" 1.5 MiB in 74 blocks"), "{text}");
    for heading in ["SITE (", "BYTES", "SHARE", "COUNT", "GROWTH", "VERDICT", "AGE", "LAST"] {
        assert!(lines[4].contains(heading), "{text}");
    }
    assert!(lines[5].contains("word_counter::w") && lines[5].contains("99.8%"), "{text}");
    assert!(lines[5].contains("1.5 MiB") && lines[5].contains("unknown"), "{text}");
    assert!(lines[22].contains("unknown: watched for "), "{text}");
    assert!(lines[23].contains("q quit"), "{text}");
}

#[test]
fn columns_go_where_there_is_no_room_and_nothing_breaks() {
    for (name, report) in cases().into_iter().chain([("wordcount", wordcount())]) {
        for (width, height) in [(200, 50), (120, 30), (80, 24), (60, 20), (40, 10), (20, 5), (5, 3), (1, 1)] {
            let mut state = state(&report);
            for keys in [&b""[..], b"\r", b"?", b"q/x", b"\x1bt", b"w", b"\x1bm"] {
                typed(&mut state, keys);
                let lines = screen(&mut state, width, height);
                assert_eq!(lines.len(), usize::from(height), "{name}");
            }
        }
    }
    let mut state = state(&wordcount());
    let narrow = screen(&mut state, 60, 20);
    assert!(narrow[4].contains("BYTES") && narrow[4].contains("VERDICT") && !narrow[4].contains("LAST"));
    assert!(narrow[5].contains("word_counter"), "{narrow:?}");
    let wide = screen(&mut state, 200, 50);
    assert!(has(&wide, "word_counter::word_count()  wordcount.cc:64"), "{wide:?}");
}

/// What is shown at 60 and 80 columns is also shown where there is room for all: no number in part.
#[test]
fn numbers_are_shown_whole_or_not_at_all() {
    let number = Regex::new(r"[0-9][0-9,.]*( [KMGT]iB| ms| min| blocks?| %)?").expect("regex");
    let mut busy = wordcount();
    busy.target.pids = (4711..5999).collect();
    busy.totals.bytes = 1_234_567_890_123;
    (busy.totals.count, busy.totals.acquired, busy.totals.released) = (1_234_567, 12_345_678, 11_111_111);
    busy.moments = vec![
        Point { at_ms: 1000, bytes: 1 << 30, count: 4 },
        Point { at_ms: 5000, bytes: busy.totals.bytes, count: 1_234_567 },
    ];
    let mut ended = busy.clone();
    ended.is_final = true;
    // Strangers name functions and caches as they like.
    let cases = cases().into_iter().filter(|(name, _)| !["hostile", "kernel"].contains(name));
    for (name, report) in cases.chain([("busy", busy), ("ended", ended)]) {
        for keys in [&b""[..], b"\r"] {
            let shown = |width| -> BTreeSet<String> {
                let mut state = state(&report);
                typed(&mut state, keys);
                let lines = screen(&mut state, width, 24);
                // A name that is cut, and its address, is marked.
                let words = |line: &String| {
                    number.find_iter(line).map(|found| found.as_str().to_owned()).collect::<Vec<_>>()
                };
                lines.iter().flat_map(words).collect()
            };
            let all = shown(400);
            for width in 40..120 {
                let in_part: Vec<_> = shown(width).difference(&all).cloned().collect();
                assert!(in_part.is_empty(), "{name}: {width}: {in_part:?}");
            }
        }
    }
}

#[test]
fn no_stranger_writes_to_the_terminal() {
    let mut state = state(&hostile());
    for keys in [&b""[..], b"\r", b"f", b"qw"] {
        typed(&mut state, keys);
        for line in screen(&mut state, 200, 50) {
            assert!(!line.contains(acts_on_terminal), "{line:?}");
        }
    }
}

#[test]
fn orders_and_searches() {
    let mut state = state(&report(vec![leaky(), mapping()]));
    let first = |state: &State| (state.rows()[0].bytes, state.rows()[0].count);
    assert_eq!(first(&state), (4096, 1));
    typed(&mut state, b"c");
    assert_eq!(first(&state), (80, 5));
    typed(&mut state, b"b");
    assert_eq!(first(&state), (4096, 1));
    // As it is typed, in letters of any case, over all frames.
    typed(&mut state, b"/LEAKY");
    assert_eq!((state.rows().len(), first(&state)), (1, (80, 5)));
    assert!(has(&screen(&mut state, 80, 24), "search: LEAKY_"));
    typed(&mut state, b"\x7f\x7f\x7f\x7f\x7fzzz");
    assert!(has(&screen(&mut state, 80, 24), "nothing has 'zzz' in its stack"));
    typed(&mut state, b"\r");
    assert_eq!(state.rows().len(), 0);
    typed(&mut state, b"\x1b");
    assert_eq!(state.rows().len(), 2);
    assert_eq!(SortColumn::Bytes.step(SortColumn::ALL.len()), SortColumn::Bytes);
}

/// The one that is selected stays so when others grow past it, and is always in sight.
#[test]
fn a_selected_site_is_followed() {
    let mut state = state(&wordcount());
    screen(&mut state, 80, 24);
    typed(&mut state, b"jj");
    let key = state.rows()[state.selected()].key;
    let mut grown = wordcount();
    grown.stacks.reverse();
    grown.stacks[0].bytes = 1 << 30;
    state.show(Arc::new(grown));
    assert_eq!(state.rows()[state.selected()].key, key);
    typed(&mut state, b"G");
    assert_eq!(state.selected(), state.rows().len() - 1);
    let lines = screen(&mut state, 80, 9);
    assert!(has(&lines, &state.rows()[state.selected()].name), "{lines:?}");
}

#[test]
fn a_pause_shows_the_same_until_it_ends() {
    let mut state = state(&report(vec![leaky()]));
    typed(&mut state, b"p");
    state.show(Arc::new(report(vec![leaky(), mapping()])));
    assert_eq!(state.rows().len(), 1);
    assert!(has(&screen(&mut state, 80, 24), " paused"));
    typed(&mut state, b" ");
    assert_eq!(state.rows().len(), 2);
    // The last report is not kept from anybody.
    typed(&mut state, b"p");
    let mut last = report(vec![mapping()]);
    last.is_final = true;
    state.show(Arc::new(last));
    assert!(has(&screen(&mut state, 80, 24), " ended: the last report"));
    assert_eq!(state.rows().len(), 1);
}

/// From the mark on: what is told is what came since, and not since the report before.
#[test]
fn a_mark_tells_growth_from_here_on() {
    let at = |seconds: u64, bytes: u64| {
        let mut stack = leaky();
        stack.bytes = bytes;
        let mut report = report(vec![stack]);
        report.stacks[0].growth_bytes = 7;
        report.time += Duration::from_secs(seconds);
        report.totals.bytes = bytes;
        Arc::new(report)
    };
    let mut state = State::new(ViewLook::default());
    state.show(at(0, 80));
    assert_eq!(state.rows()[0].growth_bytes, Some(7));
    typed(&mut state, b"m");
    state.show(at(5, 100));
    state.show(at(10, 2128));
    assert_eq!(state.rows()[0].growth_bytes, Some(2048));
    assert!(has(&screen(&mut state, 120, 24), "since the mark (10 s): +2 KiB (+0)"));
    typed(&mut state, b"M");
    assert_eq!(state.rows()[0].growth_bytes, Some(7));
}

#[test]
fn processes_by_themselves_hold_what_they_hold_together() {
    let report = merged();
    let mut state = state(&report);
    let sum = |state: &State| state.rows().iter().map(|row| row.bytes).sum::<u64>();
    let (all, rows) = (sum(&state), state.rows().len());
    typed(&mut state, b"t");
    let ended: u64 = report.stacks.iter().map(|stack| stack.others.bytes).sum();
    assert_eq!(sum(&state) + ended, all);
    assert!(state.rows().len() > rows);
}

/// Each thread by itself: reports tell so only if they are asked to.
#[test]
fn threads_by_themselves_hold_what_they_hold_together() {
    let mut report = report(vec![leaky(), mapping()]);
    report.threads = [(7, "worker\x1b".to_owned())].into();
    let mut state = state(&report);
    let sum = |state: &State| state.rows().iter().map(|row| (row.bytes, row.count)).collect::<Vec<_>>();
    assert_eq!(sum(&state), [(4096, 1), (80, 5)]);
    typed(&mut state, b"t");
    assert_eq!(typed(&mut state, b"t"), Action::Ask(ViewRequest::Threads(true)));
    // Until the next report comes.
    assert_eq!(sum(&state), [(4096, 1), (80, 5)]);
    let thread = |tid, bytes, count| ThreadCount { pid: 4711, tid, bytes, count };
    report.stacks[0].threads = vec![thread(7, 48, 3), thread(8, 32, 2)];
    report.stacks[1].threads = vec![thread(0, 4096, 1)];
    state.show(Arc::new(report.clone()));
    assert_eq!(sum(&state), [(4096, 1), (48, 3), (32, 2)]);
    let lines = screen(&mut state, 80, 24);
    assert!(lines[5].starts_with(" ?  map_it") && lines[6].starts_with(" 7  leaky("), "{lines:#?}");
    let lines = screen(&mut state, 120, 24);
    assert!(lines[6].starts_with(" 7 worker\\x1b  leaky(") && lines[7].starts_with(" 8  "), "{lines:#?}");
    typed(&mut state, b"/worker");
    assert_eq!(sum(&state), [(48, 3)]);
    typed(&mut state, b"\x1b");
    // A mark is of threads: rows keep their keys.
    typed(&mut state, b"m");
    report.stacks[0].threads = vec![thread(7, 64, 4), thread(8, 32, 2)];
    state.show(Arc::new(report));
    assert_eq!((state.rows()[0].bytes, state.rows()[0].growth_bytes), (64, Some(16)));
    assert_eq!(typed(&mut state, b"t"), Action::Ask(ViewRequest::Threads(false)));
    assert_eq!(sum(&state), [(4096, 1), (80, 5)]);
    typed(&mut state, b"j\r");
    let lines = screen(&mut state, 80, 40);
    assert!(has(&lines, "Threads") && !has(&lines, "Processes"), "{lines:#?}");
}

/// As a terminal tells of a mouse: the wheel, a click, and one more.
#[test]
fn a_mouse_scrolls_and_selects_and_opens() {
    let mut state = state(&wordcount());
    let lines = screen(&mut state, 80, 10);
    assert!(lines[4].contains("SITE ("));
    typed(&mut state, b"\x1b[<65;1;1M");
    assert_eq!(state.selected(), 3.min(state.rows().len() - 1));
    typed(&mut state, b"\x1b[<64;1;1M");
    assert_eq!(state.selected(), 0);
    // The second row below the heading; letting go does nothing.
    typed(&mut state, b"\x1b[<0;20;7M\x1b[<0;20;7m");
    assert_eq!(state.selected(), 1);
    assert!(has(&screen(&mut state, 80, 10), "SITE ("));
    typed(&mut state, b"\x1b[<0;20;7M");
    let open = screen(&mut state, 80, 10);
    assert!(has(&open, "Esc back"), "{open:#?}");
    typed(&mut state, b"\x1b[<65;1;1M");
    assert_ne!(screen(&mut state, 80, 10), open);
    typed(&mut state, b"\x1b");
    // Where there is no row.
    for row in [1, 5, 9, 10, 200] {
        typed(&mut state, format!("\x1b[<0;1;{row}M").as_bytes());
        assert!(has(&screen(&mut state, 80, 10), "SITE (") && state.selected() == 1, "{row}");
    }
}

#[test]
fn a_site_in_full() {
    let mut state = state(&wordcount());
    assert_eq!(typed(&mut state, b"\r"), Action::None);
    let lines = screen(&mut state, 80, 40);
    assert!(has(&lines, "1,572,864 bytes in 6 allocations; 1 stack in 1 process"), "{lines:#?}");
    assert!(has(&lines, "-> word_counter::word_count()  wordcount.cc:64"), "{lines:#?}");
    assert!(has(&lines, "operator new") && has(&lines, "Stack"), "{lines:#?}");
    assert!(has(&lines, "Esc back"));
    // Back, and not out.
    assert_eq!(typed(&mut state, b"q"), Action::None);
    assert!(has(&screen(&mut state, 80, 24), "SITE ("));
}

#[test]
fn what_the_run_is_asked_for() {
    let mut state = state(&wordcount());
    assert_eq!(typed(&mut state, b"q"), Action::Ask(ViewRequest::Quit));
    assert_eq!(state.key(Keystroke::Interrupt), Action::Ask(ViewRequest::Quit));
    typed(&mut state, b"w");
    assert!(has(&screen(&mut state, 80, 24), "write to: memleak-4711.html_"));
    let back = [0x7f; 17];
    typed(&mut state, &back);
    assert_eq!(typed(&mut state, b"/tmp/q.svg\r"), Action::Ask(ViewRequest::Write("/tmp/q.svg".into())));
    state.say("written: /tmp/q.svg".to_owned());
    assert!(has(&screen(&mut state, 80, 24), "written: /tmp/q.svg"));
    typed(&mut state, b"w\x1b");
    assert_eq!(state.key(Keystroke::Redraw), Action::Redraw);
    typed(&mut state, b"?");
    assert!(has(&screen(&mut state, 80, 24), "end, with a last report"));
}

/// Totals over time, and when they were most.
#[test]
fn the_header_draws_what_was_outstanding() {
    let mut report = resources();
    let point = |at_ms, bytes| Point { at_ms, bytes, count: 1 };
    report.moments = vec![point(0, 0), point(1, 50), point(2, 100), point(3, 400)];
    let lines = screen(&mut state(&report), 80, 24);
    assert_eq!(lines[2], " ▁▁▂█");
    let mut state = State::new(ViewLook::default());
    assert!(has(&screen(&mut state, 80, 24), "The first report comes after one INTERVAL"));
}
