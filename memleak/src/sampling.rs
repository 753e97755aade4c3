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

    /// How much more than the estimate of these bytes the true number may be in 19 of 20 cases, given
    /// the variance of the estimate; it is less by no more. `None` if nothing is estimated so.
    ///
    /// The variance is an estimate, too, and low if the other one is. So it is taken to grow with
    /// the number (E. B. Wilson's interval): solved for t, it is (e - t)^2 = z^2 v t / e.
    pub fn margin(self, bytes: u64, variance: u128) -> Option<u64> {
        const Z: f64 = 1.96;
        let Self::Bytes(mean) = self else { return None };
        if bytes == 0 {
            return Some(mean.saturating_mul(4)); // -ln 0.05 samples, and one
        }
        let variance = variance as f64;
        let half = Z * Z * variance / bytes as f64 / 2.0;
        Some((half + (Z * Z * variance + half * half).sqrt()).ceil() as u64)
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
        assert_eq!(sampling.margin(1 << 20, sampling.variance_of(Resource::Heap, 1 << 20)), Some(0));
        assert_eq!(sampling.margin(64, sampling.variance_of(Resource::Mmap, 64)), Some(0));
        // sqrt(1000) samples of 4096 bytes each, about.
        let variance: u128 = (0..1000).map(|_| sampling.variance_of(Resource::Heap, 64)).sum();
        let margin = sampling.margin(4_128_000, variance).expect("estimated");
        assert!((258_000..266_000).contains(&margin), "{margin}");
        assert_eq!(Sampling::OneIn(2).margin(4_128_000, variance), None);
    }

    /// Blocks drawn by a generator of our own: 19 of 20 intervals hold the truth.
    #[test]
    fn intervals_hold_the_truth() {
        let (sampling, mean) = (Sampling::Bytes(65_536), 65_536u64);
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        let sizes: Vec<u64> = (0..40_000).map(|at| 16 + at * at % 4001 / 16).chain([8192; 200]).collect();
        let truth: u64 = sizes.iter().sum();
        let mut inside = 0;
        for _ in 0..1000 {
            let mut countdown = memleak_common::sampling::gap(mean, random());
            let (mut bytes, mut variance) = (0u64, 0u128);
            for size in &sizes {
                if countdown > *size {
                    countdown -= size;
                    continue;
                }
                countdown = memleak_common::sampling::gap(mean, random());
                bytes += size * sampling.number_of(Resource::Heap, *size);
                variance += sampling.variance_of(Resource::Heap, *size);
            }
            let bytes = sampling.whole(bytes);
            let margin = sampling.margin(bytes, variance).expect("estimated");
            inside += u32::from(bytes.abs_diff(truth) <= margin);
        }
        assert!((935..=985).contains(&inside), "{inside} of 1000");
    }
}
