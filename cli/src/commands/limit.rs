//! `vbk limit`

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use vbk::limit::ReadLimit;
use vbk::limit::requests::{FILE, Requests, running};
use vbk_repo::name::GuestName;

use crate::args::{LimitArgs, WantedLimit, parse_wanted_limit};
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::machine;
use crate::read_limit::LimitJson;

#[derive(Serialize)]
struct Report {
    runs: Vec<Asked>,
}

#[derive(Serialize)]
struct Asked {
    run: PathBuf,
    command: String,
    guest: Option<String>,
    /// The limits are those that the run began with.
    default: bool,
    #[serde(flatten)]
    limit: LimitJson,
}

#[derive(Serialize)]
struct ListReport {
    runs: Vec<Listed>,
}

#[derive(Serialize)]
struct Listed {
    run: PathBuf,
    command: String,
    /// Limit set for all guests; null where it is the one that the run began with.
    all: Option<LimitJson>,
    /// Limits set for single guests.
    guests: BTreeMap<String, LimitJson>,
}

/// Sets the read limit of running backups, or lists them.
pub fn run(context: &Context<'_>, args: &LimitArgs) -> Result<Outcome> {
    let limit = |text: &String| parse_wanted_limit(text).map_err(|why| Error::Usage(format!("{text:?}: {why}")));
    match &args.words[..] {
        [] => list(context),
        [guest, wanted, ..] => set(context, Some(guest.parse()?), limit(wanted)?),
        [wanted] => set(context, None, limit(wanted)?),
    }
}

/// Lists the running backups, and the limits that were set for them.
fn list(context: &Context<'_>) -> Result<Outcome> {
    let mut listed = Vec::new();
    for run in running(&machine::runtime_dir()?) {
        let requests = Requests::load(&run.directory.join(FILE)).unwrap_or_default();
        let (all, guests) = requests.all();
        let as_begun = || "the one that it began with".to_owned();
        let mut text = format!(
            "{}: read limit is {}",
            run.command,
            all.map_or_else(as_begun, |limit| limit.to_string())
        );
        for (guest, limit) in guests {
            text.push_str(&format!("; of {guest} {limit}"));
        }
        context.print(format_args!("{text}\n"));
        // Of the disks' speeds this command knows nothing.
        let json = |limit: &ReadLimit| LimitJson::new(*limit, None);
        listed.push(Listed {
            all: all.as_ref().map(json),
            guests: guests
                .iter()
                .map(|(guest, limit)| (guest.clone(), json(limit)))
                .collect(),
            run: run.directory,
            command: run.command,
        });
    }
    if listed.is_empty() {
        context.say(format_args!("no backup is running{}", seen()));
    }
    context.json_result(&ListReport { runs: listed })?;
    Ok(Outcome::Done)
}

fn set(context: &Context<'_>, guest: Option<GuestName>, wanted: WantedLimit) -> Result<Outcome> {
    let cant = |doing: &str, path: &std::path::Path, error: std::io::Error| {
        Error::io(format!("{doing} {}", path.display()))(error)
    };
    let runs = running(&machine::runtime_dir()?);
    let guest = guest.as_ref();
    let limit = wanted.0.map_or_else(|| "default".to_owned(), |limit| limit.to_string());
    let mut asked = Vec::new();
    for run in runs
        .into_iter()
        .filter(|run| guest.is_none_or(|guest| run.may_have(guest)))
    {
        let file = run.directory.join(FILE);
        // An unreadable file holds no request: the new one replaces it.
        let mut requests = Requests::load(&file).unwrap_or_default();
        requests.ask(guest, wanted.0);
        match requests.store(&file) {
            Ok(()) => {}
            // The run has ended meanwhile and removed its directory.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(cant("write", &file, error)),
        }
        context.say(format_args!(
            "{}: read limit{} is now {limit}",
            run.command,
            guest.map(|guest| format!(" of {guest}")).unwrap_or_default()
        ));
        asked.push(Asked {
            run: run.directory,
            command: run.command,
            guest: guest.map(ToString::to_string),
            default: wanted.0.is_none(),
            // Of the disks' speeds this command knows nothing.
            limit: LimitJson::new(wanted.0.unwrap_or(ReadLimit::Unlimited), None),
        });
    }
    if asked.is_empty() {
        context.say(match guest {
            Some(guest) => format!("no backup of {guest} is running{}; nothing was changed", seen()),
            None => format!("no backup is running{}; nothing was changed", seen()),
        });
    }
    let is_asked = !asked.is_empty();
    context.json_result(&Report { runs: asked })?;
    Ok(match is_asked {
        true => Outcome::Done,
        false => Outcome::Failed,
    })
}

/// Returns the restriction to a user's own runs, as a part of a sentence.
fn seen() -> &'static str {
    match nix::unistd::geteuid().is_root() {
        true => "",
        false => " as this user (only root sees root's)",
    }
}
