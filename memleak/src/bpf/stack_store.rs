//! The stacks that the programs have stored (maps `STACKS` and `SHORT_STACKS`): read when they are
//! wanted, removed when nothing refers to them.
//!
//! A program that runs for long comes by any number of stacks (a compiler by 70,000 in the first
//! second), though what is outstanding hangs on few of them. So when the map is half full, the
//! stacks that no record, no pending call and no thread's last allocation refers to are removed.
//! The programs need not know: a stack that comes again is stored again, under the same id, which
//! is its hash.
//!
//! A program may be about to enter a record for a stack that is being removed. So what is removed
//! is kept here for a while ([`KEPT_FOR`]): a record that refers to it has its stack.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap as BpfHashMap, MapData, MapError, PerCpuArray},
};
use memleak_common::{
    kernel::{CACHE_NAME_LEN, CACHE_NAME_WORDS, Label, RememberedStack},
    stack::{MAX_STACK_DEPTH, NO_STACK, Record, SHORT_STACK_DEPTH, is_long},
    unwind::Step,
};
use rustc_hash::FxHashSet;

use super::{
    access::{fd, hash_map, per_cpu},
    error::{BpfError, map_error},
    sys,
};
use crate::{
    kernel_labels::tag_of,
    snapshot::{Cut, Stack},
};

/// Maps of stacks.
const LONG: &str = "STACKS";
const SHORT: &str = "SHORT_STACKS";
/// How long a stack is kept that nothing refers to. A program takes microseconds; a thread may lose
/// its processor in between.
const KEPT_FOR: Duration = Duration::from_secs(10);
/// So many are kept before it is worth looking for those to be forgotten.
const MANY: usize = 4096;
/// Collecting takes at most one part in this many of the time.
const PAUSE: u32 = 5;
/// Shortest pause between two collections.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// Stacks, the programs' and ours.
pub(super) struct StackStore {
    /// Stacks are the kernel's: they say what its objects are, and nothing of mappings.
    of_kernel: bool,
    /// Room in the map.
    capacity: u64,
    /// Those that were read, or removed, by id.
    kept: HashMap<u64, Kept>,
    /// Stacks that were removed.
    removed: u64,
    /// Stacks that are stored before it is worth looking for references again.
    wanted: u64,
    /// When they may be collected again.
    next: Instant,
    /// When those were last forgotten that nothing refers to.
    forgotten: Instant,
}

struct Kept {
    stack: Stack,
    /// When something last referred to it, or it was read.
    used: Instant,
}

impl StackStore {
    /// None was read yet. `capacity`: entries of the map. `of_kernel`: kernel mode.
    pub(super) fn new(capacity: u32, of_kernel: bool) -> Self {
        let capacity = capacity.into();
        Self {
            of_kernel,
            capacity,
            kept: HashMap::new(),
            removed: 0,
            wanted: capacity.div_ceil(2),
            next: Instant::now(),
            forgotten: Instant::now(),
        }
    }

    /// One stack; `None` if it is not known.
    pub(super) fn get(&mut self, ebpf: &Ebpf, id: u64) -> Result<Option<&Stack>, BpfError> {
        if id != NO_STACK && !self.kept.contains_key(&id) {
            let stack = if is_long(id) {
                read::<MAX_STACK_DEPTH>(ebpf, LONG, id, self.of_kernel)?
            } else {
                read::<SHORT_STACK_DEPTH>(ebpf, SHORT, id, self.of_kernel)?
            };
            let Some(stack) = stack else { return Ok(None) };
            self.kept.insert(id, Kept { stack, used: Instant::now() });
        }
        Ok(self.kept.get(&id).map(|kept| &kept.stack))
    }

    /// When the stacks are to be collected, where `stored` were stored so far; `None` while there
    /// is room.
    pub(super) fn due(&self, stored: u64) -> Option<Instant> {
        (stored.saturating_sub(self.removed) >= self.wanted).then_some(self.next)
    }

    /// Whether [`Self::forget`] is worth finding out what is referred to.
    pub(super) fn has_many(&self) -> bool {
        self.kept.len() > MANY && self.forgotten.elapsed() > KEPT_FOR
    }

    /// Forgets the stacks that have not been `referenced` for a while.
    pub(super) fn forget(&mut self, referenced: &FxHashSet<u64>) {
        let now = Instant::now();
        self.kept.retain(|id, kept| {
            if referenced.contains(id) {
                kept.used = now;
            }
            now.duration_since(kept.used) < KEPT_FOR
        });
        if self.kept.capacity() > 4 * self.kept.len() + MANY {
            self.kept.shrink_to_fit();
        }
        self.forgotten = now;
    }

    /// Removes the stacks that are not `referenced`, and forgets those that have not been for long.
    /// `began`: when the references began to be read. Gives how many were removed.
    pub(super) fn collect(
        &mut self,
        ebpf: &Ebpf,
        referenced: &FxHashSet<u64>,
        began: Instant,
    ) -> Result<(), BpfError> {
        self.forget(referenced);
        let (mut left, mut removed) = (0, 0);
        self.remove::<MAX_STACK_DEPTH>(ebpf, LONG, referenced, (&mut left, &mut removed))?;
        self.remove::<SHORT_STACK_DEPTH>(ebpf, SHORT, referenced, (&mut left, &mut removed))?;
        self.removed += removed;
        self.wanted = (left + self.capacity / 8).clamp(self.capacity.div_ceil(2), self.capacity);
        let took = began.elapsed();
        self.next = Instant::now() + (took * PAUSE).max(SHORTEST_PAUSE);
        let millis = took.as_secs_f64() * 1000.0;
        log::info!("removed {removed} stacks that nothing refers to in {millis:.1} ms");
        Ok(())
    }

    /// Removes from one map what is not referenced, and adds up what is left there and what was
    /// removed.
    fn remove<const DEPTH: usize>(
        &mut self,
        ebpf: &Ebpf,
        name: &'static str,
        referenced: &FxHashSet<u64>,
        (left, removed): (&mut u64, &mut u64),
    ) -> Result<(), BpfError>
    where
        Record<DEPTH>: Pod,
    {
        let map = fd(ebpf, name)?;
        let mut unreferenced = Vec::new();
        sys::for_each_entry(map, |id: &u64, record: &Record<DEPTH>| {
            if referenced.contains(id) {
                *left += 1;
            } else {
                unreferenced.push(*id);
                // A program may have found it a moment ago.
                let stack = to_stack(ebpf, record, self.of_kernel);
                self.kept.insert(*id, Kept { stack, used: Instant::now() });
            }
        })
        .map_err(|error| map_error(name, &error))?;
        sys::remove_all(map, &unreferenced).map_err(|error| map_error(name, &error))?;
        *removed += unreferenced.len() as u64;
        Ok(())
    }
}

/// Reads one stack from a map.
fn read<const DEPTH: usize>(
    ebpf: &Ebpf,
    name: &'static str,
    id: u64,
    of_kernel: bool,
) -> Result<Option<Stack>, BpfError>
where
    Record<DEPTH>: Pod,
{
    let map: BpfHashMap<&MapData, u64, Record<DEPTH>> = hash_map(ebpf, name)?;
    match map.get(&id, 0) {
        Ok(record) => Ok(Some(to_stack(ebpf, &record, of_kernel))),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(map_error(name, &error)),
    }
}

/// Stacks that the kernel mode's programs remember, and may refer to without looking them up.
pub(super) fn remembered(ebpf: &Ebpf, ids: &mut FxHashSet<u64>) -> Result<(), BpfError> {
    let map: PerCpuArray<&MapData, RememberedStack> = per_cpu(ebpf, "REMEMBERED")?;
    for place in map.iter() {
        let place = place.map_err(|error| map_error("REMEMBERED", &error))?;
        ids.extend(place.iter().map(|stack| stack.id));
    }
    Ok(())
}

fn to_stack<const DEPTH: usize>(ebpf: &Ebpf, record: &Record<DEPTH>, of_kernel: bool) -> Stack {
    let len = (record.len as usize).min(record.ips.len());
    let ips = record.ips.get(..len).unwrap_or_default().to_vec();
    let cut = Step::from_u32(record.end.into()).and_then(Cut::from_end);
    if of_kernel {
        let label = Label::decode(record.context);
        let tag = label.and_then(|label| tag_of(label, |address| cache_name(ebpf, address)));
        Stack { ips, generation: 0, cut, tag }
    } else {
        Stack { ips, generation: record.context, cut, tag: None }
    }
}

/// Name of a slab cache, as the programs have read it.
fn cache_name(ebpf: &Ebpf, address: u64) -> Option<String> {
    let map: BpfHashMap<&MapData, u64, [u64; CACHE_NAME_WORDS]> = hash_map(ebpf, "CACHES").ok()?;
    let words = map.get(&address, 0).ok()?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(CACHE_NAME_LEN);
    let name = String::from_utf8_lossy(bytes.get(..len)?).into_owned();
    (!name.is_empty()).then_some(name)
}
