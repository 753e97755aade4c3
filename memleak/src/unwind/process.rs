//! What processes have mapped, with the tables of it.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{MappedObject, SharedTable, TableCache};
use crate::{
    objects::{ObjectFile, ObjectStore},
    proc::{
        copied::read_maps_of_code,
        maps::{Backing, Mapping},
        target::{LiveTarget, Target},
    },
};

/// An executable mapping, and the table of what it maps.
type KnownMapping = (Mapping, Option<Arc<SharedTable>>);

/// Executable mappings of processes, and their tables.
#[derive(Debug, Default)]
pub struct ProcessTables {
    objects: ObjectStore,
    cache: TableCache,
    processes: HashMap<u32, Vec<KnownMapping>>,
    /// Time that building tables took.
    took: Duration,
}

impl ProcessTables {
    /// Tables of these objects.
    pub fn new(objects: ObjectStore) -> Self {
        Self { objects, ..Self::default() }
    }

    /// Takes over what `pid` has mapped now, and builds the tables that are missing. Gives its
    /// objects in order of address; `None` if no executable mapping has changed.
    pub fn observe(
        &mut self,
        pid: u32,
        mappings: &[Mapping],
        target: &dyn Target,
    ) -> Option<Vec<MappedObject>> {
        let executable: Vec<&Mapping> = mappings
            .iter()
            .filter(|mapping| mapping.executable && mapping.backing != Backing::Other)
            .collect();
        let known = self.processes.remove(&pid).unwrap_or_default();
        if known.iter().map(|(mapping, _)| mapping).eq(executable.iter().copied()) {
            self.processes.insert(pid, known);
            return None;
        }
        let begin = Instant::now();
        let mut before: HashMap<&Mapping, Option<Arc<SharedTable>>> =
            known.iter().map(|(mapping, table)| (mapping, table.clone())).collect();
        let (mut now, mut missing) = (Vec::with_capacity(executable.len()), Vec::new());
        for mapping in executable {
            match before.remove(mapping) {
                Some(table) => now.push((mapping.clone(), table)),
                None => missing.push(mapping),
            }
        }
        let opened: Vec<Arc<ObjectFile>> =
            missing.iter().map(|mapping| self.objects.open(mapping, target)).collect();
        for ((mapping, object), table) in missing.iter().zip(&opened).zip(self.cache.get_many(&opened)) {
            if let Err(error) = &table {
                log::debug!("no unwind table for {}: {error}", object.path().display());
            }
            now.push(((*mapping).clone(), table.ok()));
        }
        let mut known = now;
        known.sort_by_key(|(mapping, _)| mapping.start);
        self.took += begin.elapsed();
        let objects = objects_of(&known);
        self.processes.insert(pid, known);
        Some(objects)
    }

    /// The process `child` was made by `parent`, and has what that has mapped. Gives its objects;
    /// `None` if nothing is known.
    pub fn inherit(&mut self, parent: u32, child: u32) -> Option<Vec<MappedObject>> {
        let known = self.processes.get(&parent)?.clone();
        let objects = objects_of(&known);
        self.processes.insert(child, known);
        Some(objects)
    }

    /// Takes over what running processes, each with its slot and PID, have mapped. Gives their
    /// objects; one that cannot be read has none.
    pub fn observe_running(
        &mut self,
        processes: impl Iterator<Item = (u32, u32)>,
    ) -> Vec<(u32, Vec<MappedObject>)> {
        let observe = |(slot, pid)| {
            let mappings = read_maps_of_code(pid).ok()?;
            Some((slot, self.observe(slot, &mappings, &LiveTarget(pid))?))
        };
        processes.filter_map(observe).collect()
    }

    /// Forgets a process that has ended or replaced its program, and the tables that nobody else
    /// maps.
    pub fn forget(&mut self, pid: u32) {
        self.processes.remove(&pid);
        self.forget_unused();
    }

    /// Forgets the tables that nobody holds any more.
    pub fn forget_unused(&self) {
        self.cache.forget_unused();
    }

    /// Different tables in use, their rows, their words ([`SharedTable::words`]) and the time that
    /// building took.
    pub fn sums(&self) -> Sums {
        let mut seen: HashMap<usize, &SharedTable> = HashMap::new();
        for table in self.processes.values().flatten().filter_map(|(_, table)| table.as_ref()) {
            seen.insert(Arc::as_ptr(table).addr(), table);
        }
        Sums {
            tables: seen.len(),
            rows: seen.values().map(|table| table.rows() as usize).sum(),
            code_rows: seen.values().map(|table| table.code_rows()).sum(),
            words: seen.values().map(|table| table.words()).sum(),
            took: self.took,
        }
    }
}

/// What [`ProcessTables::sums`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sums {
    /// Tables.
    pub tables: usize,
    /// Their rows.
    pub rows: usize,
    /// Those of them that were read from machine code.
    pub code_rows: u64,
    /// Words of 8 bytes that they take.
    pub words: usize,
    /// Time that building took, so far.
    pub took: Duration,
}

fn objects_of(known: &[KnownMapping]) -> Vec<MappedObject> {
    let object = |(mapping, table): &KnownMapping| {
        Some(MappedObject {
            start: mapping.start,
            end: mapping.end,
            file_offset: mapping.file_offset,
            table: Arc::clone(table.as_ref()?),
        })
    };
    known.iter().filter_map(object).collect()
}
