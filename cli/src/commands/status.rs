//! `vbk status`

use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use vbk_remote::server::connected;
use vbk_remote::status::{ClientStatus, Connected, ServedStatus, Way};
use vbk_repo::repository::directory::activity::{self, Process, Status, ViewState, ViewStatus, WriterStatus};
use vbk_repo::repository::home::Home;

use crate::context::Context;
use crate::exit::{Outcome, Result};
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
}

impl<'a> Report<'a> {
    fn of_server(repository: &'a Path, served: &'a ServedStatus) -> Self {
        Self {
            repository,
            server: Some(&served.program),
            status: served.repository.as_ref(),
            used_bytes: served.used_bytes,
            free_bytes: served.free_bytes,
            size_bytes: served.size_bytes,
            connected: &served.connected,
        }
    }

    fn of_directory(repository: &'a Path, status: &'a Status, connected: &'a Connected) -> Self {
        Self {
            repository,
            server: None,
            status: Some(status),
            used_bytes: status.disk.total_bytes,
            free_bytes: status.file_system.free_bytes,
            size_bytes: status.file_system.size_bytes,
            connected,
        }
    }
}

/// Prints the processes that read and write the repository, its clients, and its size on disk.
pub fn run(context: &Context<'_>) -> Result<Outcome> {
    match context.locked_server()? {
        Some(server) => show(context, &Report::of_server(server.name(), &server.status()?)),
        None => {
            let repository = context.locked_repository()?;
            let path = repository.local_path()?;
            let status = activity::status(&repository)?;
            show(context, &Report::of_directory(path, &status, &connected(path)?))
        }
    }
}

fn show(context: &Context<'_>, report: &Report<'_>) -> Result<Outcome> {
    context.print(text(report, Timestamp::now()));
    context.json_result(report)?;
    Ok(Outcome::Done)
}

fn text(report: &Report<'_>, now: Timestamp) -> String {
    let mut lines = vec![("Repository", report.repository.display().to_string())];
    if let Some(server) = report.server {
        lines.push(("Server", printable::line(server)));
    }
    let used = units::size(report.used_bytes);
    match report.status {
        None => lines.push(("On disk", used)),
        Some(Status { writer: by, disk, .. }) => lines.extend([
            ("Writer", writer(by.as_ref(), now)),
            (
                "On disk",
                format!(
                    "{used}: {} in the store, {} only in the current view, {} only in other views",
                    units::size(disk.store_bytes),
                    units::size(disk.current_view_bytes),
                    units::size(disk.other_views_bytes),
                ),
            ),
        ]),
    }
    let free = format!(
        "{} of {}",
        units::size(report.free_bytes),
        units::size(report.size_bytes)
    );
    lines.push(("Free", free));
    let mut text: String = lines
        .iter()
        .map(|(name, value)| format!("{:<12}{value}\n", format!("{name}:")))
        .collect();
    if let Some(status) = report.status {
        text.push('\n');
        text.push_str(&views(&status.views, now));
    }
    text.push_str(&clients(report.connected, now));
    text.push_str(&absent(report.connected));
    text
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
