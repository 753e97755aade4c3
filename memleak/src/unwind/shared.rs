//! A table as processes share it: its words are held here, or lie in the arrays that are searched,
//! never in both.

use std::sync::{Mutex, MutexGuard, PoisonError};

use memleak_common::unwind::Row;

use super::{UnwindTable, segments::ExecSegments};

/// An [`UnwindTable`] whose words (rows, then page index) can be taken out: [`super::Layout`] does
/// so when it has given them a place in the arrays, and puts them back when the place is needed for
/// others.
#[derive(Debug)]
pub struct SharedTable {
    segments: ExecSegments,
    rows: u32,
    pages: u32,
    code_rows: u64,
    words: Mutex<Option<Vec<u64>>>,
}

impl From<UnwindTable> for SharedTable {
    fn from(table: UnwindTable) -> Self {
        // Both are indices of 32 bits: no row's `pc` is another's, and a page has 256 bytes of
        // text.
        let (rows, pages) = (table.rows.len() as u32, table.pages.len() as u32);
        // The same allocation: `Row` and `u64` have one layout.
        let mut words: Vec<u64> = table.rows.into_iter().map(|Row(word)| word).collect();
        words.reserve_exact(table.pages.len());
        words.extend_from_slice(&table.pages);
        let code_rows = table.stats.code_rows;
        Self { segments: table.segments, rows, pages, code_rows, words: Mutex::new(Some(words)) }
    }
}

impl SharedTable {
    /// The object's text.
    pub fn segments(&self) -> &ExecSegments {
        &self.segments
    }

    /// Rows.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Those of them that were read from machine code.
    pub fn code_rows(&self) -> u64 {
        self.code_rows
    }

    /// Words of the page index, which follow the rows.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Words that the table takes when it is laid out: rows and page index.
    pub fn words(&self) -> usize {
        self.rows as usize + self.pages as usize
    }

    /// The words, for somebody who has a place for them. `None`: they lie in some place already.
    pub(super) fn take_words(&self) -> Option<Vec<u64>> {
        self.lock().take()
    }

    /// Takes back what [`Self::take_words`] gave.
    pub(super) fn put_words(&self, words: Vec<u64>) {
        *self.lock() = Some(words);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<u64>>> {
        // All or nothing at any moment: a thread that died with the lock has left it so.
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
