//! Single events as they happen (`-t`).

use std::{sync::Arc, time::SystemTime};

use crate::{kernel_labels::Tag, probe::resource::ResourceInfo};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Something was acquired.
    Acquire,
    /// Something that had been acquired was released.
    Release,
}

impl EventKind {
    /// Its name in all forms.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acquire => "acquire",
            Self::Release => "release",
        }
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLine {
    /// When it happened.
    pub time: SystemTime,
    /// What happened.
    pub kind: EventKind,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// What was acquired or released.
    pub resource: Arc<ResourceInfo>,
    /// Address of the block, or another handle.
    pub address: u64,
    /// Bytes; 0 if the resource has no size.
    pub size: u64,
    /// Kernel mode: what was acquired.
    pub tag: Option<Tag>,
    /// Kernel mode: command name of the thread, if it is known.
    pub comm: Option<String>,
}
