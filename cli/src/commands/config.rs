//! `vbk config`

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use vbk::guest::discover::{Found, FoundGuest, discover};
use vbk::hints::ChangeHints;
use vbk::limit::ReadLimit;
use vbk::snapshot::SnapshotSize;
use vbk_repo::codec::Compression;

use crate::args::ConfigCommand;
use crate::config::{Config, DEFAULT_PATH, GuestAgent, GuestSettings, Keep, others_may_write};
use crate::context::Context;
use crate::exit::{Outcome, Result};
use crate::machine;
use crate::terminal::table::{Align, Table};
use crate::terminal::units;

/// Runs `vbk config ...`.
pub fn run(context: &Context<'_>, command: &ConfigCommand) -> Result<Outcome> {
    match command {
        ConfigCommand::Check => check(context),
    }
}

#[derive(Serialize)]
struct Report<'a> {
    file: Option<&'a Path>,
    repository: Option<&'a Path>,
    key_file: Option<&'a Path>,
    passphrase_file: Option<&'a Path>,
    encrypted: bool,
    jobs: Option<u32>,
    metrics: Option<&'a Path>,
    on_failure: Option<&'a str>,
    exclude: &'a [String],
    defaults: Settings,
    guests: BTreeMap<String, Settings>,
    warnings: &'a [String],
}

/// JSON of a guest's settings, also the source of the table.
#[derive(Serialize)]
struct Settings {
    disks: BTreeMap<String, PathBuf>,
    read_limit: String,
    keep: String,
    snapshot_size: Option<String>,
    extend_percent: Option<f64>,
    change_hints: &'static str,
    full_read_every_secs: u64,
    compression: String,
    pre_freeze: Option<String>,
    post_thaw: Option<String>,
    freeze_timeout_secs: u64,
    guest_agent: &'static str,
    backoff: bool,
    kernel_limit: bool,
    idle: bool,
    live: bool,
    raw: bool,
}

fn check(context: &Context<'_>) -> Result<Outcome> {
    let config = context.config()?;
    let found = discover(&machine::programs(), &config.known_guests());
    let warnings = warnings(config, &found);
    let configured = || {
        found
            .guests
            .iter()
            .filter(|guest| config.guest(&guest.name).is_configured)
    };
    let of = |guest: &FoundGuest| {
        (
            guest.name.to_string(),
            settings(&config.guest(&guest.name), Some(guest)),
        )
    };
    let report = Report {
        file: config.path.as_deref(),
        repository: config.repository.as_deref(),
        key_file: config.key_file.as_deref(),
        passphrase_file: config.passphrase_file.as_deref(),
        encrypted: config.encrypted,
        jobs: config.jobs,
        metrics: config.metrics.as_deref(),
        on_failure: config.on_failure.as_deref(),
        exclude: &config.exclude,
        defaults: settings(&config.defaults(), None),
        guests: configured().map(of).collect(),
        warnings: &warnings,
    };
    if !context.quiet() {
        print(context, &report);
    }
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    context.json_result(&report)?;
    Ok(match warnings.is_empty() {
        true => Outcome::Done,
        false => Outcome::Warnings,
    })
}

fn print(context: &Context<'_>, report: &Report<'_>) {
    let path = |path: Option<&Path>| path.map(|path| path.display().to_string());
    let file = path(report.file).unwrap_or_else(|| format!("none: {DEFAULT_PATH} does not exist"));
    let key = path(report.key_file).or_else(|| path(report.passphrase_file));
    let lines = [
        ("File", Some(file)),
        (
            "Repository",
            Some(path(report.repository).unwrap_or_else(|| "none".to_owned())),
        ),
        ("Encrypted", report.encrypted.then(|| "required".to_owned())),
        ("Key", key),
        ("Jobs", report.jobs.map(|jobs| jobs.to_string())),
        ("Metrics", path(report.metrics)),
        ("On failure", report.on_failure.map(str::to_owned)),
        (
            "Not in --all",
            Some(report.exclude.join(", ")).filter(|text| !text.is_empty()),
        ),
    ];
    let lines = lines.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let mut text: String = lines
        .map(|(name, value)| format!("{:<14}{value}\n", format!("{name}:")))
        .collect();
    let mut table = Table::new(&[
        ("GUEST", Align::Left),
        ("DISKS", Align::Left),
        ("READ LIMIT", Align::Left),
        ("KEEP", Align::Left),
        ("ALSO", Align::Left),
    ]);
    let guests = report.guests.iter().map(|(name, settings)| (name.as_str(), settings));
    for (name, settings) in guests.chain([("(others)", &report.defaults)]) {
        let disks: Vec<_> = settings
            .disks
            .iter()
            .map(|(name, path)| format!("{name}={}", path.display()))
            .collect();
        table.row(vec![
            name.to_owned(),
            if disks.is_empty() {
                "-".to_owned()
            } else {
                disks.join(" ")
            },
            settings.read_limit.clone(),
            settings.keep.clone(),
            also(settings),
        ]);
    }
    text.push('\n');
    text.push_str(&table.to_string());
    context.print(text);
}

/// Lists the settings that differ from the defaults.
fn also(settings: &Settings) -> String {
    let usual = self::settings(&Config::default().defaults(), None);
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
        words.push(format!("compression {}", settings.compression));
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

fn settings(settings: &GuestSettings, found: Option<&FoundGuest>) -> Settings {
    let disks = found.map(|guest| guest.disks.as_slice()).unwrap_or_default();
    Settings {
        disks: disks
            .iter()
            .map(|disk| (disk.name.to_string(), disk.path.clone()))
            .collect(),
        read_limit: limit(settings, found),
        keep: keep(settings.keep.as_ref()),
        snapshot_size: settings.snapshot_size.map(|size| match size {
            SnapshotSize::Share(share) => format!("{}%", share * 100.0),
            SnapshotSize::Bytes(bytes) => units::size(bytes),
        }),
        extend_percent: settings.extend.map(|share| share * 100.0),
        change_hints: match settings.change_hints {
            ChangeHints::Off => "off",
            ChangeHints::Auto => "auto",
        },
        full_read_every_secs: settings.full_read_every.as_secs(),
        compression: match settings.compression {
            Compression::None => "none".to_owned(),
            Compression::Zstd(level) => level.to_string(),
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

/// Lists everything that would fail or surprise at night.
fn warnings(config: &Config, found: &Found) -> Vec<String> {
    let mut warnings = found.notes.clone();
    warnings.extend(file_warnings(config, found));
    let mut paths = BTreeMap::new();
    for guest in &found.guests {
        for disk in &guest.disks {
            if let Some(other) = paths.insert(disk.path.clone(), &guest.name) {
                warnings.push(format!(
                    "{} is a disk of both {other} and {}",
                    disk.path.display(),
                    guest.name
                ));
            }
        }
        warnings.extend(guest_warnings(config, guest));
    }
    warnings
}

/// Lists the problems with the file itself, with what it says of the repository, and with `[defaults]`.
fn file_warnings(config: &Config, found: &Found) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(why) = config.path.as_deref().and_then(others_may_write) {
        warnings.push(format!("other users can change the configuration: {why}"));
    }
    match config.repository.as_deref() {
        None => warnings.push(
            "no repository is set: write repository = \"DIR\"; a run started by a timer does not see VBK_REPO of a shell"
                .into(),
        ),
        Some(path) if !path.is_dir() => warnings.push(format!(
            "repository: {} does not exist; is its file system mounted? `vbk init --help` explains how to create a first one",
            path.display()
        )),
        Some(_) => {}
    }
    warnings.extend(kept_for_ever(config, found));
    for (name, path) in [
        ("key-file", &config.key_file),
        ("passphrase-file", &config.passphrase_file),
    ] {
        warnings.extend(path.as_deref().and_then(secret).map(|why| format!("{name}: {why}")));
    }
    let metrics = config.metrics.as_deref().and_then(Path::parent);
    if let Some(directory) = metrics.filter(|directory| !directory.is_dir()) {
        warnings.push(format!("metrics: directory {} does not exist", directory.display()));
    }
    warnings.extend(
        config
            .on_failure
            .as_deref()
            .and_then(command)
            .map(|why| format!("on-failure: {why}")),
    );
    let defaults = config.defaults();
    for (name, text) in [("pre-freeze", &defaults.pre_freeze), ("post-thaw", &defaults.post_thaw)] {
        let why = text.as_deref().and_then(command);
        warnings.extend(why.map(|why| format!("[defaults] {name}: {why}")));
    }
    warnings
}

/// Lists the problems with a guest that has a section.
fn guest_warnings(config: &Config, guest: &FoundGuest) -> Vec<String> {
    let (settings, defaults) = (config.guest(&guest.name), config.defaults());
    if !settings.is_configured {
        return Vec::new();
    }
    let mut warnings = guest.notes.clone();
    let left_out = guest.left_out.iter().filter(|disk| !disk.is_meant);
    warnings.extend(left_out.map(|disk| format!("disk {} {}", disk.name, disk.why)));
    let own = [
        ("pre-freeze", &settings.pre_freeze, &defaults.pre_freeze),
        ("post-thaw", &settings.post_thaw, &defaults.post_thaw),
    ];
    for (name, text, default) in own {
        let why = text.as_deref().filter(|_| text != default).and_then(command);
        warnings.extend(why.map(|why| format!("{name}: {why}")));
    }
    if settings.pre_freeze.is_some() != settings.post_thaw.is_some() {
        warnings
            .push("only one of pre-freeze and post-thaw is set; what one stops, the other should start again".into());
    }
    warnings
        .iter()
        .map(|warning| format!("{}: {warning}", guest.name))
        .collect()
}

/// Warns of guests without `keep`: `vbk forget --all` leaves them out, and their backups pile up.
fn kept_for_ever(config: &Config, found: &Found) -> Option<String> {
    let guests = found.guests.iter().map(|guest| &guest.name).filter(|name| {
        let settings = config.guest(name);
        settings.is_configured && settings.keep.is_none()
    });
    let mut names: Vec<_> = guests.map(ToString::to_string).collect();
    if config.defaults().keep.is_none() {
        names.push("guests without a section".to_owned());
    }
    let text = format!(
        "keep is not set for {}: `vbk forget --all` leaves them out and all their backups stay; write keep = {{ daily = 7, \
         weekly = 4 }}, or keep = \"all\" if that is intended",
        names.join(", ")
    );
    (!names.is_empty()).then_some(text)
}

/// Returns the problem with a file that only its owner should read.
fn secret(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        Err(error) => Some(format!("{}: {error}", path.display())),
        Ok(metadata) if metadata.mode() & 0o077 != 0 => Some(format!(
            "{} can be read by other users (mode {:o}); run `chmod 600` on it",
            path.display(),
            metadata.mode() & 0o7777
        )),
        Ok(_) => None,
    }
}

/// Words that the shell runs itself, or that start a compound command.
const WORDS: &[&str] = &[
    ".", ":", "[[", "case", "cd", "eval", "exec", "exit", "export", "for", "if", "set", "trap", "ulimit", "umask",
    "unset", "until", "wait", "while", "!", "{",
];

/// Returns the problem with the program that a command starts, as far as it shows without running it.
fn command(text: &str) -> Option<String> {
    let word = text.split_whitespace().next()?;
    let is_plain = |c: char| c.is_alphanumeric() || "/._+-@%,:".contains(c);
    if WORDS.contains(&word) || !word.chars().all(is_plain) {
        return None;
    }
    if word.contains('/') {
        return program(Path::new(word));
    }
    let path = machine::path();
    let mut places = std::env::split_paths(&path).map(|directory| directory.join(word));
    match places.find(|place| is_executable(place)) {
        Some(place) => program(&place),
        None => Some(format!("program {word} is not in PATH")),
    }
}

fn program(path: &Path) -> Option<String> {
    if !path.is_absolute() {
        return Some(format!(
            "{} depends on the directory that vbk runs in; write an absolute path",
            path.display()
        ));
    }
    if !path.exists() {
        return Some(format!("{} does not exist", path.display()));
    }
    if !is_executable(path) {
        return Some(format!("{} is not executable; run `chmod +x` on it", path.display()));
    }
    others_may_write(path).map(|why| format!("other users can change the program: {why}"))
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
