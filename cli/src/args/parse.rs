//! Parses the values of options.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use vbk::hints::ChangeHints;
use vbk::limit::{ReadLimit, parse_rate};
use vbk::snapshot::{SnapshotOptions, SnapshotSize};
use vbk_remote::address::{DEFAULT_PORT, VbkAddress};
use vbk_remote::client::{Bandwidth, BandwidthRule};
use vbk_repo::block::BlockSize;
use vbk_repo::codec::Compression;
use vbk_repo::name::{DiskName, GuestName, check_file_name};
use vbk_repo::repository::Reserve;

use super::DiskArg;

/// The least bandwidth: a message may have 64 KiB pieces, and a connection of which nothing is heard for a minute counts as dead.
const MIN_BANDWIDTH: u64 = 64 << 10;

pub fn parse_block_size(text: &str) -> Result<BlockSize, String> {
    BlockSize::new(parse_size(text)?).map_err(|error| error.to_string())
}

/// Parses a size in bytes, with a unit or without.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || "write a size, e.g. 64K, 1M or 1048576".to_owned();
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(place) => text.split_at(place),
        None => (text, ""),
    };
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(bad()),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    Ok(number.saturating_mul(factor))
}

/// Parses a size, or `off` for 0.
pub fn parse_size_or_off(text: &str) -> Result<u64, String> {
    match text {
        "off" => Ok(0),
        text => parse_size(text).map_err(|error| format!("{error}, or off")),
    }
}

/// Parses a bandwidth: a rate, or several for parts of the day, the first that counts first.
pub fn parse_bandwidth(text: &str) -> Result<Bandwidth, String> {
    let rule = |part: &str| {
        let bad = || {
            format!(
                "{part:?} is not a rate with a part of the day; write 20MB/s, or several: 5MB/s 8:00-18:00, 50MB/s; none is no limit"
            )
        };
        let mut words = part.split_whitespace();
        let rate = words.next().ok_or_else(bad)?;
        let bytes_per_sec = match rate {
            "none" => None,
            rate => Some(parse_rate(rate).map_err(|error| error.to_string())?),
        };
        if bytes_per_sec.is_some_and(|rate| rate < MIN_BANDWIDTH) {
            return Err(format!(
                "{rate} is too little: at least 64KiB/s, or the two hosts take each other for dead"
            ));
        }
        let time = |text: &str| {
            let (hour, minute) = text.split_once(':').unwrap_or((text, "0"));
            match (hour.parse(), minute.parse()) {
                // The end of the day.
                (Ok(24), Ok(0_i8)) => Ok(jiff::civil::Time::midnight()),
                (Ok(hour), Ok(minute)) => jiff::civil::Time::new(hour, minute, 0, 0).map_err(|_| bad()),
                _ => Err(bad()),
            }
        };
        let within = match words.next() {
            None => None,
            Some(part) => {
                let (from, to) = part.split_once('-').ok_or_else(bad)?;
                Some((time(from)?, time(to)?))
            }
        };
        match words.next() {
            None => Ok(BandwidthRule { bytes_per_sec, within }),
            Some(_) => Err(bad()),
        }
    };
    Ok(Bandwidth::new(text.split(',').map(rule).collect::<Result<_, _>>()?))
}

/// Parses an address to listen on: with the usual port, unless it names another.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let alone = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    let usual = alone
        .parse::<IpAddr>()
        .map(|address| SocketAddr::new(address, DEFAULT_PORT));
    let parsed = text.parse::<SocketAddr>().or(usual);
    parsed.map_err(|_| "write an address of this host, e.g. 0.0.0.0 or [::]:8484".to_owned())
}

/// Parses `HOST[:PORT]`.
pub fn parse_host(text: &str) -> Result<(String, Option<u16>), String> {
    let address: Option<VbkAddress> = format!("vbk://{text}").parse().ok();
    match address.filter(|address| address.repository.is_none() && !text.ends_with('/')) {
        Some(address) => Ok((address.host, address.port)),
        None => Err(format!("{text:?} is no host; write HOST, HOST:PORT or [ADDRESS]:PORT")),
    }
}

/// Parses `6h`, `90m`, `30s`, `2d`, `2w` or `1h30m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || "write a time, e.g. 6h, 90m, 30d or 1h30m".to_owned();
    let mut seconds = 0_u64;
    let mut rest = text;
    // Each unit at most once, the largest first.
    for (unit, factor) in [('w', 604_800), ('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)] {
        let Some((number, after)) = rest.split_once(unit) else {
            continue;
        };
        // parse() would accept a sign.
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        let number: u64 = number.parse().map_err(|_| bad())?;
        seconds = number
            .checked_mul(factor)
            .and_then(|part| seconds.checked_add(part))
            .ok_or_else(bad)?;
        rest = after;
    }
    if !rest.is_empty() || seconds == 0 {
        return Err(bad());
    }
    Ok(Duration::from_secs(seconds))
}

/// The same, and `0` for no time.
pub fn parse_duration_or_zero(text: &str) -> Result<Duration, String> {
    match text {
        "0" => Ok(Duration::ZERO),
        text => parse_duration(text).map_err(|error| format!("{error}, or 0")),
    }
}

/// A time in the past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moment {
    /// So long ago.
    Ago(Duration),
    /// The first characters of a time as it is written in the name of a backup.
    At(String),
}

/// Parses `30d`, or any first part of `2026-11-20T05:54:00Z` from the year on.
pub fn parse_moment(text: &str) -> Result<Moment, String> {
    const TIME: &str = "0000-00-00T00-00-00Z";
    let written = text.replace(':', "-").replace(' ', "T");
    let fits = |(found, wanted): (char, char)| match wanted {
        '0' => found.is_ascii_digit(),
        wanted => found == wanted,
    };
    // A year, a month, a day, an hour, a minute, a second.
    if matches!(written.len(), 4 | 7 | 10 | 13 | 16 | 19 | 20) && written.chars().zip(TIME.chars()).all(fits) {
        return Ok(Moment::At(written));
    }
    match parse_duration(text) {
        Ok(duration) => Ok(Moment::Ago(duration)),
        Err(_) => Err("write a time, e.g. 30d (ago), 2026-11-20 or 2026-11-20T05:54".into()),
    }
}

/// Parses `5%` as 0.05.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>();
    match number {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err("write a share, e.g. 5% (from 0% to 100%)".into()),
    }
}

/// Parses `60%` as 0.6. The sign is required, because 0.6 could mean either.
pub fn parse_extend(text: &str) -> Result<f64, String> {
    // A snapshot that is extended later would overflow first.
    let stop_at = SnapshotOptions::default().stop_at;
    match parse_percent(text) {
        Ok(share) if text.ends_with('%') && share > 0.0 && share < stop_at => Ok(share),
        _ => Err(format!(
            "write how full it may be, e.g. 60% (less than {:.0}%, at which a backup is stopped)",
            stop_at * 100.0
        )),
    }
}

pub fn parse_reserve(text: &str) -> Result<Reserve, String> {
    if text.ends_with('%') {
        return parse_percent(text).map(Reserve::Share);
    }
    parse_size(text).map(Reserve::Bytes)
}

/// Parses `60%`, a rate, or `none`.
pub fn parse_read_limit(text: &str) -> Result<ReadLimit, String> {
    text.parse().map_err(|error: vbk::limit::BadRate| error.to_string())
}

/// Parses `20%` of the disk, or `10G`.
pub fn parse_snapshot_size(text: &str) -> Result<SnapshotSize, String> {
    let size = match text.ends_with('%') {
        true => SnapshotSize::Share(parse_percent(text)?),
        false => SnapshotSize::Bytes(parse_size(text).map_err(|_| "write a size, e.g. 20% or 10G".to_owned())?),
    };
    match size {
        SnapshotSize::Bytes(0) => Err("a snapshot needs space; write its size, e.g. 20% or 10G".into()),
        SnapshotSize::Share(share) if share <= 0.0 => {
            Err("a snapshot needs space; write its size, e.g. 20% or 10G".into())
        }
        size => Ok(size),
    }
}

/// Parses a speed in bytes per second.
pub fn parse_speed(text: &str) -> Result<u64, String> {
    vbk::limit::parse_rate(text).map_err(|error| error.to_string())
}

pub fn parse_change_hints(text: &str) -> Result<ChangeHints, String> {
    match text {
        "auto" => Ok(ChangeHints::Auto),
        "off" => Ok(ChangeHints::Off),
        _ => Err("write auto or off".into()),
    }
}

pub fn parse_compression(text: &str) -> Result<Compression, String> {
    match text.parse() {
        Ok(level @ 1..=19) => Ok(Compression::Zstd(level)),
        _ if text == "none" => Ok(Compression::None),
        _ => Err("write a zstd level from 1 to 19, or none".into()),
    }
}

pub fn parse_disk(text: &str) -> Result<DiskArg, String> {
    // A path may contain =; a disk's name never contains /.
    match text.split_once('=') {
        Some((name, path)) if !name.contains('/') => Ok(DiskArg {
            name: Some(DiskName::new(name).map_err(|error| error.to_string())?),
            path: non_empty(path)?,
        }),
        _ => Ok(DiskArg {
            name: None,
            path: non_empty(text)?,
        }),
    }
}

pub fn parse_attached(text: &str) -> Result<(DiskName, PathBuf), String> {
    let (name, path) = text
        .split_once('=')
        .ok_or("write NAME=FILE, e.g. config.xml=/etc/libvirt/qemu/web1.xml")?;
    let name = DiskName::new(name).map_err(|error| error.to_string())?;
    check_file_name(&name).map_err(|error| error.to_string())?;
    match path {
        "" => Err("the path of the file is missing".into()),
        path => Ok((name, path.into())),
    }
}

pub fn parse_source(text: &str) -> Result<(GuestName, PathBuf), String> {
    let (guest, path) = text
        .split_once('=')
        .ok_or("write GUEST=DISK, e.g. web1=/dev/vg0/web1")?;
    let guest = guest.parse::<GuestName>().map_err(|error| error.to_string())?;
    Ok((guest, non_empty(path)?))
}

fn non_empty(path: &str) -> Result<PathBuf, String> {
    match path {
        "" => Err("the path of the disk is missing".into()),
        path => Ok(path.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_parsed_with_units() {
        for (text, bytes) in [
            ("64K", 1 << 16),
            ("1M", 1 << 20),
            ("16MiB", 16 << 20),
            ("131072", 1 << 17),
        ] {
            assert_eq!(parse_block_size(text).map(BlockSize::bytes), Ok(bytes));
        }
        assert!(parse_block_size("100000").is_err_and(|text| text.contains("131072")));
        for bad in ["", "M", "1G", "1X", "1.5M", "-1"] {
            assert!(parse_block_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bandwidths_are_parsed_with_parts_of_the_day() {
        let shown = |text| parse_bandwidth(text).map(|bandwidth| format!("{bandwidth:?}"));
        let rules = shown("5MB/s 8:00-18:30, none 22-6:15,50MiB/s").expect("is one");
        for part in [
            "Some(5000000)",
            "08:00:00, 18:30:00",
            "None",
            "22:00:00, 06:15:00",
            "Some(52428800)",
        ] {
            assert!(rules.contains(part), "{part} {rules}");
        }
        assert!(shown("1M 20:00-24:00").expect("is one").contains("20:00:00, 00:00:00"));
        for bad in [
            "",
            "20",
            "0",
            "1KB/s",
            "5MB/s,",
            "5MB/s 8",
            "5MB/s 8:00-25:00",
            "5MB/s 8:60-9:00",
            "5MB/s 8-9 10-11",
        ] {
            assert!(shown(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_parsed_with_units() {
        for (text, seconds) in [
            ("30s", 30),
            ("90m", 5400),
            ("6h", 21_600),
            ("1h30m", 5400),
            ("2d", 172_800),
            ("0h5s", 5),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in [
            "",
            "6",
            "h",
            "0s",
            "-1h",
            "+1h",
            "6 h",
            "30m1h",
            "1h1h",
            "1.5h",
            "6hours",
            "99999999999999999999s",
            "9999999999999999999d",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn moments_are_times_or_ages() {
        assert_eq!(parse_moment("30d"), Ok(Moment::Ago(Duration::from_secs(2_592_000))));
        for (text, written) in [
            ("2026", "2026"),
            ("2026-11-20", "2026-11-20"),
            ("2026-11-20 05:54", "2026-11-20T05-54"),
            ("2026-11-20T05-54-00Z", "2026-11-20T05-54-00Z"),
        ] {
            assert_eq!(parse_moment(text), Ok(Moment::At(written.into())));
        }
        for bad in [
            "",
            "2026-1",
            "20261120",
            "yesterday",
            "2026-11-20T05:54:00+01:00",
            "-1d",
        ] {
            assert!(parse_moment(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn disks_may_have_names() {
        let of = |text: &str| parse_disk(text).map(|disk| (disk.name.map(String::from), disk.path));
        assert_eq!(of("/dev/x"), Ok((None, "/dev/x".into())));
        assert_eq!(of("vdb=/dev/x"), Ok((Some("vdb".into()), "/dev/x".into())));
        assert_eq!(of("/dev/a=b"), Ok((None, "/dev/a=b".into())));
        for bad in ["", "vda=", "=x", "a b=x", "..=x"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_snapshot_size_or_duration_of_zero_is_refused() {
        assert_eq!(parse_snapshot_size("20%"), Ok(SnapshotSize::Share(0.2)));
        assert_eq!(parse_snapshot_size("10G"), Ok(SnapshotSize::Bytes(10 << 30)));
        for bad in ["0", "0%", "", "120%", "much"] {
            assert!(parse_snapshot_size(bad).is_err(), "{bad}");
        }
        for (text, seconds) in [
            ("90s", 90),
            ("15m", 900),
            ("6h", 21_600),
            ("30d", 2_592_000),
            ("2w", 1_209_600),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "s", "0s", "5", "5\u{b5}", "1.5h", "-1s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_extend_threshold_of_zero_or_from_90_percent_is_refused() {
        assert_eq!(parse_extend("60%"), Ok(0.6));
        assert_eq!(parse_extend("0.5%"), Ok(0.005));
        for bad in ["", "0.6", "60", "0%", "90%", "100%", "-1%", "false"] {
            assert!(parse_extend(bad).is_err_and(|text| text.contains("60%")), "{bad}");
        }
    }

    #[test]
    fn an_attached_file_with_a_reserved_name_is_refused() {
        let of = |text: &str| parse_attached(text).map(|(name, path)| (String::from(name), path));
        assert_eq!(
            of("config.xml=/etc/a=b.xml"),
            Ok(("config.xml".into(), "/etc/a=b.xml".into()))
        );
        for bad in [
            "config.xml",
            "=x",
            "config.xml=",
            "backup.json=x",
            "vda.img=x",
            "../x=y",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_compression_level_that_zstd_lacks_is_refused() {
        assert_eq!(parse_compression("19"), Ok(Compression::Zstd(19)));
        assert_eq!(parse_compression("none"), Ok(Compression::None));
        for bad in ["0", "20", "-1", "fast", ""] {
            assert!(parse_compression(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_to_listen_on_has_the_usual_port() {
        for (text, address) in [
            ("0.0.0.0", "0.0.0.0:8484"),
            ("127.0.0.1:99", "127.0.0.1:99"),
            ("::1", "[::1]:8484"),
            ("[::]", "[::]:8484"),
            ("[::]:99", "[::]:99"),
        ] {
            assert_eq!(
                parse_listen(text).map(|address| address.to_string()),
                Ok(address.into())
            );
        }
        for bad in ["", "host", "1.2.3.4:x", "8484", "[::1"] {
            assert!(parse_listen(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_host("[::1]:99"), Ok(("::1".into(), Some(99))));
        assert_eq!(parse_host("dc2"), Ok(("dc2".into(), None)));
        for bad in ["", "a/b", "dc2/", "dc2:x", "-x", "vbk://x"] {
            assert!(parse_host(bad).is_err(), "{bad}");
        }
    }
}
