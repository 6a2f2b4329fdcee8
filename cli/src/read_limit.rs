//! A read limit as JSON.

use serde::Serialize;
use vbk::limit::ReadLimit;

use crate::terminal::units;

/// Keys of a read limit, beside those of what it limits. Both are null where nothing is limited.
#[derive(Debug, PartialEq, Serialize)]
pub struct LimitJson {
    /// Null also for a share of a speed that is still to be measured.
    read_limit_bytes_per_sec: Option<u64>,
    /// Share of the disk's speed.
    read_limit_percent: Option<f64>,
}

impl LimitJson {
    /// Makes them for a disk with this speed in bytes per second, if it is known.
    pub fn new(limit: ReadLimit, speed: Option<u64>) -> Self {
        let (bytes_per_sec, share) = match limit {
            ReadLimit::Unlimited => (None, None),
            ReadLimit::BytesPerSec(rate) => (Some(rate), None),
            ReadLimit::Share(share) => (speed.map(|speed| (speed as f64 * share) as u64), Some(share)),
        };
        Self {
            read_limit_bytes_per_sec: bytes_per_sec,
            read_limit_percent: share.map(units::percent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_as_soon_as_the_speed_is_known() {
        for (limit, speed, expected) in [
            (ReadLimit::Unlimited, Some(9), (None, None)),
            (ReadLimit::BytesPerSec(7), Some(9), (Some(7), None)),
            (ReadLimit::Share(0.07), None, (None, Some(7.0))),
            (ReadLimit::Share(0.6), Some(200), (Some(120), Some(60.0))),
        ] {
            let (read_limit_bytes_per_sec, read_limit_percent) = expected;
            let expected = LimitJson {
                read_limit_bytes_per_sec,
                read_limit_percent,
            };
            assert_eq!(LimitJson::new(limit, speed), expected, "{limit:?}");
        }
    }
}
