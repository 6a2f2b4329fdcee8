//! `vbk status`

mod check;

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use vbk_remote::server::connected;
use vbk_remote::status::{ClientStatus, Connected, LastPrune, ServedStatus, Way};
use vbk_repo::repository::directory::activity::{self, Process, Status, ViewState, ViewStatus, WriterStatus};
use vbk_repo::repository::directory::last_prune;
use vbk_repo::repository::home::Home;
use vbk_repo::repository::{Repository, Unfinished};

use self::check::Check;
use crate::args::StatusArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::facts::Facts;
use crate::metrics;
use crate::terminal::table::{Align, Table};
use crate::terminal::{printable, units};

#[derive(Serialize)]
struct Report<'a> {
    repository: &'a Path,
    /// Program of the server on another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<&'a str>,
    /// Missing if the server does not show it to this client.
    #[serde(flatten)]
    status: Option<&'a Status>,
    used_bytes: u64,
    free_bytes: u64,
    size_bytes: u64,
    #[serde(flatten)]
    connected: &'a Connected,
    #[serde(flatten)]
    morning: Morning,
    /// With --check.
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<Check>,
}

/// The part of the report that comes from the repository's content.
#[derive(Default, Serialize)]
struct Morning {
    /// Format of the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<u32>,
    /// The content can't be shown because no key was given.
    #[serde(skip)]
    needs_key: bool,
    /// Missing if no key opens the repository without a question, or it can't be read.
    #[serde(flatten)]
    facts: Option<Facts>,
    /// Why they are missing, if not for a key.
    #[serde(skip)]
    unread: Option<Error>,
    /// Stored since the newest view; missing if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    unfinished: Option<Unfinished>,
    /// End of the last prune, if it is known.
    last_prune: Option<Timestamp>,
    /// The server is too old to tell of prunes.
    #[serde(skip)]
    hides_prune: bool,
}

impl Morning {
    /// Reads what can be read without a question. `served` has what only the server of a repository on another host knows.
    fn of(repository: &Repository, opened: Option<&Repository>, served: Option<&ServedStatus>) -> Self {
        let (mut view, mut facts, mut unread) = (None, None, None);
        if let Some(opened) = opened {
            match opened
                .view()
                .map_err(Error::from)
                .and_then(|view| Ok((Facts::of(&view)?, view)))
            {
                Ok(read) => (facts, view) = (Some(read.0), Some(read.1)),
                Err(error) => {
                    tracing::debug!("the backups can't be read: {}", error.text());
                    unread = Some(error);
                }
            }
        }
        let (unfinished, last_prune) = match served {
            Some(served) => (served.unfinished, served.last_prune),
            None => (
                view.as_ref()
                    .and_then(|view| repository.unfinished(view.number(), &mut |_| ())),
                repository
                    .local_path()
                    .ok()
                    .map(|path| LastPrune { at: last_prune(path) }),
            ),
        };
        Self {
            format: repository.format(),
            needs_key: opened.is_none(),
            facts,
            unread,
            unfinished,
            last_prune: last_prune.and_then(|prune| prune.at),
            hides_prune: last_prune.is_none(),
        }
    }
}

impl<'a> Report<'a> {
    fn of_server(repository: &'a Path, served: &'a ServedStatus, morning: Morning) -> Self {
        Self {
            repository,
            server: Some(&served.program),
            status: served.repository.as_ref(),
            used_bytes: served.used_bytes,
            free_bytes: served.free_bytes,
            size_bytes: served.size_bytes,
            connected: &served.connected,
            morning,
            check: None,
        }
    }

    fn of_directory(repository: &'a Path, status: &'a Status, connected: &'a Connected, morning: Morning) -> Self {
        Self {
            repository,
            server: None,
            status: Some(status),
            used_bytes: status.disk.total_bytes,
            free_bytes: status.file_system.free_bytes,
            size_bytes: status.file_system.size_bytes,
            connected,
            morning,
            check: None,
        }
    }
}

/// Prints the state of the repository, the processes that read and write it, and its clients.
pub fn run(context: &Context<'_>, args: &StatusArgs) -> Result<Outcome> {
    match report(context, args) {
        Err(error) if args.check => Ok(unknown(context, &error)),
        result => result,
    }
}

/// Tells a monitoring program of an error.
pub fn unknown(context: &Context<'_>, error: &Error) -> Outcome {
    check::failed(context, error)
}

fn report(context: &Context<'_>, args: &StatusArgs) -> Result<Outcome> {
    match context.locked_server()? {
        Some(server) => {
            let repository = Repository::at(Arc::clone(&server) as _);
            let opened = context.opened_without_question(&repository);
            let served = server.status()?;
            let morning = Morning::of(&repository, opened.as_ref(), Some(&served));
            let state = show(context, args, Report::of_server(server.name(), &served, morning))?;
            written(context, args, opened.as_ref().unwrap_or(&repository), state)
        }
        None => {
            let repository = context.locked_repository()?;
            let opened = context.opened_without_question(&repository);
            let morning = Morning::of(&repository, opened.as_ref(), None);
            let path = repository.local_path()?;
            let status = activity::status(&repository)?;
            let state = show(
                context,
                args,
                Report::of_directory(path, &status, &connected(path)?, morning),
            )?;
            written(context, args, opened.as_ref().unwrap_or(&repository), state)
        }
    }
}

/// Prints the report, or with --check one line about it, and returns the outcome of the check.
fn show(context: &Context<'_>, args: &StatusArgs, mut report: Report<'_>) -> Result<Outcome> {
    let now = Timestamp::now();
    if !args.check {
        context.print(text(&report, now, context.verbose()));
        context.json_result(&report)?;
        return Ok(Outcome::Done);
    }
    let mut check = match &report.morning.unread {
        Some(error) => Check::unread(error),
        None => Check::of(report.morning.facts.as_ref(), args, now),
    };
    check.room(report.free_bytes, report.size_bytes);
    if context.has_doubts() {
        check.doubt();
    }
    let outcome = check.outcome();
    context.print(format_args!("{check}\n"));
    report.check = Some(check);
    context.json_result(&report)?;
    Ok(outcome)
}

/// Writes the metrics, if a file was named.
fn written(context: &Context<'_>, args: &StatusArgs, repository: &Repository, state: Outcome) -> Result<Outcome> {
    let Some(path) = &args.metrics else {
        return Ok(state);
    };
    Ok(match metrics::record(context, Some(path), repository, |_| ()) {
        true => state,
        false if args.check => state,
        false => Outcome::Warnings,
    })
}

fn text(report: &Report<'_>, now: Timestamp, is_long: bool) -> String {
    let mut lines = vec![("Repository", report.repository.display().to_string())];
    if let Some(server) = report.server {
        lines.push(("Server", printable::line(server)));
    }
    if let Some(format) = report.morning.format {
        lines.push(("Format", format.to_string()));
    }
    if let Some(status) = report.status {
        lines.push(("Writer", writer(status.writer.as_ref(), now)));
        lines.push(("Readers", readers(&status.views)));
    }
    lines.push(("On disk", on_disk(report, is_long)));
    let free = format!(
        "{} of {}",
        units::size(report.free_bytes),
        units::size(report.size_bytes)
    );
    lines.push(("Free", free));
    lines.extend(morning(&report.morning, report.status, now));
    let mut text: String = lines
        .iter()
        .map(|(name, value)| format!("{:<13}{value}\n", format!("{name}:")))
        .collect();
    if let Some(status) = report.status.filter(|_| is_long) {
        text.push('\n');
        text.push_str(&views(&status.views, now));
    }
    text.push_str(&clients(report.connected, now));
    text.push_str(&absent(report.connected));
    text
}

fn on_disk(report: &Report<'_>, is_long: bool) -> String {
    let used = units::size(report.used_bytes);
    let Some(disk) = report.status.map(|status| &status.disk).filter(|_| is_long) else {
        return used;
    };
    let known = disk.store_bytes + disk.current_view_bytes + disk.other_views_bytes;
    format!(
        "{used}: {} in the store, {} only in the current view, {} only in other views, {} of other files",
        units::size(disk.store_bytes),
        units::size(disk.current_view_bytes),
        units::size(disk.other_views_bytes),
        units::size(disk.total_bytes.saturating_sub(known)),
    )
}

/// `none`, or `3: vbk mount /mnt (process 812), ...`
fn readers(views: &[ViewStatus]) -> String {
    let mut readers: Vec<&Process> = views.iter().flat_map(|view| &view.readers).collect();
    readers.sort_by_key(|reader| reader.pid);
    // A mount holds several views.
    readers.dedup_by(|one, other| one.pid.is_some() && one.pid == other.pid);
    if readers.is_empty() {
        return "none".to_owned();
    }
    let described = readers.iter().map(|reader| match reader.pid {
        Some(pid) => format!("`{}` (process {pid})", name(reader)),
        None => name(reader),
    });
    let described: Vec<_> = described.collect();
    format!("{}: {}", readers.len(), described.join(", "))
}

/// Returns the lines about the backups.
fn morning(morning: &Morning, status: Option<&Status>, now: Timestamp) -> Vec<(&'static str, String)> {
    let ago = |at: Timestamp| {
        let age = now.duration_since(at).as_secs();
        format!("{} UTC, {}", units::time(at), units::age(age))
    };
    let mut lines = Vec::new();
    if let Some(facts) = &morning.facts {
        let count = format!(
            "{} of {}",
            units::count(facts.backups, "backup"),
            units::count(facts.guests, "guest")
        );
        lines.push(("Backups", count));
        let last = facts.last_backup.as_ref().zip(facts.last_backup_at);
        let mut text = last.map_or_else(|| "none".to_owned(), |(backup, at)| format!("{}: {backup}", ago(at)));
        if let Some(made_last) = &facts.made_last {
            text.push_str(&format!(" (the newest by its time; made last: {made_last})"));
        }
        lines.push(("Last backup", text));
        let verify = facts.last_verify.map_or_else(|| "none is recorded".to_owned(), ago);
        let oldest = facts
            .oldest_proof
            .map(|at| format!("the oldest proof is of {}", ago(at)));
        let unproven = match facts.unproven_backups {
            0 => None,
            number => Some(format!("{} not verified yet", units::count(number, "backup"))),
        };
        let verify: Vec<_> = [Some(verify), oldest, unproven].into_iter().flatten().collect();
        lines.push(("Last verify", verify.join("; ")));
    }
    if morning.facts.is_some() || morning.last_prune.is_some() {
        let none = match morning.hides_prune {
            true => "not known here: the server is too old to tell",
            false => "none is recorded",
        };
        let prune = morning.last_prune.map_or_else(|| none.to_owned(), ago);
        lines.push(("Last prune", prune));
    }
    if let Some(unfinished) = morning.unfinished.filter(|unfinished| !unfinished.is_empty()) {
        let whose = match status.is_some_and(|status| status.writer.is_some()) {
            true => "of the process that writes now",
            false => "left by interrupted runs, for the next backup",
        };
        let (size, blocks) = (
            units::size(unfinished.stored_bytes),
            units::count(unfinished.blocks, "block"),
        );
        lines.push(("Unfinished", format!("{size} in {blocks}, {whose}")));
    }
    match &morning.facts {
        Some(facts) if facts.damaged_backups == 0 => lines.push(("Damage", "none known".to_owned())),
        Some(facts) => lines.push((
            "Damage",
            format!(
                "in {}; `vbk list` shows which, `vbk repair` mends what it can",
                units::count(facts.damaged_backups, "backup")
            ),
        )),
        None if morning.needs_key => lines.push((
            "Backups",
            "not read; no key was given that opens the repository".to_owned(),
        )),
        None => lines.push(("Backups", "can't be read; `vbk list` says why".to_owned())),
    }
    lines
}

/// Returns a table of the clients that are connected; empty without one.
fn clients(connected: &Connected, now: Timestamp) -> String {
    if connected.clients.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        ("CLIENT", Align::Left),
        ("FROM", Align::Left),
        ("COMMAND", Align::Left),
        ("SINCE", Align::Left),
        ("IN", Align::Right),
        ("RATE", Align::Right),
        ("OUT", Align::Right),
        ("RATE", Align::Right),
        ("BACKLOG", Align::Right),
        ("ASKED", Align::Right),
        ("PROGRAM", Align::Left),
    ]);
    for client in &connected.clients {
        table.row(vec![
            client.name.clone(),
            from(client),
            client.command.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{} ago", age(client.since, now)),
            units::size(client.received_bytes),
            units::rate(client.received_per_second),
            units::size(client.sent_bytes),
            units::rate(client.sent_per_second),
            units::size(client.backlog_bytes),
            client.questions.to_string(),
            client.program.clone(),
        ]);
    }
    format!("\n{table}{}", more(connected.clients.len(), connected.clients_total))
}

fn from(client: &ClientStatus) -> String {
    let from = match (&client.address, client.pid) {
        (Some(address), _) => address.clone(),
        (None, Some(pid)) => format!("process {pid}"),
        (None, None) => "-".to_owned(),
    };
    match client.way {
        Way::Local => from,
        way => format!("{} {from}", way.name()),
    }
}

/// Returns a table of the tokens with which no client is connected; empty without one.
fn absent(connected: &Connected) -> String {
    let absent: Vec<_> = connected.tokens.iter().filter(|token| !token.is_connected).collect();
    if absent.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["TOKEN", "RIGHTS", "LAST SEEN", "FROM"].map(|name| (name, Align::Left)));
    for token in absent {
        table.row(vec![
            token.name.clone(),
            token.rights.clone(),
            token.last_seen.map_or_else(|| "never".to_owned(), units::time),
            token.last_address.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    format!("\n{table}{}", more(connected.tokens.len(), connected.tokens_total))
}

fn more(named: usize, total: u64) -> String {
    match total.saturating_sub(named as u64) {
        0 => String::new(),
        more => format!("and {more} more\n"),
    }
}

fn writer(writer: Option<&WriterStatus>, now: Timestamp) -> String {
    let Some(writer) = writer else {
        return "none".to_owned();
    };
    let command = match &writer.command {
        Some(command) => format!("`{command}`"),
        None => "an unknown process".to_owned(),
    };
    let details: Vec<String> = [
        writer.pid.map(|pid| format!("process {pid}")),
        writer.since.map(|since| format!("for {}", age(since, now))),
    ]
    .into_iter()
    .flatten()
    .collect();
    match details.is_empty() {
        true => command,
        false => format!("{command} ({})", details.join(", ")),
    }
}

/// Returns a table with a line for each view and process that reads it.
fn views(views: &[ViewStatus], now: Timestamp) -> String {
    if views.is_empty() {
        return "no views; the next writer makes one\n".to_owned();
    }
    let mut table = Table::new(&[
        ("VIEW", Align::Right),
        ("STATE", Align::Left),
        ("AGE", Align::Right),
        ("PROCESS", Align::Right),
        ("READ BY", Align::Left),
    ]);
    for view in views {
        let mut row = |pid: Option<u32>, reader: String| {
            table.row(vec![
                view.number.to_string(),
                state(view.state).to_owned(),
                view.since.map_or_else(|| "-".to_owned(), |since| age(since, now)),
                pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                reader,
            ]);
        };
        for reader in &view.readers {
            row(reader.pid, name(reader));
        }
        if view.readers.is_empty() {
            let none = match view.state {
                ViewState::Stale => "none; the next writer removes it",
                ViewState::Current | ViewState::Old | ViewState::Coming => "none",
            };
            row(None, none.to_owned());
        }
    }
    table.to_string()
}

fn state(state: ViewState) -> &'static str {
    match state {
        ViewState::Current => "current",
        ViewState::Old => "old",
        ViewState::Coming => "coming",
        ViewState::Stale => "stale",
    }
}

fn name(process: &Process) -> String {
    match (&process.command, process.pid) {
        (Some(command), _) => command.clone(),
        (None, Some(_)) => "unknown".to_owned(),
        (None, None) => "an unknown process".to_owned(),
    }
}

/// Returns the age of a time; zero for a time ahead of the clock.
fn age(since: Timestamp, now: Timestamp) -> String {
    units::duration(now.duration_since(since).try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests;
