//! Probes that a program defines itself (USDT): notes of owner `stapsdt` and type 3 in section
//! `.note.stapsdt`, as systemtap's <sys/sdt.h> writes them
//! (sourceware.org/systemtap/wiki/UserSpaceProbeImplementation).

use super::ElfFile;

/// So much of the section is looked at, bytes: a JVM's has 60 kB.
const MAX_NOTES: u64 = 4 << 20;
/// Places of one probe, at most: a compiler copies a function's to wherever it is inlined.
const MAX_PLACES: usize = 1000;
const NOTE_TYPE: u32 = 3;

/// One place of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsdtPlace {
    /// Address of the instruction, before the load bias.
    pub vaddr: u64,
    /// Address of the counter (`u16`) that says whether somebody listens; 0 if there is none.
    pub semaphore_vaddr: u64,
    /// Where its arguments are, in the assembler's words: `8@%rdi -4@%eax`.
    pub arguments: String,
}

impl ElfFile {
    /// The places of the probe `provider:name`. None of a damaged file.
    pub fn usdt_places(&self, provider: &str, name: &str) -> Vec<UsdtPlace> {
        let notes = self.section(b".note.stapsdt").and_then(|found| self.raw_data(found, MAX_NOTES).ok());
        let Some(notes) = notes else { return Vec::new() };
        // prelink may have moved the program, but not what the notes say of it.
        let base = self.section(b".stapsdt.base").map_or(0, |section| section.address);
        let of_probe = self
            .notes_in(&notes)
            .filter(|(owner, kind, _)| *kind == NOTE_TYPE && owner.starts_with(b"stapsdt\0"))
            .filter_map(|(_, _, note)| self.usdt_place(note, base, [provider, name]));
        of_probe.take(MAX_PLACES).collect()
    }

    fn usdt_place(&self, note: &[u8], base: u64, wanted: [&str; 2]) -> Option<UsdtPlace> {
        let (vaddr_at, base_at, semaphore_at) = (0, 8, 16);
        let texts = note.get(24..)?;
        let word = |at| self.format.field(note, at, 8);
        let mut texts = texts.split(|byte| *byte == 0);
        if [texts.next()?, texts.next()?] != wanted.map(str::as_bytes) {
            return None;
        }
        let arguments = std::str::from_utf8(texts.next()?).ok()?.to_owned();
        let linked_base = word(base_at);
        let moved = if base == 0 || linked_base == 0 { 0 } else { base.wrapping_sub(linked_base) };
        let semaphore = word(semaphore_at);
        Some(UsdtPlace {
            vaddr: word(vaddr_at).wrapping_add(moved),
            semaphore_vaddr: if semaphore == 0 { 0 } else { semaphore.wrapping_add(moved) },
            arguments,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::elf::source::{Budget, Bytes, Source};

    /// What readelf says of the same file: provider, name, location, semaphore, arguments.
    fn by_readelf(path: &str) -> Vec<[String; 5]> {
        let output = std::process::Command::new("readelf").args(["-n", path]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let after = |line: &str, what: &str| {
            line.split_once(what).map(|(_, rest)| rest.split(',').next().unwrap_or("").trim().to_owned())
        };
        let mut all = Vec::new();
        let mut current = <[String; 5]>::default();
        for line in text.lines() {
            if let Some(provider) = after(line, "Provider: ") {
                current[0] = provider;
            } else if let Some(name) = after(line, "Name: ") {
                current[1] = name;
            } else if let Some(location) = after(line, "Location: 0x") {
                current[2] = location;
                current[3] = after(line, "Semaphore: 0x").unwrap_or_default();
            } else if let Some((_, arguments)) = line.split_once("Arguments: ") {
                current[4] = arguments.trim().to_owned();
                all.push(current.clone());
            }
        }
        all
    }

    #[test]
    fn a_real_librarys_probes_are_as_readelf_says() {
        let path = &format!("/usr/lib/{}-linux-gnu/libstdc++.so.6", std::env::consts::ARCH);
        let expected = by_readelf(path);
        let budget = Budget::new(64 << 20);
        let bytes = Bytes::new(fs::read(path).unwrap(), &budget).unwrap();
        let elf = ElfFile::parse(Source::Memory(bytes), &budget).unwrap();
        let mut found = Vec::new();
        let mut names: Vec<_> = expected.iter().map(|it| [it[0].clone(), it[1].clone()]).collect();
        names.sort();
        names.dedup();
        assert!(names.len() >= 3, "{names:?}");
        for [provider, name] in &names {
            for place in elf.usdt_places(provider, name) {
                found.push((
                    [provider.clone(), name.clone()],
                    place.vaddr,
                    place.semaphore_vaddr,
                    place.arguments,
                ));
            }
        }
        let hexadecimal = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0);
        let mut expected: Vec<_> = expected
            .into_iter()
            .map(|[provider, name, location, semaphore, arguments]| {
                ([provider, name], hexadecimal(&location), hexadecimal(&semaphore), arguments)
            })
            .collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }
}
