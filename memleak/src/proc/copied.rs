//! Code that a process has copied out of its file into memory of no file, at the same addresses, to
//! have it in huge pages (`node --use-largepages`, programs that link a "hugify" runtime).
//!
//! /proc/PID/maps shows it as memory of nobody. It lies between mappings of the file, or beside one,
//! and its bytes are the file's at the offset that follows from that.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::{
    PAGE_SIZE,
    maps::{Backing, Mapping, read_maps},
    memory::{ProcessMemory, ReadMemory},
    target::{LiveTarget, Target as _},
};

const PAGE: usize = PAGE_SIZE as usize;
/// Pages of a mapping that are compared, evenly spread.
const COMPARED: u64 = 48;

/// Reads what `pid` has mapped, as [`read_maps`]; copies of a file's code as mappings of that file.
pub(crate) fn read_maps_of_code(pid: u32) -> io::Result<Vec<Mapping>> {
    let mut mappings = read_maps(pid)?;
    for copy in copies(pid, &mappings) {
        if let Some(mapping) = mappings.iter_mut().find(|mapping| mapping.start == copy.start) {
            *mapping = copy;
        }
    }
    Ok(mappings)
}

/// The copies among `mappings`, which are all that `pid` has, each as if the file were mapped.
pub(crate) fn copies(pid: u32, mappings: &[Mapping]) -> Vec<Mapping> {
    let target = LiveTarget(pid);
    let mut memory = None;
    candidates(mappings)
        .into_iter()
        .filter(|copy| {
            let memory = memory.get_or_insert_with(|| ProcessMemory::open(pid).ok());
            let file = target.open(copy).ok();
            memory.as_ref().zip(file).is_some_and(|(memory, file)| is_copy(copy, memory, &file))
        })
        .collect()
}

/// Code of no file beside code of one, as if it were mapped from there; from before it and from
/// after it, if that comes to different places.
fn candidates(mappings: &[Mapping]) -> Vec<Mapping> {
    let is_code = |mapping: &&Mapping| mapping.executable && !mapping.writable && mapping.readable;
    let mut found: Vec<Mapping> = Vec::new();
    for (at, mapping) in mappings.iter().enumerate().filter(|(_, mapping)| is_code(mapping)) {
        if !mapping.is_anonymous() {
            continue;
        }
        let before = at.checked_sub(1).and_then(|at| mappings.get(at));
        let before = before.filter(|other| other.end == mapping.start);
        let after = mappings.get(at + 1).filter(|other| other.start == mapping.end);
        for file in [before, after].into_iter().flatten().filter(is_code) {
            let offset = mapping.start.wrapping_sub(file.start).wrapping_add(file.file_offset);
            let is_file = matches!(file.backing, Backing::File { .. }) && offset < 1 << 62;
            if is_file && !found.iter().any(|one| one.start == mapping.start && one.file_offset == offset) {
                let (start, end) = (mapping.start, mapping.end);
                found.push(Mapping { start, end, file_offset: offset, ..file.clone() });
            }
        }
    }
    found
}

/// What is in memory is what is in the file. A few pages may differ: breakpoints.
fn is_copy(copy: &Mapping, memory: &dyn ReadMemory, file: &File) -> bool {
    let pages = (copy.end - copy.start) / PAGE as u64;
    let step = pages.div_ceil(COMPARED).max(1);
    let (mut ours, mut theirs) = ([0; PAGE], [0; PAGE]);
    let (mut equal, mut compared) = (0, 0);
    for page in (0..pages).step_by(step as usize) {
        let at = page * PAGE as u64;
        if memory.read_exact_at(copy.start + at, &mut ours).is_err() {
            return false;
        }
        compared += 1;
        // Of a page of one byte over and over nothing follows.
        let says_something = ours.iter().any(|byte| Some(byte) != ours.first());
        let is_there = file.read_exact_at(&mut theirs, copy.file_offset + at).is_ok();
        equal += u64::from(!says_something || (is_there && ours == theirs));
    }
    compared > 0 && equal * 10 >= compared * 9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::maps::parse_maps;

    const MAPS: &[u8] = b"\
00400000-00b6f000 r--p 00000000 fe:00 247584 /usr/bin/node\n\
00b6f000-00c00000 r-xp 0076f000 fe:00 247584 /usr/bin/node\n\
00c00000-02400000 r-xp 00000000 00:00 0 \n\
02400000-025fe000 r-xp 02000000 fe:00 247584 /usr/bin/node\n\
7f0000000000-7f0000001000 r-xp 00000000 00:00 0 \n\
7f0000001000-7f0000002000 rw-p 00000000 fe:00 9 /lib/x\n\
7f0000002000-7f0000003000 rwxp 00000000 00:00 0 \n\
7f0000003000-7f0000004000 r-xp 00005000 fe:00 9 /lib/x\n";

    #[test]
    fn code_of_no_file_beside_a_files_code_may_be_a_copy() {
        let found = candidates(&parse_maps(MAPS).unwrap());
        let [copy] = found.try_into().unwrap();
        assert_eq!((copy.start, copy.end, copy.file_offset), (0xc0_0000, 0x240_0000, 0x80_0000));
        assert_eq!((copy.inode, copy.executable), (247_584, true));
    }

    #[test]
    fn its_bytes_are_the_files() {
        let path = std::env::temp_dir().join(format!("memleak-copied-{}", std::process::id()));
        let bytes: Vec<u8> = (0..40 * PAGE).map(|at| (at / 7 + at / 4096) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        let memory = ProcessMemory::open(std::process::id()).unwrap();
        let at = bytes.as_ptr() as u64;
        let mapping = parse_maps(MAPS).unwrap().remove(1);
        let copy = |offset: u64| Mapping {
            start: at,
            end: at + 20 * PAGE as u64,
            file_offset: offset,
            ..mapping.clone()
        };
        assert!(is_copy(&copy(0), &memory, &file));
        assert!(!is_copy(&copy(PAGE as u64), &memory, &file));
        std::fs::remove_file(path).unwrap();
    }
}
