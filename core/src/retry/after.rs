//! `Retry-After` (RFC 9110, section 10.2.3).

use std::time::Duration;

/// How long a `Retry-After` asks to wait: its seconds, or the time until its date; zero for a date that is past. At most `cap`. None if
/// it is neither. `now` is wall time, in seconds since the Unix epoch.
pub fn retry_after(value: &[u8], now: i64, cap: Duration) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are a long time.
        return Some(text.parse().map_or(cap, Duration::from_secs).min(cap));
    }
    let wait = date(text)?.saturating_sub(now).max(0).cast_unsigned();
    Some(Duration::from_secs(wait).min(cap))
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const LONG_DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Reads an HTTP date in any of its three forms (RFC 9110, section 5.6.7), as seconds since the Unix epoch. A two-digit year lies from
/// 1970 to 2069. Whether the day of the week is the right one is not looked at.
fn date(text: &str) -> Option<i64> {
    if !text.is_ascii() {
        return None;
    }
    let parts: [&str; 6] = match text.split_once(", ") {
        // Sun, 06 Nov 1994 08:49:37 GMT, and Sunday, 06-Nov-94 08:49:37 GMT.
        Some((day, rest)) => {
            let rest = rest.strip_suffix(" GMT")?;
            let (date, time) = rest.rsplit_once(' ')?;
            let (separator, width) = if DAYS.contains(&day) {
                (' ', 4)
            } else if LONG_DAYS.contains(&day) {
                ('-', 2)
            } else {
                return None;
            };
            let mut date = date.split(separator);
            let (day, month, year) = (date.next()?, date.next()?, date.next()?);
            let (h, m, s) = clock(time)?;
            if date.next().is_some() || day.len() != 2 || year.len() != width {
                return None;
            }
            [day, month, year, h, m, s]
        }
        // Sun Nov  6 08:49:37 1994.
        None => {
            let (name, rest) = text.split_at_checked(4)?;
            let (month, rest) = rest.split_at_checked(4)?;
            let (day, rest) = rest.split_at_checked(3)?;
            let (time, year) = rest.split_once(' ')?;
            let (h, m, s) = clock(time)?;
            if !DAYS.contains(&name.strip_suffix(' ')?) || year.len() != 4 {
                return None;
            }
            let day = day.strip_suffix(' ')?;
            [day.strip_prefix(' ').unwrap_or(day), month.strip_suffix(' ')?, year, h, m, s]
        }
    };
    let month = MONTHS.iter().position(|m| *m == parts[1])? as i64 + 1;
    let [day, year, hour, minute, second] = [parts[0], parts[2], parts[3], parts[4], parts[5]].map(number);
    let (day, year, hour, minute, second) = (day?, year?, hour?, minute?, second?);
    let year = match parts[2].len() {
        2 if year < 70 => 2000 + year,
        2 => 1900 + year,
        _ => year,
    };
    // 60 is a leap second.
    if !(1..=days_of(year, month)).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(((days_before(year, month) + day - 1) * 24 + hour) * 3600 + minute * 60 + second)
}

fn clock(time: &str) -> Option<(&str, &str, &str)> {
    let mut parts = time.split(':');
    let clock = (parts.next()?, parts.next()?, parts.next()?);
    (time.len() == 8 && parts.next().is_none()).then_some(clock)
}

fn number(text: &str) -> Option<i64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

const fn leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970 to the first of the month; the year has four digits at most.
fn days_before(year: i64, month: i64) -> i64 {
    let leaps = |y: i64| y / 4 - y / 100 + y / 400;
    // Year 0 is a leap year; without a year before it, its own day is counted here.
    let years = 365 * (year - 1970) + if year > 0 { leaps(year - 1) } else { -1 } - leaps(1969);
    years + (1..month).map(|m| days_of(year, m)).sum::<i64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAP: Duration = Duration::from_secs(3600);

    #[test]
    fn seconds_and_the_three_forms_of_a_date_are_read() {
        let now = 784_111_777 - 60;
        let minute = Some(Duration::from_secs(60));
        for (text, wait) in [
            ("60", minute),
            (" 60\t", minute),
            ("0", Some(Duration::ZERO)),
            ("3601", Some(CAP)),
            ("99999999999999999999999", Some(CAP)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", minute),
            ("Sunday, 06-Nov-94 08:49:37 GMT", minute),
            ("Sun Nov  6 08:49:37 1994", minute),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(Duration::ZERO)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(Duration::ZERO)),
            ("Fri, 31 Dec 9999 23:59:60 GMT", Some(CAP)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("Sun, 31 Feb 2021 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 24:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Sun, 06 Nov 94 08:49:37 GMT", None),
            ("Sun, 6 Nov 1994 08:49:37 GMT", None),
            ("Sun Nov 06 08:49 1994", None),
        ] {
            assert_eq!(retry_after(text.as_bytes(), now, CAP), wait, "{text:?}");
        }
    }

    #[test]
    fn days_are_counted_as_the_calendar_counts_them() {
        let mut days = days_before(0, 1);
        for year in 0..3000 {
            for month in 1..=12 {
                assert_eq!(days_before(year, month), days, "{year}-{month}");
                days += days_of(year, month);
            }
        }
        assert_eq!(days_before(1970, 1), 0);
        assert_eq!(days_before(2000, 3), 11_017);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40), text in "[A-Za-z]{3,6},? [0-9]{1,2}[ -][A-Za-z]{3}[ -][0-9]{1,20} [0-9:]{0,9} GMT", now in any::<i64>()) {
            for value in [&bytes[..], text.as_bytes()] {
                prop_assert!(retry_after(value, now, CAP).is_none_or(|wait| wait <= CAP));
            }
        }
    }
}
