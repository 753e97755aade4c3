//! What is wrong with a command line, and values that several options have.

use clap::ValueEnum;

use crate::exit::{self, ExitMessage};

/// A command line that cannot be obeyed: one line, `<what>: <why>; <what to do>`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}; {remedy}")]
pub struct UsageError {
    /// The option or argument.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
    /// What to type instead.
    pub remedy: String,
    /// Exit status: [`exit::USAGE`], or [`exit::FAILED`] if the command line is right but we
    /// cannot serve it.
    pub status: u8,
}

impl UsageError {
    pub(super) fn new(what: &str, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.to_owned(), why: why.into(), remedy: remedy.into(), status: exit::USAGE }
    }
}

impl UsageError {
    /// From a line of the form `<why>; <what to do>`.
    pub(super) fn of_line(what: &str, line: &impl std::fmt::Display) -> Self {
        let line = line.to_string();
        let (why, remedy) = line.rsplit_once("; ").unwrap_or((&line, "see memleak --help"));
        Self::new(what, why, remedy)
    }
}

impl From<UsageError> for ExitMessage {
    fn from(error: UsageError) -> Self {
        Self::error(error.status, &error.to_string())
    }
}

/// Largest process ID that the kernel could ever give: `pid_t` is an `int`.
pub(super) const MAX_PID: u64 = i32::MAX as u64;

/// What a whole number on the command line may be.
pub(super) struct WholeNumber {
    pub(super) what: &'static str,
    pub(super) min: u64,
    pub(super) max: u64,
    pub(super) remedy: &'static str,
}

impl WholeNumber {
    /// `text` as a number of type `T`; the range of this row must be within that of `T`.
    pub(super) fn parse<T: TryFrom<u64>>(&self, text: &str) -> Result<T, UsageError> {
        let number = text.trim().parse::<u64>().ok().filter(|number| (self.min..=self.max).contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| {
            let range = match self.max {
                u64::MAX => format!("from {} up", self.min),
                max => format!("from {} to {max}", self.min),
            };
            UsageError::new(self.what, format!("'{text}' is not a whole number {range}"), self.remedy)
        })
    }
}

/// A value of a set of names.
pub(super) fn one_of<T: ValueEnum>(what: &str, kind: &str, text: &str) -> Result<T, UsageError> {
    T::from_str(text, true).map_err(|_| {
        let names: Vec<String> = T::value_variants()
            .iter()
            .filter_map(T::to_possible_value)
            .filter(|value| !value.is_hide_set())
            .map(|value| value.get_name().to_owned())
            .collect();
        let why = format!("'{text}' is not a {kind}");
        UsageError::new(what, why, format!("give one of {}", names.join(", ")))
    })
}

pub(super) fn non_empty(what: &str, remedy: &str, value: Option<&str>) -> Result<Option<String>, UsageError> {
    match value {
        Some("") => Err(UsageError::new(what, "it is empty", remedy)),
        other => Ok(other.map(str::to_owned)),
    }
}
