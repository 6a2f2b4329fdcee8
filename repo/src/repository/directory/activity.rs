//! Who does what in a repository, and what it takes on disk. Waits for nobody, opens no store and needs no key.
//!
//! What it tells was true at some moment while it looked: writers and readers come and go meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::repository::directory::disk_usage::{DiskUsage, FileSystem, disk_usage, file_system};
use crate::repository::directory::lock::{Holder, with_arguments};

mod locks;

use locks::{Access, Locks};

/// How often it looks again when views are published while it looks.
const ATTEMPTS: usize = 5;

/// The longest text for a process.
const MAX_COMMAND_CHARS: usize = 72;

/// A repository, looked at from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Who writes to it.
    pub writer: Option<WriterStatus>,
    /// Its views, oldest first.
    pub views: Vec<ViewStatus>,
    /// What it takes.
    pub disk: DiskUsage,
    /// Where it lies.
    pub file_system: FileSystem,
}

/// The process that writes to a repository. What the system does not tell is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WriterStatus {
    /// Its process.
    pub pid: Option<u32>,
    /// What it does, as in `backup web1`.
    pub command: Option<String>,
    /// Since when.
    pub since: Option<Timestamp>,
}

/// A process. What the system does not tell is `None`; with neither it stands for one or more that can't be named,
/// as those in another container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its number.
    pub pid: Option<u32>,
    /// Its command line, shortened, without control characters: `vbk mount /mnt`.
    pub command: Option<String>,
}

/// A view of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ViewStatus {
    /// Greater in a newer view.
    pub number: u64,
    /// What it is there for.
    pub state: ViewState,
    /// When it was made.
    pub since: Option<Timestamp>,
    /// The processes that read it.
    pub readers: Vec<Process>,
}

/// What a view is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ViewState {
    /// The one that new readers open.
    Current,
    /// An older one that somebody reads.
    Old,
    /// One that the writer is about to make current.
    Coming,
    /// Nobody reads it or will. The next writer removes it.
    Stale,
}

/// Looks at a repository. Never waits, and changes nothing that a writer or reader would notice.
pub fn status(repository: &Repository) -> Result<Status> {
    let path = repository.path();
    let (writer, views) = writer_and_views(repository)?;
    Ok(Status {
        writer,
        views,
        disk: disk_usage(path)?,
        file_system: file_system(path)?,
    })
}

fn writer_and_views(repository: &Repository) -> Result<(Option<WriterStatus>, Vec<ViewStatus>)> {
    let path = repository.path();
    let mut attempt = 0;
    loop {
        attempt += 1;
        // The locks last: a writer that made one of these views and is gone by then has published it, so the number of
        // the newest has changed, or was killed.
        let newest = repository.newest_view()?;
        let numbers = view_numbers(&path.join("views"))?;
        let locks = Locks::read(path)?;
        let writer = writer(path, &locks)?;
        let mut views = Vec::with_capacity(numbers.len());
        for number in numbers {
            views.extend(view(path, number, newest, writer.is_some(), &locks)?);
        }
        if repository.newest_view()? == newest || attempt == ATTEMPTS {
            return Ok((writer, views));
        }
    }
}

fn writer(path: &Path, locks: &Locks) -> Result<Option<WriterStatus>> {
    let path = path.join("lock");
    let holders = locks.holders(&path, Access::Exclusive)?;
    let Some(&pid) = holders.first() else {
        return Ok(None);
    };
    // The text is the holder's only once it has written it; until then it is that of the one before.
    let text = fs::read(&path).unwrap_or_default();
    let holder = serde_json::from_slice::<Holder>(&text)
        .ok()
        .filter(|holder| pid.is_none_or(|pid| pid == holder.pid));
    let holder = match (holder, fs::File::open(&path)) {
        (Some(holder), Ok(lock)) => Some(with_arguments(&lock, holder)),
        (holder, _) => holder,
    };
    Ok(Some(match holder {
        Some(holder) => WriterStatus {
            pid: Some(holder.pid),
            command: Some(printable(&holder.command)),
            since: Some(holder.since),
        },
        None => WriterStatus {
            pid,
            command: pid.and_then(command),
            since: None,
        },
    }))
}

/// The numbers of all views that something is left of.
fn view_numbers(views: &Path) -> Result<BTreeSet<u64>> {
    let entries = match fs::read_dir(views) {
        Ok(entries) => entries,
        // A copy of the repository may lack it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(Error::io("list", views)(error)),
    };
    let mut numbers = BTreeSet::new();
    for entry in entries {
        let name = entry.map_err(Error::io("list", views))?.file_name();
        numbers.extend(name.to_str().and_then(view_number));
    }
    Ok(numbers)
}

/// The view that a file is part of: `N`, `N.lock`, or `N.tmp` that RocksDB did not finish.
fn view_number(name: &str) -> Option<u64> {
    let (number, ending) = name.split_once('.').unwrap_or((name, ""));
    let parsed: u64 = number.parse().ok()?;
    (matches!(ending, "" | "lock" | "tmp") && parsed.to_string() == number).then_some(parsed)
}

/// A view; `None` if it has just been removed.
fn view(path: &Path, number: u64, newest: Option<u64>, has_writer: bool, locks: &Locks) -> Result<Option<ViewStatus>> {
    let views = path.join("views");
    let lock = views.join(format!("{number}.lock"));
    let parts = [
        lock.clone(),
        views.join(number.to_string()),
        views.join(format!("{number}.tmp")),
    ];
    let Some(made) = parts.iter().find_map(|part| fs::metadata(part).ok()) else {
        return Ok(None);
    };
    let holders = locks.holders(&lock, Access::Shared)?;
    let state = match newest {
        Some(newest) if newest == number => ViewState::Current,
        _ if !holders.is_empty() => ViewState::Old,
        _ if has_writer && newest.is_none_or(|newest| newest < number) => ViewState::Coming,
        _ => ViewState::Stale,
    };
    Ok(Some(ViewStatus {
        number,
        state,
        since: made.modified().ok().and_then(|at| Timestamp::try_from(at).ok()),
        readers: holders
            .into_iter()
            .map(|pid| Process {
                pid,
                command: pid.and_then(command),
            })
            .collect(),
    }))
}

/// The command line of a process, short; `None` if it is gone or another user's and hidden.
fn command(pid: u32) -> Option<String> {
    let directory = Path::new("/proc").join(pid.to_string());
    let line = fs::read(directory.join("cmdline")).ok().and_then(|line| shorten(&line));
    // One that is ending has no command line any more.
    line.or_else(|| shorten(fs::read(directory.join("comm")).ok()?.trim_ascii_end()))
}

/// A command line with its words ended by zero bytes, as people write it: the program without its directory.
fn shorten(line: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(line);
    let mut words = text.trim_end_matches('\0').split('\0');
    let program = words.next()?;
    let mut short = program.rsplit('/').next().unwrap_or(program).to_owned();
    for word in words {
        short.push(' ');
        short.push_str(word);
    }
    let short = printable(&short);
    if short.is_empty() {
        return None;
    }
    match short.char_indices().nth(MAX_COMMAND_CHARS) {
        Some((end, _)) => Some(format!("{}...", &short[..end])),
        None => Some(short),
    }
}

/// A process chooses its own words, and they reach somebody's terminal.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests;
