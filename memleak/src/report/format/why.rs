//! `--why` in the text form and in JSON.

use std::{
    fmt,
    io::{self, Write},
};

use serde::Serialize;

use crate::{
    escape::printable,
    heap::{Class, Classes},
    report::{
        model::{Report, StackReport},
        why::{Asked, BeforeAttach, BlockKind, Cycle, CycleMember, HangingBlocks, HeldBy, MadeIn, Why},
    },
    words::{BinaryBytes, Grouped},
};

/// Circles, ways and types that the text form shows.
const SHOWN: usize = 5;
/// Sides of a circle that it shows.
const SIDES: usize = 8;

/// Writes what follows the stacks of the text form.
pub(super) fn write_why(why: &Why, out: &mut dyn Write) -> io::Result<()> {
    let (bytes, count) = why.classes.lost();
    let all = Grouped(why.classes.count());
    match count {
        0 => write!(out, "Lost: nothing of {all} blocks")?,
        _ => write!(out, "Lost: {} in {} of {all} blocks", amount(bytes), Grouped(count))?,
    }
    match why.scans {
        0 => writeln!(out, "   (stopped for {} ms)", why.stopped_ms)?,
        scans => writeln!(out, "   ({scans} scans, not stopped)")?,
    }
    let (possible, doubtful) = why.classes.possibly;
    if doubtful > 0 {
        writeln!(out, "  possibly lost: {} in {} blocks", amount(possible), Grouped(doubtful))?;
    }
    why.cycles.iter().take(SHOWN).try_for_each(|cycle| write_cycle(cycle, out))?;
    if why.cycles.len() > SHOWN {
        writeln!(out, "  and {} more shapes of cycles", why.cycles.len() - SHOWN)?;
    }
    for lost in why.types.iter().take(SHOWN) {
        let name = printable(&lost.name);
        writeln!(out, "  lost: {} x {name} ({})", Grouped(lost.count), amount(lost.bytes))?;
    }
    why.held.iter().take(SHOWN).try_for_each(|held| write_held(held, out))?;
    why.asked.iter().try_for_each(|asked| write_asked(asked, out))?;
    write_limits(why, out)
}

/// What `--why-of` has asked for.
fn write_asked(asked: &Asked, out: &mut dyn Write) -> io::Result<()> {
    let (Some((address, size)), Some(class)) = (asked.block, asked.class) else {
        return writeln!(out, "  why {}: no block of this run is there", printable(&asked.what));
    };
    let (what, class) = (printable(&asked.what), class.name().replace('_', " "));
    write!(out, "  why {what}: {size} bytes at {address:#x}, {class}")?;
    match (&asked.by, asked.path.len()) {
        (Some(by), _) => write!(out, ": by {}", printable(by))?,
        (None, 0 | 1) if asked.class == Some(Class::Definitely) => write!(out, ": nothing points to it")?,
        (None, 0 | 1) => {}
        (None, _) => write!(out, ": by a block that nothing holds for sure")?,
    }
    asked.path.iter().try_for_each(|part| write!(out, " -> {}", printable(part)))?;
    writeln!(out, "   made in {}", Shown(&asked.made_in))
}

/// What the numbers above may be wrong by.
fn write_limits(why: &Why, out: &mut dyn Write) -> io::Result<()> {
    if why.unread_bytes > 0 {
        let bytes = amount(why.unread_bytes);
        writeln!(out, "  ({bytes} are in swap and were not read: nothing is called lost for sure)")?;
    }
    let unknown = why.unknown_blocks.filter(|unknown| *unknown > 0);
    match (&why.before, unknown) {
        (Some(before), _) => write_before(before, out)?,
        (None, Some(unknown)) => writeln!(
            out,
            "  ({} blocks are in use that were not seen to be made: what they point to counts as held)",
            Grouped(unknown)
        )?,
        (None, None) => {}
    }
    if why.may_hide {
        writeln!(
            out,
            "  (the allocator's memory from before the attach may hold stale pointers, which hide leaks: start the \
             program under memleak)"
        )?;
    }
    Ok(())
}

/// What was there before the attach; what it points to counts as held.
fn write_before(before: &BeforeAttach, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "  from before the attach: {} in {} blocks", amount(before.bytes), Grouped(before.count))?;
    match before.lost_count {
        0 => write!(out, ", none lost")?,
        count => write!(out, ", lost of these: {} in {}", amount(before.lost_bytes), Grouped(count))?,
    }
    writeln!(out, "; {} are free", amount(before.free))?;
    let about = if before.each > 1 { "about " } else { "" };
    for (what, about, kinds) in
        [("lost before", "", &before.lost_kinds), ("in use before", about, &before.kinds)]
    {
        for kind in kinds.iter().take(SHOWN) {
            let name = kind
                .name
                .as_deref()
                .map_or_else(|| format!("{} bytes", kind.size), |it| printable(it).into());
            let (count, bytes) = (Grouped(kind.count), amount(kind.bytes));
            writeln!(out, "     {what}: {about}{count} x {name} ({bytes})")?;
        }
    }
    Ok(())
}

fn write_cycle(cycle: &Cycle, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "  cycle of {}, {}", Grouped(cycle.length), times(cycle.count))?;
    match (cycle.pointed_at, &cycle.pointed_from) {
        (0, _) => {}
        (some, Some(from)) => write!(out, " ({} still pointed at from {})", Grouped(some), printable(from))?,
        (some, None) => write!(out, " ({} still pointed at)", Grouped(some))?,
    }
    write!(out, ", {}", amount(cycle.bytes))?;
    match cycle.retained_bytes > cycle.bytes {
        true => writeln!(out, ", holding {}", amount(cycle.retained_bytes))?,
        false => writeln!(out)?,
    }
    let shown = cycle.members.get(..SIDES).unwrap_or(&cycle.members);
    let from = |member: &CycleMember| type_or_size(member.type_name.as_deref(), member.size);
    let to = |member: &CycleMember| type_or_size(member.to.as_deref(), member.to_size);
    let widest = |of: &dyn Fn(&CycleMember) -> usize| shown.iter().map(of).max().unwrap_or(0);
    let name_width = widest(&|member| from(member).chars().count());
    let arrow = |member: &CycleMember| {
        let field =
            member.field.as_deref().map(|field| format!(".{} ", printable(field))).unwrap_or_default();
        let others = if member.is_array { " and others" } else { "" };
        format!("{field}(+{:#x}{others}) -> {}", member.offset, to(member))
    };
    let arrow_width = widest(&|member| arrow(member).chars().count());
    for member in shown {
        let (name, arrow) = (from(member), arrow(member));
        writeln!(out, "     {name:name_width$} {arrow:arrow_width$}   made in {}", Shown(&member.made_in))?;
    }
    match cycle.members.len() - shown.len() {
        0 => {}
        1 => writeln!(out, "     and 1 more link")?,
        more => writeln!(out, "     and {more} more links")?,
    }
    write_hanging(&cycle.hanging, out)?;
    let which = match (cycle.length, cycle.members.len()) {
        (1, _) | (_, 1) => "it",
        (_, 2) => "one of the two",
        _ => "one of them",
    };
    match &cycle.weak {
        _ if cycle.doubtful => writeln!(
            out,
            "     Some of these pointers may be weak already: then whatever held it from outside is lost."
        ),
        Some(weak) => writeln!(out, "     Break {which}: {}.", printable(weak)),
        None => writeln!(out, "     Nothing counts its owners: whatever held it from outside is lost."),
    }
}

/// What hangs off a circle, a line for each place where it was acquired.
fn write_hanging(hanging: &[HangingBlocks], out: &mut dyn Write) -> io::Result<()> {
    let mut places: Vec<&MadeIn> = Vec::new();
    for blocks in hanging {
        if !places.contains(&&blocks.made_in) {
            places.push(&blocks.made_in);
        }
    }
    for place in places.iter().take(SHOWN) {
        let mut kinds: Vec<(String, u64)> = Vec::new();
        for blocks in hanging.iter().filter(|blocks| blocks.made_in == **place) {
            let name = blocks.type_name.clone().unwrap_or_else(|| "blocks".to_owned());
            match kinds.iter_mut().find(|(known, _)| *known == name) {
                Some((_, count)) => *count += blocks.count,
                None => kinds.push((name, blocks.count)),
            }
        }
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let kinds: Vec<String> =
            kinds.iter().map(|(name, count)| format!("{} {}", Grouped(*count), printable(name))).collect();
        writeln!(out, "     hangs off it: {}, {}", kinds.join(" and "), Shown(place))?;
    }
    Ok(())
}

fn write_held(held: &HeldBy, out: &mut dyn Write) -> io::Result<()> {
    write!(
        out,
        "  held: {} in {} blocks by {}",
        amount(held.bytes),
        Grouped(held.count),
        printable(&held.by)
    )?;
    held.path.iter().try_for_each(|part| write!(out, " -> {}", printable(part)))?;
    writeln!(out, "   made in {}", Shown(&held.made_in))
}

/// Writes what became of a stack's blocks, between its heading and its frames.
pub(super) fn write_classes(stack: &StackReport, out: &mut dyn Write) -> io::Result<()> {
    let Some(classes) = &stack.why else { return Ok(()) };
    let parts = [
        ("definitely lost", classes.definitely),
        ("indirectly lost", classes.indirectly),
        ("possibly lost", classes.possibly),
        ("still reachable", classes.reachable),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, (_, count))| *count > 0)
        .map(|(name, (bytes, count))| format!("{name} {bytes} bytes in {count}"))
        .collect();
    if parts.is_empty() { Ok(()) } else { writeln!(out, "\t\t[{}]", parts.join(", ")) }
}

pub(super) fn times(count: u64) -> String {
    match count {
        1 => "once".to_owned(),
        count => format!("{} times", Grouped(count)),
    }
}

pub(super) fn type_or_size(name: Option<&str>, size: u64) -> String {
    match name {
        Some(name) => printable(name).into_owned(),
        None => format!("block of {size} bytes"),
    }
}

/// `main  wordcount.cc:78`
pub(super) struct Shown<'a>(pub &'a MadeIn);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&without_parameters(
            self.0.function.as_deref().unwrap_or("an unknown function"),
        )))?;
        match &self.0.place {
            Some((file, line)) => {
                let name = file.rsplit('/').next().unwrap_or(file);
                write!(f, "  {}:{line}", printable(name))
            }
            None => Ok(()),
        }
    }
}

/// `word_counter::word_count()` of a function with whatever parameters.
fn without_parameters(function: &str) -> String {
    let mut depth = 0_u32;
    for (at, byte) in function.bytes().enumerate() {
        match byte {
            b'(' if depth == 0 && !function[at..].starts_with("(anonymous namespace)") && at > 0 => {
                return format!("{}()", &function[..at]);
            }
            b'<' | b'(' => depth += 1,
            b'>' | b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    function.to_owned()
}

/// Bytes, in words.
pub(super) fn amount(bytes: u64) -> String {
    format!("{:#}", BinaryBytes(bytes))
}

/// Bytes and number of blocks.
#[derive(Serialize)]
struct JsonAmount {
    bytes: u64,
    count: u64,
}

impl From<(u64, u64)> for JsonAmount {
    fn from((bytes, count): (u64, u64)) -> Self {
        Self { bytes, count }
    }
}

/// The four sums.
#[derive(Serialize)]
pub(super) struct JsonClasses {
    definitely_lost: JsonAmount,
    indirectly_lost: JsonAmount,
    possibly_lost: JsonAmount,
    still_reachable: JsonAmount,
}

impl From<&Classes> for JsonClasses {
    fn from(classes: &Classes) -> Self {
        Self {
            definitely_lost: classes.definitely.into(),
            indirectly_lost: classes.indirectly.into(),
            possibly_lost: classes.possibly.into(),
            still_reachable: classes.reachable.into(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct JsonWhy {
    mode: &'static str,
    scans: u32,
    stopped_ms: u64,
    complete: bool,
    unknown_blocks: Option<u64>,
    unread_bytes: u64,
    #[serde(flatten)]
    classes: JsonClasses,
    before_attach: Option<JsonBefore>,
}

/// What was there before tracing began: of glibc's blocks.
#[derive(Serialize)]
struct JsonBefore {
    in_use: JsonAmount,
    lost: JsonAmount,
    free_bytes: u64,
    in_use_kinds: Vec<JsonKind>,
    lost_kinds: Vec<JsonKind>,
    /// `in_use_kinds` are of each so many-th block.
    each: u64,
}

/// Blocks of a type, or else of a size.
#[derive(Serialize)]
struct JsonKind {
    r#type: Option<String>,
    size: Option<u64>,
    #[serde(flatten)]
    amount: JsonAmount,
}

impl From<&BlockKind> for JsonKind {
    fn from(kind: &BlockKind) -> Self {
        let size = kind.name.is_none().then_some(kind.size);
        Self { r#type: kind.name.clone(), size, amount: (kind.bytes, kind.count).into() }
    }
}

impl From<&Why> for JsonWhy {
    fn from(why: &Why) -> Self {
        Self {
            mode: if why.scans == 0 { "exact" } else { "scans" },
            scans: why.scans,
            stopped_ms: why.stopped_ms,
            complete: why.complete,
            unknown_blocks: why.unknown_blocks,
            unread_bytes: why.unread_bytes,
            classes: JsonClasses::from(&why.classes),
            before_attach: why.before.as_ref().map(|before| JsonBefore {
                in_use: (before.bytes, before.count).into(),
                lost: (before.lost_bytes, before.lost_count).into(),
                free_bytes: before.free,
                in_use_kinds: before.kinds.iter().map(JsonKind::from).collect(),
                lost_kinds: before.lost_kinds.iter().map(JsonKind::from).collect(),
                each: before.each,
            }),
        }
    }
}

#[derive(Serialize)]
pub(super) struct JsonCycle<'a> {
    length: u64,
    count: u64,
    pointed_at: u64,
    bytes: u64,
    retained_bytes: u64,
    members: Vec<JsonMember<'a>>,
}

#[derive(Serialize)]
struct JsonMember<'a> {
    r#type: Option<&'a str>,
    field: Option<&'a str>,
    offset: u32,
    stack: Option<usize>,
}

/// The circles of a report. `places`: where each stack of the report is among those that are
/// written, if it is.
pub(super) fn cycles<'a>(why: &'a Why, places: &[Option<usize>]) -> Vec<JsonCycle<'a>> {
    let member = |member: &'a CycleMember| JsonMember {
        r#type: member.type_name.as_deref(),
        field: member.field.as_deref(),
        offset: member.offset,
        stack: member.stack.and_then(|stack| places.get(stack).copied().flatten()),
    };
    let cycle = |cycle: &'a Cycle| JsonCycle {
        length: cycle.length,
        count: cycle.count,
        pointed_at: cycle.pointed_at,
        bytes: cycle.bytes,
        retained_bytes: cycle.retained_bytes,
        members: cycle.members.iter().map(member).collect(),
    };
    why.cycles.iter().map(cycle).collect()
}

/// Where each stack of a report is among the first `top` of each table.
pub(super) fn places(report: &Report, top: usize) -> Vec<Option<usize>> {
    let written: Vec<*const StackReport> = report.top(top).map(std::ptr::from_ref).collect();
    let place = |stack: &StackReport| written.iter().position(|it| std::ptr::eq(*it, stack));
    // Those that are written come first in their table, and there are few.
    report.stacks.iter().map(place).collect()
}

#[derive(Serialize)]
pub(super) struct JsonHeld<'a> {
    by: &'a str,
    path: &'a [String],
    bytes: u64,
    count: u64,
}

impl<'a> From<&'a HeldBy> for JsonHeld<'a> {
    fn from(held: &'a HeldBy) -> Self {
        Self { by: &held.by, path: &held.path, bytes: held.bytes, count: held.count }
    }
}

#[derive(Serialize)]
pub(super) struct JsonAsked<'a> {
    what: &'a str,
    address: Option<String>,
    size: Option<u64>,
    why: Option<&'static str>,
    by: Option<&'a str>,
    path: &'a [String],
}

impl<'a> From<&'a Asked> for JsonAsked<'a> {
    fn from(asked: &'a Asked) -> Self {
        Self {
            what: &asked.what,
            address: asked.block.map(|(address, _)| format!("{address:#x}")),
            size: asked.block.map(|(_, size)| size),
            why: asked.class.map(Class::name),
            by: asked.by.as_deref(),
            path: &asked.path,
        }
    }
}

/// What was asked for; `None` if nothing was.
pub(super) fn asked(why: &Why) -> Option<Vec<JsonAsked<'_>>> {
    (!why.asked.is_empty()).then(|| why.asked.iter().map(JsonAsked::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_left_out() {
        let names = [
            ("main", "main"),
            ("a::b(std::string const&) const", "a::b()"),
            ("(anonymous namespace)::f(int)", "(anonymous namespace)::f()"),
            ("g<void (int)>(char)", "g<void (int)>()"),
        ];
        names.iter().for_each(|(name, short)| assert_eq!(without_parameters(name), *short));
    }
}
