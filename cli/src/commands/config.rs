//! `vbk config`

mod settings;
mod warnings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vbk::guest::discover::{FoundGuest, discover};

use self::settings::{Settings, also, settings_of};
use self::warnings::warnings;
use crate::args::ConfigCommand;
use crate::config::DEFAULT_PATH;
use crate::config_keys;
use crate::context::Context;
use crate::exit::{Outcome, Result};
use crate::machine;
use crate::terminal::output;
use crate::terminal::table::{Align, Table};
use crate::terminal::units;

/// Runs `vbk config ...`.
pub fn run(context: &Context<'_>, command: &ConfigCommand) -> Result<Outcome> {
    match command {
        ConfigCommand::Check => check(context),
        ConfigCommand::Example => {
            output::write(config_keys::example());
            Ok(Outcome::Done)
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    file: Option<&'a Path>,
    include: Option<&'a Path>,
    included: &'a [PathBuf],
    repository: Option<&'a Path>,
    key_file: Option<&'a Path>,
    passphrase_file: Option<&'a Path>,
    token_file: Option<&'a Path>,
    encrypted: bool,
    jobs: Option<u32>,
    metrics: Option<&'a Path>,
    on_failure: Option<&'a str>,
    on_success: Option<&'a str>,
    success_url: Option<&'a str>,
    failure_url: Option<&'a str>,
    mail_to: Option<&'a str>,
    mail_always: bool,
    exclude: &'a [String],
    defaults: Settings,
    guests: BTreeMap<String, Settings>,
    warnings: &'a [String],
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
            settings_of(&config.guest(&guest.name), Some(guest)),
        )
    };
    let report = Report {
        file: config.path.as_deref(),
        include: config.include.as_deref(),
        included: &config.included,
        repository: config.repository.as_deref(),
        key_file: config.key_file.as_deref(),
        passphrase_file: config.passphrase_file.as_deref(),
        token_file: config.token_file.as_deref(),
        encrypted: config.encrypted,
        jobs: config.jobs,
        metrics: config.metrics.as_deref(),
        on_failure: config.notices.on_failure.as_deref(),
        on_success: config.notices.on_success.as_deref(),
        success_url: config.notices.success_url.as_deref(),
        failure_url: config.notices.failure_url.as_deref(),
        mail_to: config.notices.mail_to.as_deref(),
        mail_always: config.notices.mail_always,
        exclude: &config.exclude,
        defaults: settings_of(&config.defaults(), None),
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

/// `/etc/vbk/conf.d, 3 files`
fn include(directory: &Path, files: &[PathBuf]) -> String {
    format!("{}, {}", directory.display(), units::count(files.len() as u64, "file"))
}

/// `admin@example.com, after failures and warnings`
fn mail(report: &Report<'_>) -> Option<String> {
    let when = match report.mail_always {
        true => "after every night",
        false => "after failures and warnings",
    };
    report.mail_to.map(|address| format!("{address}, {when}"))
}

fn print(context: &Context<'_>, report: &Report<'_>) {
    let path = |path: Option<&Path>| path.map(|path| path.display().to_string());
    let file = path(report.file).unwrap_or_else(|| format!("none: {DEFAULT_PATH} does not exist"));
    let key = path(report.key_file).or_else(|| path(report.passphrase_file));
    let lines = [
        ("File", Some(file)),
        (
            "Include",
            report.include.map(|directory| include(directory, report.included)),
        ),
        (
            "Repository",
            Some(path(report.repository).unwrap_or_else(|| "none".to_owned())),
        ),
        ("Encrypted", report.encrypted.then(|| "required".to_owned())),
        ("Key", key),
        ("Jobs", report.jobs.map(|jobs| jobs.to_string())),
        ("Metrics", path(report.metrics)),
        ("On failure", report.on_failure.map(str::to_owned)),
        ("On success", report.on_success.map(str::to_owned)),
        ("Success URL", report.success_url.map(str::to_owned)),
        ("Failure URL", report.failure_url.map(str::to_owned)),
        ("Mail", mail(report)),
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
            settings.keep_text.clone(),
            also(settings),
        ]);
    }
    text.push('\n');
    text.push_str(&table.to_string());
    context.print(text);
}
