//! speedscope's JSON (<https://www.speedscope.app/file-format-schema.json>): a profile of bytes,
//! and one of how many.

use std::io::{self, Write};

use serde::Serialize;

use super::{Format, Kind, Options, kind::FileForm};
use crate::{
    report::{
        model::{FrameId, Report},
        names::name,
    },
    symbolize::Frame,
};

/// `--speedscope`.
pub const KIND: Kind = Kind { name: "speedscope", has_events: false, new };

fn new(options: &Options) -> Box<dyn Format> {
    FileForm::boxed(options, false, |report, options, out| {
        write_speedscope(report, options.style.full_names, out)
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SpeedscopeFile {
    #[serde(rename = "$schema")]
    schema: &'static str,
    exporter: &'static str,
    name: String,
    active_profile_index: usize,
    shared: SharedFrames,
    profiles: Vec<Sampled>,
}

#[derive(Serialize)]
struct SharedFrames {
    frames: Vec<SharedFrame>,
}

#[derive(Serialize)]
struct SharedFrame {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sampled {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'static str,
    unit: &'static str,
    start_value: u64,
    end_value: u64,
    samples: Vec<Vec<usize>>,
    weights: Vec<u64>,
}

/// Writes a report.
pub fn write_speedscope(report: &Report, full_names: bool, out: &mut dyn Write) -> io::Result<()> {
    let shared_frame = |frame: &Frame| SharedFrame {
        name: name(frame, full_names).into_owned(),
        file: frame.file.clone().or_else(|| frame.module.clone()),
        line: frame.line,
    };
    let mut frames: Vec<SharedFrame> = report.frames.iter().map(shared_frame).collect();
    let unknown = frames.len();
    frames.push(SharedFrame { name: "[unknown stack]".to_owned(), file: None, line: None });
    let samples: Vec<Vec<usize>> = report
        .stacks
        .iter()
        .map(|stack| match stack.frames.as_slice() {
            [] => vec![unknown],
            frames => frames.iter().rev().map(|id: &FrameId| id.index()).collect(),
        })
        .collect();
    let profile = |name, unit, weights: Vec<u64>| Sampled {
        kind: "sampled",
        name,
        unit,
        start_value: 0,
        end_value: weights.iter().fold(0, |sum, weight| sum.saturating_add(*weight)),
        samples: samples.clone(),
        weights,
    };
    let bytes = report.stacks.iter().map(|stack| stack.bytes).collect();
    let counts = report.stacks.iter().map(|stack| stack.count).collect();
    let file = SpeedscopeFile {
        schema: "https://www.speedscope.app/file-format-schema.json",
        exporter: concat!("memleak@", env!("CARGO_PKG_VERSION")),
        name: report.target.comm.clone(),
        active_profile_index: 0,
        shared: SharedFrames { frames },
        profiles: vec![
            profile("outstanding bytes", "bytes", bytes),
            profile("outstanding allocations", "none", counts),
        ],
    };
    serde_json::to_writer(&mut *out, &file)?;
    out.write_all(b"\n")
}
