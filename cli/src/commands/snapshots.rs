//! `vbk snapshots`

use std::io::ErrorKind;

use jiff::Timestamp;
use serde::Serialize;
use vbk::host::run::RunInfo;
use vbk::snapshot::{self, Cleaned, Directories, Leftover, State};

use crate::args::SnapshotsArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::machine;
use crate::terminal::table::{Align, Table};
use crate::terminal::units;

#[derive(Serialize)]
struct Report<'a> {
    snapshots: Vec<SnapshotJson<'a>>,
}

#[derive(Serialize)]
struct SnapshotJson<'a> {
    snapshot: &'a str,
    of: &'a str,
    run: Option<&'a str>,
    command: Option<&'a str>,
    pid: Option<u32>,
    since: Option<Timestamp>,
    fill: Option<f64>,
    invalid: bool,
    state: &'static str,
}

#[derive(Serialize)]
struct CleanedJson<'a> {
    removed: &'a [String],
    failed: Vec<FailedJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suspended: Option<&'a str>,
}

#[derive(Serialize)]
struct FailedJson<'a> {
    snapshot: &'a str,
    error: String,
}

/// Lists vbk's snapshots, or removes those that were left behind or that could fill their pool or file system.
pub fn run(context: &Context<'_>, args: &SnapshotsArgs) -> Result<Outcome> {
    let programs = machine::programs();
    let directories = Directories {
        runtime_dir: &machine::runtime_dir()?,
        cache: &machine::cache_dir(),
        host_id: &machine::host_id(),
    };
    if args.clean {
        let cleaned = snapshot::clean(&programs, directories, args.kept).map_err(of_user)?;
        return report(context, &cleaned, "nothing was left behind");
    }
    if args.guard {
        let given_up = snapshot::give_up(&programs, directories, args.above, None).map_err(of_user)?;
        return report(
            context,
            &given_up,
            "no pool or file system with kept snapshots is nearly full",
        );
    }
    let found = snapshot::leftovers(&programs, directories).map_err(of_user)?;
    if found.is_empty() {
        context.say("no snapshots of disks are left on this machine; `vbk list` lists backups");
    } else {
        context.print(table(&found));
    }
    context.json_result(&Report {
        snapshots: found.iter().map(json).collect(),
    })?;
    Ok(Outcome::Done)
}

/// Says to a user why LVM showed nothing: its own words name files in /run and /dev/mapper.
fn of_user(error: impl Into<vbk::Error>) -> Error {
    let error = Error::from(error.into());
    match nix::unistd::geteuid().is_root() {
        true => error,
        false => {
            tracing::info!("{}", error.text());
            let source = std::io::Error::new(ErrorKind::PermissionDenied, "only root sees logical volumes");
            Error::io("list the snapshots of disks")(source)
        }
    }
}

fn report(context: &Context<'_>, cleaned: &Cleaned, nothing: &str) -> Result<Outcome> {
    for name in &cleaned.removed {
        context.say(format_args!("removed {name}"));
    }
    if cleaned.removed.is_empty() && cleaned.failed.is_empty() {
        context.say(nothing);
    }
    for (_, error) in &cleaned.failed {
        tracing::error!("{error}");
    }
    if let Some(suspended) = &cleaned.suspended {
        tracing::warn!("{suspended}");
    }
    context.json_result(&CleanedJson {
        removed: &cleaned.removed,
        failed: cleaned
            .failed
            .iter()
            .map(|(snapshot, error)| FailedJson {
                snapshot,
                error: error.to_string(),
            })
            .collect(),
        suspended: cleaned.suspended.as_deref(),
    })?;
    Ok(match cleaned.failed.is_empty() {
        true if cleaned.suspended.is_some() => Outcome::Warnings,
        true => Outcome::Done,
        false => Outcome::Failed,
    })
}

fn json(found: &Leftover) -> SnapshotJson<'_> {
    let info = found.info.as_ref();
    SnapshotJson {
        snapshot: &found.name,
        of: &found.of,
        run: found.run.as_deref(),
        command: info.map(|info| info.command.as_str()),
        pid: info.map(|info| info.pid).filter(|_| found.state == State::InUse),
        since: found.since,
        fill: found.fill,
        invalid: found.invalid,
        state: match found.state {
            State::InUse => "in-use",
            State::LeftBehind => "left-behind",
            State::Kept => "kept",
            State::OtherHost => "other-host",
            State::Unclear => "unclear",
        },
    }
}

fn table(found: &[Leftover]) -> Table {
    let mut table = Table::new(&[
        ("SNAPSHOT", Align::Left),
        ("OF", Align::Left),
        ("RUN", Align::Left),
        ("SINCE", Align::Left),
        ("FILL", Align::Right),
        ("STATE", Align::Left),
    ]);
    let or_dash = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned());
    for one in found {
        let command = one.info.as_ref().map(|info| info.command.clone());
        table.row(vec![
            one.name.clone(),
            or_dash(Some(one.of.clone())),
            or_dash(command.or_else(|| one.run.clone())),
            or_dash(one.since.map(units::time)),
            or_dash(one.fill.map(|fill| format!("{:.0} %", fill * 100.0))),
            state(one),
        ]);
    }
    table
}

fn state(found: &Leftover) -> String {
    let process = |info: &RunInfo| format!("in use by process {}", info.pid);
    let state = match found.state {
        State::InUse => found.info.as_ref().map_or_else(|| "in use".to_owned(), process),
        State::LeftBehind => "left behind; `vbk snapshots --clean` removes it".to_owned(),
        State::Kept => "kept for change hints".to_owned(),
        State::OtherHost => "another machine's".to_owned(),
        State::Unclear => "lacks the tag of its run; vbk leaves it alone".to_owned(),
    };
    match found.invalid {
        true => format!("overflowed, {state}"),
        false => state,
    }
}
