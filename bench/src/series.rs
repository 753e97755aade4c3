//! Figures of all rounds, by what was measured.

use crate::median::median;

/// For each of `K` what came of it, one value for each round.
pub(crate) struct Series<K>(Vec<(K, Vec<f64>)>);

impl<K> Default for Series<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: PartialEq> Series<K> {
    /// A round's value.
    pub(crate) fn add(&mut self, key: K, value: f64) {
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, values)) => values.push(value),
            None => self.0.push((key, vec![value])),
        }
    }

    /// The median over the rounds; `None` if it was not measured.
    pub(crate) fn median(&self, key: &K) -> Option<f64> {
        let (_, values) = self.0.iter().find(|(known, _)| known == key)?;
        median(values.iter().copied())
    }

    /// What one takes beyond the other in the same round: the median over the rounds, so that what
    /// is slower in a slow minute of the machine is slower in both.
    pub(crate) fn difference(&self, more: &K, less: &K) -> Option<f64> {
        self.compared(more, less, |more, less| more - less)
    }

    /// As many times as long as the other in the same round: the median likewise.
    pub(crate) fn ratio(&self, above: &K, below: &K) -> Option<f64> {
        self.compared(above, below, |above, below| above / below)
    }

    fn compared(&self, one: &K, other: &K, compare: fn(f64, f64) -> f64) -> Option<f64> {
        let values = |key: &K| self.0.iter().find(|(known, _)| known == key).map(|(_, values)| values);
        median(values(one)?.iter().zip(values(other)?).map(|(one, other)| compare(*one, *other)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_apart() {
        let mut series = Series::default();
        for (key, value) in [("a", 1.0), ("b", 8.0), ("a", 3.0), ("a", 4.0)] {
            series.add(key, value);
        }
        assert_eq!((series.median(&"a"), series.median(&"c")), (Some(3.0), None));
        assert_eq!((series.ratio(&"a", &"b"), series.ratio(&"a", &"c")), (Some(0.125), None));
        for (key, value) in [("c", 0.5), ("c", 1.0), ("c", 4.0)] {
            series.add(key, value);
        }
        // Round by round 0.5, 2.0, 0.0, and 2, 3, 1: of the medians it would be 2.0, and 3.
        assert_eq!((series.difference(&"a", &"c"), series.difference(&"a", &"d")), (Some(0.5), None));
        assert_eq!(series.ratio(&"a", &"c"), Some(2.0));
    }
}
