//! Timestamps of log records.

use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of a formatted timestamp: `2006-01-02T15:04:05.000000000Z`.
pub const TIMESTAMP_LEN: usize = 30;

const SECONDS_PER_DAY: u64 = 86_400;
/// 9999-12-31T23:59:59Z, the last second that four digits of year can name.
const LAST_SECOND: u64 = 253_402_300_799;

/// A moment in UTC with nanoseconds, between the years 1970 and 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    seconds: u64,
    nanoseconds: u32,
}

impl Timestamp {
    /// The present moment by the wall clock.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_unix(since.as_secs(), since.subsec_nanos())
    }

    /// A moment by its distance from 1970-01-01T00:00:00Z. Values outside of
    /// the range (year 9999, a second's nanoseconds) become the nearest inside.
    pub fn from_unix(seconds: u64, nanoseconds: u32) -> Self {
        Self { seconds: seconds.min(LAST_SECOND), nanoseconds: nanoseconds.min(999_999_999) }
    }

    /// Formats as RFC 3339 with nine digits of fraction and `Z`. The width is
    /// fixed, so formatted timestamps sort like the moments they name.
    pub fn format(self) -> [u8; TIMESTAMP_LEN] {
        let (year, month, day) = civil_date(self.seconds / SECONDS_PER_DAY);
        let second_of_day = self.seconds % SECONDS_PER_DAY;
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        digits(&mut text[0..4], year);
        digits(&mut text[5..7], month);
        digits(&mut text[8..10], day);
        digits(&mut text[11..13], second_of_day / 3600);
        digits(&mut text[14..16], second_of_day / 60 % 60);
        digits(&mut text[17..19], second_of_day % 60);
        digits(&mut text[20..29], u64::from(self.nanoseconds));
        text
    }
}

/// Fills `place` with the decimal digits of `value`, zero padded.
fn digits(place: &mut [u8], mut value: u64) {
    for digit in place.iter_mut().rev() {
        // The remainder of ten fits a byte.
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01.
///
/// Counts in years that begin on the first of March: the leap day is then the
/// last of its year, and the lengths of months follow one linear rule.
fn civil_date(day: u64) -> (u64, u64, u64) {
    const DAYS_TO_MARCH_OF_YEAR_0: u64 = 719_468;
    const DAYS_PER_400_YEARS: u64 = 146_097;
    let day = day + DAYS_TO_MARCH_OF_YEAR_0;
    let era = day / DAYS_PER_400_YEARS;
    let day_of_era = day % DAYS_PER_400_YEARS;
    // Take the leap days out (one each 4 years, none each 100, one each 400).
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Five months from March on have 153 days, twice a year.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(seconds: u64, nanoseconds: u32) {
        let ours = Timestamp::from_unix(seconds, nanoseconds).format();
        let oracle = jiff::Timestamp::new(seconds as i64, nanoseconds as i32).unwrap();
        assert_eq!(std::str::from_utf8(&ours).unwrap(), format!("{oracle:.9}"), "{seconds}.{nanoseconds}");
    }

    #[test]
    fn every_day_until_2400_agrees_with_jiff() {
        for day in 0..157_000 {
            check(day * SECONDS_PER_DAY, 0);
            check(day * SECONDS_PER_DAY + SECONDS_PER_DAY - 1, 999_999_999);
        }
    }

    #[test]
    fn out_of_range_is_clamped() {
        assert_eq!(&Timestamp::from_unix(u64::MAX, u32::MAX).format(), b"9999-12-31T23:59:59.999999999Z");
    }

    proptest! {
        #[test]
        fn any_moment_agrees_with_jiff(seconds in 0..253_402_207_200u64, nanoseconds in 0..1_000_000_000u32) {
            check(seconds, nanoseconds);
        }
    }
}
