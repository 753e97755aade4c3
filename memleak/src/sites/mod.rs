//! Sites: stacks as locations in objects, not addresses. The same code is one site, in however many
//! processes, wherever it is mapped, and whatever was mapped there before.

mod stack_id;

use std::{collections::HashSet, sync::Arc};

use rustc_hash::{FxHashMap, FxHashSet};

pub use stack_id::StackDigest;

use crate::{
    kernel_labels::Tag,
    snapshot::{Cut, Outstanding, Snapshot, Stack, StackUses, TableVersion},
    symbolize::{Anchor, Location, ObjectNumber},
};

/// Names a site for as long as something is outstanding there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(u64);

impl SiteId {
    /// The site of all stacks that are not known.
    pub const UNKNOWN: Self = Self(0);
}

/// Finds out where addresses are.
pub trait Locate {
    /// The location of each return address of a stack of an address space.
    fn locations(&mut self, space: u32, stack: &Stack) -> Vec<Location>;

    /// What a stack's frames are called on any machine.
    fn anchors(&mut self, locations: &[Location]) -> Vec<Anchor>;

    /// Nothing else is located any more but in these objects.
    fn keep(&mut self, used: &HashSet<ObjectNumber>);
}

/// What makes a site.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    locations: Box<[Location]>,
    tag: Option<Tag>,
}

/// A stack that is the same code.
#[derive(Clone, Debug)]
pub struct Site {
    key: Arc<Key>,
    /// Callers are missing, and why.
    pub cut: Option<Cut>,
    /// Return addresses in one of the processes, callee first.
    pub ips: Vec<u64>,
    /// Its address space.
    pub space: u32,
    digest: StackDigest,
}

impl Site {
    /// Where the frames are, callee first.
    pub fn locations(&self) -> &[Location] {
        &self.key.locations
    }

    /// Kernel mode: what its objects are.
    pub fn tag(&self) -> Option<&Tag> {
        self.key.tag.as_ref()
    }

    /// The stable id of what is acquired here: see [`StackDigest::stack_id`].
    pub fn stack_id(&self, resource: &str) -> u64 {
        self.digest.stack_id(resource, self.tag())
    }
}

/// The sites at which something is outstanding.
#[derive(Debug, Default)]
pub struct Sites {
    /// Stacks that were looked at: by address space and id.
    known: FxHashMap<(u32, u64), SiteId>,
    by_key: FxHashMap<Arc<Key>, SiteId>,
    sites: FxHashMap<SiteId, Site>,
    /// Those that stay, whether or not a stack of the snapshot is there.
    held: FxHashSet<SiteId>,
    last: u64,
    /// The snapshot that they are of.
    version: Option<TableVersion>,
}

impl Sites {
    /// Finds the site of each stack that is outstanding in `snapshot`; those of other stacks are
    /// forgotten.
    pub fn update(&mut self, snapshot: &Snapshot, locate: &mut dyn Locate) {
        if snapshot.is_of(self.version) {
            return;
        }
        self.version = snapshot.version;
        let used = self.find(snapshot, locate);
        self.known.retain(|at, _| used.contains(at));
        let used: FxHashSet<SiteId> = self.known.values().chain(&self.held).copied().collect();
        self.sites.retain(|id, _| used.contains(id));
        self.by_key.retain(|_, id| used.contains(id));
        let objects = self.sites.values().flat_map(Site::locations).filter_map(|location| match location {
            Location::Object { object, .. } => Some(*object),
            _ => None,
        });
        locate.keep(&objects.collect());
    }

    /// Finds the site of each stack that is outstanding in `snapshot`, in addition to those that
    /// are known. Gives the stacks, by address space and id.
    pub fn find(&mut self, snapshot: &Snapshot, locate: &mut dyn Locate) -> FxHashSet<(u32, u64)> {
        let gather = || snapshot.outstanding.iter().map(Outstanding::use_of_stack).collect();
        let gathered: Option<StackUses> = snapshot.uses.is_none().then(gather);
        let uses = gathered.as_ref().or(snapshot.uses.as_ref());
        let used: FxHashSet<(u32, u64)> = uses.into_iter().flat_map(StackUses::iter).collect();
        for at in &used {
            if let Some(stack) = snapshot.stacks.get(&at.1) {
                self.add(*at, stack, locate);
            }
        }
        used
    }

    /// These sites stay, whatever later snapshots have.
    pub fn hold(&mut self, sites: impl IntoIterator<Item = SiteId>) {
        self.held = sites.into_iter().collect();
    }

    /// Finds the site of one stack.
    fn add(&mut self, at: (u32, u64), stack: &Stack, locate: &mut dyn Locate) {
        if self.known.contains_key(&at) {
            return;
        }
        let (space, _) = at;
        let key = Key { locations: locate.locations(space, stack).into(), tag: stack.tag.clone() };
        let id = match self.by_key.get(&key) {
            Some(id) => *id,
            None => {
                self.last += 1;
                let key = Arc::new(key);
                self.by_key.insert(key.clone(), SiteId(self.last));
                let digest = StackDigest::of(locate.anchors(&key.locations));
                let site = Site { key, cut: stack.cut, ips: stack.ips.clone(), space, digest };
                self.sites.insert(SiteId(self.last), site);
                SiteId(self.last)
            }
        };
        // Always the same one of several, so that the same snapshot gives the same report.
        if let Some(site) = self.sites.get_mut(&id)
            && (space, &stack.ips) < (site.space, &site.ips)
        {
            (site.space, site.cut) = (space, stack.cut);
            site.ips.clone_from(&stack.ips);
        }
        self.known.insert(at, id);
    }

    /// The site of a stack of an address space.
    pub fn of(&self, space: u32, stack_id: u64) -> SiteId {
        self.known.get(&(space, stack_id)).copied().unwrap_or(SiteId::UNKNOWN)
    }

    /// What is known of a site; `None` of [`SiteId::UNKNOWN`].
    pub fn get(&self, id: SiteId) -> Option<&Site> {
        self.sites.get(&id)
    }
}

#[cfg(test)]
mod tests {
    use memleak_common::probe::Resource;

    use super::*;

    /// Space N has its only object, which all have in common, at N * 0x1000; nothing else is an
    /// object.
    #[derive(Default)]
    struct Shifted {
        asked: usize,
        used: usize,
    }

    impl Locate for Shifted {
        fn locations(&mut self, space: u32, stack: &Stack) -> Vec<Location> {
            self.asked += 1;
            let base = u64::from(space) * 0x1000;
            let location = |ip: &u64| match ip.checked_sub(base).filter(|offset| *offset < 0x1000) {
                Some(offset) => Location::Object { object: ObjectNumber(0), vaddr: offset },
                None => Location::Elsewhere { space, ip: *ip },
            };
            stack.ips.iter().map(location).collect()
        }

        fn anchors(&mut self, locations: &[Location]) -> Vec<Anchor> {
            let anchor = |location: &Location| match location {
                Location::Object { vaddr, .. } => Anchor::BuildId(b"id".as_slice().into(), *vaddr),
                Location::Elsewhere { ip, .. } | Location::Uncertain { ip, .. } | Location::Kernel { ip } => {
                    Anchor::Address(*ip)
                }
            };
            locations.iter().map(anchor).collect()
        }

        fn keep(&mut self, used: &HashSet<ObjectNumber>) {
            self.used = used.len();
        }
    }

    fn snapshot(stacks: &[(u32, u64, &[u64])]) -> Snapshot {
        let record = |(space, id, _): &(u32, u64, &[u64])| Outstanding {
            space: *space,
            resource: Resource::Heap,
            address: 1,
            handle: 1,
            size: 8,
            stack_id: *id,
            time_ns: 0,
            birth: 0,
        };
        let stack =
            |(_, id, ips): &(u32, u64, &[u64])| (*id, Stack { ips: ips.to_vec(), ..Stack::default() });
        Snapshot {
            outstanding: stacks.iter().map(record).collect(),
            stacks: stacks.iter().map(stack).collect(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn the_same_code_is_one_site_in_all_processes() {
        let (mut sites, mut locate) = (Sites::default(), Shifted::default());
        // The same id in two processes, whose object is elsewhere; the same code by two ids in one.
        let all = [
            (2, 7, &[0x2010, 0x2020][..]),
            (1, 5, &[0x1010, 0x1020]),
            (1, 6, &[0x1010]),
            (3, 5, &[0x1010, 0x1020]),
        ];
        sites.update(&snapshot(&all), &mut locate);
        assert_eq!(sites.of(2, 7), sites.of(1, 5));
        assert_ne!(sites.of(1, 6), sites.of(1, 5));
        assert_ne!(sites.of(3, 5), sites.of(1, 5), "generated code of another process");
        assert_eq!(sites.of(1, 99), SiteId::UNKNOWN);
        let site = sites.get(sites.of(2, 7)).expect("a site");
        assert_eq!((site.space, &*site.ips), (1, &[0x1010, 0x1020][..]), "the first process's");
        assert_eq!(sites.sites.len(), 3);
        // What is known is not looked at again.
        let asked = locate.asked;
        let first = sites.of(2, 7);
        sites.update(&snapshot(&all[..1]), &mut locate);
        assert_eq!((locate.asked, sites.of(2, 7), sites.of(1, 5)), (asked, first, SiteId::UNKNOWN));
        assert_eq!((sites.sites.len(), sites.by_key.len()), (1, 1));
        // What comes back is another one: what grows begins at nothing.
        sites.update(&snapshot(&[]), &mut locate);
        sites.update(&snapshot(&all[..1]), &mut locate);
        assert_ne!(sites.of(2, 7), first);
    }

    #[test]
    fn what_the_kernels_objects_are_tells_sites_apart() {
        let (mut sites, mut locate) = (Sites::default(), Shifted::default());
        let mut snapshot = snapshot(&[(1, 1, &[0x1010]), (1, 3, &[0x1010])]);
        if let Some(stack) = snapshot.stacks.get_mut(&3) {
            stack.tag = Some(Tag::Pages(2));
        }
        sites.update(&snapshot, &mut locate);
        let [one, other] = [1, 3].map(|id| sites.get(sites.of(1, id)).expect("a site"));
        assert_ne!(sites.of(1, 1), sites.of(1, 3));
        assert_ne!(one.stack_id("heap"), other.stack_id("heap"));
    }
}
