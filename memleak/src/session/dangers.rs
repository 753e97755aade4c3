//! Calls that could be the end of a target: their return addresses are replaced while they are
//! pending. Said once.

use std::fs;

use log::warn;

use crate::{
    bpf::Tracer,
    objects::ObjectStore,
    probe::{plan::AttachPoint, table::Scope},
    proc::maps::{Mapping, read_maps},
    symbolize::demangle::demangle,
    target::object::ObjectId,
};

/// What was probed that could be dangerous, and is not called by anybody as far as was seen.
#[derive(Default)]
pub(super) struct Dangers {
    unused: Vec<AttachPoint>,
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
            }
        }
        if self.unused.is_empty() {
            return;
        }
        let mappings = read_maps(pid).unwrap_or_default();
        let program = fs::metadata(format!("/proc/{pid}/exe")).ok().map(|file| ObjectId::of(&file));
        let is_called = |point: &&AttachPoint| {
            let is_there = |mapping: &Mapping| id_of(mapping) == point.object;
            if !mappings.iter().any(is_there) {
                return false;
            }
            // Whoever writes a pair of functions has a program that calls them.
            point.scope == Scope::User
                || program.is_none_or(|program| program == point.object)
                || mappings.iter().any(|mapping| imports(store, mapping, point))
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

fn id_of(mapping: &Mapping) -> ObjectId {
    ObjectId { device: mapping.device, inode: mapping.inode }
}

/// What is mapped there is another object that calls the point's function.
fn imports(store: &ObjectStore, mapping: &Mapping, point: &AttachPoint) -> bool {
    let is_another = mapping.executable && id_of(mapping) != point.object;
    let object = store.known(mapping).filter(|_| is_another);
    object.is_some_and(|object| object.elf().is_ok_and(|elf| elf.imports(&point.function)))
}
