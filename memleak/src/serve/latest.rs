//! The latest report, as a run gives it and others take it.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Published, push::PushCounters};

/// What a run and those who serve others have in common.
#[derive(Debug, Default)]
pub(crate) struct Latest {
    report: Mutex<Option<Arc<Published>>>,
    /// What became of reports that are sent to somebody.
    pushed: Option<Arc<PushCounters>>,
}

impl Latest {
    /// There is no report yet.
    pub(crate) fn new(pushed: Option<Arc<PushCounters>>) -> Self {
        Self { pushed, ..Self::default() }
    }

    /// The latest report.
    pub(crate) fn get(&self) -> Option<Arc<Published>> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// There is a new one.
    pub(crate) fn set(&self, published: Arc<Published>) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let old = report.replace(published);
        drop(report);
        drop(old); // not under the lock: it may be large
    }

    /// Counters of those who serve: name, help, value.
    pub(crate) fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        self.pushed.iter().flat_map(|pushed| pushed.all()).collect()
    }
}
