//! Single events as they happen (`-t`), in the form that the reports have.

use std::{
    io::{self, Write},
    sync::Arc,
    time::SystemTime,
};

use serde::Serialize;

use super::{json, text};
use crate::{
    escape::printable,
    probe::resource::ResourceInfo,
    report::text::{Handle, TextOptions},
    snapshot::KERNEL_PID,
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
    /// Kernel mode: the slab cache of what was acquired, or the order of its pages, as in a report.
    pub label: Option<String>,
    /// Kernel mode: command name of the thread, where it is known.
    pub comm: Option<String>,
    /// Where, callee first; empty where that is not asked for or not known.
    pub frames: Vec<Frame>,
}

/// Writes `[HH:MM:SS.mmm] PID/TID acquire heap 0x7f12 128 bytes` or, where there is no size, `... acquire fd 5`; then a
/// line for each frame. In kernel mode what is known of cache and thread follows the bytes: `(kmalloc-128) by nginx`; the
/// idle process, on which interrupts run, is `kernel`.
pub fn write_event_text(event: &EventLine, options: &TextOptions, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "[{}] ", options.time_of_day(event.time, "%H:%M:%S%.3f"))?;
    match event.pid {
        KERNEL_PID => write!(out, "kernel")?,
        pid => write!(out, "{pid}")?,
    }
    write!(
        out,
        "/{} {} {} {}",
        event.tid,
        event.kind.name(),
        event.resource.name,
        Handle(event.address, &event.resource),
    )?;
    if event.resource.has_size {
        write!(out, " {} bytes", event.size)?;
    }
    if let Some(label) = &event.label {
        write!(out, " ({})", printable(label))?;
    }
    if let Some(comm) = &event.comm {
        write!(out, " by {}", printable(comm))?;
    }
    writeln!(out)?;
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
            label: json::JsonLabel::from(event.label.as_deref()),
            comm: event.comm.as_deref(),
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
    #[serde(flatten)]
    label: json::JsonLabel<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comm: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    frames: Vec<json::JsonFrame<'a>>,
}
