//! A report as it is, to make any other form of later, elsewhere: `--save FILE`, and then
//! `memleak report FILE` or `memleak diff`.
//!
//! One object of JSON: `{"memleak_report":1,"report":{...}}`. Its fields are those of
//! [`crate::report::model`].

use std::{
    fs::File,
    io::{self, BufReader, Cursor, Read, Write},
    path::Path,
};

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use super::{Format, Kind, Options, kind::FileForm};
use crate::{report::model::Report, words::BinaryBytes};

/// `--save`.
pub const KIND: Kind = Kind { name: "save", has_events: false, new };

/// Grows when older versions of memleak can no longer read what is written.
const VERSION: u32 = 1;

fn new(options: &Options) -> Box<dyn Format> {
    FileForm::boxed(options, true, |report, _, out| write_saved(report, out))
}

/// Writes a report.
fn write_saved(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &SavedReport { memleak_report: VERSION, report })?;
    out.write_all(b"\n")
}

#[derive(Serialize, Deserialize)]
struct SavedReport<R> {
    memleak_report: u32,
    report: R,
}

/// Why a saved report cannot be read: `<why>; <what to do>`.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The system says so.
    #[error("cannot be read: {0}; name a file that --save has written")]
    System(#[from] io::Error),
    /// It is something else.
    #[error("is not a saved report; make one with memleak --save FILE")]
    Other,
    /// It begins well.
    #[error("is damaged: {0}; save it again")]
    Damaged(String),
    /// There is no room for it.
    #[error(
        "is larger than {0} when it is unpacked, a quarter of the free memory; read it on a larger machine"
    )]
    Larger(BinaryBytes),
    /// It is a later one's.
    #[error("is of a later memleak (form {0}); read it with that one")]
    Newer(u32),
}

/// Reads a saved report, compressed by gzip or not, of so many bytes at most when it is unpacked.
/// What is none is not read.
pub fn read(path: &Path, most: u64) -> Result<Report, SavedError> {
    read_from(File::open(path)?, most)
}

/// The same from memory.
pub fn read_bytes(bytes: &[u8]) -> Result<Report, SavedError> {
    read_from(bytes, u64::MAX)
}

/// Bytes that are looked at before more is read.
const HEAD: u64 = 256;

fn read_from(file: impl Read, most: u64) -> Result<Report, SavedError> {
    /// What a gzip file begins with (RFC 1952).
    const GZIP: [u8; 2] = [0x1f, 0x8b];
    let (first, file) = begins(file, GZIP.len() as u64)?;
    match first == GZIP {
        true => read_plain(MultiGzDecoder::new(file), most),
        false => read_plain(file, most),
    }
}

fn read_plain(text: impl Read, most: u64) -> Result<Report, SavedError> {
    let (first, text) = begins(text, HEAD).map_err(damaged)?;
    match version(&first) {
        Some(version) if version > VERSION => return Err(SavedError::Newer(version)),
        Some(_) => {}
        None => return Err(SavedError::Other),
    }
    let text = BufReader::with_capacity(1 << 16, BoundedText { text, left: most });
    let mut json = serde_json::Deserializer::from_reader(text);
    let saved = SavedReport::<Report>::deserialize(&mut json).and_then(|saved| json.end().map(|()| saved));
    saved.map(|saved| saved.report).map_err(|error| match error.io_error_kind() {
        Some(io::ErrorKind::FileTooLarge) => SavedError::Larger(BinaryBytes(most)),
        Some(_) => damaged(error.into()),
        None => SavedError::Damaged(in_short(&error)),
    })
}

/// What cannot be unpacked is damaged; all else is the system's.
fn damaged(error: io::Error) -> SavedError {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            SavedError::Damaged(in_short(&error))
        }
        _ => SavedError::System(error),
    }
}

/// An error that may repeat what is in the file, of any length.
fn in_short(error: &dyn std::fmt::Display) -> String {
    /// Characters.
    const MOST: usize = 200;
    let error = error.to_string();
    let short: String = error.chars().take(MOST).collect();
    let rest = if short.len() < error.len() { "..." } else { "" };
    format!("{short}{rest}")
}

/// The first bytes, as many as there are, and a reader that begins with them.
fn begins(mut file: impl Read, length: u64) -> io::Result<(Vec<u8>, impl Read)> {
    let mut first = Vec::new();
    file.by_ref().take(length).read_to_end(&mut first)?;
    Ok((first.clone(), Cursor::new(first).chain(file)))
}

/// The version of a saved report; `None` if it begins as nothing that we have written.
fn version(first: &[u8]) -> Option<u32> {
    let after = |text: &'_ str, token: &str| text.trim_start().strip_prefix(token).map(str::to_owned);
    let first = String::from_utf8_lossy(first);
    let number = ["{", "\"memleak_report\"", ":"]
        .iter()
        .try_fold(first.into_owned(), |text, token| after(&text, token))?;
    let number = number.trim_start();
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    match number.get(..digits)? {
        "" => None,
        digits => Some(digits.parse().unwrap_or(u32::MAX)),
    }
}

/// So many bytes at most; one more is an error.
struct BoundedText<R> {
    text: R,
    left: u64,
}

impl<R: Read> Read for BoundedText<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.text.read(buffer)?;
        self.left = self.left.checked_sub(length as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(length)
    }
}
