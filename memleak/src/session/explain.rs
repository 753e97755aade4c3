//! `--why`: what looking at the heaps has given, in the words of a report: stacks, types, members,
//! variables.

use std::collections::{HashMap, HashSet};

use super::examined::{Examinations, ExaminedHeap};
use crate::{
    heap::{Circle, Classes, RootKind, Side, TypeAt, Way, first_argument},
    report::why::{BeforeAttach, Cycle, CycleMember, HangingBlocks, HeldBy, LostType, MadeIn, Why},
    sites::{SiteId, Sites},
    symbolize::{Frame, MemberAt, Symbolizer},
};

/// Ways that are told.
const MOST_WAYS: usize = 10;

/// What explaining needs.
pub(super) struct Explainer<'a> {
    symbolizer: &'a mut Symbolizer,
    sites: &'a Sites,
    looked: &'a Examinations,
    /// Of an address space, as the symbolizer knows it.
    process_of: &'a dyn Fn(u32) -> u32,
    frames: HashMap<SiteId, Vec<Frame>>,
    members: HashMap<String, Vec<MemberAt>>,
}

impl<'a> Explainer<'a> {
    pub(super) fn new(
        symbolizer: &'a mut Symbolizer,
        sites: &'a Sites,
        looked: &'a Examinations,
        process_of: &'a dyn Fn(u32) -> u32,
    ) -> Self {
        Self { symbolizer, sites, looked, process_of, frames: HashMap::new(), members: HashMap::new() }
    }

    /// What became of the blocks of each site.
    pub(super) fn classes(&self) -> HashMap<SiteId, Classes> {
        let mut sums: HashMap<SiteId, Classes> = HashMap::new();
        for heap in &self.looked.heaps {
            for (number, classes) in heap.examined.classes().iter().enumerate() {
                if classes.count() > 0 {
                    sums.entry(self.site(number as u32)).or_default().add_all(classes);
                }
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
        why.before = self.before();
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
        if let Some(found) = heap.types.get(&number) {
            return Some(found.name.clone());
        }
        let site = self.site(number);
        allocated_type(self.frames(site))
    }

    /// Looks up the members of all types that circles and ways pass through.
    fn find_members(&mut self) {
        for heap in &self.looked.heaps {
            let of_circles =
                heap.examined.circles.iter().flat_map(|circle| &circle.sides).map(|side| side.stack);
            let of_ways = heap.examined.ways.iter().flat_map(|way| &way.hops).map(|(block, _)| block.stack);
            let used: HashSet<u32> = of_circles.chain(of_ways).collect();
            let mut by_place: HashMap<u64, HashSet<String>> = HashMap::new();
            for found in used.iter().filter_map(|number| heap.types.get(number)) {
                by_place.entry(found.place).or_default().insert(found.name.clone());
            }
            let process = (self.process_of)(heap.space);
            for (place, names) in by_place {
                self.members.extend(self.symbolizer.members(process, place, &names));
            }
        }
    }

    /// The member at `offset` of a block of this type.
    fn member(&self, of: Option<&TypeAt>, offset: u32) -> Option<String> {
        let of = of?;
        let members = self.members.get(&without_spaces(&of.name))?;
        let within = u64::from(offset).checked_sub(of.offset)?;
        let at = members.partition_point(|member| member.offset <= within);
        members.get(at.checked_sub(1)?).map(|member| member.name.clone())
    }

    fn cycles(&mut self, place: &dyn Fn(SiteId) -> Option<usize>) -> Vec<Cycle> {
        let looked = self.looked;
        let mut merged: HashMap<Vec<(SiteId, u32, SiteId)>, Cycle> = HashMap::new();
        for heap in &looked.heaps {
            for circle in &heap.examined.circles {
                let key = |side: &Side| (self.site(side.stack), side.offset, self.site(side.to));
                let shape = circle.sides.iter().map(key).collect();
                let cycle = self.cycle(heap, circle, place);
                match merged.get_mut(&shape) {
                    Some(known) => add(known, cycle),
                    None => _ = merged.insert(shape, cycle),
                }
            }
        }
        let mut cycles: Vec<Cycle> = merged.into_values().collect();
        cycles.sort_by(|a, b| {
            (b.retained_bytes, b.count).cmp(&(a.retained_bytes, a.count)).then_with(|| {
                let key = |cycle: &Cycle| cycle.members.first().map(|it| (it.type_name.clone(), it.offset));
                key(a).cmp(&key(b))
            })
        });
        cycles
    }

    fn cycle(
        &mut self,
        heap: &ExaminedHeap,
        circle: &Circle,
        place: &dyn Fn(SiteId) -> Option<usize>,
    ) -> Cycle {
        let size = |number: u32| {
            heap.examined.blocks().iter().find(|(it, _)| it.stack == number).map_or(0, |(it, _)| it.size)
        };
        let members = circle.sides.iter().map(|side| CycleMember {
            type_name: self.type_name(heap, side.stack),
            field: self.member(heap.types.get(&side.stack), side.offset),
            offset: side.offset,
            to: self.type_name(heap, side.to),
            size: size(side.stack),
            to_size: size(side.to),
            stack: place(self.site(side.stack)),
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
        let of_side = |side: &Side| heap.types.get(&side.stack).is_some_and(|it| it.offset > 0);
        Cycle {
            length: circle.length,
            count: circle.count,
            pointed_at: circle.pointed_at,
            pointed_from: circle.pointed_from.map(|root| self.root_name(heap, root)),
            bytes: circle.bytes,
            retained_bytes: circle.retained_bytes,
            members,
            hanging,
            // What std::make_shared has made begins after its counters.
            is_shared: circle.sides.iter().all(of_side),
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
            let hop = |hop: &(crate::heap::Block, u32)| self.hop_name(heap, hop.0.stack, hop.1);
            let path = way.hops.iter().map(hop).collect();
            let by = self.root_name(heap, way.root);
            HeldBy { by, path, bytes, count, made_in: self.made_in(way.block.stack) }
        });
        held.collect()
    }

    /// `document.index (+0x18)`, or as much of that as is known.
    fn hop_name(&mut self, heap: &ExaminedHeap, number: u32, offset: u32) -> String {
        let name = self.type_name(heap, number).unwrap_or_else(|| "block".to_owned());
        match self.member(heap.types.get(&number), offset) {
            Some(member) => format!("{name}.{member} (+{offset:#x})"),
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
        let of_heaps = heaps().flat_map(|heap| &heap.types_before);
        let lost = of_heaps.map(|(name, (count, bytes))| (name.clone(), *count, *bytes));
        sum.types = lost.map(|(name, count, bytes)| LostType { name, count, bytes }).collect();
        sum.types.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        Some(sum)
    }

    /// What is lost, by type.
    fn types(&mut self) -> Vec<LostType> {
        let looked = self.looked;
        let mut sums: HashMap<String, (u64, u64)> = HashMap::new();
        for heap in &looked.heaps {
            for (number, classes) in heap.examined.classes().iter().enumerate() {
                let (bytes, count) = classes.lost();
                if count > 0
                    && let Some(name) = self.type_name(heap, number as u32)
                {
                    let sum = sums.entry(name).or_default();
                    *sum = (sum.0 + count, sum.1.saturating_add(bytes));
                }
            }
        }
        let lost = sums.into_iter().map(|(name, (count, bytes))| LostType { name, count, bytes });
        let mut types: Vec<LostType> = lost.collect();
        types.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        types
    }
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

/// As the symbolizer has the names of types.
fn without_spaces(name: &str) -> String {
    name.chars().filter(|c| !c.is_whitespace()).collect()
}

/// The type that C++'s allocator functions have acquired memory for.
fn allocated_type(frames: &[Frame]) -> Option<String> {
    const ALLOCATORS: [&str; 3] = ["__new_allocator<", "new_allocator<", "std::allocator<"];
    const STRING: &str = "std::__cxx11::basic_string<char,";
    let functions = || frames.iter().filter_map(|frame| frame.function.as_deref());
    // Its functions are in libstdc++, which does not say what they are made of.
    if functions().take(3).any(|function| function.trim_start_matches("void ").starts_with(STRING)) {
        return Some("std::string".to_owned());
    }
    let found = functions().find_map(|function| {
        let (start, rest) = ALLOCATORS.iter().find_map(|name| {
            let at = function.find(name)?;
            Some((at, function.get(at + name.len()..)?))
        })?;
        let argument = first_argument(rest)?;
        // Not `std::allocator<T>` as an argument of another template.
        let is_own = function.get(..start).is_some_and(|before| !before.contains(['<', '(']));
        (is_own && rest.contains(">::allocate(")).then(|| argument.to_owned())
    })?;
    let is_within = |name: &str| functions().any(|function| function.contains(name));
    if let Some(shared) = found.strip_prefix("std::_Sp_counted_ptr_inplace<") {
        return first_argument(shared).map(str::to_owned);
    }
    if found == "char" && is_within("basic_string<char") {
        return Some("std::string".to_owned());
    }
    let found = found.replace(
        "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >",
        "std::string",
    );
    Some(if is_within("std::vector<") || is_within("_Vector_base<") { format!("{found}[]") } else { found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbolize::NoSymbol;

    fn frames(functions: &[&str]) -> Vec<Frame> {
        let frame = |function: &&str| {
            let nameless = Frame::without_function(1, None, None, NoSymbol::Unmapped);
            Frame { function: Some((*function).to_owned()), ..nameless }
        };
        functions.iter().map(frame).collect()
    }

    #[test]
    fn allocators_say_what_for() {
        let of = |functions: &[&str]| allocated_type(&frames(functions));
        let new = "operator new(unsigned long)";
        assert_eq!(of(&[new, "main"]), None);
        assert_eq!(
            of(&[new, "std::__new_allocator<node>::allocate(unsigned long, void const*)", "main"]).as_deref(),
            Some("node")
        );
        let string = "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >";
        let in_vector = [
            new,
            &format!("__gnu_cxx::new_allocator<{string} >::allocate(unsigned long, void const*)"),
            &format!("std::_Vector_base<{string}, std::allocator<{string} > >::_M_allocate(unsigned long)"),
        ];
        assert_eq!(of(&in_vector).as_deref(), Some("std::string[]"));
        let in_string = [new, &format!("{string}::_M_create(unsigned long&, unsigned long)")];
        assert_eq!(of(&in_string).as_deref(), Some("std::string"));
        let constructs =
            format!("void {string}::_M_construct<char*>(char*, char*, std::forward_iterator_tag)");
        assert_eq!(of(&[new, &constructs]).as_deref(), Some("std::string"));
        let shared = "std::__new_allocator<std::_Sp_counted_ptr_inplace<word, std::allocator<void>, (__gnu_cxx::_Lock_policy)2> >::allocate(unsigned long, void const*)";
        assert_eq!(of(&[new, shared]).as_deref(), Some("word"));
    }
}
