//! The writer, readers and views of a repository, and its space on disk. Never waits, opens no store and needs no key.
//!
//! The result is a snapshot taken over a short time: writers and readers may start and end meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::file_system::{FileSystem, file_system};
use crate::repository::Repository;
use crate::repository::directory::Directory;
use crate::repository::directory::disk_usage::disk_usage;
use crate::repository::directory::lock::{Holder, with_arguments};
use crate::repository::home::{DiskUsage, Home};

mod locks;

use locks::{Access, Locks};

/// Number of attempts when views are published meanwhile.
const ATTEMPTS: usize = 5;

/// Longest description of a process.
const MAX_COMMAND_CHARS: usize = 72;

/// Status of a repository, as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The process that writes to it.
    pub writer: Option<WriterStatus>,
    /// Its views, oldest first.
    pub views: Vec<ViewStatus>,
    /// Space that it takes.
    pub disk: DiskUsage,
    /// File system that it is on.
    pub file_system: FileSystem,
}

/// The process that writes to a repository. A field is `None` if the system does not show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterStatus {
    /// Its process id.
    pub pid: Option<u32>,
    /// Its command, e.g. `backup web1`.
    pub command: Option<String>,
    /// Time when it took the lock.
    pub since: Option<Timestamp>,
}

/// A process. A field is `None` if the system does not show it; with both `None` it stands for one or more processes
/// that can't be identified, e.g. those in another container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its process id.
    pub pid: Option<u32>,
    /// Its command line, shortened, without control characters: `vbk mount /mnt`.
    pub command: Option<String>,
}

/// A view of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewStatus {
    /// Number of the view; greater in a newer one.
    pub number: u64,
    /// Its role.
    pub state: ViewState,
    /// Time when it was made.
    pub since: Option<Timestamp>,
    /// Processes that read it.
    pub readers: Vec<Process>,
}

/// Role of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ViewState {
    /// The view that new readers open.
    Current,
    /// An older view that still has readers.
    Old,
    /// The view that the writer is about to make current.
    Coming,
    /// A view without present or future readers. The next writer removes it.
    Stale,
}

/// Examines a repository. Never waits, and changes nothing that a writer or reader would notice.
pub fn status(repository: &Repository) -> Result<Status> {
    status_of(repository.directory()?)
}

/// Examines the repository in a directory.
pub fn status_of(directory: &Directory) -> Result<Status> {
    let path = directory.name();
    let (writer, views) = writer_and_views(directory)?;
    Ok(Status {
        writer,
        views,
        disk: disk_usage(path)?,
        file_system: file_system(path)?,
    })
}

fn writer_and_views(directory: &Directory) -> Result<(Option<WriterStatus>, Vec<ViewStatus>)> {
    let path = directory.name();
    let mut attempt = 0;
    loop {
        attempt += 1;
        // The locks are read last. If the writer of one of these views has ended by then, it has either published it,
        // so that the number of the newest view has changed, or was killed.
        let newest = directory.newest()?;
        let numbers = view_numbers(&path.join("views"))?;
        let locks = Locks::read(path)?;
        let writer = writer(path, &locks)?;
        let mut views = Vec::with_capacity(numbers.len());
        for number in numbers {
            views.extend(view(path, number, newest, writer.is_some(), &locks)?);
        }
        if directory.newest()? == newest || attempt == ATTEMPTS {
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
    // Until the holder has written the text, the text is that of the holder before.
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

/// Returns the numbers of all views of which any file exists.
fn view_numbers(views: &Path) -> Result<BTreeSet<u64>> {
    let entries = match fs::read_dir(views) {
        Ok(entries) => entries,
        // A copy of the repository may lack the directory.
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

/// Returns the view that a file belongs to: `N`, `N.lock`, or `N.tmp` that RocksDB did not finish.
fn view_number(name: &str) -> Option<u64> {
    let (number, ending) = name.split_once('.').unwrap_or((name, ""));
    let parsed: u64 = number.parse().ok()?;
    (matches!(ending, "" | "lock" | "tmp") && parsed.to_string() == number).then_some(parsed)
}

/// Returns a view; `None` if it has just been removed.
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

/// Returns the shortened command line of a process; `None` if the process is gone, or hidden because it is another
/// user's.
fn command(pid: u32) -> Option<String> {
    let directory = Path::new("/proc").join(pid.to_string());
    let line = fs::read(directory.join("cmdline")).ok().and_then(|line| shorten(&line));
    // A process that is ending has no command line any more.
    line.or_else(|| shorten(fs::read(directory.join("comm")).ok()?.trim_ascii_end()))
}

/// Formats a command line, whose words end with zero bytes, for people: the program without its directory.
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

/// Replaces control characters: a process chooses its own words, and they are printed on an administrator's terminal.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests;
