//! What an allocator maps for itself is not the program's: malloc's mappings are part of malloc's
//! call and do not count, but glibc maps an arena in `free` as well (a thread's first call), which
//! has no return probe, and others map memory in threads of their own. Such a mapping is known by
//! its stack: from the mapping's caller outwards it is in the object that holds the allocator until
//! it comes to the allocator's code. A signal handler that maps something while its thread is in
//! malloc is not part of that call: its own frames are between the two.

use std::{collections::HashMap, ops::Range};

use memleak_common::probe::Resource;

use super::{Outstanding, Snapshot};

/// Where an allocator's code is in an address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// The executable mappings of the object that holds it.
    pub object: Vec<Range<u64>>,
    /// Its functions, or all of the object.
    pub functions: Vec<Range<u64>>,
}

impl Code {
    /// The call that these return addresses (callee first) lead to was made by the allocator.
    fn has_made(&self, ips: &[u64]) -> bool {
        let mut calls = ips.iter().take_while(|ip| is_in(&self.object, **ip));
        calls.any(|ip| is_in(&self.functions, *ip))
    }
}

/// The call before this return address is in one of the ranges. A return address may be the first
/// after the function, whose last instruction is the call.
fn is_in(ranges: &[Range<u64>], ip: u64) -> bool {
    ranges.iter().any(|range| range.start < ip && ip <= range.end)
}

/// A stripped program, of whose functions none is known: it may have an allocator that nothing
/// names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nameless {
    /// Its path.
    pub program: String,
    /// Where its code is mapped.
    pub code: Vec<Range<u64>>,
}

impl Nameless {
    /// The call that these return addresses lead to was made by its code.
    pub fn has_made(&self, ips: &[u64]) -> bool {
        ips.first().is_some_and(|ip| is_in(&self.code, *ip))
    }
}

/// What was taken out of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Own(pub Vec<Outstanding>);

impl Own {
    /// Bytes mapped.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|mapping| mapping.size).fold(0, u64::saturating_add)
    }
}

/// Takes out of `snapshot` what allocators have mapped for themselves. `code_of`: where the
/// allocators' code is in the address space of this number.
pub(crate) fn take_out<'a>(snapshot: &mut Snapshot, code_of: impl Fn(u32) -> &'a [Code]) -> Own {
    let Snapshot { outstanding, stacks, blocks, .. } = snapshot;
    let mut known: HashMap<(u32, u64), bool> = HashMap::new();
    let is_own = |outstanding: &mut Outstanding| {
        if outstanding.resource != Resource::Mmap {
            return false;
        }
        *known.entry((outstanding.space, outstanding.stack_id)).or_insert_with(|| {
            let code = code_of(outstanding.space);
            let ips = stacks.get(&outstanding.stack_id).map(|stack| stack.ips.as_slice()).unwrap_or_default();
            code.iter().any(|code| code.has_made(ips))
        })
    };
    Own(outstanding.extract_if(*blocks.., is_own).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Stack;

    fn outstanding(space: u32, resource: Resource, stack_id: u64) -> Outstanding {
        Outstanding {
            space,
            resource,
            address: 0x1000,
            handle: 0x1000,
            size: 100,
            stack_id,
            time_ns: 0,
            birth: 0,
        }
    }

    #[test]
    fn takes_out_mappings_whose_stacks_pass_the_allocator() {
        const OBJECT: Range<u64> = 1..300;
        let stack = |ips: &[u64]| Stack { ips: ips.to_vec(), ..Stack::default() };
        let mut snapshot = Snapshot {
            outstanding: vec![
                outstanding(1, Resource::Mmap, 1),
                outstanding(1, Resource::Mmap, 2),
                outstanding(1, Resource::Mmap, 3),
                outstanding(1, Resource::Heap, 1),
                outstanding(2, Resource::Mmap, 1),
                outstanding(1, Resource::Mmap, 4),
                outstanding(1, Resource::Mmap, 1),
                outstanding(1, Resource::Mmap, 5),
            ],
            // The second one's caller begins where the allocator's function ends; the third one's
            // is that function's end. The fifth one is a signal handler's, in another object.
            stacks: [
                (1, stack(&[5, 150])),
                (2, stack(&[100, 5])),
                (3, stack(&[200])),
                (5, stack(&[400, 5, 150])),
            ]
            .into(),
            ..Snapshot::default()
        };
        const FUNCTION: Range<u64> = 100..200;
        let code = [Code { object: vec![OBJECT], functions: vec![FUNCTION] }];
        let own = take_out(&mut snapshot, |space| if space == 1 { &code } else { &[] });
        assert_eq!((own.bytes(), own.0.len()), (300, 3));
        let left: Vec<_> =
            snapshot.outstanding.iter().map(|it| (it.space, it.resource, it.stack_id)).collect();
        let expected = [
            (1, Resource::Mmap, 2),
            (1, Resource::Heap, 1),
            (2, Resource::Mmap, 1),
            (1, Resource::Mmap, 4),
            (1, Resource::Mmap, 5),
        ];
        assert_eq!(left, expected);
    }
}
