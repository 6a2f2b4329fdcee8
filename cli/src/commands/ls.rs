//! `vbk ls`

mod listing;

use serde::Serialize;
use vbk_inside::path::Last;
use vbk_repo::reader::ReadResources;

use crate::args::LsArgs;
use crate::context::{Context, threads};
use crate::exit::{Error, Outcome, Result};
use crate::file_forms::{Names, lossy};
use crate::guest_files::BackupFiles;
use crate::secrets;
use crate::terminal::output::{self, JsonList, json_text};
use crate::terminal::table::{Align, Table};
use crate::terminal::units;
use crate::warnings::{warn_of_clock, warn_of_foreign_changes};

use listing::Listing;

/// JSON of a volume.
#[derive(Serialize)]
struct VolumeJson<'a> {
    volume: &'a str,
    fs: Option<&'a str>,
    size_bytes: Option<u64>,
    label: Option<String>,
    uuid: Option<String>,
    /// Paths at which the guest sees it.
    mounted_at: Vec<String>,
    /// Reason why it can't be read.
    reason: Option<&'a str>,
}

/// Lists files, or volumes.
pub fn run(context: &Context<'_>, args: &LsArgs) -> Result<Outcome> {
    let view = context.view_to_read()?;
    let catalogue = view.catalogue()?;
    warn_of_foreign_changes(&catalogue);
    let resources = ReadResources::new(threads());
    let secrets = secrets::find(&args.luks)?;
    let mut json = context.json().then(|| JsonList::new("{\"files\": "));
    // Of each backup a few, while the files may be too many to hold.
    let mut volumes_json = Vec::new();
    let mut outcome = Outcome::Done;
    for (number, named) in args.paths.iter().enumerate() {
        let entry = catalogue.find(&named.backup)?;
        warn_of_clock(&catalogue, &named.backup, entry);
        let files = BackupFiles::open(&view, &resources, entry, Some(&named.backup), &secrets)?;
        let path = named.path.as_deref().unwrap_or_default();
        if path.is_empty() {
            volumes(context, &files, &mut volumes_json)?;
            continue;
        }
        // As ls(1): a link that is named is followed, unless it is itself to be described.
        let last = if args.long || args.directory {
            Last::Keep
        } else {
            Last::Follow
        };
        let found = files.locate(path, last)?;
        let mut listing = Listing::new(args, names(args, &files), json.take());
        listing.list(&files.spec, &found, number == 0)?;
        outcome = outcome.worse(listing.outcome());
        json = listing.into_json();
        if output::is_closed() {
            break;
        }
    }
    if let Some(json) = json {
        json.end(&format!(",\n\"volumes\": {}}}", json_text(&volumes_json)?));
    }
    Ok(outcome)
}

fn names(args: &LsArgs, files: &BackupFiles) -> Names {
    match &files.guest {
        Ok(guest) if args.long && !args.numeric_uid_gid => Names::of(&guest.tree, guest.tree.root()),
        _ => Names::default(),
    }
}

/// Lists the volumes of a backup.
fn volumes(context: &Context<'_>, files: &BackupFiles, json: &mut Vec<serde_json::Value>) -> Result<()> {
    let mounts = files.guest.as_ref().map(|guest| &guest.mounts[..]).unwrap_or_default();
    let readable = files.trees.trees.iter().enumerate().map(|(number, named)| {
        let identity = named.tree.identity();
        let at = mounts.iter().filter(|mount| mount.volume == number);
        VolumeJson {
            volume: &named.name,
            fs: Some(&named.fs),
            size_bytes: Some(named.size_bytes),
            label: identity.label,
            uuid: identity.uuid,
            mounted_at: at.map(|mount| lossy(&mount.point)).collect(),
            reason: None,
        }
    });
    let left_out = files.trees.left_out.iter().map(|(name, why)| VolumeJson {
        volume: name,
        fs: None,
        size_bytes: None,
        label: None,
        uuid: None,
        mounted_at: Vec::new(),
        reason: Some(why),
    });
    let all: Vec<_> = readable.chain(left_out).collect();
    if context.json() {
        let value = |volume| serde_json::to_value(volume).map_err(|error| Error::Bug(error.to_string()));
        json.extend(all.iter().map(value).collect::<Result<Vec<_>>>()?);
        return Ok(());
    }
    let mut table = Table::new(&[
        ("VOLUME", Align::Left),
        ("FILE SYSTEM", Align::Left),
        ("SIZE", Align::Right),
        ("LABEL", Align::Left),
        ("GUEST'S PATH", Align::Left),
    ]);
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    for volume in all {
        table.row(vec![
            volume.volume.to_owned(),
            match (volume.fs, volume.reason) {
                (Some(fs), _) => fs.to_owned(),
                (None, reason) => format!("not readable: {}", reason.unwrap_or_default()),
            },
            or_dash(volume.size_bytes.map(units::size).unwrap_or_default()),
            or_dash(volume.label.unwrap_or_default()),
            or_dash(volume.mounted_at.join(", ")),
        ]);
    }
    context.print(table);
    for warning in &files.trees.warnings {
        tracing::warn!("{}: {warning}", files.spec);
    }
    match &files.guest {
        Ok(guest) => guest
            .remarks
            .iter()
            .for_each(|remark| context.say(format_args!("fstab: {remark}"))),
        Err(why) => context.say(format_args!("no path of the guest: {why}")),
    }
    Ok(())
}
