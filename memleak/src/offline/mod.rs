//! What is done with saved reports, without a target: `memleak report FILE`,
//! `memleak diff OLD NEW`.

mod arguments;
pub mod diff;
mod generate;

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
};

use arguments::{DiffArguments, ReportArguments, Word};
use clap::ValueEnum as _;

use crate::{
    doctor,
    exit::{self, ExitMessage},
    proc::memory_limit::memory_available,
    report::{
        condition::{Facts, FailCondition},
        files::{ReportFile, ReportFileError},
        format::{Kind, Options, Style, flamegraph, folded, human, json, named, saved, text},
        model::Report,
        output::Protected,
    },
    settings::{self, UsageError},
    stderr::{self, StderrLog},
};

/// Does what `args` ask for and gives the exit status; `None` if their first word is none of ours.
pub fn run(args: &[OsString]) -> Option<u8> {
    let word = args.get(1)?.to_str()?;
    let outcome = match (word, args.get(2)) {
        ("report" | "diff" | "doctor", _) => words(args),
        ("--completions", Some(shell)) => completions(&shell.to_string_lossy()),
        ("--man", None) => generate::man()
            .map_err(|error| failed("--man", format_args!("{error}; make room")))
            .and_then(|page| print(&page))
            .map(|()| exit::DONE),
        _ => completions(word.strip_prefix("--completions=")?),
    };
    Some(outcome.unwrap_or_else(|message| message.emit()))
}

fn completions(shell: &str) -> Result<u8, ExitMessage> {
    let shell = clap_complete::Shell::from_str(shell, true).map_err(|_| {
        let line = format!("--completions: '{shell}' is not a shell; give bash, zsh, fish or elvish");
        ExitMessage::error(exit::USAGE, &line)
    })?;
    print(&generate::completions(shell)).map(|()| exit::DONE)
}

fn words(args: &[OsString]) -> Result<u8, ExitMessage> {
    match arguments::parse(args)? {
        Word::Report(arguments) => report(&arguments),
        Word::Diff(arguments) => compare(&arguments),
        Word::Doctor(arguments) if arguments.pairs => {
            doctor::run_pairs();
            Ok(exit::DONE)
        }
        Word::Doctor(arguments) => {
            StderrLog::install(0);
            print(&doctor::run(&arguments)?).map(|()| exit::DONE)
        }
    }
}

/// A line that says what failed.
fn failed(what: &str, why: impl std::fmt::Display) -> ExitMessage {
    ExitMessage::error(exit::FAILED, &format!("{what}: {why}"))
}

/// Reads a saved report. One that is read is about as large in memory as its text.
fn read(path: &Path) -> Result<Report, ExitMessage> {
    let most = memory_available().map_or(1 << 30, |bytes| bytes / 4);
    saved::read(path, most).map_err(|error| failed(&path.display().to_string(), error))
}

/// Writes all files; the first error is the one that is told.
fn write_files<'a>(
    files: impl IntoIterator<Item = (&'a ReportFile, Result<Vec<u8>, ReportFileError>)>,
) -> Result<(), ExitMessage> {
    let mut outcome = Ok(());
    for (file, made) in files {
        let written = made.and_then(|bytes| file.write_bytes(bytes, &Protected::default()));
        outcome = outcome.and(written.map_err(|error| failed(&file.name(), error)));
    }
    outcome
}

/// Writes to standard output. Nobody to read it is a quiet end.
fn print(bytes: &[u8]) -> Result<(), ExitMessage> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(failed("standard output", format_args!("cannot be written to: {error}; make room")))
        }
        _ => Ok(()),
    }
}

/// `memleak report FILE`: the report again, in any form.
fn report(arguments: &ReportArguments) -> Result<u8, ExitMessage> {
    let files = settings::resolve_files(&arguments.files)?;
    let filter = settings::resolve_filter(&arguments.filters)?;
    let conditions = settings::resolve_conditions(&arguments.fail_if, false)?;
    let look = settings::resolve_look(&arguments.look, &arguments.files)?;
    let asked = form(arguments)?;
    let is_terminal = io::stdout().is_terminal();
    let options = look.options(is_terminal);
    let mut report = read(&arguments.file)?;
    filter.apply(&mut report, options.sort);
    report.sort(options.sort);
    let made = files.iter().map(|file| {
        let mut bytes = Vec::new();
        let written = file.format(&options).report(&report, &mut bytes);
        (file, written.map(|()| bytes).map_err(ReportFileError::Write))
    });
    write_files(made)?;
    // With files alone nobody has asked for text.
    let kind = match (asked, files.is_empty()) {
        (Some(kind), _) => Some(kind),
        (None, true) if is_terminal => Some(human::KIND),
        (None, true) => Some(text::KIND),
        (None, false) => None,
    };
    if let Some(kind) = kind {
        let mut bytes = Vec::new();
        let written = (kind.new)(&options).report(&report, &mut bytes);
        written.map_err(|error| {
            failed("standard output", format_args!("cannot be written to: {error}; make room"))
        })?;
        print(&bytes)?;
    }
    Ok(status_of(&conditions, &Facts::of_run(&report)))
}

fn form(arguments: &ReportArguments) -> Result<Option<Kind>, UsageError> {
    let of_name = |name: &String| {
        named(name).ok_or_else(|| UsageError {
            what: "--format".to_owned(),
            why: format!("'{name}' is not a format"),
            remedy: "give text, human, json or folded".to_owned(),
            status: exit::USAGE,
        })
    };
    let named = arguments.format.as_ref().map(of_name).transpose()?;
    Ok(named.or(arguments.json.then_some(json::KIND)).or(arguments.folded.then_some(folded::KIND)))
}

/// Says which conditions hold; gives the exit status.
fn status_of(conditions: &[FailCondition], facts: &Facts) -> u8 {
    let mut status = exit::DONE;
    for condition in conditions {
        if let Some(what) = condition.holds(facts) {
            stderr::line(&format!("--fail-if {condition}: {what}"));
            status = exit::CONDITION;
        }
    }
    status
}

/// `memleak diff OLD NEW`.
fn compare(arguments: &DiffArguments) -> Result<u8, ExitMessage> {
    let conditions = settings::resolve_conditions(&arguments.fail_if, true)?;
    let filter = settings::resolve_filter(&arguments.filters)?;
    let color = settings::resolve_color(&arguments.color)?;
    let color = color.on(io::stdout().is_terminal(), |name| std::env::var_os(name));
    let (mut old, mut new) = (read(&arguments.old)?, read(&arguments.new)?);
    [&mut old, &mut new].into_iter().for_each(|report| filter.apply(report, Options::new(1).sort));
    let diff = diff::Diff::of(&old, &new);
    if let Some(path) = &arguments.flamegraph {
        let file = ReportFile { kind: flamegraph::KIND, path: path.clone() };
        let mut bytes = Vec::new();
        let drawn = diff.draw(arguments.full_names, &mut bytes).map(|()| bytes);
        write_files([(&file, drawn.map_err(ReportFileError::Write))])?;
    }
    let mut bytes = Vec::new();
    let top = settings::parse_top(&arguments.top)?;
    let style = Style { color, full_names: arguments.full_names, ..Style::default() };
    let written = match (arguments.json, arguments.flamegraph.as_deref() == Some(Path::new("-"))) {
        (true, _) => diff.write_json(&mut bytes),
        (_, true) => Ok(()),
        (false, false) => diff.write_text(top, style, &mut bytes),
    };
    written.map_err(|error| {
        failed("standard output", format_args!("cannot be written to: {error}; make room"))
    })?;
    print(&bytes)?;
    Ok(status_of(&conditions, &diff.facts()))
}
