//! Archives that are the same bytes whoever makes them, and when: root owns everything, all times
//! are the release's.

use std::io::Write;

use anyhow::Result;
use flate2::{Compression, write::GzEncoder};
use tar::{Builder, EntryType, Header};

/// A file or folder of an archive.
#[derive(Debug)]
pub(super) struct Entry {
    /// Relative to where the archive is unpacked; a folder's ends with a slash.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// A folder has none.
    pub content: Vec<u8>,
}

impl Entry {
    /// A program.
    pub(super) fn program(path: impl Into<String>, content: Vec<u8>) -> Self {
        Self { path: path.into(), mode: 0o755, content }
    }

    /// Any other file.
    pub(super) fn file(path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), mode: 0o644, content: content.into() }
    }

    /// A folder: `path` ends with a slash.
    pub(super) fn folder(path: impl Into<String>, mode: u32) -> Self {
        Self { path: path.into(), mode, content: Vec::new() }
    }
}

/// A tar archive of the entries, in their order. `time` is in seconds since 1970.
pub(super) fn tar(entries: &[Entry], time: u64) -> Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_ustar();
        let kind = if entry.path.ends_with('/') { EntryType::Directory } else { EntryType::Regular };
        header.set_entry_type(kind);
        header.set_mode(entry.mode);
        header.set_mtime(time);
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root")?;
        header.set_groupname("root")?;
        header.set_size(entry.content.len() as u64);
        builder.append_data(&mut header, &entry.path, entry.content.as_slice())?;
    }
    Ok(builder.into_inner()?)
}

/// The bytes as `gzip -9n` packs them: without name and time.
pub(super) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn an_archive_is_the_same_each_time_and_belongs_to_root() -> Result<()> {
        let entries =
            [Entry::folder("a/", 0o1777), Entry::program("a/b", vec![1, 2, 3]), Entry::file("a/c", "text")];
        let archive = tar(&entries, 1_700_000_000)?;
        assert_eq!(archive, tar(&entries, 1_700_000_000)?);
        let mut seen = Vec::new();
        for entry in tar::Archive::new(archive.as_slice()).entries()? {
            let mut entry = entry?;
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            let header = entry.header();
            assert_eq!((header.uid()?, header.gid()?, header.mtime()?), (0, 0, 1_700_000_000));
            seen.push((entry.path()?.display().to_string(), header.mode()?, content));
        }
        let expected = entries.map(|entry| (entry.path, entry.mode, entry.content));
        assert_eq!(seen, expected);
        Ok(())
    }

    #[test]
    fn packing_keeps_neither_name_nor_time() -> Result<()> {
        let packed = gzip(b"text")?;
        // RFC 1952: the flags, and four bytes of time.
        assert_eq!(packed.get(3..8), Some(&[0; 5][..]));
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_string(&mut text)?;
        assert_eq!(text, "text");
        Ok(())
    }
}
