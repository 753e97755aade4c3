//! Programs that are measured take turns of a moment each, all traced at the same time: what makes
//! the machine slower for a second, or a minute, then falls on all of them alike, and a ratio is of
//! turns that follow each other.
//!
//! Each process has a C library of its own ([`crate::processes::Program`]), and so its own probes:
//! those of the others are not in its way.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{
    bcc::{Bcc, PROCESS_MARK},
    processes::{ATTACHED, Pace, Running, Target, memleak_words, number_said},
    results::{Once, Variant},
};

/// A program that is measured, and who traces it meanwhile.
pub(crate) struct Party {
    pub variant: Variant,
    target: Target,
    tracer: Option<Running>,
}

impl Party {
    /// One that nobody traces, or that others have started. Waits until it is at work: its C
    /// library is replaced for the one that is started next.
    pub(crate) fn untraced(variant: Variant, target: Target) -> Result<Self> {
        let mut party = Self { variant, target, tracer: None };
        party.turn(TURN)?;
        Ok(party)
    }

    /// One under memleak, or its empty programs.
    pub(crate) fn under_memleak(variant: Variant, target: Target, memleak: &Path) -> Result<Self> {
        let words = memleak_words(memleak, variant.options(), target.pid());
        Ok(Self { variant, tracer: Some(Running::start(&words, ATTACHED)?), target })
    }

    /// One under bcc's memleak, which does not say when its probes are in: they make a pair take
    /// many times as long.
    pub(crate) fn under_bcc(target: Target, bcc: &Bcc) -> Result<Self> {
        const AS_LONG: f64 = 20.0;
        const MOST_TURNS: u32 = 400;
        let mut untraced = Self::untraced(Variant::Bcc, target)?;
        let before = untraced.turn(TURN)?.cpu_ns();
        let tracer = Running::start(&bcc.process_words(untraced.target.pid()), PROCESS_MARK)?;
        let mut party = Self { tracer: Some(tracer), ..untraced };
        for _ in 0..MOST_TURNS {
            if party.turn(TURN)?.cpu_ns() > before * AS_LONG {
                return Ok(party);
            }
        }
        bail!("bcc's memleak does not attach")
    }

    /// One turn.
    pub(crate) fn turn(&mut self, length: Duration) -> Result<Pace> {
        let turn = self.target.tell(&format!("turn {}", length.as_millis()));
        turn.and_then(|()| self.target.next_window())
            .with_context(|| format!("{}: {}", self.variant.name(), self.target.state()))
    }

    /// Has it hold so many blocks more.
    pub(crate) fn hold(&mut self, more: u64, patience: Duration) -> Result<()> {
        self.target.tell(&format!("hold {more}"))?;
        self.target.wait_for("held", patience)
    }

    /// Ends the tracer, and then the program; gives all that the tracer said.
    pub(crate) fn end(self) -> Result<Vec<String>> {
        let said = self.tracer.map(Running::end).transpose()?;
        self.target.end()?;
        Ok(said.unwrap_or_default())
    }
}

/// Length of a turn: short beside what disturbs a machine, long beside what a change of programs
/// leaves in its caches.
pub(crate) const TURN: Duration = Duration::from_millis(50);

/// As many turns of each party as `length` holds, one after the other, and one before them that
/// does not count; tells `add` of each pace. A party that fails takes no further part: `failed` is
/// told.
pub(crate) fn take(
    parties: &mut Vec<Party>,
    length: Duration,
    mut add: impl FnMut(Variant, Pace),
    mut failed: impl FnMut(Variant, anyhow::Error),
) {
    let turns = (length.as_millis() / TURN.as_millis()).max(1);
    for turn in 0..=turns {
        parties.retain_mut(|party| match party.turn(TURN) {
            Ok(pace) => {
                if turn > 0 {
                    add(party.variant, pace);
                }
                true
            }
            Err(error) => {
                failed(party.variant, error);
                false
            }
        });
    }
}

/// What memleak says that it has taken, once.
pub(crate) fn once(said: &[String]) -> Result<Once> {
    let number = |prefix| number_said(said, prefix, " in ");
    Ok(Once {
        load_ms: number("memleak: loaded the BPF programs")?,
        attach_ms: number(ATTACHED)?,
        detach_ms: number("memleak: detached ")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_has_taken_once_is_read() -> Result<()> {
        let said = [
            "memleak: loaded the BPF programs in 215.2 ms",
            "memleak: attached 24 probes in 83.5 ms",
            "memleak: detached 24 probes in 12 ms",
        ];
        let once = once(&said.map(str::to_owned))?;
        assert_eq!((once.load_ms, once.attach_ms, once.detach_ms), (215.2, 83.5, 12.0));
        assert!(super::once(&[said[0].to_owned()]).is_err());
        Ok(())
    }
}
