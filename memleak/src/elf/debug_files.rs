//! Separate debug files: by build id, by `.gnu_debuglink`, and what those refer to in turn.
//!
//! The places are those of GDB ("Debugging Information in Separate Files"), looked up as the target
//! sees them and then in our own debug directory.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    file::ElfFile,
    source::{Budget, Source},
};
use crate::proc::root::Root;

/// Where debug files are, below a root.
const DEBUG_DIRECTORY: &str = "usr/lib/debug";

/// Roots to look in.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    /// The target's.
    pub target: Option<Arc<Root>>,
    /// Our own debug directory (`/usr/lib/debug`): nothing else of the host is opened on a target's
    /// word.
    pub host_debug: Option<Arc<Root>>,
}

/// A file that was found, with where: what it refers to is relative to that.
#[derive(Debug)]
pub struct DebugFile {
    /// The file.
    pub elf: ElfFile,
    root: Arc<Root>,
    path: PathBuf,
}

impl Roots {
    /// The debug file of `elf`, which is at `path` in the target.
    pub fn debug_file(&self, elf: &ElfFile, path: &Path) -> Option<DebugFile> {
        let budget = elf.budget();
        let build_id = elf.build_id();
        if let Some(build_id) = &build_id
            && let Some(found) = self.by_build_id(build_id, &budget)
        {
            return Some(found);
        }
        let link = elf.debug_link()?;
        let name = Path::new(OsStr::from_bytes(&link.name));
        let directory = path.parent()?.strip_prefix("/").ok()?;
        let near = [directory.join(name), directory.join(".debug").join(name)];
        let near = near.into_iter().filter_map(|path| Some((self.target.clone()?, path)));
        near.chain(self.in_debug_directories(&directory.join(name))).find_map(|(root, path)| {
            let found = open(root, path, &budget)?;
            // Build ids say what the CRC says, which takes a reading of the whole file.
            let is_it = match (&build_id, found.elf.build_id()) {
                (Some(ours), Some(its)) => *ours == its,
                _ => found.elf.crc32().is_ok_and(|crc| crc == link.crc),
            };
            is_it.then_some(found)
        })
    }

    /// What else has symbols of `elf`, which is at `path` in the target: its debug file, and its
    /// MiniDebugInfo if that has none.
    pub fn symbol_files(&self, elf: &ElfFile, path: &Path) -> (Option<DebugFile>, Option<ElfFile>) {
        let debug = self.debug_file(elf, path);
        let has_symbols = debug.as_ref().is_some_and(|found| found.elf.has_symbol_table());
        let mini = if elf.has_symbol_table() || has_symbols { None } else { elf.mini_debug_info() };
        (debug, mini)
    }

    /// The supplementary file (dwz) that `elf` names; `elf` is at `path` in the target, unless it
    /// was `found` elsewhere.
    pub fn supplementary(&self, elf: &ElfFile, path: &Path, found: Option<&DebugFile>) -> Option<ElfFile> {
        let link = elf.alt_link()?;
        let link_path = Path::new(OsStr::from_bytes(&link.path));
        let here = match found {
            Some(found) => Some((found.root.clone(), found.path.parent()?.join(link_path))),
            None => self.target.clone().and_then(|root| Some((root, path.parent()?.join(link_path)))),
        };
        let below = link_path.strip_prefix("/").ok().and_then(|path| path.strip_prefix(DEBUG_DIRECTORY).ok());
        let absolute = below.into_iter().flat_map(|below| self.in_debug_directories(below));
        let is_it = |elf: &ElfFile| elf.build_id().as_deref() == Some(&link.build_id);
        here.into_iter()
            .chain(absolute)
            .filter_map(|(root, path)| open(root, path, &elf.budget()))
            .map(|found| found.elf)
            .find(is_it)
            .or_else(|| self.by_build_id(&link.build_id, &elf.budget()).map(|found| found.elf))
    }

    /// The package of split units (`OBJECT.dwp`) beside the object or its debug file.
    pub fn package(&self, path: &Path, found: Option<&DebugFile>, budget: &Budget) -> Option<ElfFile> {
        let beside = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(".dwp");
            PathBuf::from(name)
        };
        let of_object = self.target.clone().map(|root| (root, beside(path)));
        let of_debug_file = found.map(|found| (found.root.clone(), beside(&found.path)));
        let places = of_object.into_iter().chain(of_debug_file);
        places.filter_map(|(root, path)| open(root, path, budget)).map(|found| found.elf).next()
    }

    fn by_build_id(&self, build_id: &[u8], budget: &Budget) -> Option<DebugFile> {
        let (first, rest) = build_id.split_first()?;
        let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = PathBuf::from(format!(".build-id/{first:02x}/{rest}.debug"));
        self.in_debug_directories(&path)
            .filter_map(|(root, path)| open(root, path, budget))
            .find(|found| found.elf.build_id().as_deref() == Some(build_id))
    }

    fn in_debug_directories(&self, path: &Path) -> impl Iterator<Item = (Arc<Root>, PathBuf)> {
        let target = self.target.clone().map(|root| (root, Path::new(DEBUG_DIRECTORY).join(path)));
        let host = self.host_debug.clone().map(|root| (root, path.to_owned()));
        target.into_iter().chain(host)
    }
}

/// The ELF file at `path` below `root`.
pub(crate) fn open(root: Arc<Root>, path: PathBuf, budget: &Budget) -> Option<DebugFile> {
    let source = Source::from_file(root.open(&path).ok()?).ok()?;
    Some(DebugFile { elf: ElfFile::parse(source, budget).ok()?, root, path })
}
