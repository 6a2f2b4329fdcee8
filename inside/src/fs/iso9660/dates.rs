//! Dates in seven and in 17 bytes.

use jiff::civil::DateTime;
use jiff::{SignedDuration, Timestamp, tz};

fn timestamp(date: Option<DateTime>, quarters: u8) -> Timestamp {
    let zoned = date.and_then(|date| date.to_zoned(tz::TimeZone::UTC).ok());
    let local = zoned.map_or(Timestamp::UNIX_EPOCH, |zoned| zoned.timestamp());
    // Quarters of an hour east of Greenwich.
    let shift = SignedDuration::from_mins(i64::from(quarters.cast_signed()) * 15);
    local.checked_sub(shift).unwrap_or(local)
}

/// Returns the time of a directory record (ECMA-119 9.1.5); 1970 if it is none.
pub(super) fn short(bytes: &[u8; 7]) -> Timestamp {
    let [years, month, day, hour, minute, second, quarters] = *bytes;
    let [month, day, hour, minute, second] = [month, day, hour, minute, second].map(u8::cast_signed);
    let date = DateTime::new(1900 + i16::from(years), month, day, hour, minute, second, 0);
    timestamp(date.ok(), quarters)
}

/// Returns the time in a descriptor (ECMA-119 8.4.26.1), which Rock Ridge may have too; 1970 if it is none.
pub(super) fn long(bytes: &[u8; 17]) -> Timestamp {
    let digits = |at: usize, len: usize| {
        let digits = bytes[at..at + len].iter().map(|byte| char::from(*byte).to_digit(10));
        let number = digits
            .into_iter()
            .try_fold(0, |number, digit| Some(number * 10 + digit?))?;
        i16::try_from(number).ok()
    };
    let two = |at: usize| digits(at, 2).and_then(|number| i8::try_from(number).ok());
    let date = || {
        let nanos = i32::from(two(14)?) * 10_000_000;
        DateTime::new(digits(0, 4)?, two(4)?, two(6)?, two(8)?, two(10)?, two(12)?, nanos).ok()
    };
    timestamp(date(), bytes[16])
}
