//! A report as it is, to make any other form of later, elsewhere: `--save FILE`, and then
//! `memleak report FILE` or `memleak diff`.
//!
//! One object of JSON: `{"memleak_report":1,"report":{...}}`. Its fields are those of
//! [`crate::report::model`].

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{Format, Kind, Options, kind::FileForm};
use crate::report::model::Report;

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

/// What is read to know of which version a file is.
#[derive(Deserialize)]
struct Version {
    memleak_report: Option<u32>,
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
    Damaged(serde_json::Error),
    /// It is a later one's.
    #[error("is of a later memleak (form {0}); read it with that one")]
    Newer(u32),
}

/// Reads a saved report, compressed by gzip or not.
pub fn read(path: &Path) -> Result<Report, SavedError> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    read_bytes(&bytes)
}

/// The same from memory.
pub fn read_bytes(bytes: &[u8]) -> Result<Report, SavedError> {
    /// What a gzip file begins with (RFC 1952).
    const GZIP: &[u8] = &[0x1f, 0x8b];
    let mut plain = Vec::new();
    let bytes = match bytes.starts_with(GZIP) {
        true => {
            flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain)?;
            &plain
        }
        false => bytes,
    };
    match serde_json::from_slice::<Version>(bytes).map(|head| head.memleak_report) {
        Ok(Some(version)) if version > VERSION => return Err(SavedError::Newer(version)),
        Ok(Some(_)) => {}
        Err(error) if error.is_eof() && bytes.starts_with(b"{\"memleak_report\"") => {
            return Err(SavedError::Damaged(error));
        }
        Ok(None) | Err(_) => return Err(SavedError::Other),
    }
    let saved: SavedReport<Report> = serde_json::from_slice(bytes).map_err(SavedError::Damaged)?;
    Ok(saved.report)
}
