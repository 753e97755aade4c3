//! Which acquires are captured, and for how many each of them stands.

use memleak_common::{
    probe::Resource,
    sampling::{WEIGHT_ONE, weight},
};

/// Which acquires are captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Sampling {
    /// All.
    #[default]
    All,
    /// One in so many (`-s`), more than 1.
    OneIn(u64),
    /// Heap blocks by their bytes, one sample in so many on average (`--sample-bytes`); of other
    /// resources all.
    Bytes(u64),
}

impl Sampling {
    /// [`memleak_common::settings::Settings::sample_rate`].
    pub fn rate(self) -> u64 {
        match self {
            Self::OneIn(rate) => rate.max(1),
            Self::All | Self::Bytes(_) => 1,
        }
    }

    /// [`memleak_common::settings::Settings::sample_bytes`].
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bytes(mean) => mean,
            Self::All | Self::OneIn(_) => 0,
        }
    }

    /// What numbers that the BPF side has counted are, and sums of [`Self::number_of`].
    pub fn whole(self, number: u64) -> u64 {
        match self {
            Self::All => number,
            Self::OneIn(rate) => number.saturating_mul(rate),
            Self::Bytes(_) => number.saturating_add(WEIGHT_ONE / 2) / WEIGHT_ONE,
        }
    }

    /// As how many a captured thing counts, in the unit of the BPF side.
    pub fn number_of(self, resource: Resource, size: u64) -> u64 {
        match self {
            Self::All | Self::OneIn(_) => 1,
            Self::Bytes(mean) if resource == Resource::Heap => weight(mean, size),
            Self::Bytes(_) => WEIGHT_ONE,
        }
    }

    /// The variance of the estimate of bytes, as far as this thing has a part in it:
    /// size^2 (1 - p) / p^2, if it was captured with probability p.
    pub fn variance_of(self, resource: Resource, size: u64) -> u128 {
        match self {
            Self::Bytes(_) => {
                let (weight, one) = (u128::from(self.number_of(resource, size)), u128::from(WEIGHT_ONE));
                let bytes = u128::from(size);
                bytes.saturating_mul(bytes).saturating_mul(weight * (weight - one)) / (one * one)
            }
            Self::All | Self::OneIn(_) => 0,
        }
    }

    /// Half the width of the interval that holds the true number in 19 of 20 cases, given the
    /// variance of its estimate; `None` if nothing is estimated so.
    pub fn margin(self, variance: u128) -> Option<u64> {
        const WIDTH: f64 = 1.96;
        matches!(self, Self::Bytes(_)).then(|| (WIDTH * (variance as f64).sqrt()).ceil() as u64)
    }

    /// What numbers are estimated from, if they are.
    pub fn said(self) -> Option<String> {
        match self {
            Self::All => None,
            Self::OneIn(rate) => Some(format!("estimated from 1 in {rate}")),
            Self::Bytes(mean) => Some(format!("estimated from 1 in {mean} bytes")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_stands_for_what_was_not_captured() {
        let sampling = Sampling::Bytes(65_536);
        // A block of 64 bytes stands for 1024 of its kind and a half, one of 16 MiB for itself.
        assert_eq!(sampling.whole(sampling.number_of(Resource::Heap, 64) * 2), 2049);
        assert_eq!(sampling.whole(sampling.number_of(Resource::Heap, 16 << 20)), 1);
        assert_eq!(sampling.number_of(Resource::Mmap, 64), WEIGHT_ONE);
        assert_eq!(Sampling::OneIn(7).whole(3), 21);
        assert_eq!(Sampling::All.whole(3), 3);
    }

    #[test]
    fn what_is_captured_for_certain_has_no_margin() {
        let sampling = Sampling::Bytes(4096);
        assert_eq!(sampling.margin(sampling.variance_of(Resource::Heap, 1 << 20)), Some(0));
        assert_eq!(sampling.margin(sampling.variance_of(Resource::Mmap, 64)), Some(0));
        // sqrt(1000) samples of 4096 bytes each, about.
        let variance: u128 = (0..1000).map(|_| sampling.variance_of(Resource::Heap, 64)).sum();
        let margin = sampling.margin(variance).expect("estimated");
        assert!((250_000..260_000).contains(&margin), "{margin}");
        assert_eq!(Sampling::OneIn(2).margin(variance), None);
    }
}
