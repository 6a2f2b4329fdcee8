//! `vbk find`

mod versions;

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use vbk_inside::search::{Found, Pattern, search};
use vbk_inside::volumes::Secrets;
use vbk_repo::backup::{Entry, Image};
use vbk_repo::catalogue::Catalogue;
use vbk_repo::name::GuestName;
use vbk_repo::reader::ReadResources;
use vbk_repo::repository::View;

use crate::args::FindArgs;
use crate::context::{Context, threads};
use crate::exit::{Error, Outcome, Result};
use crate::file_forms::{FileJson, hex_of, lossy, mode_text, shown, size_text};
use crate::guest_files::{BackupFiles, same_disks};
use crate::period::Period;
use crate::secrets;
use crate::signals;
use crate::terminal::log;
use crate::terminal::output::{self, JsonList, json_text};
use crate::terminal::units;
use crate::warnings::{warn_of_clocks, warn_of_foreign_changes};

use versions::{Seen, Versions, runs};

/// JSON of a path that was found.
#[derive(Serialize)]
struct FoundJson<'a> {
    guest: &'a str,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    versions: Vec<VersionJson<'a>>,
}

#[derive(Serialize)]
struct VersionJson<'a> {
    #[serde(flatten)]
    file: FileJson,
    /// Backups that have this version, the newest first.
    backups: &'a [String],
}

/// Finds files in the backups of guests.
pub fn run(context: &Context<'_>, args: &FindArgs) -> Result<Outcome> {
    let (guest, pattern) = words(args)?;
    let pattern = Pattern::new(pattern).map_err(|error| Error::Usage(error.to_string()))?;
    let period = Period::new(
        args.since.as_ref(),
        args.until.as_ref(),
        Timestamp::now(),
        TimeZone::UTC,
    )?;
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let view = context.view_to_read()?;
    let catalogue = view.catalogue()?;
    warn_of_foreign_changes(&catalogue);
    warn_of_clocks(&catalogue);
    let guests = match guest {
        Some(guest) => {
            catalogue.check_guest(&guest)?;
            vec![guest]
        }
        None => catalogue.guests().into_iter().cloned().collect(),
    };
    let secrets = secrets::find(&args.luks)?;
    let resources = ReadResources::new(threads());
    let mut json = context.json().then(|| JsonList::new("{\"files\": "));
    let (mut outcome, mut count) = (Outcome::Done, 0_usize);
    let mut searched = (guests.len(), 0);
    for guest in guests {
        let entries = entries(&catalogue, &guest, &period);
        if entries.is_empty() {
            context.say(format_args!(
                "no backup of {guest} in that time; `vbk list {guest}` lists all"
            ));
        }
        let mut search = Search {
            view: &view,
            args,
            pattern: &pattern,
            versions: Versions::default(),
            secrets: &secrets,
            resources: &resources,
            outcome: Outcome::Done,
        };
        search.all(&entries, &cancel)?;
        searched.1 += entries.len();
        outcome = outcome.worse(search.outcome);
        count += search.versions.len();
        let specs: Vec<_> = entries.iter().map(|entry| entry.backup.spec()).collect();
        print(context, &guest, &search.versions, &specs, json.as_mut())?;
        if output::is_closed() {
            break;
        }
    }
    if let Some(json) = json {
        json.end("}");
    }
    if count == 0 && outcome == Outcome::Done && !context.json() && !context.quiet() {
        log::complain(format_args!(
            "nothing is named like that in {} of {}",
            units::count(searched.1 as u64, "backup"),
            units::count(searched.0 as u64, "guest")
        ));
    }
    // As grep(1): nothing was found.
    Ok(if count == 0 {
        outcome.worse(Outcome::Failed)
    } else {
        outcome
    })
}

/// Returns the guest and the pattern that were named.
fn words(args: &FindArgs) -> Result<(Option<GuestName>, &[u8])> {
    match (&args.words[..], args.all_guests) {
        ([guest, pattern], false) => {
            let guest = guest
                .to_str()
                .ok_or_else(|| Error::Usage("the name of the guest is not UTF-8".into()))?;
            Ok((Some(guest.parse()?), pattern.as_bytes()))
        }
        ([pattern], true) => Ok((None, pattern.as_bytes())),
        (_, true) => Err(Error::Usage("with --all-guests only a pattern is named".into())),
        (_, false) => Err(Error::Usage(
            "name a guest and a pattern, or --all-guests and a pattern".into(),
        )),
    }
}

/// Returns the backups to search, the newest first.
fn entries<'a>(catalogue: &'a Catalogue, guest: &GuestName, period: &Period) -> Vec<&'a Entry> {
    let is_wanted = |entry: &&Entry| period.contains(entry.backup.time.timestamp());
    catalogue.of(guest).rev().filter(is_wanted).collect()
}

/// Search through the backups of one guest.
struct Search<'a> {
    view: &'a View,
    args: &'a FindArgs,
    pattern: &'a Pattern,
    versions: Versions,
    secrets: &'a Secrets,
    /// Cache of blocks, most of which one backup shares with the next.
    resources: &'a Arc<ReadResources>,
    outcome: Outcome,
}

impl Search<'_> {
    fn all(&mut self, entries: &[&Entry], cancel: &AtomicBool) -> Result<()> {
        let mut walked: Vec<(&[Image], usize)> = Vec::new();
        for (number, entry) in entries.iter().enumerate() {
            if cancel.load(Ordering::Relaxed) {
                return Err(vbk_repo::Error::Interrupted.into());
            }
            let images = &entry.backup.images[..];
            let same = walked.iter().find(|(other, _)| same_disks(images, other));
            if let Some((_, other)) = same {
                self.versions.repeat(*other, number);
                continue;
            }
            walked.push((images, number));
            let spec = entry.backup.spec();
            let files = match BackupFiles::open(self.view, self.resources, entry, None, self.secrets) {
                Ok(files) => files,
                Err(error) => {
                    tracing::error!("{spec}: {}", error.text());
                    self.outcome = self.outcome.worse(match error.kind() {
                        vbk_repo::ErrorKind::Corrupt => Outcome::Damage,
                        _ => Outcome::Failed,
                    });
                    continue;
                }
            };
            self.one(number, &files, cancel)?;
        }
        Ok(())
    }

    fn one(&mut self, number: usize, files: &BackupFiles, cancel: &AtomicBool) -> Result<()> {
        let mut failed = None;
        let left_out = files.trees.left_out.iter().map(|(name, why)| format!("{name} ({why})"));
        let left_out: Vec<_> = left_out.collect();
        if !left_out.is_empty() {
            match files.trees.is_incomplete {
                true => tracing::warn!("{}: not searched: {}", files.spec, left_out.join(", ")),
                false => tracing::info!("{}: not searched: {}", files.spec, left_out.join(", ")),
            }
        }
        if files.trees.trees.is_empty() {
            tracing::warn!("{}: no volume can be read: {}", files.spec, left_out.join(", "));
        }
        for root in files.roots() {
            let tree = &root.tree;
            let searched = search(&**tree, self.pattern, &mut |found| {
                if cancel.load(Ordering::Relaxed) {
                    failed = Some(vbk_repo::Error::Interrupted.into());
                    return false;
                }
                match found {
                    Found::Failed(path, error) => self.unread(&files.spec, &root.path(path), &error),
                    Found::Match(path, node, _) => {
                        let path = root.path(path);
                        match Seen::of(tree, node, self.args.content) {
                            Err(error) => self.unread(&files.spec, &path, &error),
                            Ok(seen) => failed = self.versions.add(path, seen, number).err().map(Error::Usage),
                        }
                    }
                }
                failed.is_none()
            });
            if let Err(error) = searched {
                self.unread(&files.spec, &root.path(b""), &error);
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(())
    }

    fn unread(&mut self, spec: &str, path: &[u8], error: &vbk_inside::Error) {
        tracing::error!("{spec}:{}: {error}", shown(path));
        self.outcome = self.outcome.worse(Outcome::of_unread(error));
    }
}

/// Prints what was found in the backups of a guest.
fn print(
    context: &Context<'_>,
    guest: &GuestName,
    versions: &Versions,
    specs: &[String],
    mut json: Option<&mut JsonList>,
) -> Result<()> {
    for (path, versions) in versions.iter() {
        if output::is_closed() {
            return Ok(());
        }
        if let Some(json) = &mut json {
            let names: Vec<Vec<String>> = versions
                .iter()
                .map(|version| version.backups.iter().map(|number| specs[*number].clone()).collect())
                .collect();
            let versions = versions.iter().zip(&names).map(|(version, backups)| VersionJson {
                file: FileJson::new(path, &version.seen.stat, version.seen.target.as_deref()),
                backups,
            });
            json.item(&json_text(&FoundJson {
                guest: guest.as_str(),
                path: lossy(path),
                path_hex: hex_of(path),
                versions: versions.collect(),
            })?);
            continue;
        }
        context.print(format_args!("{}\n", shown(path)));
        for version in versions {
            let stat = &version.seen.stat;
            let target = version
                .seen
                .target
                .as_ref()
                .map(|target| format!(" -> {}", shown(target)));
            context.print(format_args!(
                "  {}  {}  {}{}  {}: {}\n",
                mode_text(stat),
                size_text(stat, true),
                units::time(stat.modified),
                target.unwrap_or_default(),
                units::count(version.backups.len() as u64, "backup"),
                runs(&version.backups, |number| specs[number].clone())
            ));
        }
    }
    Ok(())
}
