//! Which pages of a process are in memory: /proc/PID/pagemap
//! (Documentation/admin-guide/mm/pagemap.rst).

use std::{
    fs::File,
    io,
    ops::Range,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
};

use super::{PAGE_SIZE, living::path_of};

/// `PAGEMAP_SCAN`, `_IOWR('f', 16, struct pm_scan_arg)`, of include/uapi/linux/fs.h, since Linux
/// 6.7.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;
/// A page of a file, or of memory that is shared: what was written to is in no file any more.
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// The page of zeros that is mapped where memory was read and never written: nobody's memory.
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PAGE_IS_HUGE: u64 = 1 << 6;

/// Pages found in one call: while it looks at them, the target cannot map or unmap anything.
const PAGES_OF_A_CALL: u64 = 1 << 15;
/// Ranges that one call can give.
const REGIONS: usize = 1024;
/// Calls of one reading: a bound for address spaces of terabytes whose pages lie far apart.
const MAX_CALLS: u32 = 20_000;

/// Entries read at a time if the kernel has no `PAGEMAP_SCAN`, and those of one reading.
const ENTRIES: usize = 1 << 16;
const MAX_ENTRIES: u64 = 1 << 26;
const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_FILE: u64 = 1 << 61;

/// The pages that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WantedPages {
    /// All that are in memory.
    Resident,
    /// Those of them that are the process's own: neither a file's nor shared.
    Private,
}

impl WantedPages {
    fn none_of(self) -> u64 {
        match self {
            Self::Resident => PAGE_IS_PFNZERO,
            Self::Private => PAGE_IS_PFNZERO | PAGE_IS_FILE,
        }
    }

    fn takes_entry(self, entry: u64) -> bool {
        self == Self::Resident || entry & ENTRY_FILE == 0
    }
}

/// Pages of a process's own that hold something, in memory or in swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeptPages {
    /// Their addresses.
    pub range: Range<u64>,
    /// They are parts of huge pages. Not known before Linux 6.7.
    pub are_huge: bool,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The page map of a process.
#[derive(Debug)]
pub(crate) struct Pagemap {
    file: File,
    calls: u32,
    entries: u64,
    scans: bool,
    /// Bytes of pages that were asked for and are in swap.
    pub(crate) swapped: u64,
}

impl Pagemap {
    /// Opens it.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        let file = File::open(path_of(pid, "pagemap"))?;
        Ok(Self { file, calls: 0, entries: 0, scans: true, swapped: 0 })
    }

    /// Adds to `runs` what of `range` is in memory, in order; runs that touch are joined.
    ///
    /// An error: it cannot be read, or it would be too much work.
    pub(crate) fn add_resident(&mut self, range: Range<u64>, runs: &mut Vec<Range<u64>>) -> io::Result<()> {
        self.add(WantedPages::Resident, range, runs)
    }

    /// The same of the pages that are `wanted`.
    pub(crate) fn add(
        &mut self,
        wanted: WantedPages,
        range: Range<u64>,
        runs: &mut Vec<Range<u64>>,
    ) -> io::Result<()> {
        if self.scans {
            let mut swapped = 0;
            let scanned =
                self.scan(wanted, range.clone(), |region| match region.categories & PAGE_IS_SWAPPED {
                    0 => add_run(runs, region.start..region.end),
                    _ => swapped += region.end - region.start,
                });
            self.swapped += swapped;
            match scanned {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                    self.scans = false;
                }
                result => return result,
            }
        }
        self.read(wanted, range, runs)
    }

    /// Adds to `kept` what of `range` holds something of the process's own, in order.
    ///
    /// An error: as of [`Self::add_resident`].
    pub(crate) fn add_kept(&mut self, range: Range<u64>, kept: &mut Vec<KeptPages>) -> io::Result<()> {
        if self.scans {
            let scanned = self.scan(WantedPages::Private, range.clone(), |region| {
                let are_huge = region.categories & PAGE_IS_HUGE != 0;
                kept.push(KeptPages { range: region.start..region.end, are_huge });
            });
            match scanned {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                    self.scans = false;
                }
                result => return result,
            }
        }
        self.entries_of(range, |at, entry| {
            if entry & (ENTRY_PRESENT | ENTRY_SWAPPED) != 0 && WantedPages::Private.takes_entry(entry) {
                kept.push(KeptPages { range: at..at + PAGE_SIZE, are_huge: false });
            }
        })
    }

    fn scan(
        &mut self,
        wanted: WantedPages,
        range: Range<u64>,
        mut found_region: impl FnMut(&PageRegion),
    ) -> io::Result<()> {
        let mut regions = [PageRegion::default(); REGIONS];
        let mut at = range.start;
        while at < range.end {
            self.calls += 1;
            if self.calls > MAX_CALLS {
                return Err(too_much());
            }
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                start: at,
                end: range.end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: REGIONS as u64,
                max_pages: PAGES_OF_A_CALL,
                category_inverted: wanted.none_of(),
                category_mask: wanted.none_of(),
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_HUGE,
                ..ScanArg::default()
            };
            // SAFETY: the descriptor is open, `arg` has the size that it says, and `vec` points to
            // `vec_len` regions that live until the call returns.
            let found = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            let found = usize::try_from(found).map_err(|_| io::Error::last_os_error())?;
            regions.iter().take(found).for_each(&mut found_region);
            if arg.walk_end <= at {
                return Err(io::Error::other("PAGEMAP_SCAN gets nowhere"));
            }
            at = arg.walk_end;
        }
        Ok(())
    }

    fn read(&mut self, wanted: WantedPages, range: Range<u64>, runs: &mut Vec<Range<u64>>) -> io::Result<()> {
        let mut swapped = 0;
        let read = self.entries_of(range, |at, entry| {
            if entry & ENTRY_PRESENT != 0 && wanted.takes_entry(entry) {
                add_run(runs, at..at + PAGE_SIZE);
            } else if entry & ENTRY_SWAPPED != 0 && wanted.takes_entry(entry) {
                swapped += PAGE_SIZE;
            }
        });
        self.swapped += swapped;
        read
    }

    /// An entry of 8 bytes for each page of `range`, whether something is there or not, with the
    /// page's address.
    fn entries_of(&mut self, range: Range<u64>, mut found: impl FnMut(u64, u64)) -> io::Result<()> {
        let mut buffer =
            vec![0; ENTRIES.min(range.end.saturating_sub(range.start).div_ceil(PAGE_SIZE) as usize) * 8];
        let mut at = range.start;
        while at < range.end {
            let pages = ((range.end - at).div_ceil(PAGE_SIZE) as usize).min(ENTRIES);
            self.entries += pages as u64;
            if self.entries > MAX_ENTRIES {
                return Err(too_much());
            }
            let bytes = buffer.get_mut(..pages * 8).unwrap_or_default();
            self.file.read_exact_at(bytes, at / PAGE_SIZE * 8)?;
            for entry in bytes.as_chunks::<8>().0 {
                found(at, u64::from_ne_bytes(*entry));
                at += PAGE_SIZE;
            }
        }
        Ok(())
    }
}

fn too_much() -> io::Error {
    io::Error::other("its pages are too many and too far apart")
}

fn add_run(runs: &mut Vec<Range<u64>>, run: Range<u64>) {
    match runs.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::maps::read_maps;

    /// Ten pages of our own: some written, one only read, the others not touched.
    fn pages() -> (u64, Vec<u64>) {
        // SAFETY: a new mapping of our own, which is never unmapped; the writes and the read stay
        // inside it.
        let start = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let at =
                libc::mmap(std::ptr::null_mut(), 40960, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            for page in [1, 2, 7] {
                at.cast::<u8>().add(page * 4096).write_volatile(1);
            }
            at.cast::<u8>().add(4 * 4096).read_volatile();
            at as u64
        };
        (start, vec![1, 2, 7])
    }

    #[test]
    fn what_was_written_is_resident() {
        let (start, _) = pages();
        let mut pagemap = Pagemap::open(std::process::id()).unwrap();
        let mut runs = Vec::new();
        pagemap.add_resident(start..start + 40960, &mut runs).unwrap();
        let relative: Vec<_> =
            runs.iter().map(|run| ((run.start - start) / PAGE_SIZE, (run.end - start) / PAGE_SIZE)).collect();
        assert!(pagemap.scans, "this kernel has PAGEMAP_SCAN");
        assert_eq!(relative, [(1, 3), (7, 8)]);
    }

    #[test]
    fn the_entries_say_the_same_but_for_the_page_of_zeros() {
        let (start, _) = pages();
        let mut pagemap = Pagemap::open(std::process::id()).unwrap();
        let mut runs = Vec::new();
        pagemap.read(WantedPages::Resident, start..start + 40960, &mut runs).unwrap();
        let relative: Vec<_> =
            runs.iter().map(|run| ((run.start - start) / PAGE_SIZE, (run.end - start) / PAGE_SIZE)).collect();
        assert_eq!(relative, [(1, 3), (4, 5), (7, 8)]);
    }

    /// Pages of files that nobody has written to are the files'.
    #[test]
    fn private_pages_are_those_that_were_written() {
        let file = File::open("/proc/self/exe").unwrap();
        // SAFETY: a new mapping of our own of a file that stays as it is; the write stays inside
        // it.
        let start = unsafe {
            let (both, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
            let at = libc::mmap(std::ptr::null_mut(), 40960, both, libc::MAP_PRIVATE, fd, 0);
            assert_ne!(at, libc::MAP_FAILED);
            at.cast::<u8>().add(3 * 4096).write_volatile(1);
            at.cast::<u8>().add(5 * 4096).read_volatile();
            at as u64
        };
        for scans in [true, false] {
            let mut pagemap = Pagemap { scans, ..Pagemap::open(std::process::id()).unwrap() };
            let mut runs = Vec::new();
            pagemap.add(WantedPages::Private, start..start + 40960, &mut runs).unwrap();
            let touched = start + 12288..start + 16384;
            assert_eq!((runs.as_slice(), pagemap.swapped), (std::slice::from_ref(&touched), 0));
        }
    }

    /// The kernel's own sum, which other threads of this test change meanwhile.
    #[test]
    fn all_of_us_is_what_the_kernel_counts() {
        let pid = std::process::id();
        let mut pagemap = Pagemap::open(pid).unwrap();
        let mut runs = Vec::new();
        for mapping in read_maps(pid).unwrap() {
            pagemap.add_resident(mapping.start..mapping.end, &mut runs).unwrap_or_default();
        }
        let ours: u64 = runs.iter().map(|run| run.end - run.start).sum();
        let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        let theirs: u64 = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
        assert!(ours.abs_diff(theirs) < 2 << 20, "{ours} {theirs}");
    }

    #[test]
    fn too_much_is_an_error() {
        let mut pagemap = Pagemap::open(std::process::id()).unwrap();
        pagemap.entries = MAX_ENTRIES;
        assert!(pagemap.read(WantedPages::Resident, 0x1000..0x2000, &mut Vec::new()).is_err());
        pagemap.calls = MAX_CALLS;
        assert!(pagemap.scan(WantedPages::Resident, 0x1000..0x2000, |_| ()).is_err());
    }
}
