//! `vbk diff`

mod files;

use std::collections::BTreeMap;

use serde::Serialize;
use vbk_repo::backup::{Entry, Image};
use vbk_repo::catalogue::{BackupSpec, Catalogue};
use vbk_repo::diff::{ImageDiff, diff};
use vbk_repo::repository::View;

use crate::args::DiffArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::terminal::table::{Align, Table};
use crate::terminal::units;
use crate::warnings::{warn_of_clock, warn_of_foreign_changes};

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
    before_bytes: Option<u64>,
    after_bytes: Option<u64>,
}

#[derive(Serialize)]
struct DiskJson {
    disk: String,
    what: What,
    /// None for a disk that only the second backup has.
    before_bytes: Option<u64>,
    /// None for a disk that only the first backup has.
    after_bytes: Option<u64>,
    differing_bytes: u64,
    /// None of a disk that only one backup has.
    #[serde(skip)]
    count: Option<u64>,
    /// With --ranges.
    #[serde(skip_serializing_if = "Option::is_none")]
    ranges: Option<Vec<RangeJson>>,
}

#[derive(Serialize)]
struct RangeJson {
    offset_bytes: u64,
    len_bytes: u64,
    kind: String,
}

/// Change of a disk from the first backup to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    Same,
    Changed,
    /// Only the second backup has it.
    Added,
    /// Only the first backup has it.
    Removed,
}

impl What {
    fn text(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Changed => "changed",
            Self::Added => "added",
            Self::Removed => "removed",
        }
    }
}

/// A disk of one of the backups, or of both.
type Pair<'a> = (Option<&'a Image>, Option<&'a Image>);

/// Compares two backups.
pub fn run(context: &Context<'_>, args: &DiffArgs) -> Result<Outcome> {
    let view = context.view()?;
    let catalogue = view.catalogue()?;
    warn_of_foreign_changes(&catalogue);
    let before = find(&catalogue, &args.before.backup)?;
    let after = find(&catalogue, &args.after.backup)?;
    if args.files {
        view.check_reads()?;
        return files::run(context, args, &view, before, after);
    }
    if args.before.path.is_some() || args.after.path.is_some() {
        return Err(Error::Usage(
            "a path in a backup can be compared only with --files".into(),
        ));
    }
    let pairs = pairs(before, after, args)?;
    let mut listed = Table::new(&[
        ("DISK", Align::Left),
        ("OFFSET", Align::Right),
        ("LENGTH", Align::Right),
        ("WHAT", Align::Left),
    ]);
    let disks = pairs
        .iter()
        .map(|pair| compare(context, &view, *pair, args.ranges, &mut listed))
        .collect::<Result<Vec<_>>>()?;
    if args.ranges {
        context.print(format_args!("{listed}\n"));
    }
    context.print(table_of(&disks));
    if !disks.is_empty() && pairs.iter().all(|(one, other)| one.is_none() || other.is_none()) {
        context.say(format_args!(
            "the backups have no disk of the same name; to compare two disks, name one of each, e.g. {}/{}",
            before.backup.spec(),
            disks[0].disk
        ));
    }
    let files = match (&args.before.backup.disk, &args.after.backup.disk) {
        (None, None) => changed_files(before, after),
        _ => Vec::new(),
    };
    for FileJson {
        file,
        what,
        before_bytes,
        after_bytes,
    } in &files
    {
        let sizes = match (before_bytes, after_bytes) {
            (Some(one), Some(other)) if one != other => {
                format!(", {} before, {} after", units::size(*one), units::size(*other))
            }
            _ => String::new(),
        };
        context.print(format_args!("{file}: {what}{sizes}\n"));
    }
    context.json_result(&Report {
        before: before.backup.spec(),
        after: after.backup.spec(),
        disks,
        files,
    })?;
    Ok(Outcome::Done)
}

fn find<'a>(catalogue: &'a Catalogue, spec: &BackupSpec) -> Result<&'a Entry> {
    let entry = catalogue.find(spec)?;
    warn_of_clock(catalogue, spec, entry);
    Ok(entry)
}

/// Compares a disk in two backups, and lists the ranges that differ if `list` is set. A disk that only one backup has
/// differs completely.
fn compare(context: &Context<'_>, view: &View, pair: Pair<'_>, list: bool, listed: &mut Table) -> Result<DiskJson> {
    let (one, other) = match pair {
        (Some(one), Some(other)) => (one, other),
        (one, other) => {
            let image = one.or(other).expect("a pair has a disk");
            return Ok(DiskJson {
                disk: image.disk.to_string(),
                what: if one.is_some() { What::Removed } else { What::Added },
                before_bytes: one.map(|image| image.size_bytes),
                after_bytes: other.map(|image| image.size_bytes),
                differing_bytes: image.size_bytes,
                count: None,
                ranges: list.then(Vec::new),
            });
        }
    };
    let mut ranges = Vec::new();
    let found: ImageDiff = diff(&*view.store(), one, other, &mut |range| {
        if list {
            listed.row(vec![
                other.disk.to_string(),
                range.offset_bytes.to_string(),
                units::size(range.len_bytes),
                range.kind.to_string(),
            ]);
        }
        if list && context.json() {
            ranges.push(RangeJson {
                offset_bytes: range.offset_bytes,
                len_bytes: range.len_bytes,
                kind: range.kind.to_string(),
            });
        }
    })?;
    Ok(DiskJson {
        disk: other.disk.to_string(),
        what: if found.ranges == 0 { What::Same } else { What::Changed },
        before_bytes: Some(found.before_bytes),
        after_bytes: Some(found.after_bytes),
        differing_bytes: found.total_bytes(),
        count: Some(found.ranges),
        ranges: list.then_some(ranges),
    })
}

fn table_of(disks: &[DiskJson]) -> Table {
    let mut table = Table::new(&[
        ("DISK", Align::Left),
        ("BEFORE", Align::Right),
        ("AFTER", Align::Right),
        ("DIFFERS", Align::Right),
        ("RANGES", Align::Right),
        ("WHAT", Align::Left),
    ]);
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), units::size);
    for disk in disks {
        table.row(vec![
            disk.disk.clone(),
            size(disk.before_bytes),
            size(disk.after_bytes),
            units::size(disk.differing_bytes),
            disk.count.map_or_else(|| "-".to_owned(), |count| count.to_string()),
            disk.what.text().to_owned(),
        ]);
    }
    table
}

/// Returns the files that only one of the backups has, or whose content differs. The manifest of a file, unlike that of a
/// disk, depends on its content alone.
fn changed_files(before: &Entry, after: &Entry) -> Vec<FileJson> {
    let what = |(one, other): Pair<'_>| match (one, other) {
        (Some(one), Some(other)) if one.manifest == other.manifest => None,
        (Some(_), Some(_)) => Some("changed"),
        (None, _) => Some("new"),
        (_, None) => Some("gone"),
    };
    let named = matched(&before.backup.files, &after.backup.files);
    let differ = named.into_iter().filter_map(|(one, other)| {
        Some(FileJson {
            file: one.or(other)?.disk.to_string(),
            what: what((one, other))?,
            before_bytes: one.map(|file| file.size_bytes),
            after_bytes: other.map(|file| file.size_bytes),
        })
    });
    differ.collect()
}

/// Returns the disks to compare: the named ones, or all.
fn pairs<'a>(before: &'a Entry, after: &'a Entry, args: &DiffArgs) -> Result<Vec<Pair<'a>>> {
    let (first, second) = (&args.before.backup, &args.after.backup);
    if first.disk.is_some() || second.disk.is_some() {
        let disk = |entry: &'a Entry, spec: &BackupSpec, other: &BackupSpec| {
            let name = spec.disk.as_ref().or(other.disk.as_ref());
            entry.backup.image(name.map_or("", String::as_str))
        };
        let one = disk(before, first, second)?;
        return Ok(vec![(Some(one), Some(disk(after, second, first)?))]);
    }
    Ok(matched(&before.backup.images, &after.backup.images))
}

/// Pairs the images of both lists by name: those of the second in its order, then those that only the first has.
fn matched<'a>(before: &'a [Image], after: &'a [Image]) -> Vec<Pair<'a>> {
    let mut left: BTreeMap<&str, &Image> = before.iter().map(|image| (image.disk.as_str(), image)).collect();
    let mut pairs: Vec<Pair<'a>> = after
        .iter()
        .map(|image| (left.remove(image.disk.as_str()), Some(image)))
        .collect();
    let removed = before.iter().filter(|image| left.contains_key(image.disk.as_str()));
    pairs.extend(removed.map(|image| (Some(image), None)));
    pairs
}
