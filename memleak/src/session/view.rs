//! The run and the view that shows it (`--tui`): what the user asks for is done here.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    sync::Arc,
};

use log::warn;

use super::{
    SessionError,
    state::Session,
    wait::{Reason, SignalEnds, Signals},
};
use crate::{
    report::{
        files::{ReportFile, kind_of_name},
        format::SplitBy,
        model::Report,
        sink::Delivery,
    },
    tui::{View, ViewLook, ViewRequest},
};

/// The next thing that the user of a view asks for; nothing if there is no view.
pub(super) async fn next_request(view: &mut Option<View>) -> ViewRequest {
    match view {
        Some(view) => view.request().await,
        None => std::future::pending().await,
    }
}

impl Session {
    /// Takes the terminal, if that was asked for.
    pub(super) fn open_view(&mut self) -> Result<(), SessionError> {
        let report = &self.settings.report;
        if !report.tui {
            return Ok(());
        }
        let style = report.appearance().options(true).style;
        let split_by = report.split_by.filter(|by| *by != SplitBy::Size);
        let appearance = ViewLook {
            color: style.color,
            full_names: style.full_names,
            with_source: style.with_source,
            split_by,
        };
        self.view = Some(View::open(appearance)?);
        self.reporter.sink.begin_view();
        self.reporter.sink.show_threads(split_by == Some(SplitBy::Thread));
        Ok(())
    }

    /// Gives the terminal back.
    pub(super) fn close_view(&mut self) {
        if let Some(view) = self.view.take() {
            view.close();
            self.reporter.sink.end_view();
        }
    }

    /// Shows a report, and writes it where the user has asked for it.
    pub(super) fn show(&mut self, report: &Arc<Report>) {
        let said = self.reporter.sink.write_asked(report);
        if let Some(view) = &self.view {
            view.show(report);
            said.into_iter().for_each(|line| view.say(line));
        }
    }

    /// Does what the user asks for. Gives why the run is to end, if it is.
    pub(super) fn asked(&mut self, request: ViewRequest) -> Result<Option<Reason>, SessionError> {
        match request {
            ViewRequest::Quit => Ok(Some(Reason::Signal)),
            // The view has failed, and said so: reports follow each other as without it.
            ViewRequest::Gone if io::stdout().is_terminal() => {
                self.close_view();
                Ok(None)
            }
            ViewRequest::Gone => Ok(self.lose_terminal()),
            ViewRequest::Write(path) => self.write_now(path),
            ViewRequest::Threads(shown) => {
                self.reporter.sink.show_threads(shown);
                if shown { self.report_out_of_turn() } else { Ok(None) }
            }
        }
    }

    /// The terminal has gone. Gives why the run is to end, if it is.
    pub(super) fn lose_terminal(&mut self) -> Option<Reason> {
        self.close_view();
        self.reporter.sink.lose_terminal();
        (!self.outlives_terminal()).then_some(Reason::Signal)
    }

    /// A terminal that goes ends what is shown there, and not the run.
    pub(super) fn outlives_terminal(&self) -> bool {
        self.settings.detach || self.reporter.sink.has_files()
    }

    /// A report of now in a file, in the form that its name says.
    fn write_now(&mut self, path: PathBuf) -> Result<Option<Reason>, SessionError> {
        let Some(kind) = kind_of_name(&path) else {
            let name = path.display();
            let text =
                format!("{name}: no form has this ending; try .html, .svg, .pb.gz, .zst, .json or .txt");
            if let Some(view) = &self.view {
                view.say(text);
            }
            return Ok(None);
        };
        let file = ReportFile { kind, path };
        let format = file.format(&self.settings.report.appearance().options(false));
        self.reporter.sink.ask(file, format);
        self.report_out_of_turn()
    }

    /// A report of now, which is none of those that COUNT counts. Gives why the run is to end, if
    /// it is.
    fn report_out_of_turn(&mut self) -> Result<Option<Reason>, SessionError> {
        let delivery = self.report(false)?;
        self.reporter.reports -= 1;
        Ok((delivery == Delivery::ReaderGone).then_some(Reason::ReaderGone))
    }

    /// The run is over: the last report stays on the screen until the user or a signal says
    /// otherwise, and is then printed.
    pub(super) async fn leave_view(&mut self, signals: &mut Signals) {
        while self.view.is_some() {
            tokio::select! {
                ended = signals.next() => match ended {
                    SignalEnds::Us => self.close_view(),
                    SignalEnds::Terminal => drop(self.lose_terminal()),
                },
                request = next_request(&mut self.view) => match request {
                    ViewRequest::Quit => self.close_view(),
                    ViewRequest::Gone if io::stdout().is_terminal() => self.close_view(),
                    ViewRequest::Gone => drop(self.lose_terminal()),
                    ViewRequest::Write(path) => self.write_last(path),
                    // The last report tells it anyway.
                    ViewRequest::Threads(_) => {}
                },
            }
        }
        if let Some(report) = self.last.take()
            && let Err(error) = self.reporter.sink.print(&report)
        {
            warn!("{error}");
        }
    }

    /// The last report in a file.
    fn write_last(&mut self, path: PathBuf) {
        let Some(report) = self.last.clone() else { return };
        if let Some(kind) = kind_of_name(&path) {
            let file = ReportFile { kind, path };
            let format = file.format(&self.settings.report.appearance().options(false));
            self.reporter.sink.ask(file, format);
        }
        self.show(&report);
    }
}
