//! `--why`: what looking at the heaps has given, in the words of a report: stacks, types, members,
//! variables.

mod allocated;
mod objects;
mod owners;

use std::collections::{HashMap, HashSet};

use self::allocated::allocated_type;
use super::examined::{Examinations, ExaminedHeap, KindSums};
use crate::{
    heap::{AskedBlock, Block, Circle, Classes, Owned, RootKind, Side, TypeAt, Way, shapes},
    report::why::{
        Asked, BeforeAttach, BlockKind, Cycle, CycleMember, HangingBlocks, HeldBy, LostType, MadeIn, Why,
    },
    settings::WhyOf,
    sites::{SiteId, Sites},
    symbolize::{Frame, Holder, MemberAt, PointsTo, Symbolizer, plain},
};

/// Ways that are told.
const MOST_WAYS: usize = 10;
/// Kinds of blocks from before the attach that are told.
const MOST_KINDS: usize = 20;
/// Types and variables that are looked up one by one, for what they point to: each is a search
/// through an object's debug information.
const MOST_LOOKED_UP: usize = 24;

/// A function, and the line of it, or else the place of the code.
type SourceLine = (Option<String>, Result<u32, Option<u64>>);

/// What explaining needs.
pub(super) struct Explainer<'a> {
    symbolizer: &'a mut Symbolizer,
    sites: &'a Sites,
    looked: &'a Examinations,
    /// Of an address space, as the symbolizer knows it.
    process_of: &'a dyn Fn(u32) -> u32,
    frames: HashMap<SiteId, Vec<Frame>>,
    members: HashMap<Holder, Vec<MemberAt>>,
    /// The types of blocks that do not say theirs, by the numbers of their stacks.
    allocated: HashMap<u32, Option<TypeAt>>,
    /// Numbers of stacks that are [`Self::alike`], and of the first of each such.
    alike: HashMap<u32, u32>,
    firsts: HashMap<(Option<String>, Vec<SourceLine>), u32>,
    /// So many were looked up one by one.
    looked_up: usize,
}

impl<'a> Explainer<'a> {
    pub(super) fn new(
        symbolizer: &'a mut Symbolizer,
        sites: &'a Sites,
        looked: &'a Examinations,
        process_of: &'a dyn Fn(u32) -> u32,
    ) -> Self {
        Self {
            symbolizer,
            sites,
            looked,
            process_of,
            frames: HashMap::new(),
            members: HashMap::new(),
            allocated: HashMap::new(),
            alike: HashMap::new(),
            firsts: HashMap::new(),
            looked_up: 0,
        }
    }

    /// What became of the blocks of each site.
    pub(super) fn classes(&self) -> HashMap<SiteId, Classes> {
        let mut sums: HashMap<SiteId, Classes> = HashMap::new();
        for heap in &self.looked.heaps {
            for (number, blocks) in &heap.examined.stacks {
                sums.entry(self.site(*number)).or_default().add_all(&blocks.classes);
            }
        }
        sums
    }

    /// All of it. `classes`: what [`Self::classes`] gave; `place`: where a site's stack is in the
    /// report.
    pub(super) fn explain(
        mut self,
        classes: &HashMap<SiteId, Classes>,
        place: &dyn Fn(SiteId) -> Option<usize>,
    ) -> Why {
        let looked = self.looked;
        let unknown = |heap: &ExaminedHeap| heap.examined.before.as_ref().map(|before| before.count);
        let mut why = Why {
            scans: looked.heaps.iter().map(|heap| heap.examined.scans).max().unwrap_or(0),
            stopped_ms: looked.heaps.iter().map(|heap| heap.examined.stopped.as_millis() as u64).sum(),
            complete: looked.complete,
            unknown_blocks: looked.heaps.iter().map(unknown).sum(),
            may_hide: looked.heaps.iter().any(|heap| heap.may_hide),
            unread_bytes: looked.heaps.iter().map(|heap| heap.examined.unread_bytes).sum(),
            ..Why::default()
        };
        classes.values().for_each(|of_site| why.classes.add_all(of_site));
        self.find_members();
        why.cycles = self.cycles(place);
        why.held = self.held(classes);
        why.types = self.types();
        why.asked = self.asked();
        why.before = self.before();
        why.objects = self.objects();
        why
    }

    fn site(&self, number: u32) -> SiteId {
        let stack = self.looked.stacks.get(number as usize);
        stack.map_or(SiteId::UNKNOWN, |(space, stack_id)| self.sites.of(*space, *stack_id))
    }

    fn frames(&mut self, site: SiteId) -> &[Frame] {
        let (symbolizer, sites) = (&mut *self.symbolizer, self.sites);
        self.frames.entry(site).or_insert_with(|| {
            sites.get(site).map(|site| symbolizer.frames(site.locations(), &site.ips)).unwrap_or_default()
        })
    }

    fn made_in(&mut self, number: u32) -> MadeIn {
        let site = self.site(number);
        MadeIn::of(self.frames(site))
    }

    /// The type of the blocks of a stack: as a block says, or else as the functions say that have
    /// acquired it.
    fn type_name(&mut self, heap: &ExaminedHeap, number: u32) -> Option<String> {
        self.type_at(heap, number).map(|found| found.name)
    }

    /// The same, with where in a block it begins.
    fn type_at(&mut self, heap: &ExaminedHeap, number: u32) -> Option<TypeAt> {
        if let Some(found) = heap.types.get(&number) {
            return Some(found.clone());
        }
        if let Some(known) = self.allocated.get(&number) {
            return known.clone();
        }
        let site = self.site(number);
        let found = allocated_type(self.frames(site));
        self.allocated.insert(number, found.clone());
        found
    }

    /// Looks up the members of all types that circles and ways pass through.
    fn find_members(&mut self) {
        for heap in &self.looked.heaps {
            let of_circles =
                heap.examined.circles.iter().flat_map(|circle| &circle.sides).map(|side| side.stack);
            let of_ways = heap.examined.ways.iter().flat_map(|way| &way.hops).map(|(block, _)| block.stack);
            let asked = heap.examined.asked.iter();
            let of_asked = asked.flat_map(|asked| {
                let hops = asked.way.iter().flat_map(|way| &way.hops).chain(&asked.pointed_from);
                hops.map(|(block, _)| block.stack)
            });
            let used: HashSet<u32> = of_circles.chain(of_ways).chain(of_asked).collect();
            let mut by_place: HashMap<u64, HashSet<Holder>> = HashMap::new();
            for found in used.iter().filter_map(|number| self.type_at(heap, *number)) {
                by_place.entry(found.place).or_default().insert(holder(&found.name));
            }
            let process = (self.process_of)(heap.space);
            for (place, names) in by_place {
                self.members.extend(self.symbolizer.members(process, place, &names));
            }
        }
    }

    /// The member at `offset` of a block of this stack.
    fn member(&mut self, heap: &ExaminedHeap, number: u32, offset: u32) -> Option<String> {
        let of = self.type_at(heap, number)?;
        let within = u64::from(offset).checked_sub(of.offset)?;
        self.member_of(&holder(&of.name), within).map(|member| member.name.clone())
    }

    fn member_of(&self, of: &Holder, within: u64) -> Option<&MemberAt> {
        let members = self.members.get(of)?;
        let at = members.partition_point(|member| member.offset <= within);
        members.get(at.checked_sub(1)?)
    }

    /// The same, looked up now if it was not before: by the object that has `place`.
    fn find_member(&mut self, heap: &ExaminedHeap, place: u64, of: Holder, within: u64) -> Option<MemberAt> {
        if !self.members.contains_key(&of) && self.looked_up < MOST_LOOKED_UP {
            self.looked_up += 1;
            let wanted = HashSet::from([of.clone()]);
            let found = self.symbolizer.members((self.process_of)(heap.space), place, &wanted);
            self.members.extend(found);
            self.members.entry(of.clone()).or_default();
        }
        self.member_of(&of, within).cloned()
    }

    fn cycles(&mut self, place: &dyn Fn(SiteId) -> Option<usize>) -> Vec<Cycle> {
        let looked = self.looked;
        let heaps = looked.heaps.iter();
        let circles: Vec<(&ExaminedHeap, &Circle, Owned)> = heaps
            .flat_map(|heap| heap.examined.circles.iter().map(move |circle| (heap, circle)))
            .map(|(heap, circle)| (heap, circle, self.owned(heap, circle)))
            .filter(|(.., owned)| *owned != Owned::No)
            .collect();
        let mut sides = Vec::new();
        for (number, (heap, circle, _)) in (0..).zip(&circles) {
            let alike = |side: &Side| Side {
                stack: self.alike(heap, side.stack),
                to: self.alike(heap, side.to),
                ..*side
            };
            sides.push((number, circle.sides.iter().map(alike).collect()));
        }
        let mut cycles: Vec<Cycle> = Vec::new();
        for (sides, mut numbers) in shapes(sides) {
            numbers.sort_unstable();
            let mut alike = numbers.iter().filter_map(|number| circles.get(*number as usize));
            let Some((heap, circle, owned)) = alike.next() else { continue };
            let mut cycle = self.cycle(heap, circle, &sides, place);
            cycle.doubtful = *owned == Owned::Maybe;
            for (heap, circle, owned) in alike {
                add(&mut cycle, self.cycle(heap, circle, &sides, place));
                cycle.doubtful &= *owned == Owned::Maybe;
            }
            cycles.push(cycle);
        }
        cycles.sort_by(|a, b| {
            (b.retained_bytes, b.count).cmp(&(a.retained_bytes, a.count)).then_with(|| {
                let key = |cycle: &Cycle| cycle.members.first().map(|it| (it.type_name.clone(), it.offset));
                key(a).cmp(&key(b))
            })
        });
        cycles
    }

    /// The number of the first stack of which the type, the functions and the lines are the same:
    /// compilers repeat what is called in a loop, and processes have stacks of their own.
    fn alike(&mut self, heap: &ExaminedHeap, number: u32) -> u32 {
        if let Some(known) = self.alike.get(&number) {
            return *known;
        }
        let site = self.site(number);
        let line = |frame: &Frame| (frame.function.clone(), frame.line.ok_or(frame.offset));
        let lines: Vec<_> = self.frames(site).iter().map(line).collect();
        let first = match lines.is_empty() {
            true => number,
            false => {
                let name = self.type_name(heap, number);
                *self.firsts.entry((name, lines)).or_insert(number)
            }
        };
        self.alike.insert(number, first);
        first
    }

    /// Circles of a shape, which `sides` say by stacks that are alike.
    fn cycle(
        &mut self,
        heap: &ExaminedHeap,
        circle: &Circle,
        sides: &[Side],
        place: &dyn Fn(SiteId) -> Option<usize>,
    ) -> Cycle {
        let size = |number: u32| heap.examined.stacks.get(&number).map_or(0, |blocks| blocks.worst.1.size);
        let ends = circle.sides.iter().flat_map(|side| [side.stack, side.to]);
        let own: HashMap<u32, u32> = ends.map(|stack| (self.alike(heap, stack), stack)).collect();
        let own = |stack: u32| own.get(&stack).copied().unwrap_or(stack);
        let sides = sides.iter().map(|side| Side { stack: own(side.stack), to: own(side.to), ..*side });
        // The ones that do not own are no part of it.
        let sides = sides.filter(|side| !self.is_weak(heap, side.stack, side.offset)).collect::<Vec<_>>();
        let members = sides.into_iter().map(|side| CycleMember {
            type_name: self.type_name(heap, side.stack),
            field: self.member(heap, side.stack, side.offset),
            offset: side.offset,
            is_array: side.is_array,
            to: self.type_name(heap, side.to),
            size: size(side.stack),
            to_size: size(side.to),
            stack: place(self.site(side.stack)),
            to_stack: place(self.site(side.to)),
            made_in: self.made_in(side.stack),
        });
        let mut members: Vec<CycleMember> = members.collect();
        // The largest begins: in a circle any may, and numbers of stacks differ from run to run.
        let key =
            |member: &CycleMember| (member.size, std::cmp::Reverse(member.offset), member.type_name.clone());
        if let Some(first) = (0..members.len()).max_by_key(|at| members.get(*at).map(key)) {
            members.rotate_left(first);
        }
        let hanging = circle.hanging.iter().map(|hanging| HangingBlocks {
            type_name: self.type_name(heap, hanging.stack),
            count: hanging.count,
            bytes: hanging.bytes,
            made_in: self.made_in(hanging.stack),
        });
        let hanging = hanging.collect();
        Cycle {
            length: circle.length,
            count: circle.count,
            pointed_at: circle.pointed_at,
            pointed_from: circle.pointed_from.map(|root| self.root_name(heap, root)),
            bytes: circle.bytes,
            retained_bytes: circle.retained_bytes,
            members,
            hanging,
            weak: circle.sides.iter().find_map(|side| self.weak_pointer(heap, side.stack)),
            doubtful: false,
        }
    }

    fn root_name(&self, heap: &ExaminedHeap, (kind, place): (RootKind, u64)) -> String {
        let fixed = match kind {
            RootKind::Global => {
                let variable = self.symbolizer.variable((self.process_of)(heap.space), place);
                return match variable {
                    Some(found) => {
                        let module = found.module.unwrap_or_default();
                        let module = module.rsplit('/').next().unwrap_or_default();
                        match found.offset {
                            0 => format!("global {} [{module}]", found.name),
                            offset => format!("global {} (+{offset:#x}) [{module}]", found.name),
                        }
                    }
                    None => format!("a global at {place:#x}"),
                };
            }
            RootKind::Stack if heap.main_stack.contains(&place) => "main's stack",
            RootKind::Stack => "a thread's stack",
            RootKind::Register => "a register",
            RootKind::Kernel => "epoll or a timer",
            RootKind::EndedThread => "an ended thread's variables",
            RootKind::Mapping => return format!("mapped memory at {place:#x}"),
            RootKind::LostBefore => "what was lost before the attach",
            RootKind::FromBefore => return format!("a block from before the attach, at {place:#x}"),
        };
        fixed.to_owned()
    }

    /// What holds the blocks of those stacks that hold most.
    fn held(&mut self, classes: &HashMap<SiteId, Classes>) -> Vec<HeldBy> {
        let looked = self.looked;
        let ways = looked.heaps.iter().flat_map(|heap| heap.examined.ways.iter().map(move |way| (heap, way)));
        let mut ways: Vec<(SiteId, &ExaminedHeap, &Way)> =
            ways.map(|(heap, way)| (self.site(way.block.stack), heap, way)).collect();
        let bytes = |site: &SiteId| classes.get(site).map_or(0, |of_site| of_site.reachable.0);
        ways.sort_by_key(|(site, ..)| (std::cmp::Reverse(bytes(site)), *site));
        ways.dedup_by_key(|(site, ..)| *site);
        let held = ways.into_iter().take(MOST_WAYS).map(|(site, heap, way)| {
            let (bytes, count) = classes.get(&site).map_or((0, 0), |of_site| of_site.reachable);
            let (by, path) = self.way_names(heap, way);
            HeldBy { by, path, bytes, count, made_in: self.made_in(way.block.stack) }
        });
        held.collect()
    }

    /// The root that a way begins at, and the blocks from there on, with the one that it leads to.
    fn way_names(&mut self, heap: &ExaminedHeap, way: &Way) -> (String, Vec<String>) {
        let by = self.root_name(heap, way.root);
        // What a block does not say of its type, the pointer to it says.
        let mut next = self.pointed_to_by(heap, way.root);
        let (_, place) = way.root;
        let mut path = Vec::new();
        for (block, from) in &way.hops {
            let (name, of_next) = self.hop_by(heap, place, next, block.stack, *from);
            path.push(name);
            next = of_next;
        }
        let last = self.type_name(heap, way.block.stack).or_else(|| next.as_ref().map(pointed_name));
        path.push(last.unwrap_or_else(|| format!("{} bytes", way.block.size)));
        (by, path)
    }

    /// What a variable points to.
    fn pointed_to_by(&mut self, heap: &ExaminedHeap, (kind, place): (RootKind, u64)) -> Option<PointsTo> {
        if kind != RootKind::Global {
            return None;
        }
        let variable = self.symbolizer.variable((self.process_of)(heap.space), place)?;
        let of = Holder::Variable(plain(&variable.name));
        self.find_member(heap, place, of, variable.offset)?.points_to
    }

    /// A block on a way, which is what `by` says if it does not say it itself, and what its pointer
    /// at `offset` leads to.
    fn hop_by(
        &mut self,
        heap: &ExaminedHeap,
        place: u64,
        by: Option<PointsTo>,
        number: u32,
        offset: u32,
    ) -> (String, Option<PointsTo>) {
        if let (None, Some(by)) = (self.type_name(heap, number), by) {
            if by.pointers > 1 {
                let next = PointsTo { pointers: by.pointers - 1, ..by.clone() };
                return (pointed_name(&by), Some(next));
            }
            return match self.find_member(heap, place, holder(&by.name), u64::from(offset)) {
                Some(member) => (format!("{}.{}", by.name, member.name), member.points_to),
                None => (format!("{} (+{offset:#x})", by.name), None),
            };
        }
        let next = self.type_at(heap, number).and_then(|of| {
            let within = u64::from(offset).checked_sub(of.offset)?;
            self.member_of(&holder(&of.name), within)?.points_to.clone()
        });
        (self.hop_name(heap, number, offset), next)
    }

    fn block_name(&mut self, heap: &ExaminedHeap, block: &Block) -> String {
        self.type_name(heap, block.stack).unwrap_or_else(|| format!("{} bytes", block.size))
    }

    /// What was asked for with `--why-of`.
    fn asked(&mut self) -> Vec<Asked> {
        let looked = self.looked;
        match &looked.of {
            None => Vec::new(),
            Some(WhyOf::Address(address)) => {
                let found =
                    looked.heaps.iter().filter_map(|heap| Some((heap, heap.examined.asked.as_ref()?)));
                let mut asked: Vec<Asked> =
                    found.map(|(heap, block)| self.asked_block(heap, block, *address)).collect();
                if asked.is_empty() {
                    asked.push(Asked { what: format!("{address:#x}"), ..Asked::default() });
                }
                asked
            }
            Some(WhyOf::Type(name)) => self.asked_type(name),
        }
    }

    fn asked_block(&mut self, heap: &ExaminedHeap, found: &AskedBlock, address: u64) -> Asked {
        let (by, path) = match (&found.way, found.pointed_from) {
            (Some(way), _) => {
                let (by, path) = self.way_names(heap, way);
                (Some(by), path)
            }
            (None, Some((block, from))) => {
                let path = vec![self.hop_name(heap, block.stack, from), self.block_name(heap, &found.block)];
                (None, path)
            }
            (None, None) => (None, vec![self.block_name(heap, &found.block)]),
        };
        let Block { start, size, stack, .. } = found.block;
        let block = Some((start, size));
        Asked {
            what: format!("{address:#x}"),
            block,
            class: Some(found.class),
            by,
            path,
            made_in: self.made_in(stack),
        }
    }

    /// A way to a block of each stack that makes blocks of this type.
    fn asked_type(&mut self, name: &str) -> Vec<Asked> {
        let looked = self.looked;
        let mut asked = Vec::new();
        for heap in &looked.heaps {
            let blocks_of = |stack: u32| heap.examined.stacks.get(&stack);
            let mut stacks: Vec<u32> = heap.examined.stacks.keys().copied().collect();
            stacks.sort_unstable();
            for stack in stacks {
                let Some((class, block)) = blocks_of(stack).map(|blocks| blocks.best) else { continue };
                let is_it = self.type_name(heap, stack).is_some_and(|of| is_named(&of, name));
                if !is_it || asked.len() == MOST_WAYS {
                    continue;
                }
                let way = heap.examined.ways.iter().find(|way| way.block.stack == stack).cloned();
                let block = way.as_ref().map_or(block, |way| way.block);
                // Of a circle that is lost, the block before.
                let circles = heap.examined.circles.iter().filter(|circle| circle.length > 1);
                let sides = circles.flat_map(|circle| &circle.sides);
                let pointed_from = sides.clone().find(|side| side.to == stack).and_then(|side| {
                    let (_, before) = blocks_of(side.stack)?.worst;
                    Some((before, side.offset))
                });
                let found = AskedBlock { block, class, way, pointed_from };
                asked.push(Asked { what: name.to_owned(), ..self.asked_block(heap, &found, block.start) });
            }
        }
        if asked.is_empty() {
            asked.push(Asked { what: name.to_owned(), ..Asked::default() });
        }
        asked
    }

    /// `document.index`, or `document (+0x18)`, by what is known.
    fn hop_name(&mut self, heap: &ExaminedHeap, number: u32, offset: u32) -> String {
        let name = self.type_name(heap, number).unwrap_or_else(|| "block".to_owned());
        match self.member(heap, number, offset) {
            Some(member) => format!("{name}.{member}"),
            None => format!("{name} (+{offset:#x})"),
        }
    }

    /// What was there before tracing began.
    fn before(&self) -> Option<BeforeAttach> {
        let heaps = || self.looked.heaps.iter().filter(|heap| !heap.from_start);
        let mut sum: Option<BeforeAttach> = None;
        for before in heaps().filter_map(|heap| heap.examined.before.as_ref()) {
            let (lost_bytes, lost_count) = before.lost_amount();
            let sum = sum.get_or_insert_default();
            sum.bytes += before.bytes;
            sum.count += before.count;
            sum.free += before.free;
            sum.lost_bytes += lost_bytes;
            sum.lost_count += lost_count;
        }
        let mut sum = sum?;
        let (mut lost, mut all) = (KindSums::default(), KindSums::default());
        for kinds in heaps().map(|heap| &heap.kinds_before) {
            lost.extend(&kinds.lost);
            all.extend(&kinds.all);
            sum.each = sum.each.max(kinds.each);
        }
        (sum.lost_kinds, sum.kinds) = (lost.into_kinds(), all.into_kinds());
        sum.lost_kinds.truncate(MOST_KINDS);
        sum.kinds.truncate(MOST_KINDS);
        Some(sum)
    }

    /// What is lost, by type.
    fn types(&mut self) -> Vec<LostType> {
        let looked = self.looked;
        let mut sums = KindSums::default();
        for heap in &looked.heaps {
            for (number, blocks) in &heap.examined.stacks {
                let (bytes, count) = blocks.classes.lost();
                if count > 0
                    && let Some(name) = self.type_name(heap, *number)
                {
                    sums.add_type(name, bytes, count);
                }
            }
        }
        let lost = |BlockKind { name, bytes, count, .. }| Some(LostType { name: name?, bytes, count });
        sums.into_kinds().into_iter().filter_map(lost).collect()
    }
}

/// A type of this name, with or without its namespaces.
fn is_named(of: &str, name: &str) -> bool {
    let (of, name) = (plain(of), plain(name));
    of == name || of.strip_suffix(&name).is_some_and(|outer| outer.ends_with("::"))
}

fn add(known: &mut Cycle, more: Cycle) {
    known.length = known.length.max(more.length);
    known.count += more.count;
    known.pointed_at += more.pointed_at;
    known.pointed_from = known.pointed_from.take().or(more.pointed_from);
    known.bytes = known.bytes.saturating_add(more.bytes);
    known.retained_bytes = known.retained_bytes.saturating_add(more.retained_bytes);
    known.hanging.extend(more.hanging);
}

/// What a pointer leads to: a structure, or an array of pointers to such.
fn pointed_name(of: &PointsTo) -> String {
    match of.pointers {
        0 | 1 => of.name.clone(),
        more => format!("{}{}[]", of.name, "*".repeat(more as usize - 1)),
    }
}

/// A type, as the symbolizer knows it.
fn holder(name: &str) -> Holder {
    Holder::Type(plain(name))
}
