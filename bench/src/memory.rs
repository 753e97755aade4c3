//! What memory a tracer takes: its own, and what the kernel holds for it.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

/// `BPF_F_MMAPABLE` (include/uapi/linux/bpf.h): memleak's maps of unwind tables alone have it.
const MMAPABLE: u64 = 1 << 10;

/// Bytes of memory at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    /// `VmHWM`: the most that was resident so far.
    pub peak: f64,
    /// `RssAnon`: its own.
    pub anonymous: f64,
    /// `RssFile`: pages of files that are mapped, its own program's above all. The page cache has
    /// them once for all, and can drop them.
    pub file: f64,
    /// `RssShmem`.
    pub shared: f64,
    /// Of the kernel, for maps of unwind tables.
    pub unwind_maps: f64,
    /// Of the kernel, for all other BPF maps.
    pub other_maps: f64,
}

impl Memory {
    /// Of the tracer that was started as process `pid`: itself, or what sudo started.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let pid = tracer(pid)?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
            // proc_pid_status(5): kB of 1024 bytes.
            number.map(|kib| kib * 1024.0).with_context(|| format!("no {name} in /proc/{pid}/status"))
        };
        let (unwind_maps, other_maps) = map_bytes(Path::new(&format!("/proc/{pid}/fdinfo")))?;
        Ok(Self {
            peak: bytes("VmHWM")?,
            anonymous: bytes("RssAnon")?,
            file: bytes("RssFile")?,
            shared: bytes("RssShmem")?,
            unwind_maps,
            other_maps,
        })
    }

    /// What is resident.
    pub(crate) fn resident(self) -> f64 {
        self.anonymous + self.file + self.shared
    }

    /// The kernel's.
    pub(crate) fn maps(self) -> f64 {
        self.unwind_maps + self.other_maps
    }
}

/// memleak's process: `pid`, or the youngest of what it has started.
pub(crate) fn tracer(mut pid: u32) -> Result<u32> {
    while fs::read_to_string(format!("/proc/{pid}/comm"))?.trim_end() == "sudo" {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let child = children.split_whitespace().next_back().context("sudo has started nothing")?;
        pid = child.parse()?;
    }
    Ok(pid)
}

/// Bytes of the kernel's for the maps that a folder of fdinfo files shows (kernel/bpf/syscall.c,
/// `bpf_map_show_fdinfo`): for those that can be mapped into memory, and for the others.
fn map_bytes(folder: &Path) -> Result<(f64, f64)> {
    let mut maps = BTreeMap::new();
    for entry in folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))? {
        // A descriptor can be closed meanwhile.
        let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
        let word = |name: &str| {
            let rest = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(rest.trim())
        };
        let number = |name: &str| word(name)?.parse::<f64>().ok();
        if let (Some(id), Some(bytes)) = (word("map_id"), number("memlock")) {
            let flags = word("map_flags").and_then(|word| word.strip_prefix("0x"));
            let flags = flags.and_then(|word| u64::from_str_radix(word, 16).ok()).unwrap_or(0);
            maps.insert(id.to_owned(), (flags & MMAPABLE != 0, bytes));
        }
    }
    let sum = |mmapable: bool| maps.values().filter(|map| map.0 == mmapable).map(|map| map.1).sum();
    Ok((sum(true), sum(false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_read() -> Result<()> {
        let memory = Memory::of(std::process::id())?;
        assert!(memory.peak >= memory.anonymous && memory.anonymous > 0.0 && memory.file > 0.0, "{memory:?}");
        assert!(memory.resident() > 1e5, "{memory:?}");
        Ok(())
    }

    #[test]
    fn a_map_counts_once_whatever_descriptors_it_has() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("memleak-fdinfo-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let map = |name: &str, id: u32, flags: &str, bytes: u64| {
            let text = format!("pos:\t0\nmap_flags:\t{flags}\nmemlock:\t{bytes}\nmap_id:\t{id}\n");
            fs::write(folder.join(name), text)
        };
        map("3", 7, "0x400", 1000)?;
        map("4", 7, "0x400", 1000)?;
        map("5", 8, "0x1", 20)?;
        map("6", 9, "0x0", 3)?;
        fs::write(folder.join("0"), "pos:\t0\nflags:\t02\n")?;
        assert_eq!(map_bytes(&folder)?, (1000.0, 23.0));
        fs::remove_dir_all(&folder)?;
        Ok(())
    }
}
