use std::hint::black_box;

use super::*;
use crate::{
    account::Allocators,
    heap::{RegisterSource, RootKind},
    objects::ObjectStore,
};

const HIDE: u64 = 0x5555_0000_aaaa_0000;

/// A block with these words; its address, hidden.
#[inline(never)]
fn make(words: &[u64]) -> u64 {
    Box::into_raw(words.to_vec().into_boxed_slice()).cast::<u64>() as u64 ^ HIDE
}

/// Writes a block's address into another's place.
#[inline(never)]
fn link(block: u64, place: usize, to: u64) {
    // SAFETY: `block` is one that `make` has made, and has that place.
    unsafe { ((block ^ HIDE) as *mut u64).add(place).write_volatile(to ^ HIDE) }
}

/// Overwrites what calls have left on the stack.
#[inline(never)]
fn clean() -> u64 {
    black_box([0_u64; 4096]).iter().sum()
}

static HOLDER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Of our own process, in which a lost pair, what hangs off it, and what a global holds are known.
#[test]
fn our_own_heap_is_examined() {
    let [circle, other, hanging, held, further] = [(); 5].map(|()| make(&[0, 1, 2, 3]));
    link(circle, 0, other);
    link(other, 1, circle);
    link(other, 2, hanging);
    link(held, 3, further);
    HOLDER.store(held ^ HIDE, std::sync::atomic::Ordering::SeqCst);
    clean();
    let hidden = [circle, other, hanging, held, further];
    let sight = || Sight {
        // The list itself is hidden from the look, which would find the addresses in it.
        blocks: hidden
            .iter()
            .enumerate()
            .map(|(number, it)| Block {
                start: it ^ HIDE,
                size: 32,
                birth: number as u64,
                stack: number as u32,
            })
            .collect(),
        ..Sight::default()
    };
    let target = HeapTarget {
        pid: std::process::id(),
        allocators: Allocators { glibc: true, ..Allocators::default() },
        store: ObjectStore::default(),
        from_start: false,
        registers: RegisterSource::default(),
        max_pause: None,
        stopped: None,
        before: 5,
        asked: Some((further ^ HIDE) + 3),
        wants_objects: true,
    };
    let examined = examine(&target, sight(), &mut || Ok(sight()), &|_| Vec::new()).unwrap();
    assert_eq!(examined.scans, 3);
    let class = |block: u64| examined.class_of(block ^ HIDE);
    // The lists of blocks that are looked for are in our own heap as well, so that nothing of ours
    // can be lost; but what holds what can be seen.
    assert_eq!([class(held), class(further)], [Class::Reachable; 2]);
    let way = examined.ways.iter().find(|way| way.block.stack == 3).unwrap();
    assert_eq!(way.root.0, RootKind::Global);
    assert_eq!(way.root.1, HOLDER.as_ptr() as u64);
    let way = examined.ways.iter().find(|way| way.block.stack == 4).unwrap();
    assert_eq!(way.hops.iter().map(|(block, from)| (block.stack, *from)).collect::<Vec<_>>(), [(3, 24)]);
    let objects = examined.objects.as_ref().unwrap();
    let held = objects.blocks.iter().position(|block| block.stack == 3).unwrap();
    let [(24, to)] = objects.pointers(held) else { panic!("{:?}", objects.pointers(held)) };
    assert_eq!(objects.blocks[*to as usize].stack, 4);
    assert!(objects.roots.contains(&(RootKind::Global, held as u32)));
    let asked = examined.asked.unwrap();
    assert_eq!((asked.block.stack, asked.class, asked.way.as_ref()), (4, Class::Reachable, Some(way)));
    assert_eq!(asked.pointed_from.map(|(block, from)| (block.stack, from)), Some((3, 24)));
}

#[test]
fn who_has_gone_is_an_error() {
    let target = HeapTarget {
        pid: i32::MAX as u32,
        allocators: Allocators::default(),
        store: ObjectStore::default(),
        from_start: false,
        registers: RegisterSource::default(),
        max_pause: None,
        stopped: None,
        before: 5,
        asked: None,
        wants_objects: false,
    };
    assert!(examine(&target, Sight::default(), &mut || Ok(Sight::default()), &|_| Vec::new()).is_err());
}
