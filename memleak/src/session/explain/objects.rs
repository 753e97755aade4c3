//! All blocks that were looked at, with names, for viewers of whole heaps.

use std::collections::HashMap;

use super::{ExaminedHeap, Explainer};
use crate::{
    heap::HeapObjects,
    report::{
        names::name,
        why::{GraphObject, ObjectGraph},
    },
};

/// Numbers of names, each of which is there once.
#[derive(Default)]
struct NumberedNames {
    all: Vec<String>,
    known: HashMap<String, u32>,
}

impl NumberedNames {
    fn number(&mut self, name: String) -> u32 {
        let Self { all, known } = self;
        *known.entry(name).or_insert_with_key(|name| {
            all.push(name.clone());
            all.len() as u32 - 1
        })
    }
}

impl Explainer<'_> {
    /// The graphs of all heaps of which they were kept.
    pub(super) fn objects(&mut self) -> Vec<ObjectGraph> {
        let looked = self.looked;
        let kept = looked.heaps.iter().filter_map(|heap| Some((heap, heap.examined.objects.as_ref()?)));
        kept.map(|(heap, objects)| self.graph_of(heap, objects)).collect()
    }

    fn graph_of(&mut self, heap: &ExaminedHeap, objects: &HeapObjects) -> ObjectGraph {
        let (mut types, mut fields) = (NumberedNames::default(), NumberedNames::default());
        let mut of_stacks: HashMap<u32, u32> = HashMap::new();
        let mut of_places: HashMap<(u32, u32), u32> = HashMap::new();
        let start = |number: u32| objects.blocks.get(number as usize).map_or(0, |block| block.start);
        let mut graph = ObjectGraph { pid: heap.pid, ..ObjectGraph::default() };
        for (number, block) in objects.blocks.iter().enumerate() {
            let type_number = *of_stacks
                .entry(block.stack)
                .or_insert_with(|| types.number(self.object_name(heap, block.stack)));
            let references = objects.pointers(number).iter().map(|(from, to)| {
                let field = of_places.entry((block.stack, *from)).or_insert_with(|| {
                    let member = self.member(heap, block.stack, *from);
                    fields.number(member.unwrap_or_else(|| format!("+{from:#x}")))
                });
                (*field, start(*to))
            });
            let references = references.collect();
            graph.objects.push(GraphObject {
                address: block.start,
                size: block.size,
                type_number,
                references,
            });
        }
        graph.roots = objects.roots.iter().map(|(kind, to)| (*kind, start(*to))).collect();
        (graph.types, graph.fields) = (types.all, fields.all);
        graph
    }

    /// The type of the blocks of a stack, or else where they were made.
    fn object_name(&mut self, heap: &ExaminedHeap, number: u32) -> String {
        if let Some(known) = self.type_name(heap, number) {
            return known;
        }
        let made = self.made_in(number);
        match (made.function, made.place) {
            (Some(function), Some((file, line))) => format!("made in {function} ({file}:{line})"),
            (Some(function), None) => format!("made in {function}"),
            (None, _) => {
                let site = self.site(number);
                let first = self.frames(site).first().map(|frame| name(frame, false));
                first.map_or_else(|| "from before the attach".to_owned(), |name| format!("made by {name}"))
            }
        }
    }
}
