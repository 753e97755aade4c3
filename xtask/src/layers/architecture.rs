//! What ARCHITECTURE.md draws: the list of modules, and the layers.

use std::path::{Path, PathBuf};

use super::modules::{Crate, Needs};

/// The list of modules.
pub(super) struct Modules {
    /// Each entry's place (a folder, or a file), and the names in it.
    entries: Vec<(String, Vec<String>)>,
}

impl Modules {
    /// Reads all entries that begin with a path, with the indented lines that belong to each.
    pub(super) fn parse(text: &str) -> Self {
        let mut entries: Vec<String> = Vec::new();
        let mut is_open = false;
        for line in text.lines() {
            match entries.last_mut() {
                Some(entry) if is_open && line.starts_with(' ') => entry.push_str(line),
                _ => {
                    is_open = line.starts_with("- `");
                    entries.extend(is_open.then(|| line.to_owned()));
                }
            }
        }
        let named = entries.iter().filter_map(|entry| {
            let names: Vec<String> = quoted(entry).collect();
            Some((names.first()?.clone(), names))
        });
        Self { entries: named.collect() }
    }

    /// Whether an entry names this file (relative to the repository): by its name, in the entry of
    /// one of its folders. A `mod.rs` is named by its folder.
    pub(super) fn names(&self, path: &Path) -> bool {
        let file_name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let folder = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let names_it = |name: &String| {
            let last = name.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
            if file_name == "mod.rs" { last == folder } else { last == file_name }
        };
        self.entries.iter().any(|(place, names)| covers(place, path) && names.iter().any(names_it))
    }
}

/// A folder (`memleak/src/bpf/`) covers what is in it; a file (`memleak/src/settings.rs`) those
/// beside it, and their folders.
fn covers(place: &str, path: &Path) -> bool {
    match (place.strip_suffix('/'), Path::new(place).parent()) {
        (Some(folder), _) => path.starts_with(folder),
        (None, Some(folder)) => place.contains('/') && path.starts_with(folder),
        (None, None) => false,
    }
}

/// The layers, from the lowest up, each with its modules (`arch/x86_64/code`).
pub(super) struct Layers(Vec<Vec<PathBuf>>);

impl Layers {
    /// Reads the numbered list after a line that begins with `title`.
    pub(super) fn parse(text: &str, title: &str) -> Option<Self> {
        let after = &text[text.find(title)?..];
        let lines = after.lines().skip_while(|line| !line.starts_with("1. "));
        let mut layers: Vec<Vec<PathBuf>> = Vec::new();
        for line in lines.take_while(|line| !line.trim().is_empty()) {
            let names = quoted(line).map(PathBuf::from);
            match layers.last_mut() {
                Some(layer) if line.starts_with(' ') => layer.extend(names),
                _ => layers.push(names.collect()),
            }
        }
        (!layers.is_empty()).then_some(Self(layers))
    }

    /// The layer of a file in the crate's folder, by the longest name that it begins with.
    fn of(&self, path: &Path) -> Option<usize> {
        let module = path.with_extension("");
        let found =
            self.0.iter().enumerate().flat_map(|(layer, names)| names.iter().map(move |name| (layer, name)));
        let found = found.filter(|(_, name)| module.starts_with(name));
        found.max_by_key(|(_, name)| name.components().count()).map(|(layer, _)| layer + 1)
    }

    /// Imports from above, and files that are in no layer.
    pub(super) fn wrong(&self, source: &Crate, needs: &Needs) -> Vec<String> {
        let mut wrong = Vec::new();
        for file in source.files() {
            let path = source.folder.join(&file.path);
            let is_root = file.path.as_os_str() == "lib.rs";
            let Some(layer) = self.of(&file.path) else {
                if !is_root {
                    wrong.push(format!("{} is in no layer", path.display()));
                }
                continue;
            };
            for needed in needs.get(&file.path).into_iter().flatten() {
                if let Some(above) = self.of(needed).filter(|other| *other > layer) {
                    wrong.push(format!(
                        "{} (layer {layer}) imports from {} (layer {above})",
                        path.display(),
                        needed.display()
                    ));
                }
            }
        }
        wrong
    }
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}
