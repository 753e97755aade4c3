//! pprof's `profile.proto` (<https://github.com/google/pprof/blob/main/proto/profile.proto>), as Go
//! writes its heap profiles: the same sample types in the same order, so that `go tool pprof`,
//! Pyroscope, Parca and Perfetto know what they see.
//!
//! What was acquired in all is written only if it is known of every stack. With sampling numbers
//! are scaled, as in the other forms.

use std::{
    collections::HashMap,
    io::{self, Write},
    time::UNIX_EPOCH,
};

use super::{Format, Kind, Options, kind::FileForm, lost::plain_lost_line, protobuf::Message};
use crate::{
    proc::PAGE_SIZE,
    report::{
        model::{FrameId, Report, StackReport},
        names::without_symbol,
    },
    symbolize::Frame,
};

/// `--pprof`.
pub const KIND: Kind = Kind { name: "pprof", has_events: false, new };

fn new(options: &Options) -> Box<dyn Format> {
    FileForm::boxed(options, false, |report, _, out| write_pprof(report, out))
}

/// Writes a profile, not compressed.
pub fn write_pprof(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let mut profile = Profile::default();
    profile.strings.id("");
    let has_totals =
        report.stacks.iter().all(|stack| stack.history.calls.is_some()) && !report.stacks.is_empty();
    let acquired = [("alloc_objects", "count"), ("alloc_space", "bytes")];
    let types = acquired.into_iter().filter(|_| has_totals);
    for (kind, unit) in types.chain([("inuse_objects", "count"), ("inuse_space", "bytes")]) {
        let value = profile.value_type(kind, unit);
        profile.message.message(1, &value);
    }
    // The first mapping is the program's own.
    let is_main = |frame: &&Frame| frame.function.as_deref() == Some("main");
    if let Some(main) = report.frames.iter().find(is_main) {
        profile.mapping(main.module.as_deref(), main.ip.saturating_sub(1));
    }
    for stack in &report.stacks {
        profile.sample(report, stack, has_totals);
    }
    profile.write_tables(report);
    out.write_all(profile.message.bytes())
}

/// A table of strings, or of anything else that has a number.
#[derive(Debug)]
struct Interned<K> {
    ids: HashMap<K, u64>,
    first: u64,
}

impl<K> Interned<K> {
    fn from(first: u64) -> Self {
        Self { ids: HashMap::new(), first }
    }
}

impl Interned<String> {
    fn id(&mut self, text: &str) -> u64 {
        match self.ids.get(text) {
            Some(id) => *id,
            None => self.insert(text.to_owned()),
        }
    }
}

impl<K: std::hash::Hash + Eq> Interned<K> {
    fn insert(&mut self, key: K) -> u64 {
        let id = self.ids.len() as u64 + self.first;
        *self.ids.entry(key).or_insert(id)
    }
}

/// A profile as it grows. Tables stand in front of what refers to them only in the file.
#[derive(Debug)]
struct Profile {
    message: Message,
    tables: Message,
    strings: Interned<String>,
    functions: Interned<(u64, u64, u64)>,
    locations: Interned<Vec<FrameId>>,
    /// By path; with the addresses that are seen of it.
    mappings: Vec<(String, u64, u64)>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            message: Message::default(),
            tables: Message::default(),
            strings: Interned::from(0),
            functions: Interned::from(1),
            locations: Interned::from(1),
            mappings: Vec::new(),
        }
    }
}

impl Profile {
    fn value_type(&mut self, kind: &str, unit: &str) -> Message {
        let mut message = Message::default();
        message.number(1, self.strings.id(kind)).number(2, self.strings.id(unit));
        message
    }

    fn sample(&mut self, report: &Report, stack: &StackReport, has_totals: bool) {
        let mut locations = Vec::new();
        // What is inlined and what it is inlined into are one location.
        let mut frames = stack.frames.as_slice();
        while !frames.is_empty() {
            let is_last = |id: &FrameId| !report.frames.get(*id).is_some_and(|frame| frame.inlined);
            let end = frames.iter().position(is_last).map_or(frames.len(), |at| at + 1);
            let (one, rest) = frames.split_at(end);
            locations.push(self.location(report, one));
            frames = rest;
        }
        if locations.is_empty() {
            locations.push(self.unknown());
        }
        let mut message = Message::default();
        let totals = stack.history.calls.filter(|_| has_totals);
        let values = totals.map(|calls| [calls.acquired, calls.bytes_acquired]).into_iter().flatten();
        message.numbers(1, locations).numbers(2, values.chain([stack.count, stack.bytes]));
        let mut label = |key: &str, text: &str| {
            let mut label = Message::default();
            label.number(1, self.strings.id(key)).number(2, self.strings.id(text));
            message.message(3, &label);
        };
        label("resource", &stack.resource.name);
        label("verdict", stack.verdict.kind.name());
        if let Some(tag) = &stack.tag {
            label("cache", &tag.to_string());
        }
        if !stack.is_merged() && report.target.pids.len() > 1 {
            label("pid", &stack.pid().to_string());
        }
        self.message.message(2, &message);
    }

    /// A call, with what is inlined there.
    fn location(&mut self, report: &Report, frames: &[FrameId]) -> u64 {
        if let Some(id) = self.locations.ids.get(frames) {
            return *id;
        }
        let id = self.locations.insert(frames.to_vec());
        let frames: Vec<&Frame> = frames.iter().filter_map(|frame| report.frames.get(*frame)).collect();
        let mut message = Message::default();
        message.number(1, id);
        if let Some(last) = frames.last() {
            // The call, and not what follows it.
            let address = last.ip.saturating_sub(1);
            message.number(2, self.mapping(last.module.as_deref(), address)).number(3, address);
        }
        for frame in frames {
            let mut line = Message::default();
            line.number(1, self.function(frame)).number(2, frame.line.unwrap_or(0).into());
            message.message(4, &line);
        }
        self.tables.message(4, &message);
        id
    }

    /// The location of a stack that is not known.
    fn unknown(&mut self) -> u64 {
        if let Some(id) = self.locations.ids.get(&[][..]) {
            return *id;
        }
        let id = self.locations.insert(Vec::new());
        let function = self.function_named("[unknown stack]", "", "");
        let mut message = Message::default();
        message.number(1, id).message(4, Message::default().number(1, function));
        self.tables.message(4, &message);
        id
    }

    fn function(&mut self, frame: &Frame) -> u64 {
        let file = frame.file.as_deref().unwrap_or_default();
        match &frame.function {
            Some(name) => self.function_named(name, frame.symbol.as_deref().unwrap_or(name), file),
            None => self.function_named(&without_symbol(frame), "", file),
        }
    }

    fn function_named(&mut self, name: &str, symbol: &str, file: &str) -> u64 {
        let [name, symbol, file] = [name, symbol, file].map(|text| self.strings.id(text));
        let key = (name, symbol, file);
        if let Some(id) = self.functions.ids.get(&key) {
            return *id;
        }
        let id = self.functions.insert(key);
        let mut message = Message::default();
        message.number(1, id).number(2, name).number(3, symbol).number(4, file);
        self.tables.message(5, &message);
        id
    }

    /// The number of an object; 0 if it is none.
    fn mapping(&mut self, path: Option<&str>, address: u64) -> u64 {
        let Some(path) = path else { return 0 };
        let at = self.mappings.iter().position(|(known, ..)| known == path).unwrap_or_else(|| {
            self.mappings.push((path.to_owned(), address, address));
            self.mappings.len() - 1
        });
        if let Some((_, start, end)) = self.mappings.get_mut(at) {
            (*start, *end) = ((*start).min(address), (*end).max(address));
        }
        at as u64 + 1
    }

    fn write_tables(&mut self, report: &Report) {
        for (at, (path, start, end)) in std::mem::take(&mut self.mappings).into_iter().enumerate() {
            let mut mapping = Message::default();
            mapping.number(1, at as u64 + 1).number(2, start / PAGE_SIZE * PAGE_SIZE);
            mapping
                .number(3, (end / PAGE_SIZE).saturating_add(1).saturating_mul(PAGE_SIZE))
                .number(5, self.strings.id(&path));
            // Names are in the profile: nobody need look for the file.
            (7..=10).for_each(|has| {
                mapping.number(has, 1);
            });
            self.message.message(3, &mapping);
        }
        let tables = std::mem::take(&mut self.tables);
        let period = self.value_type("space", "bytes");
        let comment = plain_lost_line(&report.lost).map(|lost| self.strings.id(&lost));
        let default = self.strings.id("inuse_space");
        let mut strings: Vec<(String, u64)> = std::mem::take(&mut self.strings.ids).into_iter().collect();
        strings.sort_unstable_by_key(|(_, id)| *id);
        let time = report.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut end = Message::default();
        for (text, _) in &strings {
            end.text(6, text);
        }
        end.number(9, u64::try_from(time.as_nanos()).unwrap_or(0)).message(11, &period);
        end.number(12, report.sampling.rate().max(report.sampling.bytes()));
        if let Some(comment) = comment {
            end.numbers(13, [comment]);
        }
        end.number(14, default);
        self.message.append(&tables).append(&end);
    }
}
