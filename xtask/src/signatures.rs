//! `cargo xtask signatures`: writes the table by which functions of allocators are known in
//! programs without symbols (`memleak/src/target/signatures.txt`), from programs in which they are
//! known.
//!
//! Those are made by this machine's compiler from the crates of the live tests, or were made
//! elsewhere (`--program`), or have no symbols and were looked into by hand: of these the table
//! says below where each function is, which holds for one file alone. Builds in the table that are
//! not made again stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use xtask::run;

const TABLE: &str = "memleak/src/target/signatures.txt";

const HEAD: &str = "# Functions of allocators, known by their code in programs without symbols. Written by\n\
                    # `cargo xtask signatures`; memleak/src/target/signatures.rs says what the lines mean.\n";

/// What to add.
#[derive(Args)]
pub(crate) struct Options {
    /// A program with symbols that was built elsewhere, instead of those that are built here
    #[arg(long, value_name = "PROGRAM", requires = "build")]
    program: Option<PathBuf>,
    /// What it was built from, and by which compiler
    #[arg(long, value_name = "WORDS", requires = "program")]
    build: Option<String>,
    /// Of which allocator: jemalloc or mimalloc
    #[arg(long, value_name = "NAME", default_value = "jemalloc")]
    allocator: String,
}

/// Functions that a Rust program with this allocator uses, all of them.
struct Kit {
    /// Feature of the live tests' program.
    allocator: &'static str,
    /// The crate with its sources.
    package: &'static str,
    prefix: &'static str,
    /// Each with the symbols (without prefix first) that it may have.
    functions: &'static [(&'static str, &'static [&'static str])],
}

const KITS: [Kit; 2] = [
    Kit {
        allocator: "jemalloc",
        package: "tikv-jemalloc-sys",
        prefix: "_rjem_",
        functions: &[
            ("malloc", &["_rjem_malloc"]),
            ("calloc", &["_rjem_calloc"]),
            ("realloc", &["_rjem_realloc"]),
            ("mallocx", &["_rjem_mallocx"]),
            // GCC makes rallocx a jump to this, which takes one argument more.
            ("rallocx", &["do_rallocx", "_rjem_rallocx"]),
            ("sdallocx", &["_rjem_sdallocx"]),
        ],
    },
    Kit {
        allocator: "mimalloc",
        package: "libmimalloc-sys",
        prefix: "mi_",
        functions: &[
            ("malloc_aligned", &["mi_malloc_aligned"]),
            ("zalloc_aligned", &["mi_zalloc_aligned"]),
            ("realloc_aligned", &["mi_realloc_aligned"]),
            ("free", &["mi_free"]),
        ],
    },
];

/// A program on PyPI without symbols. Its functions were found beside those of the same source and
/// GCC 10.2.1 of Debian 11, of which `malloc`, `mallocx` and `sdallocx` are equal; the others by
/// what they call and are called by, and each was called by hand, in a debugger.
struct Shipped {
    wheel: &'static str,
    program: &'static str,
    build_id: &'static str,
    build: &'static str,
    functions: &'static [(&'static str, &'static str)],
}

const SHIPPED: Shipped = Shipped {
    wheel: "ruff==0.17.6",
    program: "ruff-0.17.6.data/scripts/ruff",
    build_id: "f6ac824999d2a003d2d9c6cf996653373e98e067",
    build: "jemalloc 5.3.0 of tikv-jemalloc-sys 0.6, GCC 10.2.1 (Red Hat 10.2.1-11, manylinux2014)",
    functions: &[
        ("malloc", "69f040"),
        ("calloc", "a69930"),
        ("realloc", "6a33d0"),
        ("mallocx", "b1e400"),
        ("rallocx", "16a12c0"),
        ("sdallocx", "69aaa0"),
    ],
};

/// Writes the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    let path = run::root().join(TABLE);
    let old = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut table = Table::read(&old);
    match (&options.program, &options.build) {
        (Some(program), Some(build)) => {
            let kit = KITS.iter().find(|kit| kit.allocator == options.allocator);
            let kit = kit.with_context(|| format!("no allocator is called {}", options.allocator))?;
            table.set(kit, build, describe(program, &by_symbols(kit, program)?)?);
        }
        _ => {
            let folder = run::root().join("target/signatures");
            for kit in &KITS {
                for (debug, how) in [("0", ""), ("1", ", frame pointers")] {
                    let program = build(kit, debug, &folder)?;
                    let words = format!("{}, {}{how}", version_of(kit)?, compiler()?);
                    table.set(kit, &words, describe(&program, &by_symbols(kit, &program)?)?);
                }
            }
            let kit = KITS.first().context("no kits")?;
            table.set(kit, SHIPPED.build, shipped(&SHIPPED, &folder)?);
        }
    }
    fs::write(&path, table.text()).with_context(|| format!("cannot write {}", path.display()))
}

/// Builds the live tests' program with this allocator.
fn build(kit: &Kit, debug: &str, folder: &Path) -> Result<PathBuf> {
    let mut cargo = run::cargo();
    cargo.args(["build", "--release", "--locked", "--quiet", "--features", kit.allocator]);
    cargo.args(["--config", &format!("profile.release.debug={debug}"), "--target-dir"]).arg(folder);
    cargo.arg("--manifest-path").arg(crates().join("Cargo.toml"));
    run::run(&mut cargo)?;
    Ok(folder.join("release/rust_allocators"))
}

fn crates() -> PathBuf {
    run::root().join("memleak/tests/programs/rust_allocators")
}

/// `mimalloc of libmimalloc-sys 0.1.49`.
fn version_of(kit: &Kit) -> Result<String> {
    let lock = fs::read_to_string(crates().join("Cargo.lock"))?;
    let entry = lock.split(&format!("name = \"{}\"\nversion = \"", kit.package)).nth(1);
    let version = entry.and_then(|rest| rest.split('"').next()).context("the crate is not locked")?;
    let (version, of_sources) = version.split_once('+').unwrap_or((version, ""));
    let sources = of_sources.split('-').next().filter(|sources| !sources.is_empty());
    let sources = sources.map(|sources| format!(" {sources}")).unwrap_or_default();
    Ok(format!("{}{sources} of {} {version}", kit.allocator, kit.package))
}

/// `GCC 12.2.0 (Debian 12.2.0-14+deb12u1)`.
fn compiler() -> Result<String> {
    let text = run::output(Command::new("cc").arg("--version"))?;
    let (_, rest) =
        text.lines().next().and_then(|line| line.split_once(" (")).context("cc has no version")?;
    let (package, version) = rest.split_once(") ").context("cc has no version")?;
    Ok(format!("GCC {version} ({package})"))
}

/// Where each function is, `FUNCTION=ADDRESS`.
fn by_symbols(kit: &Kit, program: &Path) -> Result<Vec<String>> {
    let symbols = run::output(Command::new("nm").arg(program))?;
    let place = |names: &&[&str]| {
        names.iter().find_map(|name| {
            let line = symbols.lines().find(|line| line.split(' ').nth(2) == Some(name))?;
            line.split(' ').next().map(str::to_owned)
        })
    };
    kit.functions
        .iter()
        .map(|(function, names)| match place(names) {
            Some(place) => Ok(format!("{function}={place}")),
            None => bail!("{}: no symbol of {names:?}", program.display()),
        })
        .collect()
}

/// Lines of the table for these functions.
fn describe(program: &Path, functions: &[String]) -> Result<Vec<String>> {
    let mut cargo = run::cargo();
    cargo.args(["run", "--quiet", "--package", "memleak", "--example", "signatures", "--"]);
    let text = run::output(cargo.arg(program).args(functions))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The same of a program that people get.
fn shipped(shipped: &Shipped, folder: &Path) -> Result<Vec<String>> {
    let folder = folder.join(shipped.build_id);
    let mut pip = Command::new("pip");
    pip.args(["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--platform"]);
    run::run(pip.args(["manylinux2014_x86_64", shipped.wheel, "--dest"]).arg(&folder))?;
    let mut wheels = fs::read_dir(&folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    let wheel = wheels.find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let wheel = wheel.with_context(|| format!("{} has no file", shipped.wheel))?;
    run::run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(&folder))?;
    let program = folder.join(shipped.program);
    let notes = run::output(Command::new("readelf").arg("-nW").arg(&program))?;
    ensure!(notes.contains(shipped.build_id), "{} is another file", program.display());
    let functions: Vec<_> = shipped.functions.iter().map(|(name, vaddr)| format!("{name}={vaddr}")).collect();
    describe(&program, &functions)
}

/// What a build has: its line, and those of its functions.
type Build = (String, Vec<String>);

/// The table: kits, by their line, with builds.
struct Table(Vec<(String, Vec<Build>)>);

impl Table {
    fn read(text: &str) -> Self {
        let mut kits: Vec<(String, Vec<Build>)> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if line.starts_with("kit ") {
                kits.push((line.to_owned(), Vec::new()));
            } else if let Some((_, builds)) = kits.last_mut() {
                match builds.last_mut() {
                    Some((_, functions)) if !line.starts_with("build ") => functions.push(line.to_owned()),
                    _ => builds.push((line.to_owned(), Vec::new())),
                }
            }
        }
        Self(kits)
    }

    /// What this build has, in the place of what it had.
    fn set(&mut self, kit: &Kit, build: &str, functions: Vec<String>) {
        let names: Vec<&str> = kit.functions.iter().map(|(function, _)| *function).collect();
        let (kit, build) = (format!("kit {} {}", kit.prefix, names.join(" ")), format!("build {build}"));
        if !self.0.iter().any(|(line, _)| *line == kit) {
            self.0.push((kit.clone(), Vec::new()));
        }
        let Some((_, builds)) = self.0.iter_mut().find(|(line, _)| *line == kit) else { return };
        builds.retain(|(line, _)| *line != build);
        builds.push((build, functions));
        builds.sort();
    }

    fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        for (kit, builds) in &self.0 {
            text += &format!("\n{kit}\n");
            for (build, functions) in builds {
                text += &format!("{build}\n{}\n", functions.join("\n"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_replaced_and_the_others_stay() {
        let kit = &KITS[1];
        let mut table = Table(Vec::new());
        table.set(kit, "two", vec!["free 40 aa".to_owned()]);
        table.set(kit, "one", vec!["free 50 bb".to_owned()]);
        let mut again = Table::read(&table.text());
        assert_eq!(again.text(), table.text());
        again.set(kit, "two", vec!["free 60 cc".to_owned()]);
        let line = "kit mi_ malloc_aligned zalloc_aligned realloc_aligned free";
        assert_eq!(again.text(), format!("{HEAD}\n{line}\nbuild one\nfree 50 bb\nbuild two\nfree 60 cc\n"));
    }

    #[test]
    fn the_sources_have_a_version() {
        let version = version_of(&KITS[0]).unwrap();
        assert!(
            version.starts_with("jemalloc 5.") && version.contains(" of tikv-jemalloc-sys 0."),
            "{version}"
        );
    }
}
