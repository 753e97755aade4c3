//! What several targets need: files in memory, an ELF file around unwind sections, and what must
//! hold of any table.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::FromRawFd as _,
};

use memleak::{
    elf::MappedPart,
    proc::{
        maps::{Backing, Mapping},
        root::Root,
    },
    symbolize::Target,
    unwind::{ExecSegments, UnwindTable},
};

/// A file that is nowhere but in memory, with these bytes.
pub fn memory_file(bytes: &[u8]) -> File {
    // SAFETY: memfd_create(2) takes a string and flags, and returns a new descriptor or -1.
    let descriptor = unsafe { libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(descriptor >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    let mut file = unsafe { File::from_raw_fd(descriptor) };
    file.write_all(bytes).expect("memory is enough");
    file
}

/// A process that maps one file and has a perf map.
pub struct FakeTarget<'a> {
    /// What it has mapped.
    pub object: &'a [u8],
    /// Its perf map.
    pub perf_map: Option<&'a [u8]>,
}

impl Target for FakeTarget<'_> {
    fn open(&self, _mapping: &Mapping) -> io::Result<File> {
        Ok(memory_file(self.object))
    }

    fn memory(&self, _address: u64, _size: usize) -> io::Result<Vec<u8>> {
        Ok(self.object.to_vec())
    }

    fn root(&self) -> io::Result<Root> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn perf_map(&self) -> Option<File> {
        self.perf_map.map(memory_file)
    }
}

/// An executable mapping of 1 MiB of a file, at [`MAPPED_AT`].
pub fn mapping() -> Mapping {
    Mapping {
        start: MAPPED_AT,
        end: MAPPED_AT + (1 << 20),
        executable: true,
        readable: true,
        writable: false,
        file_offset: 0,
        device: (1, 2),
        inode: 3,
        backing: Backing::File { path: "/fuzz".into(), deleted: false },
    }
}

/// Where [`mapping`] is.
pub const MAPPED_AT: u64 = 0x7f00_0000_0000;

/// Where the text of [`elf_with_frames`] is, as vaddr and in the file.
pub const TEXT: std::ops::Range<u64> = 0x1000..0x2000;

/// An ELF file with unwind information. The first bytes of `input` say of which form: bit 0,
/// `.debug_frame`; bit 1, no section headers, so that `.eh_frame` is found by its header; bit 2,
/// aarch64. Two more are the section's vaddr above the text, and the rest is what is in it. `None`
/// where there is nothing.
pub fn elf_with_frames(input: &[u8]) -> Option<Vec<u8>> {
    let (&[form, low, high], section) = input.split_first_chunk::<3>()?;
    let (debug_frame, by_header, machine) =
        (form & 1 != 0, form & 3 == 2, if form & 4 != 0 { 183u16 } else { 62 });
    let address = TEXT.end + u64::from(u16::from_le_bytes([low, high]) & 0x0fff).max(16);
    let mut file = vec![0x90u8; address as usize];
    // A signal's way back, without a row.
    file[0x1800..0x1809].copy_from_slice(&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05]);
    file.extend_from_slice(section);
    let header_at = file.len() as u64;
    // .eh_frame_hdr (LSB Core 10.6.2): version, pcrel sdata4, no count, no table.
    file.extend([1, 0x1b, 0xff, 0xff]);
    file.extend((address.wrapping_sub(header_at + 4) as u32).to_le_bytes());
    let names_at = file.len() as u64;
    let names: &[u8] = b"\0.debug_frame\0.eh_frame\0.shstrtab\0";
    file.extend(names);
    let sections_at = file.len() as u64;
    let section_header = |name: u32, kind: u32, address: u64, offset: u64, size: u64| {
        let mut bytes = Vec::new();
        bytes.extend(name.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        for word in [2, address, offset, size, 0, 1, 0] {
            bytes.extend(u64::to_le_bytes(word));
        }
        bytes
    };
    file.extend([0; 64]);
    file.extend(section_header(if debug_frame { 1 } else { 14 }, 1, address, address, section.len() as u64));
    file.extend(section_header(24, 3, 0, names_at, names.len() as u64));
    let (section_count, section_table) = if by_header { (0, 0) } else { (3u16, sections_at) };
    let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0];
    header.extend(machine.to_le_bytes());
    header.extend(1u32.to_le_bytes());
    for word in [0x1400, 64, section_table] {
        header.extend(u64::to_le_bytes(word));
    }
    header.extend([0; 4]);
    for half in [64, 56, 3, 64, section_count, section_count.saturating_sub(1)] {
        header.extend(u16::to_le_bytes(half));
    }
    let end = file.len() as u64;
    for (kind, flags, start, len) in [
        (1u32, 5u32, TEXT.start, TEXT.end - TEXT.start),
        (1, 4, TEXT.end, end - TEXT.end),
        (0x6474_e550, 4, header_at, 8),
    ] {
        header.extend(kind.to_le_bytes());
        header.extend(flags.to_le_bytes());
        for word in [start, start, start, len, len, 4096] {
            header.extend(u64::to_le_bytes(word));
        }
    }
    file[..header.len()].copy_from_slice(&header);
    Some(file)
}

/// What must hold of a table of any file: rows in order and inside the text, and every look-up by
/// pages finds what a search over all rows finds.
pub fn check_table(table: &UnwindTable) {
    let text_len = table.segments.text_len();
    if let Some(first) = table.rows.first() {
        assert_eq!(first.pc(), 0);
    }
    for pair in table.rows.windows(2) {
        assert!(pair[0].pc() < pair[1].pc() && pair[0].rule() != pair[1].rule(), "{pair:?}");
    }
    assert!(
        table.rows.last().is_none_or(|last| last.pc() <= text_len),
        "{text_len:#x}: {:?}",
        table.rows.last()
    );
    for (page, word) in table.pages.iter().enumerate() {
        let (low, high) = (*word as u32, (*word >> 32) as u32);
        assert!(low < high && high as usize <= table.rows.len(), "page {page}: {low}..{high}");
    }
    let end = table.pages.len() as u64 * memleak_common::unwind::PAGE_BYTES;
    let around = |pc: u32| [pc.saturating_sub(1), pc, pc.saturating_add(1)];
    for pc in table.rows.iter().take(200).flat_map(|row| around(row.pc())) {
        let after = table.rows.partition_point(|row| row.pc() <= pc);
        let by_all = after.checked_sub(1).map(|at| table.rows[at]).filter(|_| u64::from(pc) < end);
        assert_eq!(table.lookup(pc), by_all, "{pc:#x}");
    }
    check_segments(&table.segments);
}

fn check_segments(segments: &ExecSegments) {
    for segment in &segments.segments {
        let start = segment.file_offset & !0xfff;
        let place = MappedPart { start: MAPPED_AT, len: 0x1000, file_offset: start, executable: true };
        let bias = segments.bias(&place).expect("a mapping of a segment is one");
        // `ip - bias` is a pc: what lies at the segment's vaddr is at the distance from the text
        // base.
        let ip = MAPPED_AT.wrapping_add(segment.file_offset - start);
        if segments.segments.len() == 1 {
            assert_eq!(ip.wrapping_sub(bias), segment.vaddr.wrapping_sub(segments.text_base));
        }
    }
}
