//! Lines of `-t`, in both forms.

use memleak::{
    kernel_labels::Tag,
    report::{
        format::{json, text},
        trace::{EventKind, EventLine},
    },
    snapshot::KERNEL_PID,
};
use memleak_common::probe::Resource;
use serde_json::Value;

use super::{
    check_golden,
    reports::{info, options, time, user},
};

fn acquire() -> EventLine {
    EventLine {
        time: time(),
        kind: EventKind::Acquire,
        pid: 123,
        tid: 125,
        resource: info(Resource::Heap),
        address: 0x7f12_3456_7890,
        size: 128,
        tag: None,
        comm: None,
    }
}

/// Writes events in both forms, compares with golden files, and gives the text form.
fn check_trace(name: &str, events: &[EventLine]) -> String {
    let (mut text, mut json) = (Vec::new(), Vec::new());
    for event in events {
        text::write_event(event, &options(10), &mut text).expect("a Vec takes all");
        json::write_event(event, &mut json).expect("a Vec takes all");
    }
    let json = String::from_utf8(json).expect("UTF-8");
    for line in json.lines() {
        assert!(line.starts_with("{\"event\":\""), "{line}");
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
    let text = String::from_utf8(text).expect("UTF-8");
    check_golden(&format!("{name}.txt"), &text);
    check_golden(&format!("{name}.json"), &json);
    text
}

#[test]
fn trace_lines() {
    let release =
        EventLine { kind: EventKind::Release, resource: info(Resource::Mmap), size: 0, ..acquire() };
    let opened = EventLine { resource: info(Resource::Fd), address: 5, size: 0, ..acquire() };
    let leased = EventLine { resource: user("lease", "leases", false), address: 0x7f00, ..opened.clone() };
    let text = check_trace("trace", &[acquire(), release, opened, leased]);
    assert_eq!(text.lines().next(), Some("[05:04:05.678] 123/125 acquire heap 0x7f1234567890 128 bytes"));
    let last: Vec<&str> = text.lines().rev().take(2).collect();
    let expected =
        ["acquire lease 0x7f00", "acquire fd 5"].map(|what| format!("[05:04:05.678] 123/125 {what}"));
    assert_eq!(last, expected);
}

#[test]
fn trace_lines_of_the_kernel() {
    let slab = EventLine {
        resource: info(Resource::Slab),
        address: 0xffff_8881_0234_5600,
        tag: Some(Tag::Cache("kmalloc-128".to_owned())),
        comm: Some("kworker/0:1".to_owned()),
        ..acquire()
    };
    let pages = EventLine {
        resource: info(Resource::Pages),
        size: 16384,
        tag: Some(Tag::Pages(2)),
        comm: Some("a\n\x1b[2Jb".to_owned()),
        ..slab.clone()
    };
    // In an interrupt that came while nothing ran.
    let release = EventLine {
        kind: EventKind::Release,
        pid: KERNEL_PID,
        tid: 0,
        tag: None,
        comm: None,
        ..slab.clone()
    };
    let text = check_trace("trace_kernel", &[slab, pages, release]);
    let lines: Vec<&str> = text.lines().collect();
    let slab =
        "[05:04:05.678] 123/125 acquire slab 0xffff888102345600 128 bytes (kmalloc-128) by kworker/0:1";
    assert_eq!((lines.len(), lines[0]), (3, slab));
    assert_eq!(lines[2], "[05:04:05.678] kernel/0 release slab 0xffff888102345600 128 bytes");
}
