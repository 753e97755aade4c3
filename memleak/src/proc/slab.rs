//! The kernel's slab caches by name: /sys/kernel/slab and /proc/slabinfo.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The slab caches that the kernel shows.
///
/// Caches that are alike share one `struct kmem_cache`, whose name is that of the first. SLUB shows
/// it as a directory `:A-0000128` with a link for each name
/// (Documentation/admin-guide/mm/slab.rst); /proc/slabinfo has the first one's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlabCaches {
    /// Each name, and what it is a link to.
    names: BTreeMap<String, Option<String>>,
    /// The names of /proc/slabinfo; empty if it cannot be read.
    own_names: BTreeSet<String>,
}

/// A slab cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlabCache {
    /// The name in its `struct kmem_cache`.
    pub name: String,
    /// Other names of it, whose objects cannot be told apart.
    pub aliases: Vec<String>,
}

impl SlabCaches {
    /// The running kernel's; none if it shows neither.
    pub(crate) fn read() -> Self {
        Self::read_from(Path::new("/sys/kernel/slab"), Path::new("/proc/slabinfo"))
    }

    /// The same, from a directory and a file of that form.
    pub(crate) fn read_from(directory: &Path, slabinfo: &Path) -> Self {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut names: BTreeMap<String, Option<String>> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let target = fs::read_link(entry.path()).ok();
                let target = target.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
                (!name.starts_with(':')).then_some((name, target))
            })
            .collect();
        let text = fs::read_to_string(slabinfo).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("slabinfo"));
        let own_names: BTreeSet<String> =
            lines.filter_map(|line| line.split_ascii_whitespace().next()).map(str::to_owned).collect();
        for name in &own_names {
            names.entry(name.clone()).or_insert(None);
        }
        Self { names, own_names }
    }

    /// All names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// The cache that `name` is a name of.
    pub(crate) fn find(&self, name: &str) -> Option<SlabCache> {
        let link = self.names.get(name)?;
        let mut same: Vec<&String> = match link {
            None => vec![self.names.get_key_value(name)?.0],
            Some(_) => self.names.iter().filter(|(_, other)| *other == link).map(|(name, _)| name).collect(),
        };
        // Where /proc/slabinfo does not say which one is first, the one that was asked for has to
        // do.
        let own = same.iter().position(|same| self.own_names.contains(*same));
        let own = own.or_else(|| same.iter().position(|same| *same == name))?;
        let own = same.remove(own).clone();
        Some(SlabCache { name: own, aliases: same.into_iter().cloned().collect() })
    }
}
