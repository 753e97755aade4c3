//! Tables built once for each object, several at a time.

use std::{
    collections::HashMap,
    fs::File,
    io,
    num::NonZero,
    os::unix::fs::MetadataExt as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::available_parallelism,
};

use object::ReadCache;

use super::{SharedTable, UnwindError, object::build_id, table::UnwindTable};

/// What an object's bytes come from.
#[derive(Debug)]
pub enum Source {
    /// An ELF file.
    File(File),
    /// An ELF image: the vdso, read from the target's memory.
    Image(Vec<u8>),
}

/// What says that two objects are the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ObjectKey {
    /// Build id and length in bytes: one library in several containers, or in several processes' namespaces.
    BuildId(Vec<u8>, u64),
    /// A file without build id: device, inode, length, time of last change (seconds, nanoseconds).
    File(u64, u64, u64, i64, i64),
    /// An image without build id: its bytes.
    Image(Vec<u8>),
}

impl Source {
    /// Bytes of the file or image.
    fn len(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata()?.len()),
            Self::Image(bytes) => Ok(bytes.len() as u64),
        }
    }

    fn key(&self) -> io::Result<ObjectKey> {
        let build_id = match self {
            Self::File(file) => build_id(&ReadCache::new(file)),
            Self::Image(bytes) => build_id(bytes.as_slice()),
        };
        if let Some(build_id) = build_id {
            return Ok(ObjectKey::BuildId(build_id, self.len()?));
        }
        Ok(match self {
            Self::File(file) => {
                let data = file.metadata()?;
                ObjectKey::File(data.dev(), data.ino(), data.len(), data.mtime(), data.mtime_nsec())
            }
            Self::Image(bytes) => ObjectKey::Image(bytes.clone()),
        })
    }

    fn build(&self) -> TableResult {
        let table = match self {
            Self::File(file) => UnwindTable::from_file(file),
            Self::Image(bytes) => UnwindTable::from_bytes(bytes),
        };
        table.map(|table| Arc::new(table.into())).map_err(Arc::new)
    }
}

/// A table, or why there is none: shared, since an object that failed once fails each time.
pub type TableResult = Result<Arc<SharedTable>, Arc<UnwindError>>;

/// The tables of a run.
#[derive(Debug, Default)]
pub struct TableCache {
    tables: Mutex<HashMap<ObjectKey, TableResult>>,
}

impl TableCache {
    /// The tables of `sources`, in their order. Those that are not known yet are built by as many threads as there
    /// are processors, the longest file first.
    pub fn get_many(&self, sources: &[Source]) -> Vec<TableResult> {
        let keys: Vec<_> = sources.iter().map(|source| source.key().map_err(UnwindError::from)).collect();
        let mut missing: HashMap<&ObjectKey, &Source> = HashMap::new();
        {
            let known = self.lock();
            for (key, source) in keys.iter().zip(sources) {
                if let Ok(key) = key
                    && !known.contains_key(key)
                {
                    missing.insert(key, source);
                }
            }
        }
        let mut missing: Vec<_> = missing.into_iter().collect();
        missing.sort_by_key(|(_, source)| std::cmp::Reverse(source.len().unwrap_or(0)));
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

    /// Forgets the tables that nobody else holds: those of objects that no traced process maps any more.
    pub fn forget_unused(&self) {
        self.lock().retain(|_, table| table.as_ref().is_ok_and(|table| Arc::strong_count(table) > 1));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, TableResult>> {
        // The map is whole at any moment: a thread that died with the lock has left it so.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn build_all(missing: &[(&ObjectKey, &Source)]) -> Vec<(ObjectKey, TableResult)> {
    let threads = available_parallelism().map_or(1, NonZero::get).min(missing.len());
    let next = AtomicUsize::new(0);
    let work = || {
        let mut built = Vec::new();
        while let Some((key, source)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            built.push(((*key).clone(), source.build()));
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
    use super::*;

    fn own_binary() -> Source {
        Source::File(File::open("/proc/self/exe").unwrap())
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
        let results = cache.get_many(&[Source::Image(b"#!/bin/sh".to_vec()), own_binary()]);
        assert!(matches!(results[0].as_deref(), Err(error) if matches!(**error, UnwindError::NotElf)));
        assert!(results[1].is_ok());
    }
}
