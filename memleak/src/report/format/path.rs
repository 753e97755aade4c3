//! A stack in the form for people: the responsible frame first, then the way to it, with runs of
//! library frames folded.

use std::io::{self, Write};

use super::{
    Style,
    line::{Look, TextLine, columns, cut, cut_at_blank, cut_place, wrap},
    text::why_cut,
};
use crate::{
    report::names::{family, is_library, name, place},
    snapshot::Cut,
    symbolize::Frame,
    words::counted,
};

/// Callers that are shown of a path; of a longer one its beginning and its end.
const CALLERS: usize = 5;
/// Of these, how many are at its end.
const LAST: usize = 2;
/// Where places in sources begin, if names leave room for that.
const PLACES: usize = 48;
/// Columns of a name beside its place, at the least.
const FEWEST_FOR_NAME: usize = 16;
/// Families of library functions that are named.
const FAMILIES: usize = 2;

/// What is shown of a path, in order.
enum Part<'a> {
    /// A frame, and how often it calls itself.
    Frame(&'a Frame, usize),
    /// Library frames.
    Folded(Vec<&'a Frame>),
    /// So many that are left out.
    More(usize),
}

/// The frame that is responsible: the first that is the program's own, else the first that has a
/// name and is no function of an allocator's, else any.
pub(crate) fn responsible(frames: &[&Frame]) -> usize {
    let named = |frame: &&&Frame| frame.function.is_some();
    let own = frames.iter().position(|frame| !is_library(frame));
    let last_named = || frames.iter().rposition(|frame| named(&frame));
    own.or_else(last_named).unwrap_or(0)
}

/// Writes a stack, indented.
pub(crate) fn write_path(
    frames: &[&Frame],
    cut: Option<Cut>,
    indent: usize,
    width: usize,
    style: Style,
    out: &mut dyn Write,
) -> io::Result<()> {
    let page = Page { indent, width, style };
    if frames.is_empty() {
        return page
            .sentence("stack not known: raise --stack-storage-size, or it was made before the attach", out);
    }
    let at = responsible(frames);
    let parts = if style.full_stacks { unfolded(frames, at) } else { folded(frames, at) };
    for (number, part) in parts.iter().enumerate() {
        match part {
            Part::Frame(frame, times) => page.frame(frame, *times, number == 0, out)?,
            Part::Folded(frames) => page.folded(frames, out)?,
            Part::More(1) => page.said("... 1 more frame", out)?,
            Part::More(number) => page.said(&format!("... {number} more frames"), out)?,
        }
    }
    match cut {
        Some(cut) => page.sentence(&format!("(cut: {})", why_cut(cut, frames.last().copied())), out),
        None => Ok(()),
    }
}

/// The responsible frame, then all as they are.
fn unfolded<'a>(frames: &[&'a Frame], at: usize) -> Vec<Part<'a>> {
    let responsible = frames.get(at).map(|frame| Part::Frame(frame, 1));
    let all = frames.iter().map(|frame| Part::Frame(frame, 1));
    match at {
        0 => all.collect(),
        _ => responsible.into_iter().chain(all).collect(),
    }
}

/// The responsible frame, what it has called, and who has called it.
fn folded<'a>(frames: &[&'a Frame], at: usize) -> Vec<Part<'a>> {
    let (below, above) = frames.split_at(at);
    let mut callers: Vec<Part<'a>> = Vec::new();
    for frame in above {
        match callers.last_mut() {
            Some(Part::Frame(last, times)) if last.function == frame.function && frame.function.is_some() => {
                *times += 1;
            }
            Some(Part::Folded(run)) if is_library(frame) => run.push(frame),
            Some(_) if is_library(frame) => callers.push(Part::Folded(vec![frame])),
            _ => callers.push(Part::Frame(frame, 1)),
        }
    }
    // What starts programs and threads says nothing.
    if callers.len() > 1 && matches!(callers.last(), Some(Part::Folded(_))) {
        callers.pop();
    }
    if callers.len() > CALLERS + 1 {
        let cut = callers.len() - LAST;
        let middle: Vec<Part<'a>> = callers.splice(1 + CALLERS - LAST - 1..cut, []).collect();
        let left_out = middle.iter().map(|part| match part {
            Part::Frame(_, times) => *times,
            Part::Folded(run) => run.len(),
            Part::More(number) => *number,
        });
        callers.insert(CALLERS - LAST, Part::More(left_out.sum()));
    }
    if !below.is_empty() {
        // Outermost first, as it is read.
        callers.insert(1.min(callers.len()), Part::Folded(below.iter().rev().copied().collect()));
    }
    callers
}

struct Page {
    indent: usize,
    width: usize,
    style: Style,
}

impl Page {
    /// `-> word_counter::word_count()              wordcount.cc:64`.
    fn frame(&self, frame: &Frame, times: usize, is_first: bool, out: &mut dyn Write) -> io::Result<()> {
        let mut shown = name(frame, self.style.full_names).into_owned();
        if times > 1 {
            shown += &format!(" (calls itself, {times} deep)");
        } else if frame.inlined && self.style.full_stacks {
            shown += " (inlined)";
        }
        let place = place(frame);
        let (arrow, look) = match is_first {
            true => ("-> ", Look::Bold),
            false if is_library(frame) => ("   ", Look::Dim),
            false => ("   ", Look::Plain),
        };
        let begin = self.indent + arrow.len();
        // A place is the last to go. One that is as long as a line has its own.
        let room = self.width.saturating_sub(begin + columns(&place) + 2);
        let is_below = !place.is_empty() && room < FEWEST_FOR_NAME;
        let room = if is_below { self.width.saturating_sub(begin) } else { room };
        let shown = cut(&shown, room);
        let gap = PLACES.min(self.width.saturating_sub(columns(&place)));
        let gap = gap.saturating_sub(begin + columns(&shown)).max(2);
        let mut line = TextLine::default();
        line.push(Look::Plain, " ".repeat(self.indent)).push(look, arrow).push(look, shown);
        if !place.is_empty() && !is_below {
            line.push(Look::Plain, " ".repeat(gap)).push(look, place.as_str());
        }
        line.write(self.width, self.style.color, out)?;
        if is_below { self.said(&cut_place(&place, self.width.saturating_sub(begin)), out) } else { Ok(()) }
    }

    /// `5 frames in std::vector, std::copy; operator new`.
    fn folded(&self, frames: &[&Frame], out: &mut dyn Write) -> io::Result<()> {
        let mut families: Vec<String> = Vec::new();
        let (last, others) = match frames.split_last() {
            Some((last, others)) => (family(last), others),
            None => return Ok(()),
        };
        for family in others.iter().map(|frame| family(frame)) {
            // What a library has for itself says less than what the program calls of it.
            if !families.contains(&family) && family != last && !family.contains("__") {
                families.push(family);
            }
        }
        let more = if families.len() > FAMILIES { ", ..." } else { "" };
        families.truncate(FAMILIES);
        let frames = counted(frames.len() as u64, "frame");
        let said = match families.as_slice() {
            [] => format!("{frames} in {last}"),
            families => format!("{frames} in {}{more}; {last}", families.join(", ")),
        };
        self.said(&said, out)
    }

    fn sentence(&self, text: &str, out: &mut dyn Write) -> io::Result<()> {
        let room = self.width.saturating_sub(self.indent + 3);
        wrap(text, room).iter().try_for_each(|line| self.said(line, out))
    }

    fn said(&self, text: &str, out: &mut dyn Write) -> io::Result<()> {
        let mut line = TextLine::default();
        let begin = self.indent + 3;
        let shown = cut_at_blank(text, self.width.saturating_sub(begin));
        line.push(Look::Plain, " ".repeat(begin)).push(Look::Dim, shown);
        line.write(self.width, self.style.color, out)
    }
}
