//! Blocks that are kept by threads: by scoped ones, behind a channel and a lock, in a panic that is
//! caught.
use std::{
    hint::black_box,
    mem::forget,
    panic::{catch_unwind, panic_any},
    sync::{Arc, Mutex, mpsc},
    thread,
};

#[inline(never)]
fn keep(size: usize) {
    forget(black_box(vec![1u8; size]));
}

/// Keeps a block when it is dropped.
struct KeepAtEnd(usize);

impl Drop for KeepAtEnd {
    fn drop(&mut self) {
        keep(self.0);
    }
}

trait Job: Send {
    fn run(&self, depth: usize) -> usize;
}

struct Recursive;

impl Job for Recursive {
    #[inline(never)]
    fn run(&self, depth: usize) -> usize {
        if depth == 0 {
            keep(64);
            return 1;
        }
        black_box(self as &dyn Job).run(depth - 1) + depth
    }
}

#[inline(never)]
fn panics(depth: usize) -> usize {
    let _guard = KeepAtEnd(100 + depth);
    if depth == 0 {
        panic_any("in flight");
    }
    panics(depth - 1) + depth
}

fn main() {
    std::panic::set_hook(Box::new(|_| keep(200)));
    let sums = Arc::new(Mutex::new(Vec::new()));
    let (sender, receiver) = mpsc::channel::<Box<dyn Job>>();
    let worker = thread::Builder::new().name("worker".into()).spawn({
        let sums = Arc::clone(&sums);
        move || {
            for job in receiver {
                sums.lock().expect("nobody panics with it").push(job.run(20));
            }
        }
    });
    thread::scope(|scope| {
        for number in 0..3 {
            scope.spawn(move || keep(300 + number));
        }
        scope.spawn(|| black_box(catch_unwind(|| panics(3)).is_err()));
    });
    for _ in 0..40 {
        sender.send(Box::new(Recursive)).expect("the worker waits");
    }
    drop(sender);
    worker.expect("a thread can be had").join().expect("it does not panic");
    forget(sums);
}
