//! Sizes, durations and times for people.

use std::time::Duration;

use jiff::Timestamp;

pub use vbk::text::{rate, size};

/// `6m12s`, `3h02m`, `4.2s`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=9 => format!("{:.1}s", duration.as_secs_f64()),
        10..=59 => format!("{seconds}s"),
        60..=3599 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// Returns whole milliseconds, for JSON.
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns a share in percent, for JSON.
pub fn percent(share: f64) -> f64 {
    // 7 % is 0.07, and 0.07 times 100 is 7.000000000000001.
    (share * 1e6).round() / 1e4
}

/// `5 hours ago`, `3 days ago`.
pub fn age(seconds: i64) -> String {
    let seconds = u64::try_from(seconds).unwrap_or_default();
    let text = match seconds {
        0..=59 => return "just now".to_owned(),
        60..=3599 => count(seconds / 60, "minute"),
        3600..=172_799 => count(seconds / 3600, "hour"),
        _ => count(seconds / 86_400, "day"),
    };
    format!("{text} ago")
}

/// `2026-11-21 05:54:00`, UTC.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// `1 backup`, `2 backups`.
pub fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let cases = [
            (4_210, "4.2s"),
            (59_999, "59s"),
            (372_000, "6m12s"),
            (10_920_000, "3h02m"),
        ];
        for (ms, text) in cases {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn ages_are_short() {
        for (seconds, text) in [
            (-5, "just now"),
            (60, "1 minute ago"),
            (7_200, "2 hours ago"),
            (259_200, "3 days ago"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn one_is_not_plural() {
        assert_eq!(
            (count(1, "block"), count(0, "block")),
            ("1 block".into(), "0 blocks".into())
        );
    }
}
