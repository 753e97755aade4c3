//! Probes that a program defines itself (USDT, user statically-defined tracing): where in the
//! registers and memory a place's arguments are, as the BPF programs read it (map `USDT_SITES`).

/// Places with different arguments, at most.
pub const MAX_SITES: u32 = 1024;
/// Arguments that are read of a place.
pub const ARGUMENTS: usize = 3;

/// Where an argument is.
pub mod place {
    /// It is [`super::Argument::value`].
    pub const CONSTANT: u8 = 0;
    /// In the register [`super::Argument::register`].
    pub const REGISTER: u8 = 1;
    /// In memory, [`super::Argument::value`] bytes after the address in
    /// [`super::Argument::register`].
    pub const MEMORY: u8 = 2;
    /// As [`MEMORY`], and [`super::Argument::index`] shifted by [`super::Argument::shift`] after
    /// that.
    pub const INDEXED: u8 = 3;
}

/// One argument.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Argument {
    /// One of [`place`].
    pub place: u8,
    /// Its bytes: 1, 2, 4 or 8.
    pub width: u8,
    /// 1 if it is signed.
    pub is_signed: u8,
    /// For [`place::INDEXED`]: bits.
    pub shift: u8,
    /// Where the register is in `struct pt_regs`: bytes.
    pub register: u16,
    /// For [`place::INDEXED`]: likewise.
    pub index: u16,
    /// A constant, or the displacement of an address.
    pub value: i64,
}

impl Argument {
    /// What of a 64-bit word is the argument.
    #[inline(always)]
    pub const fn of_word(&self, word: u64) -> u64 {
        let bits = 64 - 8 * self.width as u32;
        if bits >= 64 {
            return word;
        }
        match self.is_signed {
            0 => word << bits >> bits,
            _ => ((word << bits) as i64 >> bits) as u64,
        }
    }
}

/// A place, by what a probe there needs to know.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SiteRow {
    /// The row whose work it does: a place in the map `PROBES`.
    pub row: u32,
    /// Fills the gap before `arguments`; 0.
    pub reserved: u32,
    /// The first ones; those that it has not got are constants, 0.
    pub arguments: [Argument; ARGUMENTS],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_to_the_arguments_width() {
        let of = |width, is_signed| Argument { width, is_signed, ..Argument::default() };
        assert_eq!(of(4, 0).of_word(0xffff_ffff_ffff_fffe), 0xffff_fffe);
        assert_eq!(of(4, 1).of_word(0x1234_5678_ffff_fffe), -2i64 as u64);
        assert_eq!(of(1, 0).of_word(0x1ff), 0xff);
        assert_eq!(of(8, 1).of_word(u64::MAX), u64::MAX);
        assert_eq!(of(0, 0).of_word(7), 7, "a width that nobody has");
    }
}
