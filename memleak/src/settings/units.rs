//! Times and sizes, with their units.

use std::time::Duration;

use super::usage::UsageError;

/// Longest INTERVAL in seconds: 136 years, which no timer overflows on.
const MAX_INTERVAL_SECONDS: f64 = u32::MAX as f64;

/// Shortest INTERVAL in seconds: below it a report would follow on the other without a pause.
const MIN_INTERVAL_SECONDS: f64 = 0.001;

/// Seconds, or a time with its unit.
fn seconds(text: &str) -> Option<f64> {
    // The longer one first: s is the end of both.
    const UNITS: [(&str, f64); 4] = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let text = text.trim();
    let with_unit = UNITS.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)));
    let (number, factor) = with_unit.unwrap_or((text, 1.0));
    // What f64 reads besides numbers ("inf", "nan") is no time.
    let number = number.parse::<f64>().ok().filter(|number| number.is_finite())?;
    Some(number * factor)
}

/// `--duration`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, UsageError> {
    let found = seconds(text).filter(|seconds| *seconds > 0.0 && *seconds <= MAX_INTERVAL_SECONDS);
    found.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(|| {
        let why = format!("'{text}' is not a time");
        UsageError::new("--duration", why, "give seconds, or a time such as 500ms, 60s, 10m or 1h")
    })
}

/// INTERVAL.
pub(super) fn parse_interval(text: &str) -> Result<Duration, UsageError> {
    let seconds = seconds(text);
    let seconds = seconds.filter(|seconds| (MIN_INTERVAL_SECONDS..=MAX_INTERVAL_SECONDS).contains(seconds));
    // The range leaves out NaN and whatever no Duration can hold.
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(|| {
        let why = format!(
            "'{text}' is not a number of seconds from {MIN_INTERVAL_SECONDS} to {MAX_INTERVAL_SECONDS}"
        );
        UsageError::new("INTERVAL", why, "give one such as 5 or 0.5; a command to trace goes after --")
    })
}

/// A size in bytes with an optional suffix: K, M or G, powers of 1024.
pub(super) fn parse_size(what: &str, text: &str) -> Result<u64, UsageError> {
    let text = text.trim();
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    size.ok_or_else(|| {
        UsageError::new(what, format!("'{text}' is not a size"), "give bytes, such as 4096, 64K, 16M or 1G")
    })
}
