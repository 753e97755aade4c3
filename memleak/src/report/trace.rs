//! Single events as they happen (`-t`), in the form that the reports have.

use std::{
    io::{self, Write},
    sync::Arc,
    time::SystemTime,
};

use serde::Serialize;

use super::{json, text};
use crate::{
    probe::resource::ResourceInfo,
    report::text::{Handle, TextOptions},
    symbolize::Frame,
};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Something was acquired.
    Acquire,
    /// Something that had been acquired was released.
    Release,
}

impl EventKind {
    /// Its name in both forms.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acquire => "acquire",
            Self::Release => "release",
        }
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLine {
    /// When it happened.
    pub time: SystemTime,
    /// What happened.
    pub kind: EventKind,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// What was acquired or released.
    pub resource: Arc<ResourceInfo>,
    /// Address of the block, or another handle.
    pub address: u64,
    /// Bytes; 0 where the resource has no size.
    pub size: u64,
    /// Where, callee first; empty where that is not asked for or not known.
    pub frames: Vec<Frame>,
}

/// Writes `[HH:MM:SS.mmm] PID/TID acquire heap 0x7f12 128 bytes` or, where there is no size, `... acquire fd 5`; then a
/// line for each frame.
pub fn write_event_text(event: &EventLine, options: &TextOptions, out: &mut dyn Write) -> io::Result<()> {
    write!(
        out,
        "[{}] {}/{} {} {} {}",
        options.time_of_day(event.time, "%H:%M:%S%.3f"),
        event.pid,
        event.tid,
        event.kind.name(),
        event.resource.name,
        Handle(event.address, &event.resource),
    )?;
    match event.resource.has_size {
        true => writeln!(out, " {} bytes", event.size)?,
        false => writeln!(out)?,
    }
    text::write_frames(&event.frames, out)
}

/// Writes one object and a newline: `{"event":"acquire","schema":1,"time":...}`. A report has no field `event`.
pub fn write_event_json(event: &EventLine, out: &mut dyn Write) -> io::Result<()> {
    json::write_line(
        &JsonEvent {
            event: event.kind.name(),
            schema: json::SCHEMA,
            time: json::rfc3339(event.time),
            pid: event.pid,
            tid: event.tid,
            resource: &event.resource.name,
            address: json::Hex(event.address),
            size: event.size,
            frames: json::frames(&event.frames),
        },
        out,
    )
}

// The fields stand in the order in which they are written.
#[derive(Serialize)]
struct JsonEvent<'a> {
    event: &'static str,
    schema: u32,
    time: String,
    pid: u32,
    tid: u32,
    resource: &'a str,
    address: json::Hex,
    size: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    frames: Vec<json::JsonFrame<'a>>,
}
