//! `cargo xtask layers`: holds the sources to what ARCHITECTURE.md draws. No circle between files,
//! nothing from a layer above, what belongs into one folder in that folder alone, and each file
//! named in the list of modules.

mod architecture;
mod modules;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail};
use xtask::run;

use self::{
    architecture::{Layers, Modules},
    modules::{Crate, circles},
};
use crate::comments;

/// Words that may stand in one folder only, or not in one.
const PLACES: &[(&str, Place)] = &[
    ("target_arch", Place::In("arch")),
    ("bpf_target_arch", Place::In("arch")),
    ("iced_x86", Place::In("arch")),
    ("aya", Place::NotIn("session")),
    ("aya_log", Place::NotIn("session")),
];

enum Place {
    In(&'static str),
    NotIn(&'static str),
}

/// Checks the repository.
pub(crate) fn run() -> Result<()> {
    let mut wrong = check(run::root())?;
    wrong.extend(comments::check(run::root())?);
    for line in &wrong {
        eprintln!("{line}");
    }
    match wrong.len() {
        0 => {
            eprintln!("the layers hold");
            Ok(())
        }
        count => bail!("{count} things are not as they should be"),
    }
}

/// What is not as it is drawn, a line each.
fn check(repository: &Path) -> Result<Vec<String>> {
    let path = repository.join("ARCHITECTURE.md");
    let drawn = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let crates = [
        (Crate::read(repository, "memleak/src", "lib.rs", Some(("main.rs", "memleak")))?, "**Layers.**"),
        (Crate::read(repository, "memleak-ebpf/src", "main.rs", None)?, "**Layers of the BPF programs.**"),
        (Crate::read(repository, "memleak-common/src", "lib.rs", None)?, ""),
    ];
    let tools = [
        Crate::read(repository, "xtask/src", "lib.rs", None)?,
        Crate::read(repository, "xtask/src", "main.rs", None)?,
        Crate::read(repository, "bench/src", "main.rs", None)?,
    ];
    let named = Modules::parse(&drawn);
    let mut wrong = Vec::new();
    for (source, title) in &crates {
        if !title.is_empty() {
            let layers = Layers::parse(&drawn, title)
                .with_context(|| format!("ARCHITECTURE.md has no list after {title}"))?;
            wrong.extend(layers.wrong(source, &source.needs()));
        }
        wrong.extend(misplaced(source));
    }
    for source in crates.iter().map(|(source, _)| source).chain(&tools) {
        for circle in circles(&source.needs()) {
            wrong.push(format!("{}: files in a circle: {}", source.folder.display(), listed(&circle)));
        }
        let unnamed = source.files().filter(|file| !named.names(&source.folder.join(&file.path)));
        wrong.extend(unnamed.map(|file| {
            format!("{}: not named in ARCHITECTURE.md", source.folder.join(&file.path).display())
        }));
    }
    wrong.extend(ambiguous(crates.iter().map(|(source, _)| source), &drawn));
    Ok(wrong)
}

/// Names of types that two files outside of `arch/` define, unless ARCHITECTURE.md says why: in the
/// list after **Names of two things.**
fn ambiguous<'a>(crates: impl Iterator<Item = &'a Crate>, drawn: &str) -> Vec<String> {
    let explained: BTreeSet<&str> = drawn
        .split("**Names of two things.**")
        .skip(1)
        .flat_map(|list| list.lines().skip_while(|line| !line.starts_with("- ")))
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("- `")?.split_once('`').map(|(name, _)| name))
        .collect();
    let mut places: BTreeMap<&str, BTreeSet<std::path::PathBuf>> = BTreeMap::new();
    for source in crates {
        for file in source.files().filter(|file| !file.path.starts_with("arch")) {
            for name in &file.source.types {
                places.entry(name).or_default().insert(source.folder.join(&file.path));
            }
        }
    }
    let several = places.into_iter().filter(|(name, places)| places.len() > 1 && !explained.contains(name));
    several
        .map(|(name, places)| format!("{name} is the name of several types: {}", listed(&places)))
        .collect()
}

fn listed(files: &BTreeSet<std::path::PathBuf>) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn misplaced(source: &Crate) -> Vec<String> {
    let mut wrong = Vec::new();
    for file in source.files() {
        let module = file.path.with_extension("");
        for (word, place) in PLACES {
            let is_wrong = match place {
                Place::In(folder) => !module.starts_with(folder),
                Place::NotIn(folder) => module.starts_with(folder),
            };
            if is_wrong && file.source.words.contains(*word) {
                let path = source.folder.join(&file.path);
                wrong.push(format!("{}: {word} does not belong here", path.display()));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_repository_is_as_it_is_drawn() -> Result<()> {
        assert_eq!(check(run::root())?, Vec::<String>::new());
        Ok(())
    }

    const FILES: &[(&str, &str)] = &[
        ("memleak/src/lib.rs", "pub mod low;\npub mod arch;\npub mod session;"),
        ("memleak/src/main.rs", "use memleak::session::run;"),
        ("memleak/src/low/mod.rs", "mod a;\nmod b;\npub use a::A;\npub use b::B;"),
        ("memleak/src/low/a.rs", "pub struct A;"),
        ("memleak/src/low/b.rs", "use super::A;\npub struct B;"),
        ("memleak/src/arch/mod.rs", "const X: bool = cfg!(target_arch = \"x86_64\");"),
        ("memleak/src/session.rs", "use crate::low::B;\npub fn run() {}"),
        ("memleak-ebpf/src/main.rs", "mod maps;\nuse maps::count;"),
        ("memleak-ebpf/src/maps.rs", "pub fn count() {}"),
        ("memleak-common/src/lib.rs", ""),
        ("xtask/src/lib.rs", "pub mod run;"),
        ("xtask/src/run.rs", "pub fn run() {}"),
        ("xtask/src/main.rs", "use xtask::run;"),
        ("bench/src/main.rs", "mod pairs;"),
        ("bench/src/pairs.rs", "pub fn measure() {}"),
        (
            "ARCHITECTURE.md",
            "- `memleak-common/src/`: `lib.rs`\n- `memleak-ebpf/src/`: `main.rs`, `maps.rs`\n\
             - `memleak/src/`: `lib.rs`, `main.rs`, `arch/`,\n  `session.rs`, `low/` (`a.rs`, `b.rs`)\n\
             - `xtask/src/`: `lib.rs`, `main.rs`, `run.rs`\n- `bench/src/`: `main.rs`, `pairs.rs`\n\n\
             **Layers.** Nothing imports from above:\n\n1. memleak-common, `low`, `arch`\n2. `session`\n3. \
             `main`\n\n**Layers of the BPF programs.** Likewise:\n\n1. `maps`\n2. `main`\n",
        ),
    ];

    /// What is said of the files above if one is otherwise.
    fn said_of(name: &str, changed: &[(&str, &str)]) -> Result<Vec<String>> {
        let root: PathBuf =
            std::env::temp_dir().join(format!("memleak-layers-{}-{name}", std::process::id()));
        for (path, text) in FILES.iter().chain(changed) {
            let path = root.join(path);
            fs::create_dir_all(path.parent().context("no folder")?)?;
            fs::write(path, text)?;
        }
        let said = check(&root);
        fs::remove_dir_all(&root)?;
        said
    }

    #[test]
    fn what_is_drawn_is_held() -> Result<()> {
        assert_eq!(said_of("same", &[])?, Vec::<String>::new());
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
        let cases: &[Case<'_>] = &[
            (
                "circle",
                &[("memleak/src/low/a.rs", "use super::b::B;\npub struct A;")],
                "memleak/src: files in a circle: low/a.rs, low/b.rs",
            ),
            (
                "inline",
                &[("memleak/src/low/a.rs", "pub struct A(super::B);")],
                "memleak/src: files in a circle: low/a.rs, low/b.rs",
            ),
            (
                "tools' circle",
                &[
                    ("bench/src/main.rs", "mod pairs;\nfn f() { pairs::measure() }"),
                    ("bench/src/pairs.rs", "use super::f;\npub fn measure() {}"),
                ],
                "bench/src: files in a circle: main.rs, pairs.rs",
            ),
            (
                "above",
                &[
                    ("memleak/src/low/a.rs", "use crate::session::run;\npub struct A;"),
                    ("memleak/src/session.rs", "pub fn run() {}"),
                ],
                "memleak/src/low/a.rs (layer 1) imports from session.rs (layer 2)",
            ),
            (
                "machine",
                &[("memleak/src/low/a.rs", "#[cfg(target_arch = \"x86_64\")]\npub struct A;")],
                "memleak/src/low/a.rs: target_arch does not belong here",
            ),
            (
                "aya",
                &[("memleak/src/session.rs", "use aya::Ebpf;\npub fn run() {}")],
                "memleak/src/session.rs: aya does not belong here",
            ),
            (
                "two things",
                &[("memleak-ebpf/src/maps.rs", "struct A;\npub fn count() {}")],
                "A is the name of several types: memleak/src/low/a.rs, memleak-ebpf/src/maps.rs",
            ),
            (
                "unnamed",
                &[("memleak-ebpf/src/main.rs", "mod maps;\nmod new;"), ("memleak-ebpf/src/new.rs", "")],
                "memleak-ebpf/src/new.rs: not named in ARCHITECTURE.md",
            ),
            (
                "layerless",
                &[("memleak-ebpf/src/main.rs", "mod maps;\nmod new;"), ("memleak-ebpf/src/new.rs", "")],
                "memleak-ebpf/src/new.rs is in no layer",
            ),
        ];
        for (name, changed, expected) in cases {
            let said = said_of(name, changed)?;
            assert!(said.iter().any(|line| line == expected), "{name}: {said:?}");
        }
        Ok(())
    }
}
