//! Warnings of `vbk config check`: faults and surprises of the coming night.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use vbk::guest::discover::{Found, FoundGuest};

use crate::config::{Config, Notices, others_may_write};
use crate::machine;
use crate::place;

/// Lists everything that would fail or surprise at night.
pub(super) fn warnings(config: &Config, found: &Found) -> Vec<String> {
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

/// Lists the programs that the notices need and this host does not have.
fn missing_programs(notices: &Notices) -> Vec<String> {
    let url = notices.success_url.as_ref().or(notices.failure_url.as_ref());
    let needed = [
        ("success-url and failure-url", url, "curl"),
        ("mail-to", notices.mail_to.as_ref(), "sendmail"),
    ];
    let path = machine::path();
    let is_there = |program: &str| std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    let missing = needed
        .into_iter()
        .filter(|(_, value, program)| value.is_some() && !is_there(program));
    missing
        .map(|(name, _, program)| format!("{name}: {program} is not installed, so nobody would be told"))
        .collect()
}

/// Lists the problems with the file itself, with what it says of the repository, and with `[defaults]`.
fn file_warnings(config: &Config, found: &Found) -> Vec<String> {
    let mut warnings = Vec::new();
    let changeable = config.files().filter_map(others_may_write);
    warnings.extend(changeable.map(|why| format!("other users can change the configuration: {why}")));
    match config.repository.as_deref() {
        None => warnings.push(
            "no repository is set: write repository = \"DIR\"; a run started by a timer does not see VBK_REPO of a shell"
                .into(),
        ),
        Some(path) if !path.is_dir() && !place::is_address(path) => warnings.push(format!(
            "repository: {} does not exist; is its file system mounted? `vbk init --help` explains how to create a first one",
            path.display()
        )),
        Some(_) => {}
    }
    warnings.extend(kept_for_ever(config, found));
    for (name, path) in [
        ("key-file", &config.key_file),
        ("passphrase-file", &config.passphrase_file),
        ("token-file", &config.token_file),
    ] {
        warnings.extend(path.as_deref().and_then(secret).map(|why| format!("{name}: {why}")));
    }
    warnings.extend(missing_programs(&config.notices));
    let metrics = config.metrics.as_deref().and_then(Path::parent);
    if let Some(directory) = metrics.filter(|directory| !directory.is_dir()) {
        warnings.push(format!("metrics: directory {} does not exist", directory.display()));
    }
    warnings.extend(
        config
            .notices
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
