//! The settings of a guest as `vbk config check` shows them: one field for each row of `config/settings.rs`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};
use vbk::guest::discover::FoundGuest;
use vbk::hints::ChangeHints;
use vbk::limit::ReadLimit;
use vbk::snapshot::SnapshotSize;
use vbk_repo::codec::Compression;

use crate::config::{Config, GuestAgent, GuestSettings, Keep};
use crate::read_limit::LimitJson;
use crate::terminal::units;

/// JSON of a guest's settings, also the source of the table.
#[derive(Serialize)]
pub(super) struct Settings {
    pub(super) disks: BTreeMap<String, PathBuf>,
    /// Null if its disks have several.
    #[serde(flatten)]
    limit: LimitJson,
    #[serde(skip)]
    pub(super) read_limit: String,
    /// In the form of the configuration; null if it is not set.
    keep: Option<Value>,
    #[serde(skip)]
    pub(super) keep_text: String,
    snapshot_size_bytes: Option<u64>,
    snapshot_size_percent: Option<f64>,
    #[serde(skip)]
    snapshot_size: Option<String>,
    pub(super) extend_percent: Option<f64>,
    pub(super) change_hints: &'static str,
    pub(super) full_read_every_secs: u64,
    /// Null for none.
    pub(super) compression: Option<i32>,
    pub(super) pre_freeze: Option<String>,
    pub(super) post_thaw: Option<String>,
    pub(super) freeze_timeout_secs: u64,
    pub(super) guest_agent: &'static str,
    pub(super) backoff: bool,
    pub(super) kernel_limit: bool,
    pub(super) idle: bool,
    pub(super) live: bool,
    pub(super) raw: bool,
}

/// Lists the settings that differ from the defaults.
pub(super) fn also(settings: &Settings) -> String {
    let usual = settings_of(&Config::default().defaults(), None);
    let mut words = Vec::new();
    words.extend(
        settings
            .snapshot_size
            .as_ref()
            .map(|size| format!("snapshots of {size}")),
    );
    match settings.extend_percent {
        None => words.push("not extended".to_owned()),
        Some(percent) if usual.extend_percent != Some(percent) => words.push(format!("extended at {percent:.0}%")),
        Some(_) => {}
    }
    if settings.change_hints != usual.change_hints {
        let days = settings.full_read_every_secs / 86_400;
        words.push(format!("change hints, full read every {days} days"));
    }
    if settings.compression != usual.compression {
        let level = settings
            .compression
            .map_or("none".to_owned(), |level| level.to_string());
        words.push(format!("compression {level}"));
    }
    if settings.pre_freeze.is_some() {
        words.push(format!("pre-freeze ({} s)", settings.freeze_timeout_secs));
    }
    if settings.post_thaw.is_some() {
        words.push("post-thaw".to_owned());
    }
    if settings.guest_agent != usual.guest_agent {
        words.push(format!("guest agent {}", settings.guest_agent));
    }
    let flags = [
        (settings.backoff, usual.backoff, "backoff"),
        (settings.kernel_limit, usual.kernel_limit, "kernel limit"),
        (settings.idle, usual.idle, "idle"),
        (settings.live, usual.live, "live"),
        (settings.raw, usual.raw, "raw"),
    ];
    for (is, _, name) in flags.into_iter().filter(|(is, was, _)| is != was) {
        words.push(format!("{}{name}", if is { "" } else { "no " }));
    }
    words.join(", ")
}

pub(super) fn settings_of(settings: &GuestSettings, found: Option<&FoundGuest>) -> Settings {
    let disks = found.map(|guest| guest.disks.as_slice()).unwrap_or_default();
    Settings {
        disks: disks
            .iter()
            .map(|disk| (disk.name.to_string(), disk.path.clone()))
            .collect(),
        limit: LimitJson::new(settings.read_limit.unwrap_or_default(), speed(settings, found)),
        read_limit: limit(settings, found),
        keep: settings.keep.as_ref().map(|keep| match keep {
            Keep::All => json!("all"),
            Keep::Rules(policy) => json!(policy),
        }),
        keep_text: keep(settings.keep.as_ref()),
        snapshot_size_bytes: match settings.snapshot_size {
            Some(SnapshotSize::Bytes(bytes)) => Some(bytes),
            _ => None,
        },
        snapshot_size_percent: match settings.snapshot_size {
            Some(SnapshotSize::Share(share)) => Some(units::percent(share)),
            _ => None,
        },
        snapshot_size: settings.snapshot_size.map(|size| match size {
            SnapshotSize::Share(share) => format!("{}%", share * 100.0),
            SnapshotSize::Bytes(bytes) => units::size(bytes),
        }),
        extend_percent: settings.extend.map(units::percent),
        change_hints: match settings.change_hints {
            ChangeHints::Off => "off",
            ChangeHints::Auto => "auto",
        },
        full_read_every_secs: settings.full_read_every.as_secs(),
        compression: match settings.compression {
            Compression::None => None,
            Compression::Zstd(level) => Some(level),
        },
        pre_freeze: settings.pre_freeze.clone(),
        post_thaw: settings.post_thaw.clone(),
        freeze_timeout_secs: settings.freeze_timeout.as_secs(),
        guest_agent: match settings.guest_agent {
            GuestAgent::Auto => "auto",
            GuestAgent::Always => "always",
            GuestAgent::Never => "never",
        },
        backoff: settings.backoff,
        kernel_limit: settings.kernel_limit,
        idle: settings.idle,
        live: settings.live,
        raw: settings.raw,
    }
}

/// Returns the speed of all disks in bytes per second, if it is known and the same.
fn speed(settings: &GuestSettings, found: Option<&FoundGuest>) -> Option<u64> {
    let Some(guest) = found else {
        return settings.device_bytes_per_sec;
    };
    let mut speeds = guest.disks.iter().map(|disk| disk.speed.map(|(speed, _)| speed));
    let first = speeds.next()?;
    first.filter(|_| speeds.all(|other| other == first))
}

/// `60% of 200 MB/s (configuration)`
fn limit(settings: &GuestSettings, found: Option<&FoundGuest>) -> String {
    match settings.read_limit.unwrap_or_default() {
        ReadLimit::Unlimited => "none".to_owned(),
        ReadLimit::BytesPerSec(rate) => units::rate(rate),
        ReadLimit::Share(share) => {
            let disks = found.map(|guest| guest.disks.as_slice()).unwrap_or_default();
            let mut speeds: Vec<String> = disks
                .iter()
                .filter_map(|disk| disk.speed)
                .map(|(speed, from)| format!("{} ({from})", units::rate(speed)))
                .collect();
            speeds.dedup();
            let configured = settings
                .device_bytes_per_sec
                .filter(|_| found.is_none())
                .map(units::rate);
            let of = match (configured, speeds.is_empty()) {
                (Some(speed), _) => speed,
                (None, false) => speeds.join(", "),
                (None, true) => "the measured speed".to_owned(),
            };
            format!("{}% of {of}", (share * 1000.0).round() / 10.0)
        }
    }
}

fn keep(keep: Option<&Keep>) -> String {
    let policy = match keep {
        None => return "not set".to_owned(),
        Some(Keep::All) => return "all".to_owned(),
        Some(Keep::Rules(policy)) => policy,
    };
    let counts = [
        (policy.last, "last"),
        (policy.hourly, "hourly"),
        (policy.daily, "daily"),
        (policy.weekly, "weekly"),
        (policy.monthly, "monthly"),
        (policy.yearly, "yearly"),
    ];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    let mut words: Vec<_> = counts.map(|(count, name)| format!("{count} {name}")).collect();
    words.extend(policy.within.map(|age| format!("within {age}")));
    words.join(", ")
}
