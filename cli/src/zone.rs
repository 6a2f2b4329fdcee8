//! The time zone of this machine, and times in it.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::exit::{Error, Result};

/// Returns the time zone of this machine, or that of `TZ`. UTC where neither is known; a `TZ` that does not exist causes a
/// warning.
pub fn local() -> TimeZone {
    TimeZone::try_system().unwrap_or_else(|_| {
        if let Some(name) = std::env::var_os("TZ").filter(|name| !name.is_empty()) {
            tracing::warn!(
                "TZ is {}, which is no time zone of this machine; UTC is used. Write e.g. TZ=Europe/Vienna",
                name.display()
            );
        }
        TimeZone::UTC
    })
}

/// Returns a time zone by its name, or [`local`].
pub fn named_or_local(name: Option<&str>) -> Result<TimeZone> {
    match name {
        None => Ok(local()),
        Some(name) => TimeZone::get(name).map_err(|error| {
            Error::Usage(format!(
                "no time zone {name:?}; write e.g. Europe/Vienna or UTC ({error})"
            ))
        }),
    }
}

/// Returns the name of a zone, e.g. `Europe/Vienna`, or what its clocks differ from UTC by now, e.g. `UTC+01`.
pub fn name(zone: &TimeZone, now: Timestamp) -> String {
    match zone.iana_name() {
        Some(name) => name.to_owned(),
        None if *zone == TimeZone::UTC => "UTC".to_owned(),
        None => format!("UTC{}", zone.to_offset(now)),
    }
}

/// `2026-11-21 05:54:00` in a zone.
pub fn time(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// RFC 3339 with the offset of a zone: `2026-11-21T05:54:00+01:00`.
pub fn json_time(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_without_a_name_is_named_by_its_offset() {
        let at: Timestamp = "2026-11-21T23:30:00Z".parse().expect("a time");
        let east = TimeZone::fixed(jiff::tz::offset(1));
        assert_eq!(
            (name(&TimeZone::UTC, at), name(&east, at)),
            ("UTC".into(), "UTC+01".into())
        );
        assert_eq!(time(at, &east), "2026-11-22 00:30:00");
        assert_eq!(json_time(at, &east), "2026-11-22T00:30:00+01:00");
        assert!(named_or_local(Some("Nowhere")).is_err_and(|error| error.message().contains("Europe/Vienna")));
    }
}
