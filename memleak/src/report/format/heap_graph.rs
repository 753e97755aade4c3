//! Perfetto's heap graph: all objects of a process with their types, their references and what
//! holds them. The viewer counts what each retains, and finds ways to roots. It was made for Java:
//! a type is a class, and a member a field.

use super::protobuf::Message;
use crate::{
    heap::RootKind,
    report::why::{GraphObject, ObjectGraph},
};

/// Objects of one packet: a packet is read as a whole.
const OBJECTS: usize = 20_000;

/// The packets of a graph, without what all packets of a trace have: messages `HeapGraph`.
pub(super) fn heap_graphs(graph: &ObjectGraph) -> Vec<Message> {
    let parts: Vec<&[GraphObject]> = match graph.objects.as_slice() {
        [] => vec![&[]],
        objects => objects.chunks(OBJECTS).collect(),
    };
    let last = parts.len() - 1;
    let mut packets = Vec::new();
    for (index, part) in parts.into_iter().enumerate() {
        let mut packet = Message::default();
        packet.number(1, graph.pid.into());
        part.iter().for_each(|it| _ = packet.message(2, &object(it)));
        if index == 0 {
            add_names(graph, &mut packet);
            add_roots(graph, &mut packet);
        }
        // The number of the first packet is written as well: a gap is a loss to the viewer.
        packet.number(5, u64::from(index != last)).always(6, index as u64);
        packets.push(packet);
    }
    packets
}

/// Numbers of types and fields begin at 1, since 0 is none.
fn object(object: &GraphObject) -> Message {
    let mut message = Message::default();
    message.number(1, object.address).number(2, u64::from(object.type_number) + 1);
    // Without a size it would have that of its type.
    message.always(3, object.size);
    if !object.references.is_empty() {
        // Two lists of one length.
        message.numbers(4, object.references.iter().map(|(field, _)| u64::from(*field) + 1));
        message.numbers(5, object.references.iter().map(|(_, address)| *address));
    }
    message
}

fn add_names(graph: &ObjectGraph, packet: &mut Message) {
    for (iid, name) in (1..).zip(&graph.fields) {
        let mut field = Message::default();
        field.number(1, iid).text(2, name);
        packet.message(4, &field);
    }
    for (id, name) in (1..).zip(&graph.types) {
        let mut class = Message::default();
        class.number(1, id).text(3, name);
        packet.message(9, &class);
    }
}

fn add_roots(graph: &ObjectGraph, packet: &mut Message) {
    for of_kind in graph.roots.chunk_by(|(a, _), (b, _)| a == b) {
        let kind = of_kind.first().map_or(0, |(kind, _)| root_type(*kind));
        let mut roots = Message::default();
        roots.numbers(1, of_kind.iter().map(|(_, address)| *address)).number(2, kind);
        packet.message(7, &roots);
    }
}

/// `HeapGraphRoot.Type`: the names are Java's.
fn root_type(kind: RootKind) -> u64 {
    const UNKNOWN: u64 = 0;
    const JNI_GLOBAL: u64 = 1;
    const NATIVE_STACK: u64 = 4;
    const THREAD_OBJECT: u64 = 8;
    const VM_INTERNAL: u64 = 13;
    match kind {
        RootKind::Global => JNI_GLOBAL,
        RootKind::Stack | RootKind::Register => NATIVE_STACK,
        RootKind::EndedThread => THREAD_OBJECT,
        RootKind::Kernel => VM_INTERNAL,
        RootKind::Mapping | RootKind::FromBefore | RootKind::LostBefore => UNKNOWN,
    }
}
