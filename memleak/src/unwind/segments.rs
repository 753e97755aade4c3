//! An object's text: what `pc`s are counted from, and where it is in the file and in memory.

use super::UnwindError;
use crate::elf::{ElfFile, MappedPart, Segment, load_bias};

/// Most bytes of text: the page index has a word for each 256 of them. A browser has 200 MB.
const MAX_TEXT: u64 = 1 << 30;

/// An object's executable segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecSegments {
    /// The vaddr that is `pc` 0: where the first segment begins.
    pub text_base: u64,
    /// In order of address.
    pub segments: Vec<Segment>,
}

impl ExecSegments {
    pub(super) fn read(elf: &ElfFile) -> Result<Self, UnwindError> {
        let file_len = elf.source().length();
        let mut segments: Vec<_> = elf
            .segments
            .iter()
            .filter(|segment| segment.executable)
            .map(|segment| Segment {
                len: segment.len.min(file_len.saturating_sub(segment.file_offset)),
                ..*segment
            })
            .filter(|segment| segment.len > 0)
            .collect();
        segments.sort_by_key(|segment| segment.vaddr);
        let text_base = segments.first().ok_or(UnwindError::NoText)?.vaddr;
        let segments = Self { text_base, segments };
        // Text may have holes between its segments, but the page index pays for them: a file has to
        // be about as long.
        let span = segments.end()?.wrapping_sub(text_base);
        if span > MAX_TEXT || span > file_len.saturating_mul(8).saturating_add(16 << 20) {
            return Err(UnwindError::TextTooLarge { span });
        }
        Ok(segments)
    }

    /// The vaddr after the last segment.
    fn end(&self) -> Result<u64, UnwindError> {
        let ends = self.segments.iter().map(|segment| segment.vaddr.checked_add(segment.len));
        ends.max().flatten().ok_or(UnwindError::TextTooLarge { span: u64::MAX })
    }

    /// Bytes from the text base to the end of the last segment.
    pub fn text_len(&self) -> u32 {
        self.end().ok().and_then(|end| u32::try_from(end - self.text_base).ok()).unwrap_or(0)
    }

    /// The `pc`s of `start..end` (vaddrs), cut off where their segment ends. `None`: in no segment.
    pub(crate) fn clip(&self, start: u64, end: u64) -> Option<(u32, u32)> {
        let at = self.segments.partition_point(|segment| segment.vaddr <= start);
        let segment = self.segments.get(at.checked_sub(1)?)?;
        let end = end.min(segment.vaddr.checked_add(segment.len)?);
        let pc = |vaddr: u64| u32::try_from(vaddr.checked_sub(self.text_base)?).ok();
        if start < end { Some((pc(start)?, pc(end)?)) } else { None }
    }

    /// Offset in the file of the byte at `vaddr`.
    pub(crate) fn file_offset(&self, vaddr: u64) -> Option<u64> {
        let at = self.segments.partition_point(|segment| segment.vaddr <= vaddr);
        self.segments.get(at.checked_sub(1)?)?.offset_of(vaddr)
    }

    /// `ip - pc` for what is mapped at `place`. `None`: it is of no segment.
    pub fn bias(&self, place: &MappedPart) -> Option<u64> {
        Some(load_bias(&self.segments, place)?.wrapping_add(self.text_base))
    }
}
