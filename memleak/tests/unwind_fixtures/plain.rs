//! Rust frames: generics, closures, a panic that is caught.
use std::{collections::HashMap, hint::black_box};

#[inline(never)]
fn count<'t>(words: impl Iterator<Item = &'t str>) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for word in words {
        *counts.entry(word.to_owned()).or_default() += 1;
    }
    counts
}

#[inline(never)]
fn large(value: u8) -> usize {
    let bytes = black_box([value; 100_000]);
    bytes.iter().map(|byte| usize::from(*byte)).sum()
}

fn main() {
    let text = black_box("a b a c");
    let caught = std::panic::catch_unwind(|| count(text.split(' ')).len() + large(3));
    println!("{caught:?}");
}
