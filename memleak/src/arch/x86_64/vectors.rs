//! The state of the vector unit as XSAVE and XSAVES lay it out (Intel SDM, volume 1, chapter 13).

use std::arch::x86_64::{__cpuid, __cpuid_count};

/// Where the words that say what there is begin: XSTATE_BV, then XCOMP_BV.
const HEADER: usize = 512;
/// Bit of XCOMP_BV: each part follows the one before.
const IS_COMPACTED: u64 = 1 << 63;
/// Parts by their bits in XSTATE_BV: x87 and SSE, which have fixed places, each part of them in
/// bytes; and of the others those that programs may have pointers in: AVX, AVX-512 (three).
const X87: (u64, std::ops::Range<usize>) = (1, 32..160);
const SSE: (u64, std::ops::Range<usize>) = (2, 160..416);
const VECTORS: u64 = 0b1110_0100;
/// Where the others begin if they follow each other.
const FIRST_OTHER: usize = 576;
/// The leaf of CPUID that tells of them.
const LEAF: u32 = 0xd;

/// One of the other parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    number: u32,
    bytes: usize,
    /// Its place, if they do not follow each other.
    offset: usize,
    /// It begins at a multiple of 64 bytes.
    is_aligned: bool,
}

/// The words of the vector registers in use. `state` is as long as it was read.
pub fn vector_words(state: &[u64]) -> Vec<u64> {
    words_of(state, &parts())
}

/// The parts that this processor has.
fn parts() -> Vec<Part> {
    if __cpuid(0).eax < LEAF {
        return Vec::new();
    }
    let part = |number: u32| {
        let found = __cpuid_count(LEAF, number);
        let (bytes, offset) = (found.eax as usize, found.ebx as usize);
        (bytes > 0).then_some(Part { number, bytes, offset, is_aligned: found.ecx & 2 != 0 })
    };
    (2..63).filter_map(part).collect()
}

fn words_of(state: &[u64], parts: &[Part]) -> Vec<u64> {
    let at = |byte: usize| state.get(byte / 8).copied().unwrap_or(0);
    let (in_use, compacted) = (at(HEADER), at(HEADER + 8));
    let mut words = Vec::new();
    let mut take = |range: std::ops::Range<usize>| {
        words.extend(state.get(range.start / 8..range.end / 8).unwrap_or_default());
    };
    // What is not in use is left over from who knows when.
    for (bit, range) in [X87, SSE] {
        if in_use & bit != 0 {
            take(range);
        }
    }
    let mut next = FIRST_OTHER;
    for part in parts {
        let bit = 1_u64 << part.number;
        let start = if compacted & IS_COMPACTED == 0 {
            part.offset
        } else if compacted & bit != 0 {
            let start = if part.is_aligned { next.next_multiple_of(64) } else { next };
            next = start + part.bytes;
            start
        } else {
            continue;
        };
        if in_use & bit & VECTORS != 0 {
            take(start..start + part.bytes);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a processor with AVX, protection keys and AVX-512 has them.
    const PARTS: [Part; 3] = [
        Part { number: 2, bytes: 256, offset: 576, is_aligned: false },
        Part { number: 5, bytes: 64, offset: 1088, is_aligned: false },
        Part { number: 6, bytes: 512, offset: 1152, is_aligned: true },
    ];

    fn state(in_use: u64, compacted: u64) -> Vec<u64> {
        let mut state: Vec<u64> = (0..352).collect();
        (state[64], state[65]) = (in_use, compacted);
        state
    }

    #[test]
    fn parts_are_where_the_header_says() {
        let words = |from: usize, to: usize| (from as u64 / 8..to as u64 / 8).collect::<Vec<_>>();
        assert_eq!(words_of(&state(0, 0), &PARTS), [0; 0]);
        assert_eq!(words_of(&state(2, 0), &PARTS), words(160, 416));
        assert_eq!(
            words_of(&state(1 << 2 | 1 << 6, 0), &PARTS),
            [words(576, 832), words(1152, 1664)].concat()
        );
        // AVX, then the upper halves at the next multiple of 64.
        let compacted = IS_COMPACTED | 1 << 2 | 1 << 6;
        assert_eq!(words_of(&state(1 << 6, compacted), &PARTS), words(832, 1344));
        let compacted = IS_COMPACTED | 1 << 5 | 1 << 6;
        assert_eq!(words_of(&state(1 << 6, compacted), &PARTS), words(640, 1152));
        // What was cut off is not there.
        assert_eq!(words_of(&state(1 << 2, 0)[..80], &PARTS), [0; 0]);
    }

    #[test]
    fn this_processor_tells_its_parts() {
        if std::arch::is_x86_feature_detected!("avx") {
            let avx = parts().into_iter().find(|part| part.number == 2).expect("AVX");
            assert_eq!((avx.bytes, avx.offset), (256, 576));
        }
    }
}
