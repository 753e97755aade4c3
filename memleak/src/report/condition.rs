//! `--fail-if`: what makes a run, or the comparison of two reports, fail.

use std::fmt;

use super::model::Report;
use crate::{
    verdict::VerdictKind,
    words::{BinaryBytes, Grouped},
};

/// One condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailCondition {
    /// `growth>SIZE`: outstanding bytes have become more by more than this.
    Growth(u64),
    /// `new`: a stack holds something that did not before.
    New,
    /// `lost>N`: more than this was lost.
    Lost(u64),
    /// `leak`: a stack is judged to be a leak.
    Leak,
}

impl fmt::Display for FailCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Growth(bytes) => write!(f, "growth>{bytes}"),
            Self::New => write!(f, "new"),
            Self::Lost(number) => write!(f, "lost>{number}"),
            Self::Leak => write!(f, "leak"),
        }
    }
}

/// What conditions are about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Outstanding bytes now, minus those before.
    pub growth: i128,
    /// Stacks that hold something and did not before.
    pub new: u64,
    /// All that was lost, in numbers.
    pub lost: u64,
    /// Stacks that are judged to be leaks.
    pub leaks: u64,
}

impl Facts {
    /// Of a run, by its last report: growth since its first one.
    pub fn of_run(report: &Report) -> Self {
        let first = report.moments.first().map_or(0, |moment| moment.bytes);
        Self {
            growth: i128::from(report.totals.bytes) - i128::from(first),
            new: 0,
            lost: report.lost.sum(),
            leaks: report.stacks.iter().filter(|stack| stack.verdict.kind == VerdictKind::Leak).count()
                as u64,
        }
    }
}

impl FailCondition {
    /// What is so, in words, if it holds.
    pub fn holds(self, facts: &Facts) -> Option<String> {
        match self {
            Self::Growth(most) if facts.growth > i128::from(most) => {
                let bytes = u64::try_from(facts.growth).unwrap_or(u64::MAX);
                Some(format!("outstanding bytes have grown by {}", BinaryBytes(bytes)))
            }
            Self::New if facts.new > 0 => Some(so_many(facts.new, "stack is new", "stacks are new")),
            Self::Lost(most) if facts.lost > most => Some(so_many(facts.lost, "was lost", "were lost")),
            Self::Leak if facts.leaks > 0 => {
                Some(so_many(facts.leaks, "stack is a leak", "stacks are leaks"))
            }
            Self::Growth(_) | Self::New | Self::Lost(_) | Self::Leak => None,
        }
    }
}

fn so_many(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", Grouped(number), if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_hold_beyond_their_limits() {
        let facts = Facts { growth: 1 << 20, new: 2, lost: 3, leaks: 1 };
        let said = |condition: FailCondition| condition.holds(&facts);
        assert_eq!(
            said(FailCondition::Growth((1 << 20) - 1)),
            Some("outstanding bytes have grown by 1 MiB".to_owned())
        );
        assert_eq!(said(FailCondition::Growth(1 << 20)), None);
        assert_eq!(
            (said(FailCondition::Lost(2)), said(FailCondition::Lost(3))),
            (Some("3 were lost".to_owned()), None)
        );
        assert_eq!(said(FailCondition::New).as_deref(), Some("2 stacks are new"));
        assert_eq!(said(FailCondition::Leak).as_deref(), Some("1 stack is a leak"));
        let nothing = Facts { growth: -5, ..Facts::default() };
        for condition in
            [FailCondition::Growth(0), FailCondition::New, FailCondition::Lost(0), FailCondition::Leak]
        {
            assert_eq!(condition.holds(&nothing), None, "{condition}");
        }
    }
}
