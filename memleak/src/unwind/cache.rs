//! Tables built once for each object, several at a time.

use std::{
    collections::HashMap,
    num::NonZero,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::available_parallelism,
};

use super::{
    SharedTable, UnwindError,
    table::{UnwindTable, read},
};
use crate::objects::{ObjectFile, Stamp};

/// What says that two objects are the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum TableIdentity {
    /// Build id and length in bytes: one library in several containers, or in several processes'
    /// namespaces.
    BuildId(Vec<u8>, u64),
    /// A file without build id.
    File(Stamp),
    /// An image without build id.
    Image(u64),
}

fn key_of(object: &ObjectFile) -> Result<TableIdentity, UnwindError> {
    let elf = read(object)?;
    Ok(match (elf.build_id(), object.stamp()) {
        (Some(build_id), _) => TableIdentity::BuildId(build_id, elf.source().length()),
        (None, Some(stamp)) => TableIdentity::File(stamp),
        (None, None) => TableIdentity::Image(object.id()),
    })
}

fn build(object: &ObjectFile) -> TableResult {
    let table = read(object).and_then(UnwindTable::of);
    object.tell_budget();
    table.map(|table| Arc::new(table.into())).map_err(Arc::new)
}

/// A table, or why there is none: shared, since an object that failed once fails each time.
pub type TableResult = Result<Arc<SharedTable>, Arc<UnwindError>>;

/// The tables of a run.
#[derive(Debug, Default)]
pub struct TableCache {
    tables: Mutex<HashMap<TableIdentity, TableResult>>,
}

impl TableCache {
    /// The tables of `objects`, in their order. Those that are not known yet are built by as many
    /// threads as there are processors, the longest file first.
    pub fn get_many(&self, objects: &[Arc<ObjectFile>]) -> Vec<TableResult> {
        let keys: Vec<_> = objects.iter().map(|object| key_of(object)).collect();
        let mut missing: HashMap<&TableIdentity, &ObjectFile> = HashMap::new();
        {
            let known = self.lock();
            for (key, object) in keys.iter().zip(objects) {
                if let Ok(key) = key
                    && !known.contains_key(key)
                {
                    missing.insert(key, object);
                }
            }
        }
        let mut missing: Vec<_> = missing.into_iter().collect();
        let len = |object: &ObjectFile| object.elf().map_or(0, |elf| elf.source().length());
        missing.sort_by_key(|(_, object)| std::cmp::Reverse(len(object)));
        let built = build_all(&missing);
        let mut known = self.lock();
        known.extend(built);
        keys.into_iter()
            .map(|key| match key {
                Ok(key) => known.get(&key).cloned().unwrap_or_else(|| Err(Arc::new(UnwindError::NotElf))),
                Err(error) => Err(Arc::new(error)),
            })
            .collect()
    }

    /// Forgets the tables that nobody else holds: those of objects that no traced process maps any
    /// more.
    pub fn forget_unused(&self) {
        self.lock().retain(|_, table| table.as_ref().is_ok_and(|table| Arc::strong_count(table) > 1));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TableIdentity, TableResult>> {
        // The map is whole at any moment: a thread that died with the lock has left it so.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn build_all(missing: &[(&TableIdentity, &ObjectFile)]) -> Vec<(TableIdentity, TableResult)> {
    let threads = available_parallelism().map_or(1, NonZero::get).min(missing.len());
    let next = AtomicUsize::new(0);
    let work = || {
        let mut built = Vec::new();
        while let Some((key, object)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            built.push(((*key).clone(), build(object)));
        }
        built
    };
    if threads < 2 {
        return work();
    }
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).flatten().collect()
    })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, path::Path};

    use super::*;

    fn own_binary() -> Arc<ObjectFile> {
        Arc::new(ObjectFile::new(File::open("/proc/self/exe"), Path::new("/exe")))
    }

    #[test]
    fn an_object_is_built_once() {
        let cache = TableCache::default();
        let first = cache.get_many(&[own_binary(), own_binary()]);
        let again = cache.get_many(&[own_binary()]);
        let table = first[0].as_ref().unwrap();
        assert!(table.rows() > 1000);
        assert!(Arc::ptr_eq(table, first[1].as_ref().unwrap()));
        assert!(Arc::ptr_eq(table, again[0].as_ref().unwrap()));
        assert_eq!(cache.lock().len(), 1);
        cache.forget_unused();
        assert_eq!(cache.lock().len(), 1);
        drop((first, again));
        cache.forget_unused();
        assert_eq!(cache.lock().len(), 0);
    }

    #[test]
    fn what_is_no_object_fails_alone() {
        let cache = TableCache::default();
        let script = Arc::new(ObjectFile::from_memory(b"#!/bin/sh".to_vec(), Path::new("/sh")));
        let results = cache.get_many(&[script, own_binary()]);
        assert!(matches!(results[0].as_deref(), Err(error) if matches!(**error, UnwindError::NotElf)));
        assert!(results[1].is_ok());
    }
}
