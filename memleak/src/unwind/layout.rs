//! Where tables and lists of mappings lie in the arrays that are searched, and how they change
//! under a walk's feet.
//!
//! A walk begins with one load of its process's [`MappingList`] and goes from there. So a change
//! writes all that is new to places that no list names, then publishes the new list with one store,
//! and only then retires what the old list named. What is retired keeps its place until a walk that
//! began before cannot be running any more: [`Layout::reclaim`] is for the driver to call after
//! such a time, and frees what was retired before the call before it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use memleak_common::unwind::{MAX_MAPPINGS, Mapping, MappingList, Tables};

use super::shared::SharedTable;
use crate::elf::MappedPart;

/// The arrays: maps of the BPF programs, or [`Arrays`].
pub trait Store {
    /// Why a write failed.
    type Error;
    /// Writes rows or page indices from word `index` on.
    fn write_words(&mut self, index: u32, words: &[u64]) -> Result<(), Self::Error>;
    /// The `count` words from `index` on.
    fn read_words(&self, index: u32, count: u32) -> Result<Vec<u64>, Self::Error>;
    /// Writes mappings from entry `index` on.
    fn write_mappings(&mut self, index: u32, mappings: &[Mapping]) -> Result<(), Self::Error>;
    /// Publishes a process's list, with one store; an empty list if it has gone.
    fn publish(&mut self, pid: u32, list: MappingList) -> Result<(), Self::Error>;
}

/// Why a process could not be laid out. Its old list stays.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError<E> {
    /// The words are full.
    #[error("no room for {words} more words of unwind tables")]
    Words {
        /// How many were asked for.
        words: usize,
    },
    /// The mappings are full, or a process has more than a walk searches.
    #[error("no room for a list of {count} executable mappings")]
    Mappings {
        /// How many were asked for.
        count: usize,
    },
    /// A table's words lie in another layout's arrays.
    #[error("unwind tables of another layout")]
    Elsewhere,
    /// The store refused.
    #[error("cannot write unwind tables")]
    Store(#[source] E),
}

/// What to do about a table that finds no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Give up: reclaiming may help.
    Fail,
    /// List its object without rows: walks through it go by the frame pointer, and the others are
    /// found. Of mappings that are too many for a list those that repeat a table are left out.
    LeaveOut,
}

/// An executable mapping and the table of what it maps.
#[derive(Clone, Debug)]
pub struct MappedObject {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Offset in the file of the byte at `start`.
    pub file_offset: u64,
    /// The object's table.
    pub table: Arc<SharedTable>,
}

/// A part of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    start: u32,
    len: u32,
}

/// Free space of an array: starts and lengths, no two of them neighbours.
#[derive(Debug)]
struct Extents {
    free: BTreeMap<u32, u32>,
}

impl Extents {
    fn new(capacity: u32) -> Self {
        Self { free: BTreeMap::from_iter((capacity > 0).then_some((0, capacity))) }
    }

    /// The first free place that is long enough.
    fn allocate(&mut self, len: usize) -> Option<Extent> {
        let len = u32::try_from(len).ok()?;
        if len == 0 {
            return Some(Extent { start: 0, len });
        }
        let (&start, &free) = self.free.iter().find(|(_, free)| **free >= len)?;
        self.free.remove(&start);
        if free > len {
            self.free.insert(start + len, free - len);
        }
        Some(Extent { start, len })
    }

    fn release(&mut self, extent: Extent) {
        if extent.len == 0 {
            return;
        }
        let Extent { mut start, mut len } = extent;
        if let Some((&before, &before_len)) = self.free.range(..start).next_back()
            && before + before_len == start
        {
            self.free.remove(&before);
            start = before;
            len += before_len;
        }
        if let Some(after_len) = self.free.remove(&(start + len)) {
            len += after_len;
        }
        self.free.insert(start, len);
    }

    fn free_len(&self) -> u64 {
        self.free.values().map(|len| u64::from(*len)).sum()
    }
}

/// What has lost its last user, who may still be walking.
#[derive(Debug, Default)]
struct RetiredPlaces {
    tables: Vec<Placed>,
    mappings: Vec<Extent>,
}

impl RetiredPlaces {
    /// Takes out a table that gets a user again: what lies in its place is still good.
    fn revive(&mut self, key: TableKey) -> Option<Placed> {
        let at = self.tables.iter().position(|placed| key_of(&placed.table) == key)?;
        Some(self.tables.swap_remove(at))
    }
}

#[derive(Debug)]
struct Placed {
    /// Its words are in `extent` and nowhere else. Held so that no other table can get its address,
    /// which is its key.
    table: Arc<SharedTable>,
    extent: Extent,
    users: usize,
}

/// A table's key: its address.
type TableKey = usize;

#[derive(Debug)]
struct PlacedProcess {
    list: Extent,
    tables: Vec<TableKey>,
}

/// Places of all tables and lists.
#[derive(Debug)]
pub struct Layout {
    words: Extents,
    mappings: Extents,
    tables: HashMap<TableKey, Placed>,
    processes: HashMap<u32, PlacedProcess>,
    retired: RetiredPlaces,
    /// Retired before the last [`Layout::reclaim`].
    retired_before: RetiredPlaces,
}

impl Layout {
    /// Over arrays of `words` words and `mappings` mappings.
    pub fn new(words: u32, mappings: u32) -> Self {
        Self {
            words: Extents::new(words),
            mappings: Extents::new(mappings),
            tables: HashMap::new(),
            processes: HashMap::new(),
            retired: RetiredPlaces::default(),
            retired_before: RetiredPlaces::default(),
        }
    }

    /// Makes `objects` what `pid` has mapped, in place of what it had. On an error the old list
    /// stays as it is. If a table finds no room, that is an error, or with
    /// [`Shortage::LeaveOut`] its object is listed without rows.
    pub fn set_process<S: Store>(
        &mut self,
        pid: u32,
        objects: &[MappedObject],
        shortage: Shortage,
        store: &mut S,
    ) -> Result<MappingList, LayoutError<S::Error>> {
        let too_many = LayoutError::Mappings { count: objects.len() };
        let few;
        let objects = if objects.len() <= MAX_MAPPINGS as usize {
            objects
        } else if shortage == Shortage::LeaveOut {
            few = most_different(objects, MAX_MAPPINGS as usize);
            &few
        } else {
            return Err(too_many);
        };
        let Some(list) = self.mappings.allocate(objects.len()) else { return Err(too_many) };
        let mut tables = Vec::with_capacity(objects.len());
        let written = self.write_objects(list, objects, shortage, store, &mut tables).and_then(|()| {
            let published = MappingList::new(list.start, list.len);
            store.publish(pid, published).map_err(LayoutError::Store)?;
            Ok(published)
        });
        // Whichever of the two lists lost is retired: a failed store may have published the new one
        // all the same.
        let process = PlacedProcess { list, tables };
        match written {
            Ok(published) => {
                if let Some(old) = self.processes.insert(pid, process) {
                    self.retire(old);
                }
                Ok(published)
            }
            Err(error) => {
                self.retire(process);
                Err(error)
            }
        }
    }

    /// Forgets a process that has gone.
    pub fn remove_process<S: Store>(&mut self, pid: u32, store: &mut S) -> Result<(), S::Error> {
        let Some(process) = self.processes.remove(&pid) else { return Ok(()) };
        let result = store.publish(pid, MappingList::default());
        self.retire(process);
        result
    }

    /// Frees what was retired before the call before this one. Between two calls every walk that
    /// ran at the first has to come to its end: the driver waits for a grace period, or for a
    /// report's interval. Tables that somebody still holds get their words back.
    pub fn reclaim<S: Store>(&mut self, store: &S) -> Result<(), S::Error> {
        let RetiredPlaces { mut tables, mappings } =
            std::mem::replace(&mut self.retired_before, std::mem::take(&mut self.retired));
        mappings.into_iter().for_each(|extent| self.mappings.release(extent));
        while let Some(Placed { table, extent, .. }) = tables.last() {
            if Arc::strong_count(table) > 1 {
                match store.read_words(extent.start, extent.len) {
                    Ok(words) => table.put_words(words),
                    Err(error) => {
                        // Another time: they are nowhere else.
                        self.retired.tables.append(&mut tables);
                        return Err(error);
                    }
                }
            }
            self.words.release(*extent);
            tables.pop();
        }
        Ok(())
    }

    /// Words that [`Layout::reclaim`], called twice, adds to the free ones.
    pub fn retired_words(&self) -> u64 {
        let retired = self.retired.tables.iter().chain(&self.retired_before.tables);
        retired.map(|placed| u64::from(placed.extent.len)).sum()
    }

    /// Words that are free now.
    pub fn free_words(&self) -> u64 {
        self.words.free_len()
    }

    /// Tables that are laid out.
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    fn write_objects<S: Store>(
        &mut self,
        list: Extent,
        objects: &[MappedObject],
        shortage: Shortage,
        store: &mut S,
        tables: &mut Vec<TableKey>,
    ) -> Result<(), LayoutError<S::Error>> {
        let mut mappings = Vec::with_capacity(objects.len());
        for object in objects {
            let extent = match self.place(&object.table, store) {
                Err(LayoutError::Words { .. }) if shortage == Shortage::LeaveOut => None,
                placed => Some(placed?),
            };
            tables.extend(extent.map(|_| key_of(&object.table)));
            mappings.push(describe(object, extent));
        }
        mappings.sort_by_key(|mapping| mapping.start);
        store.write_mappings(list.start, &mappings).map_err(LayoutError::Store)
    }

    /// The place of a table, which gets one (and is written there) if it has none, and a user more.
    fn place<S: Store>(
        &mut self,
        table: &Arc<SharedTable>,
        store: &mut S,
    ) -> Result<Extent, LayoutError<S::Error>> {
        let key = key_of(table);
        if let Some(placed) = self.tables.get_mut(&key) {
            placed.users += 1;
            return Ok(placed.extent);
        }
        if let Some(placed) = self.retired.revive(key).or_else(|| self.retired_before.revive(key)) {
            let extent = placed.extent;
            self.tables.insert(key, Placed { users: 1, ..placed });
            return Ok(extent);
        }
        let count = table.words();
        let extent = self.words.allocate(count).ok_or(LayoutError::Words { words: count })?;
        let written = match table.take_words() {
            None => Err(LayoutError::Elsewhere),
            Some(words) => store.write_words(extent.start, &words).map_err(|error| {
                table.put_words(words);
                LayoutError::Store(error)
            }),
        };
        if let Err(error) = written {
            self.words.release(extent);
            return Err(error);
        }
        self.tables.insert(key, Placed { table: Arc::clone(table), extent, users: 1 });
        Ok(extent)
    }

    fn retire(&mut self, process: PlacedProcess) {
        self.retired.mappings.push(process.list);
        for key in process.tables {
            let Some(placed) = self.tables.get_mut(&key) else { continue };
            placed.users -= 1;
            if placed.users == 0 {
                self.retired.tables.extend(self.tables.remove(&key));
            }
        }
    }
}

/// `count` of the objects: the first of each table, and others as they come.
fn most_different(objects: &[MappedObject], count: usize) -> Vec<MappedObject> {
    let mut seen = HashSet::new();
    let (first, again): (Vec<_>, Vec<_>) =
        objects.iter().partition(|object| seen.insert(key_of(&object.table)));
    first.into_iter().chain(again).take(count).cloned().collect()
}

fn key_of(table: &Arc<SharedTable>) -> TableKey {
    Arc::as_ptr(table).addr()
}

/// The descriptor of an object's mapping, its table at `extent`. One that is of no executable
/// segment, or whose table has no place, has no rows: it still says that this is a file's text.
fn describe(object: &MappedObject, extent: Option<Extent>) -> Mapping {
    let MappedObject { start, end, file_offset, ref table } = *object;
    let without_rows = Mapping { start, end, ..Mapping::default() };
    let place = MappedPart { start, len: end.saturating_sub(start), file_offset, executable: true };
    let Some((extent, bias)) = extent.zip(table.segments().bias(&place)) else {
        return without_rows;
    };
    Mapping {
        bias,
        rows: extent.start,
        pages: extent.start + table.rows(),
        page_count: table.pages(),
        ..without_rows
    }
}

/// The arrays on the host, for [`super::walk()`].
#[derive(Debug, Default)]
pub struct Arrays {
    words: Vec<u64>,
    mappings: Vec<Mapping>,
    lists: HashMap<u32, MappingList>,
}

impl Arrays {
    /// The list that was published for `pid`; an empty one if none was.
    pub fn list(&self, pid: u32) -> MappingList {
        self.lists.get(&pid).copied().unwrap_or_default()
    }
}

fn write<T: Copy + Default>(array: &mut Vec<T>, index: u32, values: &[T]) {
    let end = index as usize + values.len();
    if array.len() < end {
        array.resize(end, T::default());
    }
    array[index as usize..end].copy_from_slice(values);
}

impl Store for Arrays {
    type Error = std::convert::Infallible;

    fn write_words(&mut self, index: u32, words: &[u64]) -> Result<(), Self::Error> {
        write(&mut self.words, index, words);
        Ok(())
    }

    fn read_words(&self, index: u32, count: u32) -> Result<Vec<u64>, Self::Error> {
        let from = self.words.get(index as usize..).unwrap_or_default();
        Ok(from.get(..count as usize).unwrap_or(from).to_vec())
    }

    fn write_mappings(&mut self, index: u32, mappings: &[Mapping]) -> Result<(), Self::Error> {
        write(&mut self.mappings, index, mappings);
        Ok(())
    }

    fn publish(&mut self, pid: u32, list: MappingList) -> Result<(), Self::Error> {
        self.lists.insert(pid, list);
        Ok(())
    }
}

impl Tables for Arrays {
    fn word(&self, index: u32) -> Option<u64> {
        self.words.get(index as usize).copied()
    }

    fn mapping_start(&self, index: u32) -> Option<u64> {
        self.mapping(index).map(|mapping| mapping.start)
    }

    fn mapping(&self, index: u32) -> Option<Mapping> {
        self.mappings.get(index as usize).copied()
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
