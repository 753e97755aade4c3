//! The licences of what is linked into the program: whoever hands it out must hand them out, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::release::{self, Release};

/// How files begin that hold a licence, a notice or a list of authors.
const BEGINNINGS: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// What is linked in and is no crate.
const LIBRARIES: &str = "\
Linked in besides: Rust's standard library (MIT OR Apache-2.0) and the C library of the target: musl (MIT), or glibc
(LGPL-2.1-or-later) with parts of libgcc (GPL-3.0-or-later with the GCC Runtime Library Exception). With memleak's sources
and its Cargo.lock, the program can be linked with another build of them: `cargo xtask dist`.
";

/// All licences of the crates that memleak is linked with, each text once.
pub(super) fn third_party(release: &Release) -> Result<String> {
    let packages = by_id(&release.metadata["packages"])?;
    let mut crates = String::new();
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for id in linked(&release.metadata)? {
        let package = packages.get(id).with_context(|| format!("cargo metadata does not describe {id}"))?;
        if package["source"].is_null() {
            continue; // Our own.
        }
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        let name = format!("{} {}", text("name"), text("version"));
        let licence = text("license");
        ensure!(!licence.is_empty(), "{name} names no licence");
        let source = if licence.contains("CDDL") {
            format!("; sources: {}", text("repository"))
        } else {
            String::new()
        };
        writeln!(crates, "{name}: {licence}{source}")?;
        let folder = Path::new(text("manifest_path")).parent().context("a manifest is in no folder")?;
        for text in texts_in(folder)? {
            texts.entry(text).or_default().push(name.clone());
        }
    }
    let mut page = format!(
        "memleak is linked with these crates, under the licences named here:\n\n{crates}\n{LIBRARIES}"
    );
    for (text, names) in texts {
        write!(page, "\n{}\n{}\n\n{}\n", "-".repeat(80), names.join(", "), text.trim_end())?;
    }
    Ok(page)
}

fn by_id(packages: &Value) -> Result<BTreeMap<&str, &Value>> {
    let packages = packages.as_array().context("cargo metadata names no packages")?;
    Ok(packages.iter().filter_map(|package| Some((package["id"].as_str()?, package))).collect())
}

/// What memleak needs to run, with what that needs; not what only builds or tests it.
fn linked(metadata: &Value) -> Result<BTreeSet<&str>> {
    let packages = by_id(&metadata["packages"])?;
    let nodes = by_id(&metadata["resolve"]["nodes"])?;
    let memleak = packages.iter().find(|(_, package)| package["name"] == "memleak");
    let mut found = BTreeSet::new();
    let mut open = vec![*memleak.context("cargo metadata does not name memleak")?.0];
    while let Some(id) = open.pop() {
        if packages.get(id).is_some_and(|package| is_macro(package)) || !found.insert(id) {
            continue;
        }
        let dependencies = nodes.get(id).and_then(|node| node["deps"].as_array());
        for dependency in dependencies.context("cargo metadata has a package without dependencies")? {
            let kinds = dependency["dep_kinds"].as_array();
            if kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null())) {
                open.extend(dependency["pkg"].as_str());
            }
        }
    }
    Ok(found)
}

fn is_macro(package: &Value) -> bool {
    let targets = package["targets"].as_array();
    targets.is_some_and(|targets| targets.iter().any(|target| target["kind"][0] == "proc-macro"))
}

/// The licence files of a crate, in the order of their names.
fn texts_in(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        path.is_file() && BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
    });
    paths.sort();
    paths.iter().map(|path| Ok(String::from_utf8_lossy(&release::read(path)?).into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_linked_is_named() -> Result<()> {
        let package =
            |name: &str, kind: &str| json!({ "id": name, "name": name, "targets": [{ "kind": [kind] }] });
        let needs = |name: &str, kind: Value| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [
                package("memleak", "lib"), package("linked", "lib"), package("below", "lib"),
                package("macros", "proc-macro"), package("parser", "lib"), package("test", "lib"),
            ],
            "resolve": { "nodes": [
                { "id": "memleak", "deps": [
                    needs("linked", Value::Null), needs("macros", Value::Null), needs("test", json!("dev")),
                ] },
                { "id": "linked", "deps": [needs("below", Value::Null), needs("parser", json!("build"))] },
                { "id": "below", "deps": [] },
                { "id": "macros", "deps": [needs("parser", Value::Null)] },
            ] },
        });
        assert_eq!(linked(&metadata)?, BTreeSet::from(["below", "linked", "memleak"]));
        Ok(())
    }
}
