//! `cargo xtask comments`: wraps comments at 100 columns, which stable rustfmt leaves alone;
//! `cargo xtask layers` fails if one is longer.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use xtask::run;

/// Columns of a comment, with what it is indented by.
const COLUMNS: usize = 100;

const CRATES: [&str; 6] = ["bench", "fuzz", "memleak", "memleak-common", "memleak-ebpf", "xtask"];

/// Wraps the comments of all Rust files in the repository.
pub(crate) fn run() -> Result<()> {
    for (name, text) in sources(run::root())? {
        let wrapped = wrap(&text);
        if wrapped != text {
            let path = run::root().join(&name);
            fs::write(&path, wrapped).with_context(|| format!("cannot write {}", path.display()))?;
            eprintln!("wrapped {}", name.display());
        }
    }
    Ok(())
}

/// Files with comments to be wrapped, a line each.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let too_wide = sources(root)?.into_iter().filter(|(_, text)| wrap(text) != *text);
    let names = too_wide.map(|(name, _)| name.display().to_string());
    Ok(names.map(|name| format!("{name}: comments over {COLUMNS} columns: `cargo xtask comments`")).collect())
}

/// The repository's Rust files, and what is in them.
fn sources(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut sources = Vec::new();
    for folder in CRATES {
        add(root, Path::new(folder), &mut sources)?;
    }
    Ok(sources)
}

fn add(root: &Path, relative: &Path, sources: &mut Vec<(PathBuf, String)>) -> Result<()> {
    let folder = root.join(relative);
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        let relative = relative.join(entry.file_name());
        // memleak/src/target is not what cargo builds.
        let is_built = relative.components().count() == 2 && relative.ends_with("target");
        if is_built {
            continue;
        }
        if entry.file_type()?.is_dir() {
            add(root, &relative, sources)?;
        } else if relative.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(entry.path());
            let text = text.with_context(|| format!("cannot read {}", relative.display()))?;
            sources.push((relative, text));
        }
    }
    Ok(())
}

/// A line that is nothing but a comment.
struct Comment<'a> {
    /// Up to the mark, and with it.
    start: &'a str,
    /// After the space that follows the mark.
    body: &'a str,
}

impl<'a> Comment<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let indent = line.len() - line.trim_start().len();
        let mark = ["///", "//!", "//"].into_iter().find(|mark| line[indent..].starts_with(mark))?;
        let (start, body) = line.split_at(indent + mark.len());
        Some(Self { start, body: body.strip_prefix(' ').unwrap_or(body) })
    }

    /// It is left as it is, and ends a paragraph: empty, a row of a table, a heading, or indented
    /// as code is.
    fn stands_alone(&self) -> bool {
        let text = self.body.trim_start();
        text.is_empty() || text.starts_with(['|', '#', '>', '/']) || self.body.starts_with("    ")
    }

    fn is_fence(&self) -> bool {
        self.body.trim_start().starts_with("```")
    }
}

/// Length of the `- ` or `1. ` that begins an item of a list; 0 if it is none.
fn item_mark(body: &str) -> usize {
    let text = body.trim_start();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    match text {
        _ if text.starts_with("- ") || text.starts_with("* ") => 2,
        _ if digits > 0 && text[digits..].starts_with(". ") => digits + 2,
        _ => 0,
    }
}

/// The text, with each paragraph of comments that has a line too long wrapped.
fn wrap(text: &str) -> String {
    let lines: Vec<&str> = text.split('\n').collect();
    let mut wrapped: Vec<String> = Vec::new();
    let (mut at, mut in_fence) = (0, false);
    while let Some(line) = lines.get(at) {
        let comment = Comment::of(line);
        in_fence = comment.as_ref().is_some_and(|comment| in_fence != comment.is_fence());
        let first = comment.filter(|comment| !in_fence && !comment.is_fence() && !comment.stands_alone());
        let end = first.as_ref().map_or(at + 1, |first| end_of_paragraph(&lines, at, first));
        let paragraph = &lines[at..end];
        match first.filter(|_| paragraph.iter().any(|line| width(line) > COLUMNS)) {
            Some(first) => wrapped.extend(wrap_paragraph(paragraph, &first)),
            None => wrapped.extend(paragraph.iter().map(|line| (*line).to_owned())),
        }
        at = end;
    }
    wrapped.join("\n")
}

fn end_of_paragraph(lines: &[&str], at: usize, first: &Comment<'_>) -> usize {
    let continues = |line: &&str| {
        Comment::of(line).is_some_and(|next| {
            next.start == first.start && !next.stands_alone() && !next.is_fence() && item_mark(next.body) == 0
        })
    };
    at + 1 + lines[at + 1..].iter().take_while(|line| continues(line)).count()
}

fn width(line: &str) -> usize {
    line.chars().count()
}

fn wrap_paragraph(lines: &[&str], first: &Comment<'_>) -> Vec<String> {
    let text: Vec<&str> =
        lines.iter().filter_map(|line| Comment::of(line)).map(|line| line.body.trim()).collect();
    let text = text.join(" ");
    let mark = item_mark(first.body);
    let indent = &first.body[..first.body.len() - first.body.trim_start().len()];
    let start = format!("{} {indent}", first.start);
    let (item, text) = text.split_at(mark);
    let mut line = format!("{start}{item}");
    let (mut wrapped, mut is_new) = (Vec::new(), true);
    for word in words(text) {
        if !is_new && width(&line) + 1 + width(&word) > COLUMNS {
            wrapped.push(std::mem::replace(&mut line, format!("{start}{}", " ".repeat(mark))));
            is_new = true;
        }
        if !is_new {
            line.push(' ');
        }
        line.push_str(&word);
        is_new = false;
    }
    wrapped.push(line);
    wrapped
}

/// What a line may be broken between: not within backticks, and not before what would begin an item
/// or a heading.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut in_code = false;
    for part in text.split_whitespace() {
        let begins = ["-", "*", "+"].contains(&part)
            || part.starts_with(['#', '>', '|'])
            || part.strip_suffix('.').is_some_and(|number| number.parse::<u32>().is_ok());
        match words.last_mut() {
            Some(word) if in_code || begins => {
                word.push(' ');
                word.push_str(part);
            }
            _ => words.push(part.to_owned()),
        }
        in_code ^= part.matches('`').count() % 2 == 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_comments_are_wrapped_and_short_ones_left_alone() {
        let words = "word ".repeat(19);
        let text = format!(
            "/// One.\n/// Two, short.\n\n    // {words}`a b c`\n    // and on.\n    // - {words}in a list\n    //\n\
             fn f() {{}} // {words}{words}\n/// ```\n/// {words}{words}\n/// ```\n/// | {words}{words} |\n"
        );
        let words = words.trim();
        let expected = format!(
            "/// One.\n/// Two, short.\n\n    // {}\n    // word `a b c` and on.\n    // - {}\n    //   word in a list\n    //\n\
             fn f() {{}} // {words} {words} \n/// ```\n/// {words} {words} \n/// ```\n/// | {words} {words}  |\n",
            &words[..89],
            &words[..89]
        );
        assert_eq!(wrap(&text), expected);
        assert_eq!(wrap(&expected), expected);
    }

    #[test]
    fn the_repository_is_wrapped() -> Result<()> {
        assert_eq!(check(run::root())?, Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn a_line_does_not_begin_as_an_item_would() {
        let text = format!("// {}xx - 5\n", "word ".repeat(19));
        assert_eq!(wrap(&text), format!("// {}\n// xx - 5\n", "word ".repeat(19).trim()));
    }
}
