//! BENCHMARKS.md: its sections, and what stands in each of them.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use xtask::run;

use crate::options::Options;

/// A program that has a CPU for less than this share of the time is in somebody's way.
pub(crate) const QUIET: f64 = 0.95;

fn path() -> PathBuf {
    run::root().join("BENCHMARKS.md")
}

/// What was measured before; empty if nothing was.
pub(crate) fn read() -> String {
    fs::read_to_string(path()).unwrap_or_default()
}

/// Replaces it, if that was asked for.
pub(crate) fn write(options: &Options, text: &str) -> Result<()> {
    let path = path();
    match options.write {
        true => fs::write(&path, text).with_context(|| format!("cannot write {}", path.display())),
        false => Ok(()),
    }
}

/// One sentence about where the figures come from.
pub(crate) fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpus.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, value)| value)
    };
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let place = if field("flags").split(' ').any(|flag| flag == "hypervisor") {
        "virtual machine"
    } else {
        "machine"
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = system
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .unwrap_or("Linux")
        .trim_matches('"');
    let mut git = run::git();
    let commit =
        run::output(git.args(["describe", "--always", "--dirty", "--exclude=*"])).unwrap_or_default();
    Ok(format!(
        "Machine: {place}, {count} CPUs ({}), {system}, Linux {}. Commit {}.",
        field("model name"),
        release.trim(),
        commit.trim()
    ))
}

/// `text` with a section (`## TITLE` to the next title) replaced, or added at the end.
pub(crate) fn with_section(text: &str, title: &str, section: &str) -> String {
    let heading = format!("## {title}\n");
    let (before, rest) = text.split_once(&heading).unwrap_or((text, ""));
    let after = rest.find("\n## ").map_or("", |at| &rest[at + 1..]);
    let parts = [before.trim_end(), section.trim(), after.trim()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n") + "\n"
}

/// A section of `text`, its title included; `None` if there is none of that title.
pub(crate) fn section_of<'t>(text: &'t str, title: &str) -> Option<&'t str> {
    let start = text.find(&format!("## {title}\n"))?;
    let rest = &text[start..];
    Some(rest.find("\n## ").map_or(rest, |at| &rest[..at]).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_replaced_and_added() {
        let text = "# All\n\n## A\n\none\n\n## B\n\ntwo\n";
        assert_eq!(with_section(text, "A", "## A\n\nnew\n"), "# All\n\n## A\n\nnew\n\n## B\n\ntwo\n");
        assert_eq!(with_section(text, "B", "## B\nnew"), "# All\n\n## A\n\none\n\n## B\nnew\n");
        assert_eq!(with_section(text, "C", "## C\nnew"), format!("{text}\n## C\nnew\n"));
        assert_eq!(section_of(text, "A"), Some("## A\n\none"));
        assert_eq!(section_of(text, "B"), Some("## B\n\ntwo"));
        assert_eq!(section_of(text, "C"), None);
    }
}
