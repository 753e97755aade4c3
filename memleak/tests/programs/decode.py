# Reads a profile or a trace by Google's protobuf library, with classes that protoc makes of the format's definition, and
# says what is in it as JSON: sums by function, each counted once for a stack.
#
# usage: decode.py profile|trace DEFINITION.proto FOLDER FILE    (FOLDER: for what protoc makes)
import collections
import gzip
import importlib
import json
import os
import subprocess
import sys

kind, definition, folder, path = sys.argv[1:]


def generated():
    subprocess.run(["protoc", "-I", os.path.dirname(definition), "--python_out", folder, definition], check=True)
    sys.path.insert(0, folder)
    return importlib.import_module(os.path.basename(definition).removesuffix(".proto") + "_pb2")


def add(sums, functions, values):
    for function in set(functions):
        old = sums.get(function, [0] * len(values))
        sums[function] = [one + more for one, more in zip(old, values)]


def assert_all_known(message):
    assert not message.UnknownFields(), message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.label == field.LABEL_REPEATED else [value]:
                assert_all_known(one)


def numbered(messages):
    found = {message.id: message for message in messages}
    assert len(found) == len(messages) and 0 not in found
    return found


def profile(pb2):
    with gzip.open(path) as file:
        read = pb2.Profile.FromString(file.read())
    assert_all_known(read)
    text = read.string_table
    assert text[0] == "" and len(set(text)) == len(text), text
    mappings, locations, functions = (numbered(it) for it in (read.mapping, read.location, read.function))
    sums, total, labels = {}, [0] * len(read.sample_type), collections.Counter()
    for sample in read.sample:
        assert len(sample.value) == len(total) and sample.location_id, sample
        stack = [locations[id] for id in sample.location_id]
        for location in stack:
            mapping = mappings.get(location.mapping_id)
            assert not location.mapping_id or mapping.memory_start <= location.address < mapping.memory_limit, location
        names = [text[functions[line.function_id].name] for location in stack for line in location.line]
        add(sums, names, sample.value)
        total = [one + more for one, more in zip(total, sample.value)]
        labels.update(f"{text[label.key]}={text[label.str]}" for label in sample.label)
    types = [f"{text[it.type]}/{text[it.unit]}" for it in read.sample_type]
    return {"types": types, "default": text[read.default_sample_type], "period": read.period, "total": total,
            "labels": labels, "functions": sums}


def trace(pb2):
    with open(path, "rb") as file:
        read = pb2.Trace.FromString(file.read())
    assert_all_known(read)
    interned, dumps, graphs = [], [], []
    for packet in read.packet:
        assert packet.trusted_packet_sequence_id == 1 and packet.timestamp, packet
        interned += [packet.interned_data] if packet.HasField("interned_data") else []
        dumps += [packet.profile_packet] if packet.HasField("profile_packet") else []
        graphs += [packet.heap_graph] if packet.HasField("heap_graph") else []
    interned, = interned
    assert [dump.index for dump in dumps] == list(range(len(dumps)))
    names = {it.iid: it.str.decode() for it in interned.function_names}
    frames = {it.iid: names[it.function_name_id] for it in interned.frames}
    assert {it.mapping_id for it in interned.frames} <= {it.iid for it in interned.mappings}
    stacks = {it.iid: [frames[id] for id in it.frame_ids] for it in interned.callstacks}
    sums, total = {}, [0, 0]
    for process in dumps[-1].process_dumps:
        for sample in process.samples:
            values = [sample.alloc_count - sample.free_count, sample.self_allocated - sample.self_freed]
            add(sums, stacks[sample.callstack_id], values)
            total = [one + more for one, more in zip(total, values)]
    return {"total": total, "functions": sums, "graph": graph(graphs)}


# Objects of each type: their number and bytes; and how many of them are reached from roots by way of others.
def graph(packets):
    assert [packet.index for packet in packets] == list(range(len(packets)))
    assert [packet.continued for packet in packets] == [True] * (len(packets) - 1) + [False] * bool(packets)
    types = {it.id: it.class_name for packet in packets for it in packet.types}
    fields = {it.iid for packet in packets for it in packet.field_names}
    objects = {it.id: it for packet in packets for it in packet.objects}
    assert len(objects) == sum(len(packet.objects) for packet in packets)
    sums = {}
    for it in objects.values():
        assert len(it.reference_field_id) == len(it.reference_object_id) and set(it.reference_field_id) <= fields, it
        add(sums, [types[it.type_id]], [1, it.self_size])
    todo = [id for packet in packets for root in packet.roots for id in root.object_ids]
    reached = set()
    while todo:
        id = todo.pop()
        if id in objects and id not in reached:
            reached.add(id)
            todo += objects[id].reference_object_id
    return {"types": sums, "reached": len(reached)}


print(json.dumps({"profile": profile, "trace": trace}[kind](generated())))
