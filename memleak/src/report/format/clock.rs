//! The time of day, as reports show it.

use std::time::SystemTime;

use jiff::{Timestamp, tz::TimeZone};

/// Time of day in `format` (strftime(3)).
pub(super) fn time_of_day(time: SystemTime, zone: &TimeZone, format: &str) -> String {
    // A clock set outside of jiff's years -9999 to 9999 shows as 1970.
    let time = Timestamp::try_from(time).unwrap_or_default();
    time.to_zoned(zone.clone()).strftime(format).to_string()
}
