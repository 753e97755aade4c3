//! Calls that could be the end of a target: their return addresses are replaced while they are
//! pending. Said once.

use std::{
    collections::{HashMap, HashSet},
    fs,
};

use log::warn;

use crate::{
    bpf::Tracer,
    objects::ObjectStore,
    probe::{plan::AttachPoint, table::Scope},
    proc::{
        living::path_of,
        maps::{Mapping, read_maps},
    },
    symbolize::demangle::demangle,
    target::object::ObjectId,
};

/// What was probed that could be dangerous, and is not called by anybody as far as was seen.
#[derive(Default)]
pub(super) struct Dangers {
    unused: Vec<AttachPoint>,
    /// Their names.
    names: HashSet<String>,
    /// Which of these each object calls. One is looked through once, unless names come later.
    imports: HashMap<ObjectId, HashSet<String>>,
    was_told: bool,
}

impl Dangers {
    /// Says which of the points that are about to be probed is dangerous, or of those that were
    /// before, if something has come that calls it.
    pub(super) fn tell(&mut self, tracer: &Tracer, store: &ObjectStore, pid: u32, points: &[AttachPoint]) {
        if self.was_told {
            return;
        }
        for (point, _) in tracer.dangers(points) {
            if self.unused.iter().all(|known| known.key() != point.key()) {
                self.unused.push(point.clone());
                if self.names.insert(point.function.clone()) {
                    self.imports.clear();
                }
            }
        }
        if self.unused.is_empty() {
            return;
        }
        let mappings = read_maps(pid).unwrap_or_default();
        let program = fs::metadata(path_of(pid, "exe")).ok().map(|file| ObjectId::of(&file));
        self.look_through(store, &mappings);
        let imports = |mapping: &Mapping, point: &AttachPoint| {
            let id = id_of(mapping);
            let called = self.imports.get(&id).filter(|_| mapping.executable && id != point.object);
            called.is_some_and(|called| called.contains(&point.function))
        };
        let is_called = |point: &&AttachPoint| {
            let is_there = |mapping: &Mapping| id_of(mapping) == point.object;
            if !mappings.iter().any(is_there) {
                return false;
            }
            // Whoever writes a pair of functions has a program that calls them.
            point.scope == Scope::User
                || program.is_none_or(|program| program == point.object)
                || mappings.iter().any(|mapping| imports(mapping, point))
        };
        let Some(point) = self.unused.iter().find(is_called) else { return };
        self.was_told = true;
        let name = demangle(&point.function);
        if let (Scope::User, Some(why)) = (point.scope, point.unclear) {
            let exception = if tracer.mends_stack() { "" } else { "throws an exception or " };
            warn!(
                "process {pid}: if {name} {exception}switches stacks, the process can be ended while it is traced, since its \
                 returns cannot be found ({why}); to be safe name another function"
            );
        } else {
            warn!(
                "process {pid}: an exception thrown out of {name} (out of memory) will end it while it is traced, since \
                 this kernel is locked down and forbids restoring return addresses; to be safe boot without lockdown"
            );
        }
    }
}

impl Dangers {
    /// Notes what is called by the objects that are new.
    fn look_through(&mut self, store: &ObjectStore, mappings: &[Mapping]) {
        for mapping in mappings.iter().filter(|mapping| mapping.executable) {
            let id = id_of(mapping);
            if !self.imports.contains_key(&id)
                && let Some(object) = store.known(mapping)
            {
                let imports = object.elf().map(|elf| elf.imports_of(&self.names)).unwrap_or_default();
                self.imports.insert(id, imports);
            }
        }
    }
}

fn id_of(mapping: &Mapping) -> ObjectId {
    ObjectId { device: mapping.device, inode: mapping.inode }
}
