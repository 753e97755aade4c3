//! ELF files of targets, read once and within bounds: for probing, unwinding and symbolization
//! alike.
//!
//! [`source`] reads parts of a file and counts what that costs, [`mod@file`] knows headers,
//! sections and segments, [`symbols`] goes over symbol tables of any size, [`notes`] knows build
//! ids and links to debug files, [`debug_files`] finds those, and [`mod@usdt`] knows the probes
//! that a program defines itself. What is read is the target's word: every offset and size is
//! checked, and nothing is read or held beyond its [`Budget`].

pub(crate) mod debug_files;
pub(crate) mod file;
mod notes;
pub(crate) mod source;
pub(crate) mod symbols;
mod usdt;

pub use file::{ElfFile, Encoding, MappedPart, RawSymbol, Section, Segment, load_bias};
pub use source::{Budget, Bytes, Charge, Source};
pub use usdt::UsdtPlace;
