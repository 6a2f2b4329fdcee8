//! The properties of a wire, and the words in which people write them.

use std::time::Duration;

/// The properties of a wire, the same in both directions.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The round trip: half of it is added in each direction.
    pub delay: Duration,
    /// Millions of bits a second in each direction; without it, what the machine can do.
    pub rate_mbit_per_sec: Option<f64>,
    /// The share of packets that are lost, 0 to 1.
    pub loss: f64,
    /// Bytes that wait for a line that is not free; by default what the line carries in a round trip, at least 1 MiB.
    pub queue_bytes: Option<u64>,
    /// Seed of what is lost.
    pub seed: u64,
    /// The congestion control of TCP on both sides, e.g. `cubic` or `bbr`.
    pub congestion: String,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            delay: Duration::ZERO,
            rate_mbit_per_sec: None,
            loss: 0.0,
            queue_bytes: None,
            seed: 1,
            congestion: "cubic".to_owned(),
        }
    }
}

/// A time as in `100ms`, `30s`, `2m`.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let refused = || format!("{text:?} is not a time such as 100ms, 1.5s or 2m");
    let split = text.find(|char: char| char.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| refused())?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "" if number == 0.0 => 0.0,
        _ => return Err(refused()),
    };
    // More than an hour can't be meant, and is far from the end of the clock.
    if !(0.0..=3600.0).contains(&seconds) {
        return Err(format!("{text:?} is not a time of 0 to 1 hour"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A share of packets as in `0.1%`; returned as 0 to 1.
pub fn parse_share(text: &str) -> Result<f64, String> {
    let percent: Option<f64> = text.strip_suffix('%').unwrap_or(text).parse().ok();
    percent
        .filter(|percent| (0.0..=100.0).contains(percent))
        .map(|percent| percent / 100.0)
        .ok_or_else(|| format!("{text:?} is not a share of 0% to 100%"))
}

/// A rate in Mbit/s, from 0.01 on.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: Option<f64> = text.parse().ok();
    rate.filter(|rate| (0.01..=1e6).contains(rate))
        .ok_or_else(|| format!("{text:?} is not a rate of 0.01 to 1000000 Mbit/s"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{parse_rate, parse_share, parse_time};

    #[test]
    fn times_shares_and_rates_have_their_units() {
        assert_eq!(parse_time("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(parse_time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_time("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_time("0"), Ok(Duration::ZERO));
        assert_eq!(parse_share("0.1%"), Ok(0.001));
        assert_eq!(parse_share("100"), Ok(1.0));
        assert_eq!(parse_rate("1000"), Ok(1000.0));
        for wrong in ["", "5", "-1s", "1h", "2h", "s", "NaNs", "1e9s", "infs"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "101%", "-1%", "NaN%"] {
            assert!(parse_share(wrong).is_err(), "{wrong}");
        }
        assert!(parse_rate("0").is_err() && parse_rate("inf").is_err());
    }
}
