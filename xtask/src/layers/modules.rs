//! The modules of a crate, and which file needs which.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::source::{Import, Source};

/// Place of a module: `bpf`, `tracer`. The root is empty.
pub(super) type Module = Vec<String>;

/// A crate's source files.
pub(super) struct Crate {
    /// Folder of the sources, relative to the repository.
    pub folder: PathBuf,
    modules: BTreeMap<Module, File>,
    /// The program's own file beside the library's: it names the library by this.
    program: Option<(String, File)>,
}

/// A file and what is in it.
pub(super) struct File {
    /// Path in the crate's folder: `bpf/tracer.rs`.
    pub path: PathBuf,
    /// What it imports and defines.
    pub source: Source,
}

/// A file needs another.
pub(super) type Needs = BTreeMap<PathBuf, BTreeSet<PathBuf>>;

impl Crate {
    /// Reads the files that `root_file` (`lib.rs`, `main.rs`) declares. `program`: a further root
    /// file and the name by which it knows this crate.
    pub(super) fn read(
        repository: &Path,
        folder: &str,
        root_file: &str,
        program: Option<(&str, &str)>,
    ) -> Result<Self> {
        let mut this = Self { folder: folder.into(), modules: BTreeMap::new(), program: None };
        let base = repository.join(folder);
        this.add(&base, Vec::new(), PathBuf::from(root_file))?;
        if let Some((path, name)) = program {
            this.program = Some((name.to_owned(), read(&base, path.into())?));
        }
        Ok(this)
    }

    fn add(&mut self, base: &Path, module: Module, path: PathBuf) -> Result<()> {
        let file = read(base, path)?;
        for child in file.source.modules.clone() {
            let folder: PathBuf = module.iter().collect();
            let flat = folder.join(format!("{child}.rs"));
            let path = if base.join(&flat).is_file() { flat } else { folder.join(&child).join("mod.rs") };
            self.add(base, [module.as_slice(), &[child]].concat(), path)?;
        }
        self.modules.insert(module, file);
        Ok(())
    }

    /// All files.
    pub(super) fn files(&self) -> impl Iterator<Item = &File> {
        self.modules.values().chain(self.program.iter().map(|(_, file)| file))
    }

    /// Which file needs which others. A `pub use` of what the file does not use itself needs
    /// nothing: it is a further name.
    pub(super) fn needs(&self) -> Needs {
        let mut needs = Needs::new();
        for (module, file) in &self.modules {
            let is_needed = |import: &&Import| !import.is_reexport || file.source.used.contains(&import.name);
            for import in file.source.imports.iter().filter(is_needed) {
                if let Some(needed) = self.file_of(module, &import.path)
                    && *needed != file.path
                {
                    needs.entry(file.path.clone()).or_default().insert(needed.clone());
                }
            }
        }
        if let Some((name, file)) = &self.program {
            for import in file.source.imports.iter().filter(|import| import.path.first() == Some(name)) {
                if let Some(needed) = self.resolve(&Vec::new(), &import.path[1..]) {
                    needs.entry(file.path.clone()).or_default().insert(needed.clone());
                }
            }
        }
        needs
    }

    /// The file in which what a path names is defined, seen from a module; `None` if it is in
    /// another crate.
    fn file_of(&self, from: &Module, path: &[String]) -> Option<&PathBuf> {
        let (first, rest) = path.split_first()?;
        let mut base = from.clone();
        match first.as_str() {
            "crate" => base.clear(),
            "self" => {}
            "super" => {
                base.pop()?;
                let mut rest = rest;
                while let Some(("super", further)) = rest.split_first().map(|(a, b)| (a.as_str(), b)) {
                    base.pop()?;
                    rest = further;
                }
                return self.resolve(&base, rest);
            }
            child => {
                base.push(child.to_owned());
                self.modules.get(&base)?;
            }
        }
        self.resolve(&base, rest)
    }

    fn resolve(&self, base: &Module, path: &[String]) -> Option<&PathBuf> {
        let mut module = base.clone();
        let mut path = path;
        while let Some((next, rest)) = path.split_first() {
            module.push(next.clone());
            if !self.modules.contains_key(&module) {
                module.pop();
                break;
            }
            path = rest;
        }
        let file = self.modules.get(&module)?;
        let Some(name) = path.first() else { return Some(&file.path) };
        if file.source.defined.contains(name) {
            return Some(&file.path);
        }
        let reexports = || file.source.imports.iter().filter(|import| import.is_reexport);
        let follow = |import: &Import, path: &[String]| {
            let is_itself = import.path.len() == 1;
            (!is_itself).then(|| self.file_of(&module, path)).flatten()
        };
        if let Some(import) = reexports().find(|import| import.name == *name) {
            return follow(import, &import.path).or(Some(&file.path));
        }
        let globs = reexports().filter(|import| import.name == "*");
        let by_glob = globs.filter_map(|import| {
            let path = [&import.path[..import.path.len() - 1], std::slice::from_ref(name)].concat();
            let found = follow(import, &path)?;
            let defines = |file: &&File| file.path == *found && file.source.defined.contains(name);
            self.modules.values().find(defines).map(|file| &file.path)
        });
        by_glob.into_iter().next().or(Some(&file.path))
    }
}

fn read(base: &Path, path: PathBuf) -> Result<File> {
    let whole = base.join(&path);
    let text = fs::read_to_string(&whole).with_context(|| format!("cannot read {}", whole.display()))?;
    Ok(File { path, source: Source::parse(&text) })
}

/// Files that need each other, each circle once.
pub(super) fn circles(needs: &Needs) -> Vec<BTreeSet<PathBuf>> {
    let reach: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> =
        needs.keys().map(|file| (file, reachable(needs, file))).collect();
    let mut circles = Vec::new();
    let mut seen = BTreeSet::new();
    for (file, reached) in &reach {
        if !reached.contains(file) || seen.contains(file) {
            continue;
        }
        let circle: BTreeSet<PathBuf> = reached
            .iter()
            .filter(|other| reach.get(**other).is_some_and(|back| back.contains(file)))
            .map(|other| (*other).clone())
            .collect();
        seen.extend(reached.iter().filter(|other| circle.contains(**other)).copied());
        circles.push(circle);
    }
    circles
}

/// What a file needs, directly or not.
fn reachable<'a>(needs: &'a Needs, from: &PathBuf) -> BTreeSet<&'a PathBuf> {
    let mut reached = BTreeSet::new();
    let mut ahead: Vec<&PathBuf> = needs.get(from).into_iter().flatten().collect();
    while let Some(file) = ahead.pop() {
        if reached.insert(file) {
            ahead.extend(needs.get(file).into_iter().flatten());
        }
    }
    reached
}
