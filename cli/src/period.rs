//! A span of time that `--since` and `--until` give, for every command that has them.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::args::parse::Moment;
use crate::exit::{Error, Result};

/// A span of time. Without an end on one side it is open there.
pub struct Period {
    since: Option<Bound>,
    until: Option<Bound>,
    zone: TimeZone,
}

/// First or last time of a span.
enum Bound {
    Time(Timestamp),
    /// The first characters of a time as it is written in the zone.
    Text(String),
}

impl Period {
    /// Makes a span; times without a Z at their end are those of `zone`.
    pub fn new(since: Option<&Moment>, until: Option<&Moment>, now: Timestamp, zone: TimeZone) -> Result<Self> {
        let bound = |moment: &Moment| match moment {
            // With a Z it is UTC, whatever the zone.
            Moment::At(text) if text.ends_with('Z') => written(text).map(Bound::Time),
            Moment::At(text) => Ok(Bound::Text(text.clone())),
            Moment::Ago(ago) => {
                let ago = SignedDuration::try_from(*ago).ok();
                let at = ago.and_then(|ago| now.checked_sub(ago).ok());
                at.map(Bound::Time)
                    .ok_or_else(|| Error::Usage("that is before all times".into()))
            }
        };
        Ok(Self {
            since: since.map(bound).transpose()?,
            until: until.map(bound).transpose()?,
            zone,
        })
    }

    /// Returns whether a time is within the span. `2026-11-20` as the end contains the whole day.
    pub fn contains(&self, at: Timestamp) -> bool {
        // As names of backups are written, so that the first characters decide.
        let text = || {
            let at = at.to_zoned(self.zone.clone());
            at.strftime("%Y-%m-%dT%H-%M-%S").to_string()
        };
        let is_since = self.since.as_ref().is_none_or(|since| match since {
            Bound::Time(since) => at >= *since,
            Bound::Text(since) => text() >= *since,
        });
        is_since
            && self.until.as_ref().is_none_or(|until| match until {
                Bound::Time(until) => at <= *until,
                Bound::Text(until) => text().get(..until.len()).is_some_and(|start| start <= &until[..]),
            })
    }
}

/// Reads a whole time, e.g. `2026-11-20T05-54-00Z`.
fn written(text: &str) -> Result<Timestamp> {
    text.parse()
        .map(|time: vbk_repo::name::BackupTime| time.timestamp())
        .map_err(|_| Error::Usage(format!("{text} is not a time of the calendar")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::parse::parse_moment;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn period(since: &str, until: &str, zone: TimeZone) -> Period {
        let moment = |text: &str| (!text.is_empty()).then(|| parse_moment(text).expect("a time"));
        let (since, until) = (moment(since), moment(until));
        Period::new(since.as_ref(), until.as_ref(), at("2026-11-30T12:00:00Z"), zone).expect("a span")
    }

    #[test]
    fn a_part_of_a_time_means_all_of_that_part() {
        for (since, until, inside) in [
            ("2026-11-20", "2026-11-20", true),
            ("2026-11", "2026", true),
            ("2026-11-20 05:54", "2026-11-20T05:54", true),
            ("2026-11-20T05:54:01Z", "", false),
            ("2026-11-20T05:54:00Z", "2026-11-20T05:54:00Z", true),
            ("2026-11-21", "", false),
            ("", "2026-11-19", false),
            ("11d", "", true),
            ("10d", "", false),
            ("", "10d", true),
        ] {
            let period = period(since, until, TimeZone::UTC);
            assert_eq!(period.contains(at("2026-11-20T05:54:00Z")), inside, "{since} {until}");
        }
    }

    #[test]
    fn a_day_is_that_of_the_zone_and_a_z_is_utc() {
        let east = || TimeZone::fixed(jiff::tz::offset(2));
        let evening = at("2026-11-20T23:00:00Z");
        assert!(period("2026-11-21", "2026-11-21", east()).contains(evening));
        assert!(!period("", "2026-11-20", east()).contains(evening));
        assert!(period("", "2026-11-20T23:00:00Z", east()).contains(evening));
    }
}
