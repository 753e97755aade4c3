//! What the user sees of reports: which rows, in which order, from which one on; and what keys do.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    ViewLook, ViewRequest,
    keys::Keystroke,
    rows::{AmountsAtMark, Row, SortColumn, matches, rows_of, sort},
};
use crate::report::{format::SplitBy, model::Report};

/// Rows of the screen above the table, with its heading.
pub(super) const HEADER: u16 = 5;
/// Rows by which a mouse's wheel scrolls.
const WHEEL: usize = 3;

/// What is to be done after a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing more.
    None,
    /// All of the screen is to be drawn again.
    Redraw,
    /// This is asked of the run.
    Ask(ViewRequest),
}

/// What has the screen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum ShownPage {
    /// All rows.
    #[default]
    Table,
    /// The selected one; how many lines are above the screen.
    Detail(usize),
    /// What keys do.
    Help,
}

/// What is being typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Prompt {
    #[default]
    None,
    /// What rows must have.
    Filter,
    /// The name of a file.
    File(String),
}

/// A moment from which on growth is told.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) time: SystemTime,
    pub(super) bytes: u64,
    pub(super) count: u64,
    rows: AmountsAtMark,
}

/// All of it.
#[derive(Debug, Default)]
pub struct State {
    pub(super) appearance: ViewLook,
    /// What is shown.
    pub(super) report: Option<Arc<Report>>,
    /// What came since then, while it is paused.
    waiting: Option<Arc<Report>>,
    pub(super) is_paused: bool,
    pub(super) split_by: Option<SplitBy>,
    pub(super) sort: SortColumn,
    pub(super) filter: String,
    pub(super) mark: Option<Mark>,
    pub(super) page: ShownPage,
    pub(super) prompt: Prompt,
    pub(super) message: Option<String>,
    heard: u64,
    /// In order.
    pub(super) rows: Vec<Row>,
    /// All rows, before those that are filtered out.
    pub(super) all_rows: usize,
    /// The row of this key is selected; the first one, if it has gone.
    selected: Option<u64>,
    /// Rows above the screen.
    pub(super) top: usize,
    /// Rows that the screen has room for, as it was drawn last.
    pub(super) room: usize,
    /// What was outstanding in all in the reports that were shown, and when it was most.
    pub(super) peak: Option<(u64, SystemTime)>,
}

impl State {
    /// Nothing is known yet.
    pub fn new(appearance: ViewLook) -> Self {
        Self { appearance, split_by: appearance.split_by, ..Self::default() }
    }

    /// A report came.
    pub fn show(&mut self, report: Arc<Report>) {
        if self.peak.is_none_or(|(bytes, _)| report.totals.bytes > bytes) {
            self.peak = Some((report.totals.bytes, report.time));
        }
        if self.is_paused && !report.is_final {
            self.waiting = Some(report);
            return;
        }
        if report.is_final {
            self.is_paused = false;
        }
        self.report = Some(report);
        self.arrange();
    }

    /// Something is said to the user.
    pub fn say(&mut self, text: String) {
        self.message = Some(text);
    }

    /// What was said on standard error: how many lines, and the last one. Gives whether it is new.
    pub(super) fn heard(&mut self, held: Option<(u64, String)>) -> bool {
        match held {
            Some((number, line)) if number != self.heard => {
                self.heard = number;
                self.message = Some(line);
                true
            }
            _ => false,
        }
    }

    /// The rows that are shown, in order.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Makes the rows again.
    fn arrange(&mut self) {
        let Some(report) = self.report.clone() else { return };
        let mark = self.mark.as_ref().map(|mark| &mark.rows);
        let mut rows = rows_of(&report, self.split_by, self.appearance.full_names, mark);
        self.all_rows = rows.len();
        rows.retain(|row| matches(row, &report, &self.filter));
        sort(&mut rows, self.sort);
        self.rows = rows;
        self.keep_in_sight();
    }

    /// The place of the selected row.
    pub fn selected(&self) -> usize {
        self.selected.and_then(|key| self.rows.iter().position(|row| row.key == key)).unwrap_or(0)
    }

    fn select(&mut self, at: usize) {
        let at = at.min(self.rows.len().saturating_sub(1));
        self.selected = self.rows.get(at).map(|row| row.key);
        self.keep_in_sight();
    }

    /// No row is selected but the first, whichever that will be.
    fn select_none(&mut self) {
        self.selected = None;
        self.top = 0;
    }

    /// The selected row is on the screen.
    pub(super) fn keep_in_sight(&mut self) {
        let at = self.selected();
        let room = self.room.max(1);
        self.top = self.top.min(at).max((at + 1).saturating_sub(room));
        self.top = self.top.min(self.rows.len().saturating_sub(room));
    }

    /// Does what a key is for.
    pub fn key(&mut self, key: Keystroke) -> Action {
        match (key, &self.prompt) {
            (Keystroke::Released, _) => return Action::None,
            (Keystroke::Interrupt, _) => return Action::Ask(ViewRequest::Quit),
            (Keystroke::Redraw, _) => return Action::Redraw,
            (_, Prompt::Filter) => return self.filter_key(key),
            (_, Prompt::File(_)) => return self.file_key(key),
            (_, Prompt::None) => self.message = None,
        }
        if key == Keystroke::Char('q') && self.page == ShownPage::Table {
            return Action::Ask(ViewRequest::Quit);
        }
        match self.page {
            ShownPage::Table => return self.table_key(key),
            ShownPage::Detail(above) => self.detail_key(key, above),
            ShownPage::Help => self.page = ShownPage::Table,
        }
        Action::None
    }

    fn table_key(&mut self, key: Keystroke) -> Action {
        match key {
            Keystroke::Enter | Keystroke::Right if !self.rows.is_empty() => {
                self.select(self.selected());
                self.page = ShownPage::Detail(0);
            }
            Keystroke::Escape => {
                self.filter.clear();
                self.arrange();
            }
            Keystroke::Char('t') => return self.split_further(),
            Keystroke::Click(y) => self.clicked(y),
            _ => {
                if !self.moved(key) {
                    self.command(key);
                }
            }
        }
        Action::None
    }

    /// From all together to processes, to threads, and back.
    fn split_further(&mut self) -> Action {
        let before = self.split_by;
        self.split_by = match before {
            None => Some(SplitBy::Process),
            Some(SplitBy::Process) => Some(SplitBy::Thread),
            Some(_) => None,
        };
        // Rows of another kind have other keys.
        self.mark = None;
        self.select_none();
        self.arrange();
        let said = match self.split_by {
            None => "all together",
            Some(SplitBy::Thread) => "each thread by itself: what it has acquired",
            Some(_) => "each process by itself",
        };
        self.say(said.to_owned());
        match (before, self.split_by) {
            (_, Some(SplitBy::Thread)) => Action::Ask(ViewRequest::Threads(true)),
            (Some(SplitBy::Thread), _) => Action::Ask(ViewRequest::Threads(false)),
            _ => Action::None,
        }
    }

    /// A row is selected, or opened if it was.
    fn clicked(&mut self, y: u16) {
        let Some(at) = y.checked_sub(HEADER).map(usize::from) else { return };
        let (row, room) = (self.top + at, self.room);
        match self.rows.get(row) {
            Some(clicked) if at < room && self.selected == Some(clicked.key) => {
                self.page = ShownPage::Detail(0);
            }
            Some(_) if at < room => self.select(row),
            _ => {}
        }
    }

    /// Another row is selected by it.
    fn moved(&mut self, key: Keystroke) -> bool {
        let (at, room) = (self.selected(), self.room.max(1));
        let to = match key {
            Keystroke::Up | Keystroke::Char('k') => at.saturating_sub(1),
            Keystroke::Down | Keystroke::Char('j') => at + 1,
            Keystroke::PageUp => at.saturating_sub(room),
            Keystroke::PageDown => at + room,
            Keystroke::WheelUp => at.saturating_sub(WHEEL),
            Keystroke::WheelDown => at + WHEEL,
            Keystroke::Home | Keystroke::Char('g') => 0,
            Keystroke::End | Keystroke::Char('G') => self.rows.len(),
            _ => return false,
        };
        self.select(to);
        true
    }

    fn command(&mut self, key: Keystroke) {
        let columns = SortColumn::ALL.len();
        match key {
            Keystroke::Char('>' | 's') => self.sort_by(self.sort.step(1)),
            Keystroke::Char('<') => self.sort_by(self.sort.step(columns - 1)),
            Keystroke::Char('b') => self.sort_by(SortColumn::Bytes),
            Keystroke::Char('c') => self.sort_by(SortColumn::Count),
            Keystroke::Char('d') => self.sort_by(SortColumn::Growth),
            Keystroke::Char('a') => self.sort_by(SortColumn::Age),
            Keystroke::Char('v') => self.sort_by(SortColumn::Verdict),
            Keystroke::Char('n') => self.sort_by(SortColumn::Site),
            Keystroke::Char('/' | '\\') | Keystroke::Function(3 | 4) => self.prompt = Prompt::Filter,
            Keystroke::Char('p' | ' ') => self.pause(),
            Keystroke::Char('m') => self.set_mark(),
            Keystroke::Char('M') if self.mark.take().is_some() => self.arrange(),
            Keystroke::Char('f') => {
                self.appearance.full_names = !self.appearance.full_names;
                self.arrange();
            }
            Keystroke::Char('w') => {
                let proposed = self.report.as_deref().map(proposed).unwrap_or_default();
                self.prompt = Prompt::File(proposed);
            }
            Keystroke::Char('?' | 'h') | Keystroke::Function(1) => self.page = ShownPage::Help,
            _ => {}
        }
    }

    fn sort_by(&mut self, column: SortColumn) {
        self.sort = column;
        self.arrange();
        self.select_none();
    }

    fn pause(&mut self) {
        self.is_paused = !self.is_paused;
        if let Some(report) = self.waiting.take().filter(|_| !self.is_paused) {
            self.report = Some(report);
            self.arrange();
        }
    }

    fn set_mark(&mut self) {
        let Some(report) = self.report.clone() else { return };
        let rows = rows_of(&report, self.split_by, self.appearance.full_names, None);
        self.mark = Some(Mark {
            time: report.time,
            bytes: report.totals.bytes,
            count: report.totals.count,
            rows: rows.iter().map(|row| (row.key, (row.bytes, row.count))).collect(),
        });
        self.sort_by(SortColumn::Growth);
    }

    fn detail_key(&mut self, key: Keystroke, above: usize) {
        let room = self.room.max(1);
        self.page = match key {
            Keystroke::Escape
            | Keystroke::Enter
            | Keystroke::Left
            | Keystroke::Backspace
            | Keystroke::Char('q') => ShownPage::Table,
            Keystroke::Up | Keystroke::Char('k') => ShownPage::Detail(above.saturating_sub(1)),
            Keystroke::Down | Keystroke::Char('j') => ShownPage::Detail(above + 1),
            Keystroke::WheelUp => ShownPage::Detail(above.saturating_sub(WHEEL)),
            Keystroke::WheelDown => ShownPage::Detail(above + WHEEL),
            Keystroke::PageUp => ShownPage::Detail(above.saturating_sub(room)),
            Keystroke::PageDown | Keystroke::Char(' ') => ShownPage::Detail(above + room),
            Keystroke::Home | Keystroke::Char('g') => ShownPage::Detail(0),
            Keystroke::Char('f') => {
                self.appearance.full_names = !self.appearance.full_names;
                self.arrange();
                ShownPage::Detail(above)
            }
            Keystroke::Char('?' | 'h') | Keystroke::Function(1) => ShownPage::Help,
            _ => ShownPage::Detail(above),
        };
    }

    fn filter_key(&mut self, key: Keystroke) -> Action {
        match key {
            Keystroke::Enter | Keystroke::Down | Keystroke::Up => self.prompt = Prompt::None,
            Keystroke::Escape => {
                self.filter.clear();
                self.prompt = Prompt::None;
            }
            Keystroke::Backspace => drop(self.filter.pop()),
            Keystroke::Char(c) => self.filter.push(c),
            _ => return Action::None,
        }
        self.arrange();
        self.select_none();
        Action::None
    }

    fn file_key(&mut self, key: Keystroke) -> Action {
        let Prompt::File(name) = &mut self.prompt else { return Action::None };
        match key {
            Keystroke::Backspace => drop(name.pop()),
            Keystroke::Char(c) => name.push(c),
            Keystroke::Escape => self.prompt = Prompt::None,
            Keystroke::Enter => {
                let name = std::mem::take(name);
                self.prompt = Prompt::None;
                if !name.is_empty() {
                    self.say(format!("writing {name} ..."));
                    return Action::Ask(ViewRequest::Write(PathBuf::from(name)));
                }
            }
            _ => {}
        }
        Action::None
    }

    /// How long ago the mark was set, as of the report that is shown.
    pub(super) fn since_mark(&self) -> Option<Duration> {
        let (mark, report) = (self.mark.as_ref()?, self.report.as_ref()?);
        report.time.duration_since(mark.time).ok()
    }
}

/// The name of a file that is proposed for a report.
fn proposed(report: &Report) -> String {
    match report.target.pids.first() {
        Some(pid) => format!("memleak-{pid}.html"),
        None => "memleak.html".to_owned(),
    }
}
