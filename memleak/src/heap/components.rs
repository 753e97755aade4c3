//! Strongly connected components.

/// The component of each of `count` nodes, by Tarjan's algorithm without recursion: the numbers are
/// in an order in which each component comes after those that it leads to.
pub(super) fn components<I: Iterator<Item = u32>>(count: usize, edges: impl Fn(u32) -> I) -> Vec<u32> {
    const NEW: u32 = u32::MAX;
    let (mut first, mut targets) = (Vec::with_capacity(count + 1), Vec::new());
    for node in 0..count as u32 {
        first.push(targets.len() as u32);
        targets.extend(edges(node));
    }
    first.push(targets.len() as u32);
    let mut found = vec![NEW; count];
    // When each was come to, and the earliest that it leads back to.
    let (mut entered, mut low) = (vec![NEW; count], vec![0_u32; count]);
    let (mut open, mut calls): (Vec<u32>, Vec<(u32, u32)>) = (Vec::new(), Vec::new());
    let (mut time, mut components) = (0, 0);
    for start in 0..count {
        if entered[start] != NEW {
            continue;
        }
        calls.push((start as u32, first[start]));
        while let Some((node, next)) = calls.last_mut() {
            let at = *node as usize;
            if entered[at] == NEW {
                (entered[at], low[at]) = (time, time);
                time += 1;
                open.push(*node);
            }
            if *next < first[at + 1] {
                let to = targets[*next as usize] as usize;
                *next += 1;
                if entered[to] == NEW {
                    calls.push((to as u32, first[to]));
                } else if found[to] == NEW {
                    low[at] = low[at].min(entered[to]);
                }
                continue;
            }
            calls.pop();
            if let Some((caller, _)) = calls.last() {
                low[*caller as usize] = low[*caller as usize].min(low[at]);
            }
            if low[at] == entered[at] {
                while let Some(member) = open.pop() {
                    found[member as usize] = components;
                    if member as usize == at {
                        break;
                    }
                }
                components += 1;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use petgraph::{algo::tarjan_scc, graph::DiGraph};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against petgraph.
        #[test]
        fn components_are_those_of_another(edges in prop::collection::vec((0..60_u32, 0..60_u32), 0..120)) {
            let ours = components(60, |node| {
                edges.iter().filter(move |(from, _)| *from == node).map(|(_, to)| *to)
            });
            let mut graph = DiGraph::<(), ()>::new();
            let nodes: Vec<_> = (0..60).map(|_| graph.add_node(())).collect();
            for (from, to) in &edges {
                graph.add_edge(nodes[*from as usize], nodes[*to as usize], ());
            }
            let theirs = tarjan_scc(&graph);
            for component in &theirs {
                for node in component {
                    prop_assert_eq!(ours[node.index()], ours[component[0].index()]);
                }
            }
            prop_assert_eq!(ours.iter().max(), Some(&(theirs.len() as u32 - 1)));
            for (from, to) in edges {
                prop_assert!(ours[from as usize] >= ours[to as usize]);
            }
        }
    }

    #[test]
    fn a_long_chain_needs_no_deep_stack() {
        let count = 1_000_000;
        let ring = components(count, |node| std::iter::once((node + 1) % count as u32));
        assert!(ring.iter().all(|number| *number == 0));
    }
}
