//! Stretches of code that are analysed together.

/// A stretch of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// `pc` of its first byte.
    pub pc: u32,
    /// Index of its first byte among the bytes of all regions.
    pub at: u32,
    /// Bytes.
    pub len: u32,
}

/// Code of several regions in order of `pc`, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Text {
    pub bytes: Vec<u8>,
    pub regions: Vec<Region>,
}

impl Text {
    /// Index of the byte at a `pc`.
    pub(crate) fn index(&self, pc: u64) -> Option<u32> {
        let pc = u32::try_from(pc).ok()?;
        let after = self.regions.partition_point(|region| region.pc <= pc);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let within = pc - region.pc;
        (within < region.len).then_some(region.at + within)
    }

    /// The region of an index.
    pub(crate) fn region(&self, index: u32) -> Option<Region> {
        let after = self.regions.partition_point(|region| region.at <= index);
        self.regions.get(after.checked_sub(1)?).copied()
    }

    /// `pc` of the byte at an index.
    pub(crate) fn pc(&self, index: u32) -> Option<u64> {
        self.region(index).map(|region| u64::from(region.pc) + u64::from(index - region.at))
    }

    /// The bytes from `index` on.
    pub(crate) fn tail(&self, index: u32) -> &[u8] {
        self.bytes.get(index as usize..).unwrap_or_default()
    }
}

/// What is known of the functions in the text that is analysed. A file that says so can lie.
#[derive(Debug, Default)]
pub(crate) struct Functions {
    /// Where they begin: `pc`s.
    pub starts: Vec<u32>,
    /// Where the parts of functions begin that compilers moved elsewhere.
    pub parts: Vec<u32>,
    /// Where the kernel starts it.
    pub entry: Option<u32>,
    /// Bytes of all the text.
    pub bytes: u64,
}
