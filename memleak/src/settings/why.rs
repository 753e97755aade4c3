//! `--why` and what goes with it.

use std::time::Duration;

use memleak_common::probe::Resource;

use super::usage::{UsageError, WholeNumber, one_of};
use crate::cli::Cli;

const WHY_EVERY: WholeNumber = WholeNumber {
    what: "--why-every",
    min: 1,
    max: u64::MAX,
    remedy: "give N to say it at every N-th report, 1 for all",
};

const MAX_PAUSE: WholeNumber = WholeNumber {
    what: "--max-pause",
    min: 1,
    max: 3_600_000,
    remedy: "give the milliseconds that the target may be stopped for, such as 1000",
};
const DEFAULT_PAUSE_MS: u64 = 1000;

/// How the heap is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum WhyMode {
    /// Three times, while the target runs.
    Scans,
    /// Once, while the target is stopped.
    Exact,
}

/// What `--why-of` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyOf {
    /// The block that has this address.
    Address(u64),
    /// Blocks of the type of this name.
    Type(String),
}

impl WhyOf {
    /// `0x55fca0` is an address; what does not begin with 0x is a type.
    fn parse(text: &str) -> Result<Self, UsageError> {
        let error = |why: &str| {
            let why = format!("'{text}' {why}");
            Err(UsageError::new(
                "--why-of",
                why,
                "give an address such as 0x55fca0 (-a lists them), or a type's name",
            ))
        };
        match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => match u64::from_str_radix(digits, 16) {
                Ok(address) => Ok(Self::Address(address)),
                Err(_) => error("is not an address"),
            },
            None if text.trim().is_empty() => error("names nothing"),
            None if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                error("is not an address in hexadecimal")
            }
            None => Ok(Self::Type(text.trim().to_owned())),
        }
    }
}

/// `--why`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WhySettings {
    /// How.
    pub mode: WhyMode,
    /// At every N-th report, besides the last.
    pub every: Option<u64>,
    /// For how long the target may be stopped.
    pub max_pause: Duration,
    /// Of what the way from a root is said besides.
    pub of: Option<WhyOf>,
}

impl WhySettings {
    /// Whether this report, the first of which is number 1, says it.
    pub fn is_due(&self, report: u64, is_final: bool) -> bool {
        is_final || self.every.is_some_and(|every| report.is_multiple_of(every))
    }
}

/// Checks them.
pub(super) fn resolve_why(cli: &Cli, resources: &[Resource]) -> Result<Option<WhySettings>, UsageError> {
    let every = cli.why_every.as_deref().map(|text| WHY_EVERY.parse(text)).transpose()?;
    let max_pause = cli.max_pause.as_deref().map(|text| MAX_PAUSE.parse(text)).transpose()?;
    let of = cli.why_of.as_deref().map(WhyOf::parse).transpose()?;
    let Some(how) = &cli.why else {
        let without = [
            (every.is_some(), "--why-every", "it says when, and not what", "add --why"),
            (max_pause.is_some(), "--max-pause", "nothing is stopped", "add --why=exact"),
            (of.is_some(), "--why-of", "nothing looks for what holds it", "add --why"),
            (cli.files.why_dot.is_some(), "--why-dot", "nothing looks for circles", "add --why"),
        ];
        return match without.iter().find(|(is_given, ..)| *is_given) {
            Some((_, what, why, remedy)) => Err(UsageError::new(what, *why, *remedy)),
            None => Ok(None),
        };
    };
    let mode = one_of("--why", "way to look at the heap", how)?;
    if cli.kernel {
        let why = "it looks through a process's memory, and the target is the kernel";
        return Err(UsageError::new("--why", why, "leave it out, or trace a process: -p PID"));
    }
    if !resources.contains(&Resource::Heap) {
        let why = "it is about blocks of the heap, and they are not traced";
        return Err(UsageError::new("--why", why, "leave it out, or add -r heap,mmap"));
    }
    if mode == WhyMode::Scans && max_pause.is_some() {
        return Err(UsageError::new(
            "--max-pause",
            "--why stops nothing",
            "add =exact to it, or leave this out",
        ));
    }
    let max_pause = Duration::from_millis(max_pause.unwrap_or(DEFAULT_PAUSE_MS));
    Ok(Some(WhySettings { mode, every, max_pause, of }))
}

#[cfg(test)]
mod tests {
    use crate::settings::Settings;

    fn why(args: &[&str]) -> Result<Option<super::WhySettings>, String> {
        let all = ["memleak", "-p", "7"].iter().chain(args);
        Settings::from_args(all).map(|settings| settings.why).map_err(|error| error.text)
    }

    #[test]
    fn a_value_comes_with_an_equals_sign_only() {
        assert_eq!(why(&[]), Ok(None));
        let settings = |mode, every, ms| {
            let max_pause = std::time::Duration::from_millis(ms);
            Ok(Some(super::WhySettings { mode, every, max_pause, of: None }))
        };
        let every = |every| settings(super::WhyMode::Scans, every, 1000);
        assert_eq!(why(&["--why=exact", "--max-pause", "50"]), settings(super::WhyMode::Exact, None, 50));
        assert_eq!(why(&["--why", "0.1", "1"]), every(None));
        assert_eq!(why(&["--why=scans", "--why-every", "3"]), every(Some(3)));
        for (args, part) in [
            (&["--why=often"][..], "'often' is not a way"),
            (&["--why-every", "3"], "add --why"),
            (&["--why", "--why-every", "0"], "--why-every"),
            (&["--why", "-r", "fd"], "-r heap"),
            (&["--why", "--max-pause", "5"], "=exact"),
            (&["--max-pause", "5"], "=exact"),
            (&["--why-of", "0x10"], "add --why"),
            (&["--why-dot", "x.dot"], "add --why"),
            (&["--why", "--why-of", "0xg"], "not an address"),
            (&["--why", "--why-of", "1234"], "hexadecimal"),
            (&["--why", "--why-of", " "], "names nothing"),
        ] {
            let text = why(args).unwrap_err();
            assert!(text.contains(part), "{args:?}: {text}");
        }
        let kernel = Settings::from_args(["memleak", "-k", "--why"]).unwrap_err().text;
        assert!(kernel.contains("the kernel"), "{kernel}");
    }

    #[test]
    fn what_is_asked_for_is_an_address_or_a_type() {
        let of = |text| why(&["--why", "--why-of", text]).unwrap().unwrap().of;
        assert_eq!(of("0x55fca0"), Some(super::WhyOf::Address(0x55_fca0)));
        assert_eq!(of("a::b<int>"), Some(super::WhyOf::Type("a::b<int>".to_owned())));
    }

    #[test]
    fn it_is_due_at_the_last_report() {
        let settings = super::WhySettings {
            mode: super::WhyMode::Scans,
            every: Some(2),
            max_pause: std::time::Duration::ZERO,
            of: None,
        };
        let due = [1, 2, 3, 4].map(|number| settings.is_due(number, false));
        assert_eq!(due, [false, true, false, true]);
        assert!(settings.is_due(1, true));
    }
}
