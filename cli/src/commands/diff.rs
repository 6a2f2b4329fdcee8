//! `vbk diff`

use serde::Serialize;
use vbk_repo::backup::{Entry, Image};
use vbk_repo::catalogue::BackupSpec;
use vbk_repo::diff::{ImageDiff, diff};

use crate::args::DiffArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::table::{Align, Table};
use crate::units;

#[derive(Serialize)]
struct Report {
    before: String,
    after: String,
    disks: Vec<DiskJson>,
    /// Kept files that differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<FileJson>,
}

#[derive(Serialize)]
struct FileJson {
    file: String,
    what: &'static str,
}

#[derive(Serialize)]
struct DiskJson {
    disk: String,
    before_bytes: u64,
    after_bytes: u64,
    differing_bytes: u64,
    ranges: Vec<RangeJson>,
}

#[derive(Serialize)]
struct RangeJson {
    offset_bytes: u64,
    len_bytes: u64,
    kind: String,
}

/// Compares two backups.
pub fn run(context: &Context<'_>, args: &DiffArgs) -> Result<Outcome> {
    let view = context.repository()?.view()?;
    let catalogue = view.catalogue()?;
    crate::commands::warn_of_foreign_changes(&catalogue);
    let (before, after) = (catalogue.find(&args.before)?, catalogue.find(&args.after)?);
    let pairs = pairs(before, after, args)?;
    let mut sums = Table::new(&[
        ("DISK", Align::Left),
        ("BEFORE", Align::Right),
        ("AFTER", Align::Right),
        ("DIFFERS", Align::Right),
        ("RANGES", Align::Right),
    ]);
    let mut listed = Table::new(&[
        ("DISK", Align::Left),
        ("OFFSET", Align::Right),
        ("LENGTH", Align::Right),
        ("WHAT", Align::Left),
    ]);
    let mut disks = Vec::new();
    for (one, other) in pairs {
        let mut ranges = Vec::new();
        let found: ImageDiff = diff(&*view.store(), one, other, &mut |range| {
            if args.ranges {
                listed.row(vec![
                    other.disk.to_string(),
                    range.offset_bytes.to_string(),
                    units::size(range.len_bytes),
                    range.kind.to_string(),
                ]);
            }
            if context.json() {
                ranges.push(RangeJson {
                    offset_bytes: range.offset_bytes,
                    len_bytes: range.len_bytes,
                    kind: range.kind.to_string(),
                });
            }
        })?;
        sums.row(vec![
            other.disk.to_string(),
            units::size(found.before_bytes),
            units::size(found.after_bytes),
            units::size(found.total_bytes()),
            found.ranges.to_string(),
        ]);
        disks.push(DiskJson {
            disk: other.disk.to_string(),
            before_bytes: found.before_bytes,
            after_bytes: found.after_bytes,
            differing_bytes: found.total_bytes(),
            ranges,
        });
    }
    if args.ranges {
        context.print(format_args!("{listed}\n"));
    }
    context.print(sums);
    let files = match (&args.before.disk, &args.after.disk) {
        (None, None) => changed_files(before, after),
        _ => Vec::new(),
    };
    for FileJson { file, what } in &files {
        context.print(format_args!("{file}: {what}\n"));
    }
    context.json_result(&Report {
        before: before.backup.spec(),
        after: after.backup.spec(),
        disks,
        files,
    })?;
    Ok(Outcome::Done)
}

/// The files that were kept with only one of the backups, or have other content. Equal content has an equal manifest.
fn changed_files(before: &Entry, after: &Entry) -> Vec<FileJson> {
    let compare = |file: &Image| match before.backup.file(file.disk.as_str()) {
        Ok(old) if old.manifest == file.manifest => None,
        Ok(_) => Some("changed"),
        Err(_) => Some("new"),
    };
    let new = after.backup.files.iter().map(|file| (file, compare(file)));
    let is_gone = |file: &Image| after.backup.file(file.disk.as_str()).is_err();
    let gone = before
        .backup
        .files
        .iter()
        .map(|file| (file, is_gone(file).then_some("gone")));
    let named = new.chain(gone).filter_map(|(file, what)| {
        Some(FileJson {
            file: file.disk.to_string(),
            what: what?,
        })
    });
    named.collect()
}

/// The disks to compare: those that were named, or all that both backups have.
fn pairs<'a>(before: &'a Entry, after: &'a Entry, args: &DiffArgs) -> Result<Vec<(&'a Image, &'a Image)>> {
    if args.before.disk.is_some() || args.after.disk.is_some() {
        let disk = |entry: &'a Entry, spec: &BackupSpec, other: &BackupSpec| {
            let name = spec.disk.as_ref().or(other.disk.as_ref());
            entry.backup.image(name.map_or("", String::as_str))
        };
        let one = disk(before, &args.before, &args.after)?;
        return Ok(vec![(one, disk(after, &args.after, &args.before)?)]);
    }
    let both: Vec<_> = after
        .backup
        .images
        .iter()
        .filter_map(|image| Some((before.backup.image(image.disk.as_str()).ok()?, image)))
        .collect();
    if both.is_empty() {
        return Err(Error::Usage(format!(
            "{} and {} have no disk of the same name; name one of each, as in {}/vda",
            before.backup.spec(),
            after.backup.spec(),
            before.backup.spec()
        )));
    }
    Ok(both)
}
