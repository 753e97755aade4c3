//! `cargo xtask record`: which live tests have passed on which machine and kernel, kept as a table
//! that only this writes (docs/arm64-tests.md).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use xtask::run;

const TABLE: &str = "docs/arm64-tests.md";

/// What stands above the table.
const HEADING: &str = "\
# Live tests that have run on arm64

`cargo xtask record` writes this table from what the tests have printed, and keeps what it had of others
([how](../DEVELOPMENT.md#arm64)). An empty place: not run there yet.
";

/// Options of `record`.
#[derive(Args)]
pub(crate) struct Options {
    /// Where the tests ran: a column's heading, as `arm64, Linux 6.12`
    #[arg(long, value_name = "HEADING")]
    column: String,
    /// What `cargo xtask vm` or the live tests have printed
    #[arg(required = true, value_name = "FILE")]
    outputs: Vec<PathBuf>,
}

/// Adds what the files say to the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    let path = run::root().join(TABLE);
    let mut table = match fs::read_to_string(&path) {
        Ok(text) => PassedTests::parse(&text).with_context(|| format!("{TABLE} is damaged"))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => PassedTests::default(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {TABLE}")),
    };
    ensure!(!options.column.contains(['|', '\n']), "a column's heading is one line without `|`");
    for file in &options.outputs {
        // A machine's console can say anything between.
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let heard = outcomes(&String::from_utf8_lossy(&bytes));
        ensure!(!heard.is_empty(), "{} has no line `test NAME ... ok`", file.display());
        println!("{}: {} tests", file.display(), heard.len());
        table.add(&options.column, heard);
    }
    fs::write(&path, table.text()).with_context(|| format!("cannot write {TABLE}"))
}

/// Names of tests and what came of them, by lines of libtest's, whatever is before them.
fn outcomes(output: &str) -> Vec<(String, &'static str)> {
    let outcome = |line: &str| {
        let (_, rest) = line.split_once("test ").filter(|(before, _)| !before.contains("test"))?;
        let (name, outcome) = rest.trim_end().split_once(" ... ")?;
        let cell = match outcome {
            "ok" => "passes",
            "FAILED" => "fails",
            _ => return None,
        };
        name.contains("::").then(|| (name.to_owned(), cell))
    };
    output.lines().filter_map(|line| outcome(&without_colours(line))).collect()
}

/// On a machine's console libtest writes in colours (ECMA-48: ESC [ ... m).
fn without_colours(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    let plain = parts.fold(first, |plain, part| plain + part.split_once('m').map_or(part, |(_, rest)| rest));
    plain.chars().filter(|letter| !letter.is_control()).collect()
}

/// The table: of each test what came of it, by column.
#[derive(Default)]
struct PassedTests {
    columns: BTreeSet<String>,
    rows: BTreeMap<String, BTreeMap<String, String>>,
}

impl PassedTests {
    /// Reads what [`Self::text`] has written.
    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix('|'));
        let mut cells = || lines.next().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
        let Some(headings) = cells() else { bail!("it has no table") };
        let mut table = Self::default();
        table.columns.extend(headings[1..].iter().map(|&heading| heading.to_owned()));
        ensure!(cells().is_some_and(|dashes| dashes.len() == headings.len()), "its first lines differ");
        while let Some(row) = cells() {
            ensure!(row.len() == headings.len(), "{} has not a place for each column", row[0]);
            let places = headings[1..].iter().zip(&row[1..]).filter(|(_, cell)| !cell.is_empty());
            let places = places.map(|(&heading, &cell)| (heading.to_owned(), cell.to_owned()));
            table.rows.insert(row[0].trim_matches('`').to_owned(), places.collect());
        }
        Ok(table)
    }

    fn add(&mut self, column: &str, heard: Vec<(String, &'static str)>) {
        self.columns.insert(column.to_owned());
        for (name, outcome) in heard {
            self.rows.entry(name).or_default().insert(column.to_owned(), outcome.to_owned());
        }
    }

    fn text(&self) -> String {
        let line = |first: &str, cells: &mut dyn Iterator<Item = &str>| {
            let cells = cells.map(|cell| format!(" {cell} |")).collect::<String>();
            format!("| {first} |{cells}\n")
        };
        let mut text = format!("{HEADING}\n");
        text += &line("test", &mut self.columns.iter().map(String::as_str));
        text += &line("---", &mut self.columns.iter().map(|_| "---"));
        for (name, places) in &self.rows {
            let cell = |column| places.get(column).map_or("", String::as_str);
            text += &line(&format!("`{name}`"), &mut self.columns.iter().map(cell));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tests_print_is_added_to_the_table() {
        let output = "6.12 | running 3 tests\n\
            6.12 | 63 s: test exact::one ... ok\n\
            6.12 | 70 s: test exact::two ... \x1b[31mFAILED\x1b[m\x0f\r\n\
            6.12 | test result: FAILED. 1 passed; 1 failed\n\
            test life::three ... ignored\n";
        let mut table = PassedTests::default();
        table.add("arm64, Linux 6.12", outcomes(output));
        let mut table = PassedTests::parse(&table.text()).expect("it is what was written");
        table.add("arm64, Linux 6.1", outcomes("test exact::one ... FAILED\ntest exact::zero ... ok\n"));
        table.add("arm64, Linux 6.12", outcomes("test exact::two ... ok\n"));
        let expected = format!(
            "{HEADING}\n\
             | test | arm64, Linux 6.1 | arm64, Linux 6.12 |\n\
             | --- | --- | --- |\n\
             | `exact::one` | fails | passes |\n\
             | `exact::two` |  | passes |\n\
             | `exact::zero` | passes |  |\n"
        );
        assert_eq!(table.text(), expected);
        assert_eq!(PassedTests::parse(&expected).expect("it is whole").text(), expected);
        for damaged in ["", "# no table\n", &expected.replace("| passes |  |", "| passes |")] {
            assert!(PassedTests::parse(damaged).is_err(), "{damaged}");
        }
    }
}
