//! The man page and shells' completions, made of the command line's own description.

use std::io;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use super::arguments::Words;
use crate::cli::Cli;

/// The whole command line: options, and words with their own.
fn command() -> Command {
    let words = Words::command();
    let words = words.get_subcommands().cloned().collect::<Vec<_>>();
    Cli::command().subcommands(words).disable_help_subcommand(true)
}

/// Completions for a shell.
pub(super) fn completions(shell: Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command(), "memleak", &mut text);
    text
}

/// The man page.
pub(super) fn man() -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command().disable_help_flag(true)).render(&mut text)?;
    Ok(text)
}
