//! What a stack does with what it acquires: is it a leak, a cache, or simply in use?
//!
//! A judgement is made of numbers alone ([`History`]), and says why in one line. There is no
//! threshold for users to guess: what a stack holds is compared with what the same stack has
//! released.

use crate::words::{BinaryBytes, Grouped, Span};

/// What the BPF programs have counted of one stack, since tracing began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Calls {
    /// Acquired.
    pub acquired: u64,
    /// Released of what was acquired there.
    pub released: u64,
    /// Bytes acquired.
    pub bytes_acquired: u64,
    /// Bytes released.
    pub bytes_released: u64,
    /// How long what was released had been held: bucket 0 is less than a millisecond, bucket N
    /// from 2^(N-1) to 2^N milliseconds.
    pub lifetimes: [u64; 32],
    /// The longest of these times, milliseconds; 0 if it is not known.
    #[serde(default)]
    pub longest_ms: u64,
}

impl Calls {
    /// Adds up.
    pub fn add(&mut self, more: &Self) {
        let numbers = [
            (&mut self.acquired, more.acquired),
            (&mut self.released, more.released),
            (&mut self.bytes_acquired, more.bytes_acquired),
            (&mut self.bytes_released, more.bytes_released),
        ];
        for (sum, number) in numbers.into_iter().chain(self.lifetimes.iter_mut().zip(more.lifetimes)) {
            *sum = sum.saturating_add(number);
        }
        self.longest_ms = self.longest_ms.max(more.longest_ms);
    }

    /// The same with other numbers, of which they are the captured ones.
    #[must_use]
    pub fn map(mut self, whole: impl Fn(u64) -> u64) -> Self {
        let numbers =
            [&mut self.acquired, &mut self.released, &mut self.bytes_acquired, &mut self.bytes_released];
        for number in numbers.into_iter().chain(&mut self.lifetimes) {
            *number = whole(*number);
        }
        self
    }

    /// The time within which this share (of 1) of what was released had gone: the upper end of a
    /// bucket. `None` if nothing was released.
    pub fn lifetime_ms(&self, share: f64) -> Option<u64> {
        let all: u64 = self.lifetimes.iter().fold(0, |sum, number| sum.saturating_add(*number));
        let wanted = (all as f64 * share).ceil().max(1.0);
        let mut sum = 0;
        let bucket = self.lifetimes.iter().position(|number| {
            sum += number;
            sum as f64 >= wanted
        })?;
        let end = 1 << bucket;
        Some(if self.longest_ms > 0 { self.longest_ms.min(end) } else { end })
    }
}

/// What was outstanding at the moment of one report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Point {
    /// Milliseconds since tracing began.
    pub at_ms: u64,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
}

/// What is known of one stack, over the whole run.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct History {
    /// What the BPF programs have counted; `None` if they did not.
    pub calls: Option<Calls>,
    /// What was outstanding in this report and those before, the latest last. In reports before
    /// the first point nothing was.
    pub points: Vec<Point>,
    /// Age of the oldest that is held.
    pub oldest_ms: Option<u64>,
    /// Age of the newest that is held.
    pub newest_ms: Option<u64>,
    /// Milliseconds since tracing began.
    pub watched_ms: u64,
}

impl History {
    /// Takes in what another stack of the same site holds.
    pub fn merge(&mut self, other: &Self) {
        match (&mut self.calls, &other.calls) {
            (Some(calls), Some(more)) => calls.add(more),
            // Of a part nothing is known: so of all.
            (calls, _) => *calls = None,
        }
        let mut points = other.points.clone();
        for point in &self.points {
            match points.iter_mut().find(|other| other.at_ms == point.at_ms) {
                Some(same) => {
                    same.bytes = same.bytes.saturating_add(point.bytes);
                    same.count = same.count.saturating_add(point.count);
                }
                None => points.push(*point),
            }
        }
        points.sort_unstable_by_key(|point| point.at_ms);
        self.points = points;
        self.oldest_ms = self.oldest_ms.max(other.oldest_ms);
        self.newest_ms = match (self.newest_ms, other.newest_ms) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        self.watched_ms = self.watched_ms.max(other.watched_ms);
    }
}

/// What a stack's outstanding allocations are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictKind {
    /// Some are forgotten: most are released soon, and those that are held are much older.
    Leak,
    /// They become more, and none or hardly any is released.
    Growing,
    /// They are kept, and do not become more.
    Cache,
    /// They come and go.
    InUse,
    /// Acquired in numbers, and released at once.
    Temporary,
    /// Watched for too short a time.
    Unknown,
}

impl VerdictKind {
    /// Its name in reports, the worst first.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Leak, "leak"),
        (Self::Growing, "growing"),
        (Self::Cache, "cache"),
        (Self::InUse, "in_use"),
        (Self::Temporary, "temporary"),
        (Self::Unknown, "unknown"),
    ];

    /// For JSON.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("unknown", |(_, name)| name)
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::InUse => "in use",
            other => other.name(),
        }
    }
}

/// A judgement and its reason.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Verdict {
    /// What it is.
    pub kind: VerdictKind,
    /// Why, in one line.
    pub reason: String,
}

/// Reports from which a judgement can be made.
const FEW_REPORTS: usize = 3;
/// Reports from which a backlog is told from what is only being filled, or comes and goes.
const REPORTS_OF_A_BACKLOG: usize = 6;
/// A backlog's oldest has waited for at least this part of the run.
const SHORT_OF_THE_RUN: u64 = 8;
/// What is flat for less is not known to be a cache.
const FLAT_MS: u64 = 10_000;
/// Releases within a millisecond that are called temporary, and how many of ten these must be.
pub const MANY_AT_ONCE: u64 = 10 * MANY;
/// See [`MANY_AT_ONCE`].
pub const AT_ONCE_OF_TEN: u64 = 9;
/// Fewer that are held may be a program's own state: a table that it has made larger, say.
const FEWEST_LEAKED: u64 = 5;
/// What is forgotten is so many times as old as what was released has ever been. What a program
/// makes when it warms up is old, too, but it stops.
const FORGOTTEN: u64 = 16;
/// Releases that show how long things are held as a rule.
const MANY: u64 = 100;

/// Judges what a stack holds.
pub fn judge(history: &History) -> Verdict {
    let shape = Shape::of(history);
    match &history.calls {
        Some(calls) if calls.released > 0 => judge_released(history, calls, &shape),
        Some(calls) => judge_kept(history, Some(calls.acquired), &shape),
        None if shape.fell => came_and_went(history, &shape),
        None => judge_kept(history, None, &shape),
    }
}

/// How what is held has changed from report to report.
#[derive(Debug)]
struct Shape {
    /// Held now.
    count: u64,
    reports: usize,
    /// It was less in some report than in the one before.
    fell: bool,
    /// It is at its most now, and more than ever before the last third of the time; and what was
    /// held at the least has become more from each third to the next. What comes and goes is at its
    /// most at times.
    grows: bool,
    /// It grows from report to report, as a queue does that takes in more than it gives out, and
    /// not more slowly than at first, as what is filled up does.
    climbs: bool,
    /// It is within a fiftieth of what it is now for so long.
    flat_ms: u64,
    /// Bytes by which it has become more over the time that is known.
    bytes_more: u64,
    over_ms: u64,
}

impl Shape {
    fn of(history: &History) -> Self {
        let last = history.points.last().copied().unwrap_or_default();
        let first = history.points.first().copied().unwrap_or_default();
        let steps = || history.points.windows(2);
        // A resource without a size has a number alone.
        let amount = |point: &Point| if last.bytes > 0 { point.bytes } else { point.count };
        let (now, most) = (amount(&last), history.points.iter().map(amount).max().unwrap_or(0));
        let third = last.at_ms.saturating_sub(last.at_ms.saturating_sub(first.at_ms) / 3);
        let is_before = |point: &&Point| point.at_ms <= third;
        let late = history.points.iter().filter(is_before).map(amount).max().unwrap_or(now);
        let grows =
            now == most && now > late.saturating_add(late / 100) && floor_rises(&history.points, amount);
        let near = |point: &&Point| amount(point).abs_diff(now) <= now / 50;
        let flat_since =
            history.points.iter().rev().take_while(near).last().map_or(last.at_ms, |at| at.at_ms);
        Self {
            count: last.count,
            reports: history.points.len(),
            fell: steps().any(|step| matches!(step, [before, after] if amount(after) < amount(before))),
            grows,
            climbs: grows && climbs(&history.points, amount),
            flat_ms: last.at_ms.saturating_sub(flat_since),
            bytes_more: last.bytes.saturating_sub(first.bytes),
            over_ms: last.at_ms.saturating_sub(first.at_ms),
        }
    }

    fn is_flat(&self, history: &History) -> bool {
        self.reports >= FEW_REPORTS && self.flat_ms >= FLAT_MS && self.flat_ms >= history.watched_ms / 4
    }

    /// `, +240 KiB/min for 20 min`.
    fn rate(&self) -> String {
        match self.bytes_more.saturating_mul(60_000).checked_div(self.over_ms) {
            Some(a_minute) if a_minute > 0 => {
                format!(", +{}/min for {}", BinaryBytes(a_minute), Span(self.over_ms))
            }
            _ => String::new(),
        }
    }
}

/// The least of each third of the time is more than that of the third before.
fn floor_rises(points: &[Point], amount: impl Fn(&Point) -> u64) -> bool {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return false };
    let third = last.at_ms.saturating_sub(first.at_ms).div_ceil(3).max(1);
    let mut least: [Option<u64>; 3] = [None; 3];
    for point in points {
        let at = (point.at_ms.saturating_sub(first.at_ms) / third).min(2);
        if let Some(least) = least.get_mut(at as usize) {
            *least = Some(least.map_or(amount(point), |known| known.min(amount(point))));
        }
    }
    let least: Vec<u64> = least.into_iter().flatten().collect();
    least.windows(2).all(|pair| matches!(pair, [before, after] if before < after))
}

/// All that it has become less by, from one report to the next, is at most a tenth of what it has
/// become more by; and in the last third of the time it has grown by at least half of what it grew
/// by in the middle one.
fn climbs(points: &[Point], amount: impl Fn(&Point) -> u64) -> bool {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return false };
    let less = points.windows(2).map(|step| match step {
        [before, after] => amount(before).saturating_sub(amount(after)),
        _ => 0,
    });
    let third = last.at_ms.saturating_sub(first.at_ms) / 3;
    let at = |ms: u64| points.iter().rev().find(|point| point.at_ms <= ms).map_or(0, &amount);
    let (one, two) = (at(first.at_ms + third), at(last.at_ms - third));
    let (middle, end) = (two.saturating_sub(one), amount(last).saturating_sub(two));
    less.sum::<u64>() <= amount(last).saturating_sub(amount(first)) / 10 && end >= middle / 2
}

fn verdict(kind: VerdictKind, reason: String) -> Verdict {
    Verdict { kind, reason }
}

fn too_short(history: &History, shape: &Shape) -> Verdict {
    let reports = match shape.reports {
        1 => "1 report".to_owned(),
        reports => format!("{reports} reports"),
    };
    verdict(VerdictKind::Unknown, format!("watched for {} and {reports} only", Span(history.watched_ms)))
}

/// Nothing was released, as far as is known.
fn judge_kept(history: &History, acquired: Option<u64>, shape: &Shape) -> Verdict {
    let none = match acquired {
        Some(acquired) => format!("none of {} released in {}", Grouped(acquired), Span(history.watched_ms)),
        None => format!("never fell in {} reports", shape.reports),
    };
    if shape.is_flat(history) {
        let never = if acquired.is_some() { "never released, " } else { "" };
        let reason = format!("{never}flat at {} for {}", Grouped(shape.count), Span(shape.flat_ms));
        return verdict(VerdictKind::Cache, reason);
    }
    match shape.grows && shape.reports >= FEW_REPORTS {
        true => verdict(VerdictKind::Growing, format!("{none}{}", shape.rate())),
        false => too_short(history, shape),
    }
}

/// Some were released, and how many is not known.
fn came_and_went(history: &History, shape: &Shape) -> Verdict {
    if shape.reports < FEW_REPORTS {
        return too_short(history, shape);
    }
    let turns_over = history.oldest_ms.is_some_and(|oldest| oldest < history.watched_ms / 2);
    if shape.is_flat(history) && !turns_over {
        let reason = format!("flat at {} for {}", Grouped(shape.count), Span(shape.flat_ms));
        return verdict(VerdictKind::Cache, reason);
    }
    let oldest = history.oldest_ms.map_or_else(String::new, |ms| format!(", the oldest is {} old", Span(ms)));
    match shape.grows && !turns_over {
        true => verdict(VerdictKind::Growing, format!("some are released, more are not{}", shape.rate())),
        false => verdict(VerdictKind::InUse, format!("they become more and fewer{oldest}")),
    }
}

/// Some were released, and how soon is known.
fn judge_released(history: &History, calls: &Calls, shape: &Shape) -> Verdict {
    let Calls { acquired, released, lifetimes, .. } = calls;
    let soon = calls.lifetime_ms(0.99).unwrap_or(0);
    let longest = calls.longest_ms;
    let oldest = history.oldest_ms.unwrap_or(0);
    let percent = *released as f64 / (*acquired).max(1) as f64 * 100.0;
    let share = lower_percent(percent);
    let [at_once, ..] = *lifetimes;
    let is_old = history.oldest_ms.is_some_and(|oldest| oldest > longest && oldest > soon.saturating_mul(4));
    // While there are more and more calls, more are held, too, but none for long.
    let waits_long = oldest.saturating_mul(SHORT_OF_THE_RUN) >= history.watched_ms;
    let is_forgotten = is_old && oldest >= longest.saturating_mul(FORGOTTEN) && shape.count >= FEWEST_LEAKED;
    if !is_old
        && *released >= MANY_AT_ONCE
        && at_once >= released / 10 * AT_ONCE_OF_TEN
        && shape.count <= acquired / 100
    {
        let reason = format!("{} of {} released at once", Grouped(at_once), Grouped(*acquired));
        return verdict(VerdictKind::Temporary, reason);
    }
    if percent < 10.0 && shape.grows && shape.reports >= FEW_REPORTS {
        let reason = format!("{share} of {} released{}", Grouped(*acquired), shape.rate());
        return verdict(VerdictKind::Growing, reason);
    }
    if shape.is_flat(history) && is_old {
        let kept = format!("flat at {} for {}", Grouped(shape.count), Span(shape.flat_ms));
        return verdict(VerdictKind::Cache, format!("{kept}, {share} of {} released", Grouped(*acquired)));
    }
    if shape.reports < FEW_REPORTS || history.oldest_ms.is_none() {
        return too_short(history, shape);
    }
    if is_forgotten && *released >= MANY && percent >= 50.0 && shape.grows {
        return verdict(VerdictKind::Leak, leaked(history, calls, shape, &share));
    }
    match is_old {
        true if shape.grows => verdict(
            VerdictKind::Growing,
            format!("{share} of {} released{}", Grouped(*acquired), shape.rate()),
        ),
        true => {
            let kept = format!(
                "{share} of {} released, the oldest held is {} old",
                Grouped(*acquired),
                Span(oldest)
            );
            verdict(VerdictKind::Unknown, format!("{kept}, and what is held grows no more, or not steadily"))
        }
        false if shape.climbs && shape.reports >= REPORTS_OF_A_BACKLOG && waits_long => {
            let reason =
                format!("{share} of {} released, the rest piles up{}", Grouped(*acquired), shape.rate());
            verdict(VerdictKind::Growing, reason)
        }
        false => verdict(
            VerdictKind::InUse,
            format!(
                "the oldest held is {} old, others were released after up to {}",
                Span(oldest),
                Span(longest)
            ),
        ),
    }
}

/// `12,004 acquired, 11,990 released, 99 % within 3 s, the longest after 41 s; the 14 held are 9 min to 3 h old`.
fn leaked(history: &History, calls: &Calls, shape: &Shape, share: &str) -> String {
    let within = calls.lifetime_ms(0.99).unwrap_or(0);
    let longest = calls.longest_ms;
    let ages = match (history.newest_ms, history.oldest_ms) {
        (Some(newest), Some(oldest)) if shape.count > 1 && newest > longest => {
            format!("the {} held are {} to {} old", Grouped(shape.count), Span(newest), Span(oldest))
        }
        (_, Some(oldest)) => {
            format!("of the {} held the oldest is {} old", Grouped(shape.count), Span(oldest))
        }
        _ => format!("{} are held", Grouped(shape.count)),
    };
    let spread = match longest <= within {
        true => format!("all within {}", Span(within)),
        false => format!("99 % within {}, the longest after {}", Span(within), Span(longest)),
    };
    format!("{} acquired, {share} released, {spread}; {ages}", Grouped(calls.acquired))
}

/// Not rounded to all of them if it is not all.
fn lower_percent(percent: f64) -> String {
    match percent {
        100.0.. => "100 %".to_owned(),
        99.0..100.0 => format!("{:.1} %", (percent * 10.0).floor() / 10.0),
        _ => format!("{} %", percent.floor()),
    }
}

#[cfg(test)]
mod tests;
