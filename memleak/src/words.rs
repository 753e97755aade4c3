//! Numbers as people say them.

use std::fmt;

/// A number with its thousands apart: `12,004`.
#[derive(Clone, Copy, Debug)]
pub struct Grouped(pub u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// `1 block`, `9,009 blocks`.
pub(crate) fn counted(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", Grouped(number))
}

/// By how much a number has changed, with its thousands apart: `+12,004`.
#[derive(Clone, Copy, Debug)]
pub struct GroupedChange(pub i128);

impl fmt::Display for GroupedChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { '-' } else { '+' };
        write!(f, "{sign}{}", Grouped(u64::try_from(self.0.unsigned_abs()).unwrap_or(u64::MAX)))
    }
}

/// Milliseconds as people say them: `900 ms`, `41 s`, `9 min`, `3 h`, `2 d`.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, ms) = (self.0 / 1000, self.0);
        match seconds {
            0 => write!(f, "{ms} ms"),
            1..120 => write!(f, "{seconds} s"),
            120..7200 => write!(f, "{} min", seconds / 60),
            7200..172_800 => write!(f, "{} h", seconds / 3600),
            _ => write!(f, "{} d", seconds / 86_400),
        }
    }
}

/// Bytes as people say them, by 1024: `256 KiB`, `1.5 MiB`.
#[derive(Clone, Copy, Debug)]
pub struct BinaryBytes(pub u64);

impl fmt::Display for BinaryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            let unit = if f.alternate() { "bytes" } else { "B" };
            return write!(f, "{} {unit}", self.0);
        }
        let (mut number, mut unit) = (self.0 as f64 / 1024.0, 0);
        while number >= 1023.95 && unit + 1 < UNITS.len() {
            number /= 1024.0;
            unit += 1;
        }
        let unit = UNITS.get(unit).unwrap_or(&"");
        match number {
            100.0.. => write!(f, "{number:.0} {unit}"),
            _ => write!(f, "{} {unit}", format!("{number:.1}").trim_end_matches(".0")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        let numbers = [0, 999, 1000, 12_004, 1_234_567].map(|number| Grouped(number).to_string());
        assert_eq!(numbers, ["0", "999", "1,000", "12,004", "1,234,567"]);
        let changes = [0, 999, -1000, 12_004, i128::MIN].map(|number| GroupedChange(number).to_string());
        assert_eq!(changes, ["+0", "+999", "-1,000", "+12,004", "-18,446,744,073,709,551,615"]);
        let times = [0, 999, 1000, 119_999, 120_000, 7_200_000, 200_000_000].map(|ms| Span(ms).to_string());
        assert_eq!(times, ["0 ms", "999 ms", "1 s", "119 s", "2 min", "2 h", "2 d"]);
        let bytes = [0, 1023, 1024, 1536, 1 << 20, (1 << 30) - 1, u64::MAX]
            .map(|bytes| BinaryBytes(bytes).to_string());
        assert_eq!(bytes, ["0 B", "1023 B", "1 KiB", "1.5 KiB", "1 MiB", "1 GiB", "16384 PiB"]);
    }
}
