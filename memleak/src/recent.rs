//! What was asked for last, of a few kinds: millions of records have few stacks and fewer owners.

/// Answers by key, one in each of some slots.
#[derive(Clone, Debug)]
pub(crate) struct Recent<K, V>(Box<[Option<(K, V)>]>);

/// A power of two, so that a slot is some bits of a number.
const SLOTS: usize = 512;

impl<K: Copy + PartialEq, V: Copy> Recent<K, V> {
    /// The answer for `key`: the one from before, or else what `find` gives. `slot`: a number that
    /// differs from key to key.
    #[inline]
    pub(crate) fn get(&mut self, slot: u64, key: K, find: impl FnOnce() -> V) -> V {
        match self.0.get_mut(slot as usize % SLOTS) {
            Some(Some((of, answer))) if *of == key => *answer,
            Some(place) => place.insert((key, find())).1,
            None => find(),
        }
    }
}

impl<K: Copy, V: Copy> Default for Recent<K, V> {
    fn default() -> Self {
        Self(vec![None; SLOTS].into_boxed_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_once_for_each_key_in_a_row_and_again_for_one_that_was_driven_out() {
        let mut asked = Vec::new();
        let mut recent = Recent::default();
        for key in [1_u64, 2, 1, 2, 1 + SLOTS as u64, 1] {
            let answer = recent.get(key, key, || {
                asked.push(key);
                key * 10
            });
            assert_eq!(answer, key * 10);
        }
        assert_eq!(asked, [1, 2, 1 + SLOTS as u64, 1]);
    }
}
