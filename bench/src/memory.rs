//! What memory a tracer takes: its own, and what the kernel holds for it.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::{privilege, run};

use crate::processes::INSTEAD;

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
    /// Of the kernel, for maps of unwind tables; zero where it was not asked for.
    pub unwind_maps: f64,
    /// Of the kernel, for all other BPF maps.
    pub other_maps: f64,
}

impl Memory {
    /// Of the tracer that was started as process `pid`: itself, or what sudo started. The kernel's
    /// for it is left out.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let pid = tracer(pid)?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
            // proc_pid_status(5): kB of 1024 bytes.
            number.map(|kib| kib * 1024.0).with_context(|| format!("no {name} in /proc/{pid}/status"))
        };
        Ok(Self {
            peak: bytes("VmHWM")?,
            anonymous: bytes("RssAnon")?,
            file: bytes("RssFile")?,
            shared: bytes("RssShmem")?,
            ..Self::default()
        })
    }

    /// The same, with the kernel's.
    pub(crate) fn with_maps(pid: u32) -> Result<Self> {
        let resident = Self::of(pid)?;
        let own = own_maps(Path::new(&format!("/proc/{}/fdinfo", tracer(pid)?)))?;
        let known = bpftool(&["map", "show"])?;
        let (unwind_maps, other_maps) =
            map_bytes(&own, &known, |outer| bpftool(&["map", "dump", "id", outer]))?;
        Ok(Self { unwind_maps, other_maps, ..resident })
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

/// Numbers of the maps that a folder of fdinfo files shows (kernel/bpf/syscall.c,
/// `bpf_map_show_fdinfo`).
fn own_maps(folder: &Path) -> Result<BTreeSet<u64>> {
    let mut maps = BTreeSet::new();
    for entry in folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))? {
        // A descriptor can be closed meanwhile.
        let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
        let number: Option<u64> =
            info.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok());
        maps.extend(number);
    }
    Ok(maps)
}

/// What bpftool says of all maps of the machine, or of one of them.
fn bpftool(words: &[&str]) -> Result<Value> {
    let mut command = privilege::as_root("bpftool", INSTEAD)?;
    Ok(serde_json::from_str(&run::output(command.arg("-j").args(words))?)?)
}

/// Bytes of the kernel's for maps of unwind tables, and for the others: those that a tracer has
/// open (`own`) and those that are in them, of which it keeps no descriptor, like the segments of
/// the table of blocks. `known`: all maps; `dump` gives what is in one of them.
fn map_bytes(own: &BTreeSet<u64>, known: &Value, dump: impl Fn(&str) -> Result<Value>) -> Result<(f64, f64)> {
    let known = known.as_array().context("bpftool names no maps")?;
    let is = |map: &Value, number: u64| map["id"] == number;
    let mut all = own.clone();
    for outer in own {
        if known.iter().any(|map| is(map, *outer) && map["type"] == "array_of_maps") {
            let inner = dump(&outer.to_string())?;
            all.extend(inner.as_array().into_iter().flatten().filter_map(|entry| number_in(&entry["value"])));
        }
    }
    let (mut unwind, mut others) = (0.0, 0.0);
    for map in known.iter().filter(|map| all.iter().any(|number| is(map, *number))) {
        let bytes = map["bytes_memlock"].as_f64().context("bpftool tells no map's memory")?;
        let is_unwind = map["name"].as_str().is_some_and(|name| name.starts_with("UNWIND_"));
        *(if is_unwind { &mut unwind } else { &mut others }) += bytes;
    }
    Ok((unwind, others))
}

/// A number as bpftool shows its bytes, the lowest first: `["0xb3", "0x70", ...]`.
fn number_in(bytes: &Value) -> Option<u64> {
    let digits = |byte: &Value| u64::from_str_radix(byte.as_str()?.strip_prefix("0x")?, 16).ok();
    bytes.as_array()?.iter().rev().try_fold(0, |number, byte| Some(number << 8 | digits(byte)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
        for (name, number) in [("3", 7), ("4", 7), ("5", 800)] {
            fs::write(folder.join(name), format!("pos:\t0\nmemlock:\t1000\nmap_id:\t{number}\n"))?;
        }
        fs::write(folder.join("0"), "pos:\t0\nflags:\t02\n")?;
        assert_eq!(own_maps(&folder)?, BTreeSet::from([7, 800]));
        fs::remove_dir_all(&folder)?;
        Ok(())
    }

    #[test]
    fn maps_in_maps_count() -> Result<()> {
        let known = json!([
            {"id": 7, "type": "array", "name": "UNWIND_WORDS", "bytes_memlock": 1000},
            {"id": 8, "type": "array_of_maps", "name": "SEGMENTS", "bytes_memlock": 20},
            {"id": 28851, "type": "array", "bytes_memlock": 300000},
            {"id": 9, "type": "hash", "name": "of_another", "bytes_memlock": 4}
        ]);
        let dump = |outer: &str| {
            assert_eq!(outer, "8");
            Ok(json!([{"key": ["0x00", "0x00", "0x00", "0x00"], "value": ["0xb3", "0x70", "0x00", "0x00"]}]))
        };
        assert_eq!(map_bytes(&BTreeSet::from([7, 8]), &known, dump)?, (1000.0, 300_020.0));
        Ok(())
    }
}
