//! Objects of Rust's that point to each other in circles and do not own each other so, or do: twice
//! each. Prints READY and waits.

use std::{
    cell::RefCell,
    hint::black_box,
    io::{Write, stdout},
    mem::forget,
    rc::{Rc, Weak},
    sync::{Arc, Mutex},
};

struct Node {
    parent: RefCell<Weak<Node>>,
    children: RefCell<Vec<Rc<Node>>>,
    words: [u64; 20],
}

/// A tree that whoever held it has forgotten.
#[inline(never)]
fn trees() {
    let node = || Node { parent: RefCell::default(), children: RefCell::default(), words: black_box([1; 20]) };
    let root = Rc::new(node());
    for _ in 0..3 {
        let child = Rc::new(node());
        *child.parent.borrow_mut() = Rc::downgrade(&root);
        root.children.borrow_mut().push(child);
    }
    black_box(root.words.len());
    forget(root);
}

struct Knows {
    me: Weak<Knows>,
    words: [u64; 30],
}

#[inline(never)]
fn knows_itself() {
    let made = Rc::new_cyclic(|me| Knows { me: me.clone(), words: black_box([1; 30]) });
    black_box((made.words.len(), made.me.strong_count()));
    forget(made);
}

struct Own {
    me: Mutex<Option<Arc<Own>>>,
    words: [u64; 40],
}

#[inline(never)]
fn owns_itself() {
    let made = Arc::new(Own { me: Mutex::new(None), words: black_box([1; 40]) });
    *made.me.lock().unwrap() = Some(made.clone());
    black_box(made.words.len());
}

#[inline(never)]
fn scrub() -> u8 {
    let all = black_box([0_u8; 1 << 16]);
    black_box(all[77])
}

fn main() {
    for make in [trees, knows_itself, owns_itself] {
        (0..2).for_each(|_| make());
        scrub();
    }
    stdout().write_all(b"READY\n").unwrap();
    loop {
        std::thread::park();
    }
}
