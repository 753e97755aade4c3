//! Lines of the form for people: their looks, and never wider than the terminal.

use std::{
    borrow::Cow,
    io::{self, Write},
};

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
pub(super) fn clip(text: &str, width: usize) -> Cow<'_, str> {
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

/// `text` in lines of `width` columns, at blanks; a longer word is cut.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
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

/// Columns that a text takes.
pub(super) fn columns(text: &str) -> usize {
    text.chars().map(of_char).sum()
}

/// Columns of a character: two of what is wide in East Asia (Unicode Standard Annex 11, by blocks),
/// none of marks that combine.
fn of_char(c: char) -> usize {
    match u32::from(c) {
        0x300..=0x36f | 0x200b..=0x200d | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
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
    }
}
