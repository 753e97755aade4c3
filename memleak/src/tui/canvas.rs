//! What is drawn on, how it looks, and texts that fit.

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Color, Modifier, Style},
};

use crate::{
    report::format::line::{columns, cut_at_blank},
    verdict::VerdictKind,
    words::BinaryBytes,
};

/// What draws, and with what.
pub(super) struct Canvas<'a> {
    pub(super) buffer: &'a mut Buffer,
    pub(super) area: Rect,
    pub(super) color: bool,
}

impl Canvas<'_> {
    /// Writes text from a column on, as far as there is room; gives where it ends.
    pub(super) fn text(&mut self, x: u16, y: u16, text: &str, style: Style) -> u16 {
        if x >= self.area.width || y >= self.area.height {
            return x;
        }
        let room = usize::from(self.area.width - x);
        self.buffer.set_stringn(self.area.x + x, self.area.y + y, text, room, style).0 - self.area.x
    }

    /// The same in so many columns at most; cut at a blank, so that no number is shown in part.
    pub(super) fn words(&mut self, x: u16, y: u16, text: &str, style: Style, end: usize) -> u16 {
        let room = end.min(self.width()).saturating_sub(usize::from(x));
        self.text(x, y, &cut_at_blank(text, room), style)
    }

    /// The same at the end of a line.
    pub(super) fn text_at_end(&mut self, y: u16, text: &str, style: Style) {
        let width = u16::try_from(columns(text)).unwrap_or(u16::MAX);
        self.text(self.area.width.saturating_sub(width), y, text, style);
    }

    /// All of a line looks like this.
    pub(super) fn line_style(&mut self, y: u16, style: Style) {
        if y < self.area.height {
            let line = Rect::new(self.area.x, self.area.y + y, self.area.width, 1);
            self.buffer.set_style(line, style);
        }
    }

    pub(super) fn colored(&self, color: Color) -> Style {
        if self.color { Style::default().fg(color) } else { Style::default() }
    }

    pub(super) fn of_verdict(&self, verdict: VerdictKind) -> Style {
        match verdict {
            VerdictKind::Leak => self.colored(Color::Red).add_modifier(Modifier::BOLD),
            VerdictKind::Growing => self.colored(Color::Yellow),
            VerdictKind::Cache | VerdictKind::InUse | VerdictKind::Temporary => self.colored(Color::Green),
            VerdictKind::Unknown => Style::default().add_modifier(Modifier::DIM),
        }
    }

    pub(super) fn width(&self) -> usize {
        usize::from(self.area.width)
    }
}

pub(super) const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
pub(super) const DIM: Style = Style::new().add_modifier(Modifier::DIM);
pub(super) const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);
pub(super) const PLAIN: Style = Style::new();

/// The last `width` numbers as blocks of eight heights, the largest of them highest.
pub(super) fn sparkline(numbers: &[u64], width: usize) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = numbers.get(numbers.len().saturating_sub(width)..).unwrap_or_default();
    let most = shown.iter().copied().max().unwrap_or(0).max(1);
    let block = |number: &u64| {
        let at = (u128::from(*number) * 8).div_ceil(u128::from(most)).clamp(1, 8) - 1;
        BLOCKS.get(at as usize).copied().unwrap_or(' ')
    };
    shown.iter().map(block).collect()
}

/// `+1.5 MiB`; nothing if it is nothing.
pub(super) fn signed(bytes: i64) -> String {
    match bytes {
        0 => "0".to_owned(),
        1.. => format!("+{}", BinaryBytes(bytes.unsigned_abs())),
        _ => format!("-{}", BinaryBytes(bytes.unsigned_abs())),
    }
}
