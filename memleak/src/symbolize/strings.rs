//! Names out of a section of strings: of the 20 MB of a large library's a report needs a hundred.

use std::sync::Arc;

use super::bytes::{Budget, Bytes, Source};

/// Longest string that is looked at, bytes; longer ones are cut.
const MAX_STRING: usize = 1 << 16;

/// Sections from this size on (bytes) are not held, but read again for each look-up.
const READ_AGAIN_FROM: usize = 1 << 20;

/// Bytes that are read first: most strings are shorter.
const FIRST_READ: u64 = 256;

/// Strings of a section (gABI, "String Table").
#[derive(Debug)]
pub struct Strings(Place);

#[derive(Debug)]
enum Place {
    Memory(Bytes),
    File { source: Arc<Source>, offset: u64, size: u64, budget: Budget },
}

impl Strings {
    /// Those of a section that is at `offset` of `source` and has the bytes `all`.
    pub fn new(source: &Arc<Source>, offset: u64, all: Bytes, budget: &Budget) -> Self {
        Self(match **source {
            Source::File(_) if all.len() >= READ_AGAIN_FROM => {
                Place::File { source: source.clone(), offset, size: all.len() as u64, budget: budget.clone() }
            }
            _ => Place::Memory(all),
        })
    }

    /// The string at `at`, cut after 64 KiB. `None`: there is none, or its file has been cut short since.
    pub fn get(&self, at: u32) -> Option<Vec<u8>> {
        let (source, offset, size, budget) = match &self.0 {
            Place::Memory(bytes) => return string_at(bytes, at).map(<[u8]>::to_vec),
            Place::File { source, offset, size, budget } => (source, *offset, *size, budget),
        };
        let at = u64::from(at);
        let left = size.checked_sub(at)?.min(MAX_STRING as u64);
        let read = |len: u64| source.part(offset.checked_add(at)?, len, budget).ok();
        let first = left.min(FIRST_READ);
        let bytes = read(first)?;
        let is_whole = first == left || bytes.contains(&0);
        let bytes = if is_whole { bytes } else { read(left)? };
        string_at(&bytes, 0).map(<[u8]>::to_vec)
    }
}

/// The string at `at` of a whole section, cut after 64 KiB.
pub fn string_at(strings: &[u8], at: u32) -> Option<&[u8]> {
    let rest = strings.get(at as usize..)?;
    let rest = rest.get(..MAX_STRING).unwrap_or(rest);
    rest.split(|&byte| byte == 0).next()
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt as _};

    use super::*;

    #[test]
    fn strings_are_the_same_from_memory_and_from_a_file() {
        const OFFSET: u64 = 4321;
        let path = std::env::temp_dir().join(format!("memleak-strings-{}", std::process::id()));
        let file = File::create_new(&path).unwrap();
        let mut section = vec![0];
        for len in [5, 254, 255, 256, 257, 3000, MAX_STRING - 1, MAX_STRING, MAX_STRING + 1] {
            section.extend(std::iter::repeat_n(b'a' + (len % 26) as u8, len));
            section.push(0);
        }
        section.resize(READ_AGAIN_FROM, b'z'); // the last one has no end
        file.write_all_at(&section, OFFSET).unwrap();
        file.write_all_at(b"of another section", OFFSET + section.len() as u64).unwrap();

        let budget = Budget::new(1 << 30);
        let source = Arc::new(Source::from_file(File::open(&path).unwrap()).unwrap());
        let all = source.part(OFFSET, section.len() as u64, &budget).unwrap();
        let again = Strings::new(&source, OFFSET, all, &budget);
        assert!(matches!(again.0, Place::File { .. }));
        let len = section.len() as u32;
        let starts = (0..len - 1).filter(|at| section[*at as usize] == 0).map(|at| at + 1);
        for at in starts.chain([0, 3, 800, len - 70_000, len - 300, len - 1, len, len + 1, u32::MAX]) {
            assert_eq!(again.get(at).as_deref(), string_at(&section, at), "{at}");
        }
        assert_eq!(again.get(1).as_deref(), Some(&b"fffff"[..]));

        file.set_len(OFFSET + 100).unwrap();
        assert_eq!((again.get(1), again.get(len - 1)), (None, None));
        std::fs::remove_file(path).unwrap();
    }
}
