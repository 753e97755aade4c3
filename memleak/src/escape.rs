//! Text of strangers made safe to print: names and paths come from files and processes that we do
//! not trust.

use std::{borrow::Cow, fmt::Write as _};

/// Whether a terminal or a pager would act on `c` instead of showing it: control characters (C0,
/// DEL, C1; ECMA-48), line and paragraph separators, and the marks that reorder text (Unicode
/// Standard Annex 9), which can make a line read as another one.
pub fn acts_on_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` on one line, with every character of [`acts_on_terminal`] spelled out: `\x1b`,
/// `\u{202e}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(acts_on_terminal) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        // Writing to a String cannot fail.
        let _ = match (acts_on_terminal(c), u32::from(c)) {
            (false, _) => escaped.write_char(c),
            (true, code @ 0..=0xff) => write!(escaped, "\\x{code:02x}"),
            (true, code) => write!(escaped, "\\u{{{code:x}}}"),
        };
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmless_text_is_borrowed() {
        for text in ["", "operator new(unsigned long)", "größe::ж<日本>", "a\\nb"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn what_a_terminal_acts_on_is_spelled_out() {
        assert_eq!(printable("a\nb\tc\r"), "a\\x0ab\\x09c\\x0d");
        assert_eq!(printable("\x1b[2J\x7f\u{9b}1m"), "\\x1b[2J\\x7f\\x9b1m");
        assert_eq!(printable("x\u{202e}y\u{2066}\u{2028}"), "x\\u{202e}y\\u{2066}\\u{2028}");
    }

    #[test]
    fn every_control_character_is_escaped() {
        for c in (0..=0x9f).filter_map(char::from_u32).filter(|c| !matches!(c, ' '..='~')) {
            assert!(printable(&c.to_string()).starts_with("\\x"), "{:x}", u32::from(c));
        }
    }
}
