//! Parses the values of options.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use vbk::age::Age;
use vbk::hints::ChangeHints;
use vbk::limit::{ReadLimit, parse_rate};
use vbk::size;
use vbk::snapshot::{SnapshotOptions, SnapshotSize};
use vbk_remote::address::{DEFAULT_PORT, VbkAddress};
use vbk_remote::client::{Bandwidth, BandwidthRule};
use vbk_repo::block::BlockSize;
use vbk_repo::codec::Compression;
use vbk_repo::name::{BackupTime, DiskName, GuestName, check_file_name};
use vbk_repo::repository::Reserve;

use super::DiskArg;

/// The least bandwidth: a message may have 64 KiB pieces, and a connection of which nothing is heard for a minute counts as dead.
const MIN_BANDWIDTH: u64 = 64 << 10;

/// Parses a block size. Alone of all sizes it may lack a unit: other programs take block sizes in bytes, and the limits of this
/// one show a mistake.
pub fn parse_block_size(text: &str) -> Result<BlockSize, String> {
    let bytes = match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().ok(),
        false => size::parse_size(text).ok(),
    };
    let bytes = bytes.ok_or("write a block size, e.g. 64K, 1M or 1048576")?;
    BlockSize::new(bytes).map_err(|error| error.to_string())
}

/// Parses a size in bytes: see [`vbk::size`].
pub fn parse_size(text: &str) -> Result<u64, String> {
    size::parse_size(text).map_err(|error| error.to_string())
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

/// Parses a time limit or a delay, e.g. `6h`, `90min` or `90m`: see [`vbk::age`].
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    Age::parse_limit(text)
        .map(|age| age.duration())
        .map_err(|error| error.to_string())
}

/// The same, and `0` for no time.
pub fn parse_duration_or_zero(text: &str) -> Result<Duration, String> {
    or_zero(text, parse_duration)
}

/// Parses an age or an interval, e.g. `30d` or `6mo`, in which a month has 30 days.
pub fn parse_age(text: &str) -> Result<Duration, String> {
    text.parse()
        .map(|age: Age| age.duration())
        .map_err(|error| error.to_string())
}

/// The same, and `0` for none.
pub fn parse_age_or_zero(text: &str) -> Result<Duration, String> {
    or_zero(text, parse_age)
}

fn or_zero(text: &str, parse: fn(&str) -> Result<Duration, String>) -> Result<Duration, String> {
    match text {
        "0" => Ok(Duration::ZERO),
        text => parse(text).map_err(|error| format!("{error}, or 0")),
    }
}

/// Parses a time limit from a second to a day, of which a plain number is minutes.
pub fn parse_minutes(text: &str) -> Result<Duration, String> {
    with_usual_unit(text, "min", 24 * 3600)
}

/// Parses a time limit up to a day, of which a plain number is seconds.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text {
        "0" => Ok(Duration::ZERO),
        text => with_usual_unit(text, "s", 24 * 3600),
    }
}

fn with_usual_unit(text: &str, unit: &str, most_secs: u64) -> Result<Duration, String> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let time = match is_plain {
        true => parse_duration(&format!("{text}{unit}"))?,
        false => parse_duration(text)?,
    };
    match time.as_secs() <= most_secs {
        true => Ok(time),
        false => Err(format!("{text} is more than a day")),
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
    match text.parse::<Age>() {
        Ok(age) => Ok(Moment::Ago(age.duration())),
        Err(error) if error.is_ambiguous() => Err(error.to_string()),
        Err(_) => Err("write a time, e.g. 30d (ago), 2026-11-20 or 2026-11-20T05:54".into()),
    }
}

/// Parses a time of the calendar, in UTC: `2026-11-20`, which begins at midnight, or `2026-11-20 05:54` with seconds or without.
pub fn parse_time(text: &str) -> Result<BackupTime, String> {
    const MIDNIGHT: &str = "0000-00-00T00-00-00Z";
    match parse_moment(text) {
        Ok(Moment::At(written)) if written.len() >= 10 => format!("{written}{}", &MIDNIGHT[written.len()..])
            .parse()
            .map_err(|_| format!("{text} is no time of the calendar")),
        _ => Err("write a time, e.g. 2026-11-20 or '2026-11-20 05:54'".into()),
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
        false => SnapshotSize::Bytes(parse_size(text).map_err(|error| format!("{error}, or 20%"))?),
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
    fn a_time_is_whole_from_the_day_on() {
        let shown = |text| parse_time(text).map(|time| time.to_string());
        assert_eq!(shown("2024-03-01"), Ok("2024-03-01T00-00-00Z".into()));
        assert_eq!(shown("2024-03-01 02:30"), Ok("2024-03-01T02-30-00Z".into()));
        assert_eq!(shown("2024-03-01T02:30:05Z"), Ok("2024-03-01T02-30-05Z".into()));
        for bad in ["", "2024", "2024-03", "3d", "2024-02-30", "2024-03-01 25:00"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }

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
        for bad in ["", "M", "1G", "1X", "1.5M", "-1", "1MB"] {
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
    fn times_and_ages_have_one_grammar() {
        let seconds = |text: &str| {
            let all = [parse_duration, parse_duration_or_zero, parse_age, parse_age_or_zero];
            all.map(|parse| parse(text).map(|time| time.as_secs()).ok())
        };
        for (text, expected) in [
            ("30s", 30),
            ("6hours", 21_600),
            ("1h30m", 5400),
            ("1h 30min", 5400),
            ("7 days", 604_800),
            ("2w", 1_209_600),
            ("6mo", 15_552_000),
            ("1y", 31_536_000),
        ] {
            assert_eq!(seconds(text), [Some(expected); 4], "{text}");
        }
        // Only a time limit is never meant in months.
        assert_eq!(seconds("90m"), [Some(5400), Some(5400), None, None]);
        assert!(parse_age("90m").is_err_and(|text| text.contains("write 90mo or 90min")));
        assert_eq!(seconds("0"), [None, Some(0), None, Some(0)]);
        for bad in ["", "6", "h", "0s", "-1h", "30m1h", "1.5h", "99999999999999999999s"] {
            assert_eq!(seconds(bad), [None; 4], "{bad}");
        }
    }

    #[test]
    fn a_plain_number_of_minutes_or_seconds_stays_one() {
        let secs = |result: Result<Duration, String>| result.map(|time| time.as_secs());
        assert_eq!(secs(parse_minutes("10")), Ok(600));
        assert_eq!(secs(parse_minutes("90s")), Ok(90));
        assert_eq!(secs(parse_minutes("1h")), Ok(3600));
        assert_eq!(secs(parse_seconds("60")), Ok(60));
        assert_eq!(secs(parse_seconds("0")), Ok(0));
        assert_eq!(secs(parse_seconds("2min")), Ok(120));
        for bad in ["", "0", "1441", "25h", "2d", "ten"] {
            assert!(parse_minutes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_reserve_needs_a_unit() {
        assert_eq!(parse_reserve("20GB"), Ok(Reserve::Bytes(20_000_000_000)));
        assert_eq!(parse_reserve("20G"), Ok(Reserve::Bytes(20 << 30)));
        assert_eq!(parse_reserve("5%"), Ok(Reserve::Share(0.05)));
        assert_eq!(parse_reserve("0"), Ok(Reserve::Bytes(0)));
        assert!(parse_reserve("20").is_err_and(|text| text.contains("20G or 20M, or 20B for bytes")));
        assert_eq!(parse_size_or_off("off"), Ok(0));
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
        assert!(parse_moment("6m").is_err_and(|text| text.contains("6mo or 6min")));
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
    fn a_snapshot_size_of_zero_is_refused() {
        assert_eq!(parse_snapshot_size("20%"), Ok(SnapshotSize::Share(0.2)));
        assert_eq!(parse_snapshot_size("10G"), Ok(SnapshotSize::Bytes(10 << 30)));
        for bad in ["0", "0%", "", "120%", "much"] {
            assert!(parse_snapshot_size(bad).is_err(), "{bad}");
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
