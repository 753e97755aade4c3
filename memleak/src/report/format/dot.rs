//! `--why-dot`: the circles that `--why` has found, as a graph for dot
//! (<https://graphviz.org/doc/info/lang.html>): a box for each shape, in it a node for each stack
//! whose blocks hold each other.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::{
    Format, Kind, Options,
    kind::FileForm,
    why::{Shown, amount, times, type_or_size},
};
use crate::{
    escape::printable,
    report::{
        model::Report,
        why::{Cycle, CycleMember},
    },
    words::Grouped,
};

/// `--why-dot`.
pub const KIND: Kind = Kind { name: "why-dot", has_events: false, new };

fn new(options: &Options) -> Box<dyn Format> {
    FileForm::boxed(options, false, |report, _, out| write_dot(report, out))
}

/// Writes the circles of a report; without `--why` there are none.
fn write_dot(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "digraph cycles {{")?;
    writeln!(out, "  node [shape=box];")?;
    let cycles = report.why.iter().flat_map(|why| &why.cycles);
    cycles.enumerate().try_for_each(|(number, cycle)| write_cycle(number, cycle, out))?;
    writeln!(out, "}}")
}

/// What tells a node from others of its circle: its stack, or else what is written of it.
type Node = (Option<usize>, String);

fn write_cycle(number: usize, cycle: &Cycle, out: &mut dyn Write) -> io::Result<()> {
    let mut label = format!("cycle of {}, {}", Grouped(cycle.length), times(cycle.count));
    label += &format!(", {}", amount(cycle.bytes));
    if cycle.retained_bytes > cycle.bytes {
        label += &format!(", holding {}", amount(cycle.retained_bytes));
    }
    writeln!(out, "  subgraph cluster_{number} {{")?;
    writeln!(out, "    label={};", quoted(&label))?;
    let from = |member: &CycleMember| -> Node {
        (member.stack, type_or_size(member.type_name.as_deref(), member.size))
    };
    let to = |member: &CycleMember| -> Node {
        (member.to_stack, type_or_size(member.to.as_deref(), member.to_size))
    };
    let mut nodes: BTreeMap<Node, (usize, String)> = BTreeMap::new();
    for member in &cycle.members {
        let label = format!("{}\n{}", from(member).1, Shown(&member.made_in));
        let next = nodes.len();
        nodes.entry(from(member)).or_insert((next, label));
    }
    // Each is where a link begins, but for what is not known of all stacks.
    for member in &cycle.members {
        let next = nodes.len();
        nodes.entry(to(member)).or_insert_with(|| (next, to(member).1));
    }
    for (place, label) in nodes.values() {
        writeln!(out, "    c{number}_{place} [label={}];", quoted(label))?;
    }
    let place = |node: Node| nodes.get(&node).map_or(0, |(place, _)| *place);
    for member in &cycle.members {
        let field = member.field.as_deref().map(|field| format!(".{field} ")).unwrap_or_default();
        let label = quoted(&format!("{field}+{:#x}", member.offset));
        writeln!(
            out,
            "    c{number}_{} -> c{number}_{} [label={label}];",
            place(from(member)),
            place(to(member))
        )?;
    }
    for (at, hanging) in cycle.hanging.iter().enumerate() {
        let name = hanging.type_name.as_deref().unwrap_or("blocks");
        let label = format!(
            "{} {name}, {}\n{}",
            Grouped(hanging.count),
            amount(hanging.bytes),
            Shown(&hanging.made_in)
        );
        writeln!(out, "    c{number}_h{at} [label={}, style=dashed];", quoted(&label))?;
        writeln!(out, "    c{number}_0 -> c{number}_h{at} [style=dashed];")?;
    }
    writeln!(out, "  }}")
}

/// A string of dot's.
fn quoted(text: &str) -> String {
    let lines: Vec<String> =
        text.split('\n').map(|line| printable(line).replace('\\', "\\\\").replace('"', "\\\"")).collect();
    format!("\"{}\"", lines.join("\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::why::{HangingBlocks, MadeIn};

    #[test]
    fn a_circle_is_a_graph() {
        let made_in = |line| MadeIn {
            function: Some("main".to_owned()),
            place: Some(("/src/word\"count.cc".to_owned(), line)),
        };
        let member = |of: &str, field: &str, to: &str, stack, to_stack| CycleMember {
            type_name: Some(of.to_owned()),
            field: Some(field.to_owned()),
            offset: 0x18,
            to: Some(to.to_owned()),
            stack: Some(stack),
            to_stack: Some(to_stack),
            made_in: made_in(70 + stack as u32),
            ..CycleMember::default()
        };
        let cycle = Cycle {
            length: 2,
            count: 3,
            bytes: 360,
            retained_bytes: 4096,
            members: vec![member("a", "b_", "b", 8, 9), member("b", "a_", "a", 9, 8)],
            hanging: vec![HangingBlocks { type_name: None, count: 7, bytes: 70, made_in: made_in(64) }],
            ..Cycle::default()
        };
        let mut out = Vec::new();
        write_cycle(0, &cycle, &mut out).unwrap();
        let expected = r#"  subgraph cluster_0 {
    label="cycle of 2, 3 times, 360 bytes, holding 4 KiB";
    c0_0 [label="a\nmain  word\"count.cc:78"];
    c0_1 [label="b\nmain  word\"count.cc:79"];
    c0_0 -> c0_1 [label=".b_ +0x18"];
    c0_1 -> c0_0 [label=".a_ +0x18"];
    c0_h0 [label="7 blocks, 70 bytes\nmain  word\"count.cc:64", style=dashed];
    c0_0 -> c0_h0 [style=dashed];
  }
"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
