//! Circles of `Rc` and `Arc`, for --why beside valgrind and LeakSanitizer. Each block has a size of
//! its own, by which a report names it.
//!
//! usage: counted_circles     prints "SHAPE SIZE" for each block, then READY; waits for a line
//!
//! No address of a block may be left where it is not meant to be: all are made deep in the stack,
//! which is overwritten afterwards.

use std::{
    any::Any,
    cell::RefCell,
    hint::black_box,
    io::{Write, stdout},
    rc::Rc,
    sync::{Arc, Mutex, OnceLock},
};

/// The counters of strong and weak pointers, which `Rc` and `Arc` have before the value.
const COUNTERS: usize = 16;

struct Node<const N: usize> {
    other: RefCell<Option<Rc<dyn Any>>>,
    bytes: [u8; N],
}

struct Shared<const N: usize> {
    other: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
    bytes: [u8; N],
}

fn tell(shape: &str, bytes: usize) {
    println!("{shape} {bytes}");
}

#[inline(never)]
fn node<const N: usize>(shape: &str) -> Rc<Node<N>> {
    tell(shape, COUNTERS + size_of::<Node<N>>());
    black_box(Rc::new(Node { other: RefCell::new(None), bytes: [0; N] }))
}

#[inline(never)]
fn shared<const N: usize>(shape: &str) -> Arc<Shared<N>> {
    tell(shape, COUNTERS + size_of::<Shared<N>>());
    black_box(Arc::new(Shared { other: Mutex::new(None), bytes: [0; N] }))
}

#[inline(never)]
fn pair<const N: usize, const M: usize>(shape: &str) -> Rc<Node<N>> {
    let (first, second) = (node::<N>(shape), node::<M>(shape));
    *second.other.borrow_mut() = Some(first.clone());
    *first.other.borrow_mut() = Some(second);
    first
}

#[inline(never)]
fn circles() {
    drop(pair::<3000, 3040>("rc_circle"));
    // Of three, with a block that hangs off it.
    let (first, second, third) =
        (node::<3080>("rc_three"), node::<3120>("rc_three"), node::<3160>("rc_three"));
    let held = node::<3200>("rc_three_hold");
    type Two = (Rc<dyn Any>, Rc<dyn Any>, [u8; 3500]);
    let two: Two = (first.clone(), held, [0; 3500]);
    tell("rc_three_hold", COUNTERS + size_of::<Two>());
    *third.other.borrow_mut() = Some(Rc::new(two));
    *second.other.borrow_mut() = Some(third);
    *first.other.borrow_mut() = Some(second);
    drop(first);
    let (first, second) = (shared::<3240>("arc_circle"), shared::<3280>("arc_circle"));
    *second.other.lock().unwrap() = Some(first.clone());
    *first.other.lock().unwrap() = Some(second);
    drop(first);
    // One that a global holds.
    static HELD: OnceLock<Arc<Shared<3320>>> = OnceLock::new();
    let (first, second) = (shared::<3320>("arc_held"), shared::<3360>("arc_held"));
    *second.other.lock().unwrap() = Some(first.clone());
    *first.other.lock().unwrap() = Some(second);
    assert!(HELD.set(first).is_ok());
    // With a weak pointer back there is no circle, and nothing is left.
    let first = Rc::new_cyclic(|weak| Node::<3400> {
        other: RefCell::new(Some(Rc::new(weak.clone()))),
        bytes: [0; 3400],
    });
    assert_eq!(black_box(&first).bytes[7], 0);
}

/// Overwrites what calls have left below the caller's stack, and in vector registers.
#[inline(never)]
fn scrub() -> u8 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it writes to nothing but the registers that are named.
    unsafe {
        std::arch::asm!(
            "pxor xmm0, xmm0", "pxor xmm1, xmm1", "pxor xmm2, xmm2", "pxor xmm3, xmm3",
            "pxor xmm4, xmm4", "pxor xmm5, xmm5", "pxor xmm6, xmm6", "pxor xmm7, xmm7",
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
        );
    }
    black_box([0_u8; 1 << 16])[77]
}

fn main() {
    circles();
    assert_eq!(scrub(), 0);
    println!("READY");
    stdout().flush().unwrap();
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).unwrap() == 0 {
        std::thread::park();
    }
    // What the program itself has is read, so that nothing of it is left out.
    let unread: fn(&Node<3000>, &Shared<3240>) -> u8 = |node, shared| node.bytes[0] + shared.bytes[0];
    black_box(unread);
    std::process::exit(0);
}
