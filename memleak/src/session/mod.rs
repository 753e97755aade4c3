//! A run, from the first probe to the last report.
//!
//! `run` is the loop; `start` puts probes into what is there when it begins, `events` and `births`
//! follow what comes later. All of them work on a `Session` (`state`), which holds the BPF
//! side (`bpf::Tracer`), the traced processes (`crate::targets`), the mode (`user_mode`,
//! `kernel_mode`) and what makes reports (`reporter`). `accounts` says what the targets'
//! memory is.

mod accounts;
mod births;
mod checks;
mod config;
mod confine;
mod count;
mod dangers;
mod error;
mod events;
mod examined;
mod explain;
mod follow;
mod guard;
mod hints;
mod join;
mod kernel_mode;
mod left_behind;
mod looks;
mod members;
mod price;
mod publish;
mod reporter;
mod run;
mod start;
mod state;
mod temporary;
mod threads;
mod user_mode;
mod view;
mod wait;
mod why;
mod work;

pub(crate) use count::{RELEASES_ONLY, Rates, TRAPS_ONLY, count, traced};
pub use error::SessionError;
pub(crate) use price::TrapCost;
pub use run::{RunOutcome, run};
