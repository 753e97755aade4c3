//! The filter of the table's sealed segments.

use memleak_common::{
    allocation::AllocationKey,
    table::{FILTER_BITS, FilterHead, KeyHash, VALID},
};

const RECORDS: u64 = 200_000;
const WORDS_OF_A_BLOCK: usize = 64;

fn hash_of(handle: u64) -> KeyHash {
    KeyHash::of(&AllocationKey { space: 7, resource: 1, handle })
}

/// A filter as user space makes it, from tags, of addresses as allocators hand them out.
fn filter() -> (Vec<u64>, u32) {
    let blocks = (RECORDS * FILTER_BITS).div_ceil(64 * WORDS_OF_A_BLOCK as u64).next_power_of_two();
    let bits = blocks.ilog2();
    let mut words = vec![0; (blocks as usize + 1) * WORDS_OF_A_BLOCK];
    for i in 0..RECORDS {
        let hash = KeyHash::of_tag(hash_of(0x5555_0000_0000 + 48 * i).tag(VALID));
        words[place(hash, bits)] |= hash.filter_mask();
    }
    (words, bits)
}

fn place(hash: KeyHash, bits: u32) -> usize {
    hash.filter_block(bits) as usize * WORDS_OF_A_BLOCK + hash.filter_word() as usize
}

fn has(words: &[u64], bits: u32, handle: u64) -> bool {
    let hash = hash_of(handle);
    words[place(hash, bits)] & hash.filter_mask() == hash.filter_mask()
}

#[test]
fn what_is_in_it_is_found_and_little_else() {
    let (words, bits) = filter();
    assert!((0..RECORDS).all(|i| has(&words, bits, 0x5555_0000_0000 + 48 * i)));
    let wrong = (0..RECORDS).filter(|i| has(&words, bits, 0x7777_0000_0000 + 64 * i)).count();
    assert!(wrong as u64 * 50 < RECORDS, "{wrong}");
    assert!(words[..WORDS_OF_A_BLOCK].iter().all(|word| *word == 0), "the head's place is used");
}

#[test]
fn a_head_is_one_word() {
    let head = FilterHead { covers: 9, bits: 18 };
    let FilterHead { covers, bits } = FilterHead::unpacked(head.packed());
    assert_eq!((covers, bits), (9, 18));
}

#[test]
fn a_filter_of_one_block_has_a_place_for_all() {
    assert!((0..1000).all(|i| hash_of(i).filter_block(0) == 1));
}
