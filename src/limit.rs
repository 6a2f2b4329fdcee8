//! The speed at which disks are read: the guest's own reads and writes take precedence.
//!
//! | part | task |
//! |---|---|
//! | [`bucket`] | starts reads at the allowed rate, smooth to 100 ms |
//! | [`kernel`] | sets the same limit, a little higher, in the kernel, in case the bucket fails |
//! | [`speed`] | determines the speed of a disk, to which limits in per cent refer |
//! | [`pressure`] | reduces the rate while the host waits for its disks |
//! | `priority` | gives the reading threads the idle I/O class and niceness |
//!
//! A [`Limiter`] owns them for one run and applies changes of the limit during the run.

pub mod bucket;
pub mod kernel;
mod limiter;
pub mod pressure;
pub(crate) mod priority;
pub mod requests;
pub mod speed;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::disk::buffer::AlignedBuffer;
use crate::disk::source::Source;
use crate::error::Error;
use crate::{size, text};

pub use self::limiter::{GuestDisk, LimitOptions, Limiter, Reload};

/// A limit for reading a disk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ReadLimit {
    /// Share of the disk's allocated speed: 0.6 for 60 %.
    Share(f64),
    /// Bytes per second.
    BytesPerSec(u64),
    /// No limit.
    Unlimited,
}

impl ReadLimit {
    /// Limit of a disk for which none is set.
    pub const DEFAULT: Self = Self::Share(0.6);
}

impl Default for ReadLimit {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The limits of one disk, for the threads that read it.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    /// Controls when a read may start; without it, at any time.
    pub bucket: Option<Arc<bucket::Bucket>>,
    /// True if the reading threads get the idle I/O class and niceness 19.
    pub idle: bool,
}

impl Pace {
    /// Prepares the calling thread; a thread must call it before its first read.
    pub(crate) fn begin(&self) {
        if self.idle {
            priority::lower_this_thread();
        }
    }

    /// Reads from a disk, in pieces and no faster than the bucket allows. Fails with [`Error::Interrupted`] when `stop`
    /// returns true.
    pub(crate) fn read(
        &self,
        source: &Source,
        offset_bytes: u64,
        len: usize,
        buffer: &mut AlignedBuffer,
        stop: &dyn Fn() -> bool,
    ) -> crate::Result<()> {
        let mut done = 0;
        while done < len {
            let mut piece = len - done;
            if let Some(bucket) = &self.bucket {
                piece = piece.min(bucket.piece_bytes());
                if !bucket.take(piece as u64, stop) {
                    return Err(Error::Interrupted);
                }
            }
            source.read_part(offset_bytes + done as u64, piece, &mut buffer.as_mut_slice()[done..])?;
            done += piece;
        }
        Ok(())
    }
}

/// Text that is neither a limit nor a speed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}")]
pub struct BadRate {
    text: String,
    what: &'static str,
}

impl FromStr for ReadLimit {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, BadRate> {
        let text = text.trim();
        let bad = || BadRate {
            text: text.to_owned(),
            what: "read limit; write 60%, 200MB/s (units of 1000), 200MiB/s or 200M (units of 1024), or none",
        };
        if text == "none" {
            return Ok(Self::Unlimited);
        }
        match text.strip_suffix('%') {
            Some(percent) => match percent.trim_end().parse::<f64>() {
                Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Self::Share(percent / 100.0)),
                _ => Err(bad()),
            },
            None => parse_rate(text).map(Self::BytesPerSec).map_err(|_| bad()),
        }
    }
}

impl fmt::Display for ReadLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // 7 % is 0.07, and 0.07 times 100 is 7.000000000000001.
            Self::Share(share) => write!(f, "{}%", (share * 1e6).round() / 1e4),
            Self::BytesPerSec(rate) => f.write_str(&text::rate(*rate)),
            Self::Unlimited => f.write_str("none"),
        }
    }
}

/// Parses a speed in bytes per second, see [`crate::size`]. Refuses zero, at which nothing would ever be read.
pub fn parse_rate(text: &str) -> Result<u64, BadRate> {
    match size::parse_rate(text) {
        // No disk is faster, and larger numbers are not exact as floating-point numbers.
        Ok(rate @ 1..9_000_000_000_000_000) => Ok(rate),
        _ => Err(BadRate {
            text: text.to_owned(),
            what: "speed; write 200MB/s (units of 1000), 200MiB/s or 200M (units of 1024)",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_parsed_and_formatted() {
        for (text, limit, shown) in [
            ("60%", ReadLimit::Share(0.6), "60%"),
            ("7 %", ReadLimit::Share(0.07), "7%"),
            ("0.5%", ReadLimit::Share(0.005), "0.5%"),
            ("200MB/s", ReadLimit::BytesPerSec(200_000_000), "200 MB/s"),
            ("200 MB/s\n", ReadLimit::BytesPerSec(200_000_000), "200 MB/s"),
            ("200MiB/s", ReadLimit::BytesPerSec(200 << 20), "210 MB/s"),
            ("200M", ReadLimit::BytesPerSec(200 << 20), "210 MB/s"),
            ("1.5GB/s", ReadLimit::BytesPerSec(1_500_000_000), "1500 MB/s"),
            ("500B", ReadLimit::BytesPerSec(500), "500 B/s"),
            ("none", ReadLimit::Unlimited, "none"),
        ] {
            assert_eq!(text.parse(), Ok(limit), "{text}");
            assert_eq!(limit.to_string(), shown);
            assert_eq!(
                limit.to_string().parse::<ReadLimit>().map(|it| it.to_string()),
                Ok(shown.into())
            );
        }
        for bad in [
            "",
            "%",
            "0%",
            "101%",
            "-5%",
            "NaN%",
            "inf%",
            "0",
            "0.3",
            "60",
            "5000",
            "50Mb/s",
            "fast",
            "5X",
            "1e3",
            "-1",
            "1..2",
            "9999999999GB/s",
        ] {
            let error = bad.parse::<ReadLimit>().expect_err(bad).to_string();
            assert!(error.contains("60%") && error.contains("MB/s"), "{error}");
        }
    }
}
