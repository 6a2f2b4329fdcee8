//! Sizes and rates as people type them: one grammar for all of them, on the command line and in the configuration.
//!
//! | unit | bytes |
//! |---|---|
//! | `B` | 1 |
//! | `K`, `M`, `G`, `T`, `P`, also with `iB`: `KiB` | powers of 1024 |
//! | `KB`, `MB`, `GB`, `TB`, `PB` | powers of 1000 |
//!
//! In any case, after a whole number or a decimal fraction, perhaps with a space. These are the units of dd and restic.
//! A number needs a unit, as 20 bytes are seldom meant; only 0 does without. `Mb` is refused, as it may mean bits. A rate
//! may end in `/s`.

use std::fmt;

/// Parses a size in bytes.
pub fn parse_size(text: &str) -> Result<u64, BadSize> {
    let bad = |why| BadSize {
        given: text.to_owned(),
        why,
    };
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = trimmed.split_at(split.unwrap_or(trimmed.len()));
    let unit = unit.trim_start();
    if matches!(unit, "Kb" | "Mb" | "Gb" | "Tb" | "Pb") {
        return Err(bad(Why::Bits));
    }
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" if number == "0" => 1,
        "" if number.parse::<f64>().is_ok() => return Err(bad(Why::NoUnit)),
        "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "pb" => 1_000_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "p" | "pib" => 1 << 50,
        _ => return Err(bad(Why::NoSize)),
    };
    match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(factor).ok_or_else(|| bad(Why::NoSize)),
        // Above 2^53 a number of this type can't represent every integer, and nothing is that large.
        Err(_) => match number.parse::<f64>().map(|number| number * factor as f64) {
            Ok(bytes) if bytes < 9e15 => Ok(bytes.round() as u64),
            _ => Err(bad(Why::NoSize)),
        },
    }
}

/// Parses a rate in bytes per second: a size, perhaps followed by `/s`.
pub fn parse_rate(text: &str) -> Result<u64, BadSize> {
    let trimmed = text.trim();
    parse_size(trimmed.strip_suffix("/s").unwrap_or(trimmed)).map_err(|error| BadSize {
        given: text.to_owned(),
        ..error
    })
}

/// Text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadSize {
    given: String,
    why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    NoUnit,
    Bits,
    NoSize,
}

impl fmt::Display for BadSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = &self.given;
        match self.why {
            Why::NoUnit => write!(
                f,
                "{given} has no unit; write e.g. {given}G or {given}M, or {given}B for bytes"
            ),
            Why::Bits => {
                let (number, unit) = given.split_at(given.find(|c: char| c.is_alphabetic()).unwrap_or_default());
                let (letter, rest) = unit.split_at(1);
                let rest = rest.strip_prefix('b').unwrap_or(rest);
                write!(
                    f,
                    "{given} could mean bits; write {number}{letter}B{rest} (units of 1000) or {number}{letter}iB{rest} (units \
                     of 1024)"
                )
            }
            Why::NoSize => write!(
                f,
                "{given:?} is not a size; write e.g. 10G or 10GiB (units of 1024), or 10GB (units of 1000)"
            ),
        }
    }
}

impl std::error::Error for BadSize {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_units_of_dd() {
        for (text, bytes) in [
            ("0", 0),
            ("512B", 512),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("64KiB", 64 << 10),
            ("64KB", 64_000),
            ("64 kB", 64_000),
            ("1M", 1 << 20),
            ("20GB", 20_000_000_000),
            ("20G", 20 << 30),
            ("1.5G", 3 << 29),
            ("0.5 TiB", 1 << 39),
            ("2tb", 2_000_000_000_000),
            ("1P", 1 << 50),
            (" 10MiB ", 10 << 20),
            ("16777215T", 16_777_215 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "G",
            "-1G",
            "+1G",
            "1X",
            "1.2.3G",
            ".G",
            "1e3M",
            "banana",
            "200MB/s",
            "99999999999999999999B",
            "16777216T",
            "99999999.5P",
            "1G1M",
        ] {
            let error = parse_size(bad).expect_err(bad).to_string();
            assert!(error.contains("10G or 10GiB (units of 1024), or 10GB"), "{error}");
        }
    }

    #[test]
    fn a_number_needs_a_unit() {
        for bad in ["20", "4096", "1.5"] {
            let error = parse_size(bad).expect_err(bad).to_string();
            assert_eq!(
                error,
                format!("{bad} has no unit; write e.g. {bad}G or {bad}M, or {bad}B for bytes")
            );
        }
    }

    #[test]
    fn rates_are_sizes_a_second() {
        for (text, bytes) in [
            ("200MB/s", 200_000_000),
            ("200 MB/s\n", 200_000_000),
            ("200MiB/s", 200 << 20),
            ("200M", 200 << 20),
            ("1.5GB/s", 1_500_000_000),
            ("500B", 500),
        ] {
            assert_eq!(parse_rate(text), Ok(bytes), "{text}");
        }
        let error = parse_rate("200Mb/s").expect_err("bits").to_string();
        assert!(error.contains("write 200MB/s (units of 1000) or 200MiB/s"), "{error}");
        assert!(parse_rate("200").is_err() && parse_rate("200M/h").is_err());
    }
}
