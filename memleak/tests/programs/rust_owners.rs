//! Objects of Rust's that own each other in circles, by containers, trait objects and closures:
//! three times each. Prints READY and waits.

use std::{
    cell::RefCell,
    collections::HashMap,
    hint::black_box,
    io::{Write, stdout},
    rc::Rc,
    sync::{Arc, Mutex},
};

trait Handler {
    fn handle(&self) -> usize;
}

struct Widget {
    name: String,
    parent: Option<Rc<RefCell<Panel>>>,
}

struct Panel {
    children: Vec<Rc<RefCell<Widget>>>,
    title: String,
}

type Callback = Box<dyn Fn() -> usize + Send>;

struct Bus {
    callbacks: Mutex<Vec<Callback>>,
    topics: Mutex<HashMap<String, Arc<Topic>>>,
}

struct Topic {
    bus: Arc<Bus>,
    name: String,
}

struct Registry {
    items: RefCell<Vec<Rc<dyn Handler>>>,
}

struct Owner {
    registry: Rc<Registry>,
    words: [u64; 20],
}

impl Handler for Owner {
    fn handle(&self) -> usize {
        self.words.len() + self.registry.items.borrow().len()
    }
}

#[inline(never)]
fn panels() {
    let panel = Rc::new(RefCell::new(Panel { children: Vec::new(), title: "a panel's title".to_owned() }));
    for number in 0..3 {
        let name = format!("widget {number} of the panel");
        let widget = Rc::new(RefCell::new(Widget { name, parent: Some(panel.clone()) }));
        panel.borrow_mut().children.push(widget);
    }
    let panel = panel.borrow();
    black_box((panel.title.len(), panel.children.iter().map(|it| it.borrow().name.len()).sum::<usize>()));
    black_box(panel.children[0].borrow().parent.is_some());
}

#[inline(never)]
fn buses(topics: usize) {
    let bus = Arc::new(Bus { callbacks: Mutex::default(), topics: Mutex::default() });
    let own = bus.clone();
    bus.callbacks.lock().unwrap().push(Box::new(move || own.topics.lock().unwrap().len()));
    for number in 0..topics {
        let topic = Arc::new(Topic { bus: bus.clone(), name: format!("topic {number}") });
        black_box((&topic.bus, &topic.name));
        bus.topics.lock().unwrap().insert(format!("key {number}"), topic);
    }
}

#[inline(never)]
fn registries() {
    let registry = Rc::new(Registry { items: RefCell::default() });
    let owner = Rc::new(Owner { registry: registry.clone(), words: [7; 20] });
    black_box(owner.handle());
    registry.items.borrow_mut().push(owner);
}

#[inline(never)]
fn scrub() -> u8 {
    black_box([0_u8; 1 << 16])[77]
}

fn main() {
    for number in 0..black_box(3) {
        panels();
        buses(5 + number);
        registries();
    }
    assert_eq!(scrub(), 0);
    println!("READY");
    stdout().flush().unwrap();
    loop {
        std::thread::park();
    }
}
