//! Reports in their JSON form, and how they compare with a ledger.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::ledger::{Amount, Ledger, Site};

/// One report.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Report {
    pub schema: u32,
    pub time: String,
    pub target: Target,
    pub elapsed_ms: u64,
    pub cut_ns: u64,
    pub cut_within_ns: u64,
    #[serde(rename = "final")]
    pub is_final: bool,
    pub totals: Totals,
    pub lost: BTreeMap<String, u64>,
    pub sampled: Option<u64>,
    pub sample_bytes: Option<u64>,
    pub margin_bytes: Option<u64>,
    pub memory: Option<Memory>,
    /// If some have come or gone.
    pub processes: Option<Processes>,
    /// With `--why`.
    pub why: Option<Value>,
    pub cycles: Option<Vec<Value>>,
    pub held: Option<Vec<Value>>,
    pub why_of: Option<Vec<Value>>,
    pub stacks: Vec<Stack>,
}

/// The account of the target's memory.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Memory {
    pub rss: u64,
    pub rss_growth: i64,
    pub outstanding_resident: u64,
    pub allocator_free: Option<u64>,
    pub allocator_free_at_least: Option<u64>,
    pub allocator: u64,
    pub thread_stacks: u64,
    pub files: u64,
    pub before_attach: u64,
    pub unaccounted: u64,
    #[expect(dead_code, reason = "printed")]
    pub finding: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Processes {
    pub joined: u64,
    pub left: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Target {
    pub kind: String,
    pub pids: Vec<u32>,
    pub comm: String,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Totals {
    pub bytes: u64,
    pub count: u64,
    pub acquired: u64,
    pub released: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Stack {
    pub resource: String,
    pub bytes: u64,
    pub count: u64,
    pub margin_bytes: Option<u64>,
    pub oldest_ms: Option<u64>,
    pub newest_ms: Option<u64>,
    pub truncated: bool,
    pub stack_id: Option<String>,
    /// Ours beyond the spec.
    pub pid: u32,
    /// If several processes hold it.
    pub process_counts: Option<Vec<ProcessCount>>,
    /// If more held it at the end than are kept apart.
    pub other_processes: Option<OtherProcesses>,
    /// In kernel mode, if it is known.
    pub cache: Option<String>,
    pub frames: Vec<Frame>,
    pub allocations: Option<Vec<Allocation>>,
    pub verdict: Option<String>,
    pub verdict_reason: Option<String>,
    /// Where calls are counted by stack.
    pub acquired: Option<u64>,
    pub released: Option<u64>,
    pub bytes_acquired: Option<u64>,
    pub bytes_released: Option<u64>,
    pub lifetime: Option<Lifetime>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Lifetime {
    pub released_p50_ms: Option<u64>,
    pub released_max_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct ProcessCount {
    pub pid: u32,
    pub bytes: u64,
    pub count: u64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct OtherProcesses {
    pub processes: u64,
    pub bytes: u64,
    pub count: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Frame {
    pub ip: String,
    pub module: Option<String>,
    pub offset: Option<String>,
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub inlined: bool,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Allocation {
    /// If several processes hold the stack.
    pub pid: Option<u32>,
    pub address: String,
    pub size: u64,
    pub age_ms: u64,
    /// With `--why`.
    pub why: Option<String>,
}

/// The ways to lose something that every report has a counter for.
const LOSSES: [&str; 7] =
    ["allocations", "stacks", "events", "trace_lines", "missed_returns", "skipped_runs", "cut_stacks"];

impl Frame {
    /// The function's name without its parameters.
    pub(crate) fn bare_function(&self) -> &str {
        let name = self.function.as_deref().unwrap_or_default();
        name.split('(').next().unwrap_or(name)
    }
}

impl Stack {
    /// The allocation site: the innermost function that is one.
    pub(crate) fn site(&self) -> Option<&str> {
        self.frames.iter().map(Frame::bare_function).find(|name| name.starts_with("site_"))
    }

    fn describe(&self) -> String {
        let frames: Vec<String> = self
            .frames
            .iter()
            .map(|frame| match &frame.function {
                Some(function) => function.clone(),
                None => format!("[{}] {}", frame.module.as_deref().unwrap_or("?"), frame.ip),
            })
            .collect();
        format!("{} {} bytes in {}: {}", self.resource, self.bytes, self.count, frames.join(" < "))
    }
}

impl Report {
    /// Reads one line.
    pub(crate) fn parse(line: &str) -> Self {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("not a report: {error}: {line}"))
    }

    /// What each site holds.
    pub(crate) fn sites(&self) -> Ledger {
        let mut sites = Ledger::new();
        for stack in &self.stacks {
            if let Some(site) = stack.site() {
                let amount = sites.entry((site.to_owned(), stack.resource.clone())).or_default();
                amount.bytes += stack.bytes;
                amount.count = Some(amount.count.unwrap_or(0) + stack.count);
            }
        }
        sites
    }

    /// What one site holds: bytes and count, zeros where it is not in the report.
    pub(crate) fn site(&self, name: &str) -> (u64, u64) {
        let of_name = self.stacks.iter().filter(|stack| stack.site() == Some(name));
        of_name.fold((0, 0), |sum, stack| (sum.0 + stack.bytes, sum.1 + stack.count))
    }

    /// Half the width of the interval around the bytes of a site: of estimates that do not depend
    /// on each other, the squares add up.
    pub(crate) fn margin_of(&self, name: &str) -> f64 {
        let of_name = self.stacks.iter().filter(|stack| stack.site() == Some(name));
        let squares = of_name.map(|stack| (stack.margin_bytes.expect("an estimate") as f64).powi(2));
        squares.sum::<f64>().sqrt()
    }

    /// Sums over the stacks of one resource: bytes and count.
    pub(crate) fn sum(&self, resource: &str) -> (u64, u64) {
        self.sum_but(resource, &[])
    }

    /// The same but for stacks with one of these functions.
    pub(crate) fn sum_but(&self, resource: &str, functions: &[&str]) -> (u64, u64) {
        let counts = |stack: &&Stack| {
            let mut frames = stack.frames.iter();
            !frames.any(|frame| functions.contains(&frame.bare_function()))
        };
        let of_resource = self.stacks.iter().filter(|stack| stack.resource == resource);
        of_resource.filter(counts).fold((0, 0), |sum, stack| (sum.0 + stack.bytes, sum.1 + stack.count))
    }

    /// Every site holds what the ledger says, none holds more, the totals are the stacks' sums, and
    /// all stacks are whole.
    pub(crate) fn assert_equals(&self, ledger: &Ledger) {
        self.assert_holds(ledger);
        assert!(self.stacks.iter().all(|stack| !stack.truncated), "{}", self.describe());
    }

    /// The same, of stacks that may be cut in a C library without unwind information: those of a
    /// site have all of the program's own functions, and what is cut is counted.
    pub(crate) fn assert_equals_but_cut(&self, ledger: &Ledger) {
        self.assert_holds(ledger);
        let cut = self.stacks.iter().filter(|stack| stack.truncated);
        assert_eq!(self.lost.get("cut_stacks"), Some(&(cut.clone().count() as u64)), "{}", self.describe());
        for stack in cut.filter(|stack| stack.site().is_some()) {
            let beyond_main = stack.frames.iter().rev().position(|frame| frame.bare_function() == "main");
            assert_eq!(beyond_main, Some(1), "{}", self.describe());
        }
        for loss in LOSSES.into_iter().filter(|loss| *loss != "cut_stacks") {
            assert_eq!(self.lost.get(loss), Some(&0), "lost.{loss}\n{}", self.describe());
        }
    }

    fn assert_holds(&self, ledger: &Ledger) {
        let sites = self.sites();
        let mut names: Vec<&Site> = sites.keys().chain(ledger.keys()).collect();
        names.sort();
        names.dedup();
        let wrong: Vec<String> = names
            .into_iter()
            .filter_map(|name| {
                let (truth, told) = (ledger.get(name).copied(), sites.get(name).copied().unwrap_or_default());
                let truth = truth.unwrap_or(Amount { bytes: 0, count: Some(0) });
                let same = truth.bytes == told.bytes
                    && truth.count.is_none_or(|count| count == told.count.unwrap_or(0));
                (!same).then(|| format!("{} {}: ledger {truth:?}, report {told:?}", name.1, name.0))
            })
            .collect();
        assert!(wrong.is_empty(), "{}\nreport:\n{}", wrong.join("\n"), self.describe());
        self.assert_sums();
    }

    /// The totals are the stacks' sums. Wants a report of all stacks.
    pub(crate) fn assert_sums(&self) {
        let (bytes, count) =
            self.stacks.iter().fold((0, 0), |sum, stack| (sum.0 + stack.bytes, sum.1 + stack.count));
        assert_eq!((self.totals.bytes, self.totals.count), (bytes, count), "{}", self.describe());
    }

    /// No stack of `resource` is without a site.
    pub(crate) fn assert_only_sites(&self, resource: &str) {
        let strangers: Vec<String> = self
            .stacks
            .iter()
            .filter(|stack| stack.resource == resource && stack.site().is_none())
            .map(Stack::describe)
            .collect();
        assert!(strangers.is_empty(), "nobody's blocks:\n{}", strangers.join("\n"));
    }

    /// All counters of losses are there and 0.
    pub(crate) fn assert_nothing_lost(&self) {
        for loss in LOSSES {
            assert_eq!(self.lost.get(loss), Some(&0), "lost.{loss}\n{}", self.describe());
        }
    }

    /// For a failed test to show.
    pub(crate) fn describe(&self) -> String {
        let stacks: Vec<String> = self.stacks.iter().take(60).map(Stack::describe).collect();
        format!(
            "schema {} {} {:?} after {} ms final {} totals {:?} lost {:?}\n{}",
            self.schema,
            self.time,
            self.target,
            self.elapsed_ms,
            self.is_final,
            self.totals,
            self.lost,
            stacks.join("\n")
        )
    }
}
