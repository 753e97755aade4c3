//! A target program's own account of what it holds: the truth that reports are compared with.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::process::Running;

/// An allocation site and what is acquired there (`heap`, `mmap`).
pub(crate) type Site = (String, String);

/// One line of the ledger.
#[derive(Debug, Deserialize)]
struct Entry {
    site: String,
    resource: String,
    bytes: i64,
    count: i64,
}

/// What a site holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Amount {
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations; `None` if the program cannot say.
    pub count: Option<u64>,
}

/// What each site holds; sites that hold nothing are left out.
pub(crate) type Ledger = BTreeMap<Site, Amount>;

/// Reads the ledger lines among `lines`.
pub(crate) fn parse(lines: &[String]) -> Ledger {
    lines
        .iter()
        .filter(|line| line.starts_with("{\"site\""))
        .map(|line| serde_json::from_str::<Entry>(line).expect("a ledger line"))
        .filter(|entry| entry.bytes != 0 || entry.count > 0)
        .map(|entry| {
            let bytes = u64::try_from(entry.bytes).expect("a ledger without debts");
            ((entry.site, entry.resource), Amount { bytes, count: u64::try_from(entry.count).ok() })
        })
        .collect()
}

/// Waits for a program's ledger.
pub(crate) fn hear(program: &mut Running) -> Ledger {
    parse(&program.expect("END"))
}

/// Adds what another program holds at the same sites.
pub(crate) fn add(ledger: &mut Ledger, other: Ledger) {
    for (site, held) in other {
        let sum = ledger.entry(site).or_insert(Amount { bytes: 0, count: Some(0) });
        sum.bytes += held.bytes;
        sum.count = sum.count.zip(held.count).map(|(a, b)| a + b);
    }
}
