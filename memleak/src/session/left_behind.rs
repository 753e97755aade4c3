//! A command that has ended and left processes behind, which were not traced: a daemon.

use log::warn;

use super::state::Session;
use crate::{proc::status::related, settings::TargetSpec};

/// Processes that are remembered: one that makes thousands is not starting daemons.
const REMEMBERED: usize = 256;

/// Processes named.
const NAMED: usize = 4;

impl Session {
    /// A target has made a process that is not traced.
    pub(super) fn has_made(&mut self, pid: u32) {
        if self.untraced.len() == REMEMBERED {
            self.untraced.pop_front();
        }
        self.untraced.push_back(pid);
    }

    /// Says which processes of a command that has ended are still running.
    pub(super) fn tell_left_behind(&self) {
        let is_command = matches!(self.settings.target, TargetSpec::Command(_));
        if !is_command || !self.targets.all_ended() || self.untraced.is_empty() {
            return;
        }
        let left = related(&self.untraced.iter().copied().collect());
        let named: Vec<String> =
            left.iter().take(NAMED).map(|(pid, comm)| format!("{pid} ({comm})")).collect();
        let more = left.len().saturating_sub(NAMED);
        let names = match more {
            0 => named.join(", "),
            more => format!("{} and {more} more", named.join(", ")),
        };
        match left.len() {
            0 => {}
            1 => warn!(
                "the command has ended, and process {names}, which it has left behind, was not traced; trace it by --follow-forks"
            ),
            _ => warn!(
                "the command has ended, and processes {names}, which it has left behind, were not traced; trace them by --follow-forks"
            ),
        }
    }
}
