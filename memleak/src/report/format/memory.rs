//! The account of the targets' memory in the text form: one line, and one for what it shows.

use std::{
    fmt,
    io::{self, Write},
};

use crate::{
    account::{Finding, Memory},
    target::allocator::AllocatorKind,
};

/// Writes `\tmemory: 41.2 MB, +30.1 MB since the attach: 20 MB outstanding, ...`, without the parts
/// that are nothing, and what is to be said of it.
pub(super) fn write_memory(memory: &Memory, out: &mut dyn Write) -> io::Result<()> {
    let parts = [
        (memory.outstanding_resident, "outstanding"),
        (memory.allocator_free.unwrap_or(0), "free inside glibc's arenas"),
        (memory.allocator, the_allocators(memory)),
        (memory.thread_stacks, "stacks"),
        (memory.files, "files"),
        (memory.before_attach, "from before the attach"),
    ];
    let sign = if memory.rss_growth < 0 { '-' } else { '+' };
    write!(
        out,
        "\tmemory: {}, {sign}{} since the attach:",
        HumanBytes(memory.rss),
        HumanBytes(memory.rss_growth.unsigned_abs())
    )?;
    for (bytes, what) in parts.iter().filter(|(bytes, _)| *bytes > 0) {
        write!(out, " {} {what},", HumanBytes(*bytes))?;
    }
    match memory.unaccounted {
        // A few pages are what two readings differ by.
        0..=16384 => writeln!(out, " all accounted for")?,
        bytes => writeln!(out, " {} not accounted for", HumanBytes(bytes))?,
    }
    finding(memory).iter().try_for_each(|line| writeln!(out, "\t{line}"))
}

/// What the account shows, in one line.
pub(super) fn finding(memory: &Memory) -> Option<String> {
    match memory.finding? {
        Finding::FreeInside => Some(free_inside(memory)),
        Finding::Unaccounted => Some(format!(
            "most growth is not accounted for: {} were handed out by no function that is traced (-v says which allocators \
             were found; name another by -O or -S, or its functions by --acquire and --release)",
            HumanBytes(memory.unaccounted)
        )),
        Finding::OlderMappings => Some(format!(
            "most growth is in memory that was mapped before tracing began: {} (the heap of a language's runtime, or an \
             allocator's reserve); to see who uses it trace the program from its start",
            HumanBytes(memory.older_growth)
        )),
    }
}

fn free_inside(memory: &Memory) -> String {
    let read = HumanBytes(memory.allocator_free.unwrap_or(0));
    let Some(unread) = memory.allocator_free_at_least.filter(|bytes| *bytes > read.0) else {
        return format!(
            "not a leak of blocks: {read} are free inside glibc's arenas (fragmentation; malloc_trim, MALLOC_ARENA_MAX)"
        );
    };
    let allocator = memory.unread_allocator;
    let remedy = match allocator {
        Some(AllocatorKind::Jemalloc) => "; MALLOC_CONF=background_thread:true,dirty_decay_ms:1000",
        Some(AllocatorKind::Tcmalloc) => "; MallocExtension::ReleaseFreeMemory, TCMALLOC_RELEASE_RATE",
        Some(AllocatorKind::Mimalloc) => "; mi_collect, MIMALLOC_PURGE_DELAY",
        _ => "",
    };
    let inside = allocator.map_or("its allocators".to_owned(), |allocator| allocator.to_string());
    format!(
        "not a leak of blocks: {} or more are free inside {inside} or its own (fragmentation{remedy})",
        HumanBytes(unread)
    )
}

fn the_allocators(memory: &Memory) -> &'static str {
    match memory.allocator_free {
        Some(_) => "the allocator's own",
        None => "the allocator's own or free inside it",
    }
}

/// Bytes as people say them: `3.1 GB`, by thousands.
struct HumanBytes(u64);

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
        if self.0 < 1000 {
            return write!(f, "{} bytes", self.0);
        }
        let (mut number, mut unit) = (self.0 as f64 / 1000.0, 0);
        while number >= 999.95 && unit + 1 < UNITS.len() {
            number /= 1000.0;
            unit += 1;
        }
        write!(f, "{number:.1} {}", UNITS.get(unit).unwrap_or(&""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_said_by_thousands() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_951, "1.0 MB"),
            (3_100_000_000, "3.1 GB"),
            (u64::MAX, "18446744.1 TB"),
        ] {
            assert_eq!(HumanBytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn no_line_looks_like_a_stacks() {
        let memory = Memory {
            rss: 41_200_000,
            rss_growth: -1_500_000,
            outstanding_resident: 20_000_000,
            allocator_free: Some(3_100_000),
            allocator_free_at_least: None,
            unread_allocator: None,
            allocator: 0,
            thread_stacks: 8192,
            files: 5_600_000,
            before_attach: 0,
            unaccounted: 123_456,
            older_growth: 0,
            finding: Some(Finding::FreeInside),
        };
        let mut out = Vec::new();
        write_memory(&memory, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\tmemory: 41.2 MB, -1.5 MB since the attach: 20.0 MB outstanding, 3.1 MB free inside glibc's arenas, \
             8.2 kB stacks, 5.6 MB files, 123.5 kB not accounted for\n\
             \tnot a leak of blocks: 3.1 MB are free inside glibc's arenas (fragmentation; malloc_trim, MALLOC_ARENA_MAX)\n"
        );
    }

    #[test]
    fn what_is_free_at_the_least_is_said_of_whom() {
        let memory = Memory {
            allocator_free_at_least: Some(3_100_000),
            unread_allocator: Some(AllocatorKind::Jemalloc),
            finding: Some(Finding::FreeInside),
            ..Memory::default()
        };
        let line = finding(&memory).unwrap();
        let start = "not a leak of blocks: 3.1 MB or more are free inside jemalloc or its own (fragmentation; MALLOC_CONF";
        assert!(line.starts_with(start), "{line}");
        let line = finding(&Memory { unread_allocator: None, ..memory }).unwrap();
        assert!(line.ends_with(" inside its allocators or its own (fragmentation)"), "{line}");
    }
}
