//! Blocks that are kept: from a generic function, a closure in a sort and a thread.
use std::{collections::HashMap, hint::black_box, mem::forget};

#[inline(never)]
fn keep<T: Clone>(value: &T, count: usize) {
    forget(black_box(vec![value.clone(); count]));
}

#[inline(never)]
fn count_words(text: &str) {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for word in text.split(' ') {
        *counts.entry(word.to_owned()).or_default() += 1;
    }
    forget(black_box(counts));
}

#[inline(never)]
fn sorted(mut values: Vec<u32>) {
    values.sort_by(|a, b| {
        if (*a, *b) == (1, 3) || (*a, *b) == (3, 1) {
            keep(&1u8, 48);
        }
        a.cmp(b)
    });
    forget(black_box(values));
}

fn main() {
    keep(&1u64, 4);
    count_words(black_box("a b a c"));
    sorted(black_box(vec![3, 1, 2]));
    std::thread::spawn(|| keep(&7u16, 80)).join().expect("it does not panic");
}
