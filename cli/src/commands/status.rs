//! `vbk status`

use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use vbk_repo::repository::directory::activity::{self, Process, Status, ViewState, ViewStatus, WriterStatus};

use crate::context::Context;
use crate::exit::{Outcome, Result};
use crate::terminal::table::{Align, Table};
use crate::terminal::units;

#[derive(Serialize)]
struct Report<'a> {
    repository: &'a Path,
    #[serde(flatten)]
    status: &'a Status,
}

/// Prints the processes that read and write the repository, and its size on disk.
pub fn run(context: &Context<'_>) -> Result<Outcome> {
    let repository = context.locked_repository()?;
    let status = activity::status(&repository)?;
    context.print(text(repository.path(), &status, Timestamp::now()));
    context.json_result(&Report {
        repository: repository.path(),
        status: &status,
    })?;
    Ok(Outcome::Done)
}

fn text(path: &Path, status: &Status, now: Timestamp) -> String {
    let (disk, file_system) = (&status.disk, &status.file_system);
    let lines = [
        ("Repository", path.display().to_string()),
        ("Writer", writer(status.writer.as_ref(), now)),
        (
            "On disk",
            format!(
                "{}: {} in the store, {} only in the current view, {} only in other views",
                units::size(disk.total_bytes),
                units::size(disk.store_bytes),
                units::size(disk.current_view_bytes),
                units::size(disk.other_views_bytes),
            ),
        ),
        (
            "Free",
            format!(
                "{} of {}",
                units::size(file_system.free_bytes),
                units::size(file_system.size_bytes)
            ),
        ),
    ];
    let mut text: String = lines
        .iter()
        .map(|(name, value)| format!("{:<12}{value}\n", format!("{name}:")))
        .collect();
    text.push('\n');
    text.push_str(&views(&status.views, now));
    text
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
mod tests {
    use super::*;
    use vbk_repo::repository::DiskUsage;
    use vbk_repo::repository::directory::disk_usage::FileSystem;

    const NOW: &str = "2026-11-21T06:00:12Z";

    fn at(time: &str) -> Timestamp {
        time.parse().expect("a time")
    }

    fn view(number: u64, state: ViewState, readers: Vec<Process>) -> ViewStatus {
        ViewStatus {
            number,
            state,
            since: Some(at("2026-11-21T05:54:00Z")),
            readers,
        }
    }

    fn busy() -> Status {
        let mount = Process {
            pid: Some(812),
            command: Some("vbk mount /mnt".into()),
        };
        let unnamed = Process {
            pid: None,
            command: None,
        };
        Status {
            writer: Some(WriterStatus {
                pid: Some(4711),
                command: Some("backup web1".into()),
                since: Some(at("2026-11-21T06:00:00Z")),
            }),
            views: vec![
                view(3, ViewState::Stale, vec![]),
                view(4, ViewState::Old, vec![mount, unnamed]),
                view(5, ViewState::Current, vec![]),
            ],
            disk: DiskUsage {
                total_bytes: 4 << 30,
                store_bytes: 3 << 30,
                current_view_bytes: 8192,
                other_views_bytes: 1 << 30,
            },
            file_system: FileSystem {
                size_bytes: 100 << 30,
                used_bytes: 12 << 30,
                free_bytes: 88 << 30,
            },
        }
    }

    #[test]
    fn a_busy_repository_names_its_writer_and_readers() {
        let expected = "\
Repository: /var/lib/vbk
Writer:     `backup web1` (process 4711, for 12s)
On disk:    4 GiB: 3 GiB in the store, 8 KiB only in the current view, 1 GiB only in other views
Free:       88 GiB of 100 GiB

VIEW  STATE      AGE  PROCESS  READ BY
   3  stale    6m12s        -  none; the next writer removes it
   4  old      6m12s      812  vbk mount /mnt
   4  old      6m12s        -  an unknown process
   5  current  6m12s        -  none
";
        assert_eq!(text(Path::new("/var/lib/vbk"), &busy(), at(NOW)), expected);
    }

    #[test]
    fn unknown_details_of_a_writer_are_left_out() {
        let mut told = WriterStatus {
            pid: None,
            command: None,
            since: None,
        };
        assert_eq!(writer(None, at(NOW)), "none");
        assert_eq!(writer(Some(&told), at(NOW)), "an unknown process");
        told.pid = Some(7);
        let text = writer(Some(&told), at(NOW));
        assert_eq!(text, "an unknown process (process 7)");
        assert!(views(&[], at(NOW)).starts_with("no views"));
    }

    #[test]
    fn a_backup_time_in_the_future_has_no_age() {
        assert_eq!(age(at("2027-01-01T00:00:00Z"), at(NOW)), "0.0s");
    }

    #[test]
    fn the_json_has_the_repository_and_its_status() {
        let status = busy();
        let repository = Path::new("/var/lib/vbk");
        let report = Report {
            repository,
            status: &status,
        };
        let json = serde_json::to_value(report).expect("serializes");
        assert_eq!(json["repository"], "/var/lib/vbk");
        assert_eq!(json["writer"]["command"], "backup web1");
        assert_eq!(json["views"][1]["state"], "old");
        assert_eq!(json["views"][1]["readers"][0]["pid"], 812);
        assert_eq!(json["disk"]["other_views_bytes"], 1_u64 << 30);
    }
}
