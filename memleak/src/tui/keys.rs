//! Bytes of a terminal as keys (ECMA-48, and what xterm sends).
//!
//! Read by us, and not by crossterm: at the end of a terminal that has gone it would read for ever.

/// A key that means something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keystroke {
    /// A character.
    Char(char),
    /// Return.
    Enter,
    /// By itself.
    Escape,
    /// The one to the left goes.
    Backspace,
    /// The arrow.
    Up,
    /// The arrow.
    Down,
    /// The arrow.
    Left,
    /// The arrow.
    Right,
    /// A screen up.
    PageUp,
    /// A screen down.
    PageDown,
    /// To the beginning.
    Home,
    /// To the end.
    End,
    /// F1 to F4.
    Function(u8),
    /// Ctrl-C, or the end of input (Ctrl-D).
    Interrupt,
    /// The mouse's first button, in this row of the screen, from 0 on.
    Click(u16),
    /// Up by the mouse's wheel.
    WheelUp,
    /// Down by it.
    WheelDown,
    /// A button of the mouse that was let go: nothing is done.
    Released,
    /// The screen is to be drawn again (Ctrl-L).
    Redraw,
    /// Another one.
    Other,
}

/// Longest sequence that is waited for.
const LONGEST: usize = 16;
const ESCAPE: u8 = 0x1b;

/// What was read and is no key yet.
#[derive(Debug, Default)]
pub struct Decoder(Vec<u8>);

impl Decoder {
    /// Takes what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// It waits for the rest of a key.
    pub fn is_waiting(&self) -> bool {
        !self.0.is_empty()
    }

    /// The next key. `is_all`: nothing more came for a while, so an escape is the key of that name.
    pub fn next(&mut self, is_all: bool) -> Option<Keystroke> {
        let (key, length) = match self.0.as_slice() {
            [] => return None,
            [ESCAPE] if is_all => (Keystroke::Escape, 1),
            [ESCAPE] => return None,
            // A terminal that knows the older form alone of what a mouse does.
            [ESCAPE, b'[', b'M', button, _, row, ..] => {
                (mouse(button.saturating_sub(32).into(), row.saturating_sub(32).into(), true), 6)
            }
            [ESCAPE, b'[', b'M', ..] if !is_all => return None,
            [ESCAPE, b'[' | b'O', rest @ ..] => match rest.iter().position(|byte| is_last(*byte)) {
                Some(at) => (sequence(rest.get(..=at).unwrap_or_default()), at + 3),
                None if is_all || rest.len() > LONGEST => (Keystroke::Other, self.0.len()),
                None => return None,
            },
            // Alt and a key, or an escape and a key soon after: of ours none goes with Alt.
            [ESCAPE, ..] => (Keystroke::Escape, 1),
            [b'\r' | b'\n', ..] => (Keystroke::Enter, 1),
            [0x7f | 0x08, ..] => (Keystroke::Backspace, 1),
            [0x03 | 0x04, ..] => (Keystroke::Interrupt, 1),
            [0x0c, ..] => (Keystroke::Redraw, 1),
            [0..0x20, ..] => (Keystroke::Other, 1),
            [first, ..] => match character(*first, &self.0) {
                Some(character) => (Keystroke::Char(character), character.len_utf8()),
                None if is_all || self.0.len() >= 4 => (Keystroke::Other, 1),
                None => return None,
            },
        };
        self.0.drain(..length.min(self.0.len()));
        Some(key)
    }
}

/// It ends a control sequence.
fn is_last(byte: u8) -> bool {
    (0x40..=0x7e).contains(&byte)
}

/// The character (UTF-8) at the beginning; `None` if it is not whole, or none.
fn character(first: u8, bytes: &[u8]) -> Option<char> {
    let length = match first {
        0..0x80 => 1,
        0xc2..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0..0xf5 => 4,
        _ => return None,
    };
    std::str::from_utf8(bytes.get(..length)?).ok()?.chars().next()
}

/// What a mouse does (xterm's control sequences, "Mouse Tracking"), rows from 1 on. Modifiers
/// change nothing.
fn mouse(button: u32, row: u32, is_pressed: bool) -> Keystroke {
    const MODIFIERS: u32 = 4 | 8 | 16;
    let row = u16::try_from(row.saturating_sub(1)).unwrap_or(u16::MAX);
    match (button & !MODIFIERS, is_pressed) {
        (0, true) => Keystroke::Click(row),
        (64, true) => Keystroke::WheelUp,
        (65, true) => Keystroke::WheelDown,
        _ => Keystroke::Released,
    }
}

/// The numbers of `ESC [ < BUTTON ; COLUMN ; ROW M`, or `m` if the button was let go.
fn mouse_sequence(numbers: &[u8], is_pressed: bool) -> Keystroke {
    let numbers = std::str::from_utf8(numbers).unwrap_or_default();
    let numbers: Vec<u32> = numbers.split(';').filter_map(|number| number.parse().ok()).collect();
    match numbers.as_slice() {
        [button, _, row] => mouse(*button, *row, is_pressed),
        _ => Keystroke::Other,
    }
}

/// What follows `ESC [` or `ESC O`. A modifier (`1;5A`) changes nothing.
fn sequence(rest: &[u8]) -> Keystroke {
    if let [b'<', numbers @ .., last @ (b'M' | b'm')] = rest {
        return mouse_sequence(numbers, *last == b'M');
    }
    let number: u32 = rest
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |number: u32, digit| number.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
    match (rest.last(), number) {
        (Some(b'A'), _) => Keystroke::Up,
        (Some(b'B'), _) => Keystroke::Down,
        (Some(b'C'), _) => Keystroke::Right,
        (Some(b'D'), _) => Keystroke::Left,
        (Some(b'H'), _) | (Some(b'~'), 1 | 7) => Keystroke::Home,
        (Some(b'F'), _) | (Some(b'~'), 4 | 8) => Keystroke::End,
        (Some(b'~'), 5) => Keystroke::PageUp,
        (Some(b'~'), 6) => Keystroke::PageDown,
        (Some(last @ b'P'..=b'S'), _) => Keystroke::Function(last - b'P' + 1),
        (Some(b'~'), 11..=14) => Keystroke::Function((number - 10) as u8),
        _ => Keystroke::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Keystroke> {
        let mut decoder = Decoder::default();
        decoder.feed(bytes);
        std::iter::from_fn(|| decoder.next(true)).collect()
    }

    #[test]
    fn keys_of_a_terminal() {
        assert_eq!(
            keys(b"q\r\x7f\x03"),
            [Keystroke::Char('q'), Keystroke::Enter, Keystroke::Backspace, Keystroke::Interrupt]
        );
        let arrows = keys(b"\x1b[A\x1bOB\x1b[5~\x1b[6~\x1b[1;5H\x1b[4~\x1bOP");
        let expected = [
            Keystroke::Up,
            Keystroke::Down,
            Keystroke::PageUp,
            Keystroke::PageDown,
            Keystroke::Home,
            Keystroke::End,
            Keystroke::Function(1),
        ];
        assert_eq!(arrows, expected);
        assert_eq!(keys("größe".as_bytes()).len(), 5);
        assert_eq!(keys(b"\x1b\x1b[A"), [Keystroke::Escape, Keystroke::Up]);
        assert_eq!(keys(b"\x1bm"), [Keystroke::Escape, Keystroke::Char('m')]);
    }

    #[test]
    fn what_a_mouse_does() {
        use Keystroke::{Char, Click, Other, Released, WheelDown, WheelUp};
        let clicked = keys(b"\x1b[<0;12;7M\x1b[<0;12;7m\x1b[<64;1;1M\x1b[<65;250;120M\x1b[<2;3;4Mq");
        assert_eq!(clicked, [Click(6), Released, WheelUp, WheelDown, Released, Char('q')]);
        // With Shift, and what no mouse does.
        assert_eq!(keys(b"\x1b[<4;1;9M\x1b[<0;1M\x1b[<;;M"), [Click(8), Other, Other]);
        // The older form, whose bytes are letters by chance: none of them is a key.
        assert_eq!(keys(b"\x1b[M qq\x1b[M`qq\x1b[M#qqj"), [Click(80), WheelUp, Released, Char('j')]);
        let mut decoder = Decoder::default();
        decoder.feed(b"\x1b[M q");
        assert_eq!(decoder.next(false), None);
        decoder.feed(b"q");
        assert_eq!(decoder.next(false), Some(Click(80)));
    }

    /// A slow line brings a key in parts.
    #[test]
    fn a_key_in_parts_is_one() {
        let mut decoder = Decoder::default();
        for part in [&b"\x1b"[..], b"[", b"1;5"] {
            decoder.feed(part);
            assert_eq!(decoder.next(false), None);
            assert!(decoder.is_waiting());
        }
        decoder.feed(b"Aq");
        assert_eq!(decoder.next(false), Some(Keystroke::Up));
        assert_eq!(decoder.next(false), Some(Keystroke::Char('q')));
        decoder.feed(&[0xc3]);
        assert_eq!(decoder.next(false), None);
        decoder.feed(&[0xb6]);
        assert_eq!(decoder.next(false), Some(Keystroke::Char('ö')));
        decoder.feed(b"\x1b");
        assert_eq!(decoder.next(true), Some(Keystroke::Escape));
    }

    /// Whatever is sent, it comes to an end.
    #[test]
    fn noise_is_no_key() {
        let noise: Vec<u8> = (0..=255).chain([0x1b; 3]).chain(*b"[999999999999999999999~").collect();
        assert!(keys(&noise).len() <= noise.len());
        assert_eq!(keys(b"\xff\xfe").len(), 2);
    }
}
