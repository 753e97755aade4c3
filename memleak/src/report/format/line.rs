//! Lines of the form for people: their looks, and never wider than the terminal.

use std::{
    borrow::Cow,
    io::{self, Write},
    iter,
};

use unicode_width::UnicodeWidthChar as _;

/// How a part of a line looks, if there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    Bold,
    Dim,
    Good,
    Warning,
    Bad,
}

impl Look {
    /// Its attributes (ECMA-48, SGR); `None` for what has none.
    fn attributes(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Bold => Some("1"),
            Self::Dim => Some("2"),
            Self::Good => Some("32"),
            Self::Warning => Some("33"),
            Self::Bad => Some("1;31"),
        }
    }
}

/// A line, in parts.
#[derive(Clone, Debug, Default)]
pub(super) struct TextLine<'a>(Vec<(Look, Cow<'a, str>)>);

impl<'a> TextLine<'a> {
    /// Adds a part. It holds nothing that a terminal acts on.
    pub(super) fn push(&mut self, look: Look, text: impl Into<Cow<'a, str>>) -> &mut Self {
        self.0.push((look, text.into()));
        self
    }

    /// Columns that it takes.
    pub(super) fn columns(&self) -> usize {
        self.0.iter().map(|(_, text)| columns(text)).sum()
    }

    /// Writes it with a newline; what has no room is left out, and its end marked.
    pub(super) fn write(&self, width: usize, color: bool, out: &mut dyn Write) -> io::Result<()> {
        let mut left = match self.columns() <= width {
            true => usize::MAX,
            false => width,
        };
        for (look, text) in &self.0 {
            let text = match left {
                usize::MAX => Cow::Borrowed(text.as_ref()),
                _ => {
                    let shown = clip(text, left);
                    left = if columns(text) >= left { 0 } else { left - columns(&shown) };
                    shown
                }
            };
            match look.attributes().filter(|_| color && !text.is_empty()) {
                Some(attributes) => write!(out, "\x1b[{attributes}m{text}\x1b[0m")?,
                None => write!(out, "{text}")?,
            }
        }
        writeln!(out)
    }
}

/// `text` in `width` columns; the last one shows that there was more.
fn clip(text: &str, width: usize) -> Cow<'_, str> {
    if columns(text) < width {
        return text.into();
    }
    let mut shown = String::new();
    let mut used = 0;
    for c in text.chars() {
        used += of_char(c);
        if used >= width {
            break;
        }
        shown.push(c);
    }
    if width > 0 {
        shown.push('~');
    }
    shown.into()
}

/// `text` in `width` columns; what is left out is marked.
pub(crate) fn cut(text: &str, width: usize) -> Cow<'_, str> {
    if columns(text) <= width { text.into() } else { clip(text, width) }
}

/// The same at a blank, so that no number is left without its end or its unit.
pub(crate) fn cut_at_blank(text: &str, width: usize) -> Cow<'_, str> {
    if columns(text) <= width {
        return text.into();
    }
    let mut line = String::new();
    for word in words(text, usize::MAX).take_while(|_| width > 2) {
        match columns(&line) + columns(word) + 2 {
            more if more > width && line.is_empty() && !word.split(' ').any(is_number) => {
                return clip(text, width);
            }
            more if more > width => break,
            _ => line.extend([word, " "]),
        }
    }
    cut(&format!("{line}~"), width).into_owned().into()
}

/// `wordcount.cc:64` in `width` columns; without its line if there is no room for that.
pub(crate) fn cut_place(place: &str, width: usize) -> Cow<'_, str> {
    match place.rsplit_once(':') {
        Some((file, _)) if columns(place) > width => {
            clip(&format!("{file}:"), width.min(columns(file) + 1)).into_owned().into()
        }
        _ => cut(place, width),
    }
}

/// `text` in lines of `width` columns, at blanks; a longer word is cut.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words(text, width) {
        match lines.last_mut() {
            Some(line) if columns(line) + 1 + columns(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The words of a text. A number and what it is of, its unit above all, are one word, unless that
/// is longer than a line.
fn words(text: &str, width: usize) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    iter::from_fn(move || {
        let text = rest?;
        let mut blanks = text.match_indices(' ').map(|(at, _)| at).chain([text.len()]);
        let mut end = blanks.next()?;
        for next in blanks {
            let last = text.get(..end).and_then(|words| words.rsplit(' ').next()).unwrap_or_default();
            if !is_number(last) || columns(text.get(..next).unwrap_or_default()) > width {
                break;
            }
            end = next;
        }
        rest = text.get(end + 1..);
        text.get(..end)
    })
}

/// `12,004`, `+1.5`, `(7`: something follows that belongs to it.
fn is_number(word: &str) -> bool {
    word.trim_start_matches(['(', '+', '-']).starts_with(|c: char| c.is_ascii_digit())
        && word.ends_with(|c: char| c.is_ascii_digit())
}

/// Columns that a text takes.
pub(crate) fn columns(text: &str) -> usize {
    text.chars().map(of_char).sum()
}

/// Columns of a character: two of what is wide in East Asia (Unicode Standard Annex 11), none of
/// marks that combine.
fn of_char(c: char) -> usize {
    c.width().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(line: &TextLine<'_>, width: usize, color: bool) -> String {
        let mut out = Vec::new();
        line.write(width, color, &mut out).expect("a Vec takes all");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let mut line = TextLine::default();
        line.push(Look::Bold, "12345").push(Look::Plain, "größe 日本語 and more").push(Look::Dim, "!");
        for width in 0..40 {
            let text = written(&line, width, false);
            let text = text.trim_end_matches('\n');
            assert!(columns(text) <= width, "{width}: {text}");
        }
        assert_eq!(written(&line, 12, false), "12345größe ~\n");
        assert_eq!(written(&line, 30, false), "12345größe 日本語 and more!\n");
    }

    #[test]
    fn colours_take_no_room() {
        let mut line = TextLine::default();
        line.push(Look::Bad, "leak").push(Look::Plain, ": 12").push(Look::Good, "");
        assert_eq!(written(&line, 8, true), "\x1b[1;31mleak\x1b[0m: 12\n");
        assert_eq!(written(&line, 8, false), "leak: 12\n");
    }

    #[test]
    fn text_is_wrapped_at_blanks() {
        assert_eq!(wrap("a bb ccc dddd", 6), ["a bb", "ccc", "dddd"]);
        assert_eq!(wrap("", 6), [""]);
        assert_eq!(wrap("toolongforit x", 6), ["toolongforit", "x"]);
        assert_eq!(wrap("  two  blanks", 20), ["  two  blanks"]);
    }

    #[test]
    fn numbers_stay_with_their_units() {
        let text =
            "in 12,004 blocks, +0 B/min; 53.3 % of 480 released, 9 min to 3 h old (1 still pointed at)";
        // Where the longest pair has room, none is parted; all words are there.
        for width in 14..90 {
            let lines = wrap(text, width);
            assert_eq!(lines.join(" "), text);
            for line in &lines {
                assert!(columns(line) <= width, "{width}: {line}");
                let last = line.rsplit(' ').next().unwrap_or_default();
                assert!(!last.ends_with(|c: char| c.is_ascii_digit()), "{width}: {line}");
            }
        }
        assert_eq!(wrap("hold 123 bytes", 7), ["hold", "123", "bytes"]);
    }

    #[test]
    fn what_is_cut_at_a_blank_shows_whole_numbers() {
        let text = "3.5 MiB in 1,234,567 blocks, +59.8 MiB/min";
        let numbers = ["3.5 MiB", "1,234,567 blocks,", "+59.8 MiB/min"];
        for width in 0..50 {
            let cut = cut_at_blank(text, width);
            assert!(columns(&cut) <= width, "{width}: {cut}");
            let begins = |part: &str| cut.contains(part.split(' ').next().unwrap_or_default());
            let is_whole = numbers.iter().all(|part| cut.contains(*part) || !begins(part));
            assert!(is_whole, "{width}: {cut}");
        }
        assert_eq!(cut_at_blank(text, 30), "3.5 MiB in 1,234,567 blocks, ~");
        assert_eq!(cut_at_blank(text, 42), text);
        assert_eq!(cut_at_blank("toolongforit x", 6), "toolo~");
        let places = [(14, "plain.cc:12345"), (13, "plain.cc~"), (9, "plain.cc~"), (8, "plain.c~")];
        for (width, shown) in places {
            assert_eq!(cut_place("plain.cc:12345", width), shown);
        }
    }

    #[test]
    fn marks_that_combine_take_no_column() {
        // e and an acute; a Devanagari syllable of a consonant and a vowel sign; two of Hangul.
        for (text, number) in [("e\u{301}", 1), ("\u{915}\u{941}", 1), ("\u{d55c}\u{ae00}", 4), ("größe", 5)]
        {
            assert_eq!(columns(text), number, "{text}");
        }
        assert_eq!(cut("\u{d55c}\u{ae00}", 3), "\u{d55c}~");
    }
}
