//! Ranges of addresses with a value each, of which the newest wins where they overlap.

use std::collections::BTreeMap;

/// Disjoint half-open ranges of addresses.
#[derive(Clone, Debug)]
pub(super) struct Regions<T> {
    /// By first address: address after the last, and the value.
    ranges: BTreeMap<u64, (u64, T)>,
}

impl<T> Default for Regions<T> {
    fn default() -> Self {
        Self { ranges: BTreeMap::new() }
    }
}

impl<T: Clone> Regions<T> {
    /// Sets `start..end`; what was there before stays known outside it. An empty range changes
    /// nothing.
    pub(super) fn insert(&mut self, start: u64, end: u64, value: T) {
        if start >= end {
            return;
        }
        if let Some((&before, &(before_end, ref old))) = self.ranges.range(..start).next_back()
            && before_end > start
        {
            let old = old.clone();
            if before_end > end {
                self.ranges.insert(end, (before_end, old.clone()));
            }
            self.ranges.insert(before, (start, old));
        }
        while let Some((&inside, &(inside_end, _))) = self.ranges.range(start..end).next() {
            if let Some((_, old)) = self.ranges.remove(&inside)
                && inside_end > end
            {
                self.ranges.insert(end, (inside_end, old));
            }
        }
        self.ranges.insert(start, (end, value));
    }

    /// The value at `address`.
    pub(super) fn get(&self, address: u64) -> Option<&T> {
        let (_, (end, value)) = self.ranges.range(..=address).next_back()?;
        (address < *end).then_some(value)
    }

    /// Number of ranges.
    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same by brute force: one value for each address below 64.
    #[test]
    fn agrees_with_an_array_of_addresses() {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for _ in 0..200 {
            let mut regions = Regions::default();
            let mut truth = [None; 64];
            for value in 0..20 {
                let (start, end) = (next(64), next(65));
                regions.insert(start, end, value);
                for slot in truth.iter_mut().take(end as usize).skip(start as usize) {
                    *slot = Some(value);
                }
                for (address, expected) in truth.iter().enumerate() {
                    assert_eq!(regions.get(address as u64), expected.as_ref());
                }
            }
        }
    }

    #[test]
    fn the_last_address_is_reached() {
        let mut regions = Regions::default();
        regions.insert(0, u64::MAX, 'a');
        assert_eq!(regions.get(u64::MAX - 1), Some(&'a'));
        assert_eq!(regions.get(u64::MAX), None);
    }
}
