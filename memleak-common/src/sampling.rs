//! Sampling by bytes: each byte that is acquired begins a sample with the same small probability,
//! so that the gaps between samples are distributed exponentially, and what is left of one is
//! distributed as a whole one (tcmalloc's sampler.h and jemalloc's prof.c do the same).

/// Most bytes that a gap may have on average: 1 TiB.
pub const MAX_SAMPLE_BYTES: u64 = 1 << 40;

/// The weight of a block that is captured for certain: weights are in units of 2^-10.
pub const WEIGHT_ONE: u64 = 1 << 10;

/// For how many blocks of its size a captured one of `size` bytes stands, in units of 2^-10:
/// 1 / (1 - exp(-`size` / `mean`)), with an error of less than 0.2 %.
#[inline(always)]
pub fn weight(mean: u64, size: u64) -> u64 {
    let size = size.max(1);
    if size <= mean {
        // 1/u + 1/2 + u/12: the next term is u^3/720.
        return (mean << 10) / size + (1 << 9) + (size << 10) / mean.max(1) / 12;
    }
    if size >= 8 * mean {
        return WEIGHT_ONE;
    }
    // exp(-u) as (1 - u/64)^64 would be too rough: exp(-u/64) by its series, six times squared.
    let part = ((size << 26) / mean.max(1)) >> 6;
    let one = 1u64 << 26;
    let mut power = one - part + ((part * part) >> 27) - ((part * part) >> 26) * part / (6 * one);
    for _ in 0..6 {
        power = (power * power) >> 26;
    }
    (WEIGHT_ONE << 26) / (one - power).max(1)
}

/// ln 2, in units of 2^-16.
const LN_2: u64 = 45_426;
/// Bits behind the binary point.
const BITS: u32 = 16;

/// Bytes to the next sample, at least 1, given the mean (at most [`MAX_SAMPLE_BYTES`]) and 32
/// random bits: -ln(u) times the mean, for a `u` in 2^-32..=1.
#[inline(always)]
pub fn gap(mean: u64, random: u32) -> u64 {
    let below_32 = (32 << BITS) - log2(random as u64 + 1);
    ((((mean * below_32) >> BITS) * LN_2) >> BITS) + 1
}

/// The binary logarithm of a number from 1 to 2^32, in units of 2^-16, rounded down: by squaring,
/// which gives a bit of it each time.
#[inline(always)]
fn log2(number: u64) -> u64 {
    // 32 halvings are enough, and a loop with an end is what a verifier can follow.
    let mut whole = 0;
    while whole < 32 && number >> (whole + 1) != 0 {
        whole += 1;
    }
    // From 1 to 2, in units of 2^-31.
    let mut rest = number << 31 >> whole;
    let mut bits = 0;
    for _ in 0..BITS {
        rest = (rest * rest) >> 31;
        bits <<= 1;
        if rest >> 32 != 0 {
            bits |= 1;
            rest >>= 1;
        }
    }
    (whole << BITS) | bits
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn gaps_are_those_of_the_logarithm() {
        for mean in [1u64, 4096, 65_536, 1 << 30, MAX_SAMPLE_BYTES] {
            for random in [0, 1, 2, 1000, 0x7fff_ffff, 0x8000_0000, 0xdead_beef, u32::MAX - 1, u32::MAX] {
                let exact = -((f64::from(random) + 1.0) / 2f64.powi(32)).ln() * mean as f64;
                let found = gap(mean, random) as f64;
                assert!(
                    (found - exact).abs() <= 2.0 + mean as f64 / 20_000.0 + exact / 10_000.0,
                    "{mean} {random}: {found} for {exact}"
                );
            }
        }
    }

    #[test]
    fn weights_are_those_of_the_exponential_function() {
        for mean in [1u64, 16, 4096, 65_536, 1 << 30, MAX_SAMPLE_BYTES] {
            for size in [
                1u64,
                2,
                24,
                100,
                4096,
                5000,
                65_535,
                65_536,
                65_537,
                100_000,
                300_000,
                600_000,
                1 << 30,
                1 << 39,
            ] {
                let exact = 1.0 / (1.0 - (-(size as f64) / mean as f64).exp());
                let found = weight(mean, size) as f64 / WEIGHT_ONE as f64;
                assert!((found / exact - 1.0).abs() < 0.002, "{mean} {size}: {found} for {exact}");
            }
        }
    }

    #[test]
    fn a_gap_is_as_long_as_the_mean() {
        let draws = 1 << 16;
        let sum: u64 = (0..draws).map(|at| gap(65_536, at << 16 | 0x8000)).sum();
        let mean = sum as f64 / f64::from(draws);
        assert!((mean / 65_536.0 - 1.0).abs() < 0.001, "{mean}");
    }
}
