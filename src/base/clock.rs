//! Moments as people write them: in UTC, by the rules of the Gregorian calendar.

use std::time::{Duration, SystemTime};

use crate::base::root::Root;

const DAY: u64 = 86_400;

/// What of a tree of files says when it was: seconds since 1970, and milliseconds since boot.
pub const MOMENT: &str = "/moment";

/// Now, on the host that is looked at, seconds since 1970: of a tree that says it, when it was made.
pub fn now_on(root: &Root) -> u64 {
    told(root).map_or_else(now, |(now, _)| now)
}

/// When a tree of files was made, and how long after boot.
pub(crate) fn told(root: &Root) -> Option<(u64, Duration)> {
    let text = (!root.is_real()).then(|| root.line(MOMENT))??;
    let (now, up) = text.split_once(' ')?;
    Some((now.parse().ok()?, Duration::from_millis(up.parse().ok()?)))
}

/// Now, seconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs()
}

/// Seconds since 1970 as a date and a time of day.
pub fn utc(time: u64) -> String {
    let (days, seconds) = (time / DAY, time % DAY);
    // Years that begin in March have the leap day as their last one; an era is 400 of them.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (h, m, s) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{day:02} {h:02}:{m:02}:{s:02} UTC")
}

/// A moment from which on something counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Seconds since 1970.
    At(u64),
    /// So many seconds before now.
    Ago(u64),
}

impl Since {
    /// As seconds since 1970.
    pub fn time(self, now: u64) -> u64 {
        match self {
            Since::At(time) => time,
            Since::Ago(seconds) => now.saturating_sub(seconds),
        }
    }

    /// From `2026-11-21`, `2026-11-21 08:00`, `2026-11-21 08:00:30`, with `UTC` behind it or not, or `90m`, `12h`, `7d`.
    ///
    /// # Errors
    /// Which forms there are.
    pub fn parse(text: &str) -> Result<Since, String> {
        let since = ago(text).or_else(|| at(text.trim_end_matches("UTC").trim_end()));
        since.ok_or_else(|| "a time is 2026-11-21, \"2026-11-21 08:00\" (UTC), or 90m, 12h, 7d ago".to_owned())
    }
}

fn ago(text: &str) -> Option<Since> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => DAY,
        _ => return None,
    };
    digits(number, 1, 9)?.checked_mul(seconds).map(Since::Ago)
}

fn at(text: &str) -> Option<Since> {
    let (date, time) = text.split_once([' ', 'T']).unwrap_or((text, "00:00"));
    let mut date = date.split('-');
    let (year, month, day) = (date.next()?, date.next()?, date.next()?);
    let (year, month, day) = (digits(year, 4, 4)?, digits(month, 1, 2)?, digits(day, 1, 2)?);
    let mut time = time.split(':').map(|part| digits(part, 1, 2));
    let (hour, minute, second) = (time.next()??, time.next()??, time.next().unwrap_or(Some(0))?);
    if date.next().is_some() || time.next().is_some() || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = days(year, month, day)?;
    Some(Since::At(days * DAY + hour * 3_600 + minute * 60 + second))
}

/// Days from 1970 to a date; None for what is none, and before that year.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        _ => return None,
    };
    if year < 1970 || !(1..=length).contains(&day) {
        return None;
    }
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let of_year = (153 * month + 2) / 5 + day - 1;
    (year * 365 + year / 4 - year / 100 + year / 400 + of_year).checked_sub(719_468)
}

/// A number of so many decimal digits.
fn digits(text: &str, least: usize, most: usize) -> Option<u64> {
    let is_number = (least..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: [(u64, &str); 4] = [
        (0, "1970-01-01 00:00:00 UTC"),
        (951_782_400, "2000-02-29 00:00:00 UTC"),
        (1_709_251_199, "2024-02-29 23:59:59 UTC"),
        (1_795_249_367, "2026-11-21 08:22:47 UTC"),
    ];

    #[test]
    fn times_are_dates_and_dates_times() {
        for (time, expected) in TIMES {
            assert_eq!(utc(time), expected);
            assert_eq!(Since::parse(expected), Ok(Since::At(time)));
        }
    }

    #[test]
    fn a_beginning_is_a_date_or_so_long_ago() {
        for (text, time) in [
            ("2026-11-21", 1_795_219_200),
            ("2026-11-21 08:22", 1_795_249_320),
            ("2026-11-21T08:22:47", 1_795_249_367),
            ("90m", 1_000_000 - 5_400),
            ("12h", 1_000_000 - 43_200),
            ("7d", 1_000_000 - 604_800),
            ("999999999d", 0),
        ] {
            assert_eq!(Since::parse(text).map(|s| s.time(1_000_000)), Ok(time), "{text}");
        }
        for text in [
            "",
            "d",
            "yesterday",
            "2026-02-29",
            "2026-13-01",
            "1969-12-31",
            "2026-11-21 24:00",
            "-1h",
            "1\u{e9}",
            "+1d",
        ] {
            assert!(Since::parse(text).is_err(), "{text}");
        }
    }
}
