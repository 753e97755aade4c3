//! aarch64's rows of frames that save `x29` and `x30` apart from each other: clang's without frame
//! pointers, in which either is a callee-saved register like the others.

use super::{Kind, Row};

/// Words above or below where the two are counted from: callee-saved registers are 20.
const PLACES: i64 = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 5;
const PLACE_MASK: u32 = (1 << PLACE_BITS) - 1;
const OFFSET_BITS: u32 = 18;
const OFFSET_MASK: u32 = (1 << OFFSET_BITS) - 1;

/// What a row of the `*_APART*` kinds says. All places are in bytes, as they are in DWARF.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Apart {
    /// The CFA is found by `x29`, and not by `sp`.
    pub by_fp: bool,
    /// From that register to the CFA.
    pub cfa_offset: i64,
    /// From the CFA to where `x29` is saved.
    pub fp_at: i64,
    /// From the CFA to where `x30` is saved.
    pub ra_at: i64,
}

impl Apart {
    /// The row of it. `None` if its offset is negative or 2 MiB and more, or if the two are neither
    /// both in the 32 words below the CFA nor both in the 32 words from the register on.
    pub const fn row(self, pc: u32) -> Option<Row> {
        let words = self.cfa_offset >> 3;
        if self.cfa_offset & 7 != 0 || words < 0 || words > OFFSET_MASK as i64 {
            return None;
        }
        let below = (-8i64).wrapping_sub(self.fp_at);
        let (above, places) = match places(below, (-8i64).wrapping_sub(self.ra_at)) {
            Some(found) => (false, found),
            None => {
                let from_base = self.fp_at.saturating_add(self.cfa_offset);
                match places(from_base, self.ra_at.saturating_add(self.cfa_offset)) {
                    // What is above the CFA is the caller's.
                    Some(found) if self.fp_at < 0 && self.ra_at < 0 => (true, found),
                    _ => return None,
                }
            }
        };
        let kind = match (self.by_fp, above) {
            (false, false) => Kind::SP_APART,
            (false, true) => Kind::SP_APART_ABOVE,
            (true, false) => Kind::FP_APART,
            (true, true) => Kind::FP_APART_ABOVE,
        };
        let low = (places & 3) << OFFSET_BITS;
        Some(Row::from_rule(pc, words as u32 | low | (kind.0 as u32) << 20 | (places >> 2) << 24))
    }

    /// What a row says that is of one of the kinds.
    #[inline(always)]
    pub const fn of(row: Row) -> Self {
        let (kind, rule) = (row.kind().0, row.rule());
        let cfa_offset = ((rule & OFFSET_MASK) as i64) << 3;
        let places = (rule >> OFFSET_BITS) & 3 | (rule >> 24) << 2;
        let (f, r) = ((places & PLACE_MASK) as i64, (places >> PLACE_BITS) as i64);
        let is_above = kind == Kind::SP_APART_ABOVE.0 || kind == Kind::FP_APART_ABOVE.0;
        let (fp_at, ra_at) = if is_above {
            ((f << 3) - cfa_offset, (r << 3) - cfa_offset)
        } else {
            (-8 - (f << 3), -8 - (r << 3))
        };
        Self { by_fp: kind >= Kind::FP_APART.0, cfa_offset, fp_at, ra_at }
    }
}

/// The two places, which are these many bytes away from where they are counted from, in ten bits.
const fn places(fp: i64, ra: i64) -> Option<u32> {
    let far = PLACES << 3;
    if (fp | ra) & 7 != 0 || fp < 0 || ra < 0 || fp >= far || ra >= far {
        return None;
    }
    Some((fp >> 3) as u32 | ((ra >> 3) as u32) << PLACE_BITS)
}

impl Kind {
    /// One of the kinds of [`Apart`], on aarch64.
    #[inline(always)]
    pub const fn is_apart(self) -> bool {
        self.0 >= Self::SP_APART.0 && self.0 <= Self::FP_APART_ABOVE.0
    }
}
