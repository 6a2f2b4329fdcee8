//! `vbk diff --files`

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use vbk_inside::compare::{Change, CompareOptions, Compared, Side, compare};
use vbk_inside::fs::{FileKind, Stat};
use vbk_inside::path::Last;
use vbk_repo::backup::Entry;
use vbk_repo::reader::ReadResources;
use vbk_repo::repository::View;

use crate::args::{DiffArgs, InsidePath};
use crate::context::{Context, threads};
use crate::exit::{Error, Outcome, Result};
use crate::file_forms::{hex_of, kind_name, lossy, shown};
use crate::guest_files::{BackupFiles, Located, Root, same_disks};
use crate::secrets;
use crate::signals;
use crate::terminal::output::{self, JsonList, json_text};
use crate::terminal::units;

#[derive(Serialize)]
struct ChangeJson {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    /// `added`, `removed`, `changed` (content or kind), or `attributes`.
    what: &'static str,
    /// Attributes that differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attributes: Vec<&'static str>,
    kind: Option<&'static str>,
    before_bytes: Option<u64>,
    after_bytes: Option<u64>,
}

/// Numbers of differences.
#[derive(Default)]
struct Counts {
    added: u64,
    removed: u64,
    changed: u64,
    attributes: u64,
}

struct Printer<'a> {
    context: &'a Context<'a>,
    json: Option<JsonList>,
    counts: Counts,
    outcome: Outcome,
    cancel: Arc<AtomicBool>,
    error: Option<Error>,
}

/// Compares the files in two backups.
pub fn run(context: &Context<'_>, args: &DiffArgs, view: &View, before: &Entry, after: &Entry) -> Result<Outcome> {
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let start = format!(
        "{{\"before\":{},\"after\":{},\"changes\":",
        json_text(&before.backup.spec())?,
        json_text(&after.backup.spec())?
    );
    let sides = open(args, view, before, after)?;
    let mut printer = Printer {
        context,
        json: context.json().then(|| JsonList::new(&start)),
        counts: Counts::default(),
        outcome: Outcome::Done,
        cancel,
        error: None,
    };
    let options = CompareOptions {
        all_content: args.content,
    };
    if let Some((one, other)) = &sides {
        printer.compare_all(args, one, other, options)?;
    }
    if let Some(error) = printer.error {
        return Err(error);
    }
    let Counts {
        added,
        removed,
        changed,
        attributes,
    } = printer.counts;
    context.say(format_args!(
        "{added} added, {removed} removed, {changed} changed, {attributes} with other attributes{}",
        if sides.is_none() {
            ": the disks are the same"
        } else {
            ""
        }
    ));
    if let Some(json) = printer.json {
        json.end(&format!(
            ",\"added\":{added},\"removed\":{removed},\"changed\":{changed},\"attributes\":{attributes}}}"
        ));
    }
    Ok(printer.outcome)
}

/// Opens the files of both backups, unless their disks are known to be the same.
fn open(args: &DiffArgs, view: &View, before: &Entry, after: &Entry) -> Result<Option<(BackupFiles, BackupFiles)>> {
    let are_whole = args.before.path.is_none() && args.after.path.is_none();
    let are_undivided = args.before.backup.disk == args.after.backup.disk;
    if are_whole && are_undivided && same_disks(&before.backup.images, &after.backup.images) {
        return Ok(None);
    }
    let resources = ReadResources::new(threads());
    let secrets = secrets::find(&args.luks)?;
    let one = BackupFiles::open(view, &resources, before, Some(&args.before.backup), &secrets)?;
    let other = BackupFiles::open(view, &resources, after, Some(&args.after.backup), &secrets)?;
    Ok(Some((one, other)))
}

impl Printer<'_> {
    fn compare_all(
        &mut self,
        args: &DiffArgs,
        before: &BackupFiles,
        after: &BackupFiles,
        options: CompareOptions,
    ) -> Result<()> {
        let path_of = |path: &InsidePath| path.path.clone().filter(|path| !path.is_empty());
        let (one, other) = match (path_of(&args.before), path_of(&args.after)) {
            (None, None) => return self.compare_roots(before, after, options),
            (one, other) => {
                let both = one.clone().or_else(|| other.clone()).unwrap_or_default();
                (one.unwrap_or_else(|| both.clone()), other.unwrap_or(both))
            }
        };
        let (one, other) = (directory(before, &one)?, directory(after, &other)?);
        let sides = ((&one.tree, one.node), (&other.tree, other.node));
        self.compare(sides, options, |path| other.below(path));
        Ok(())
    }

    fn compare_roots(&mut self, before: &BackupFiles, after: &BackupFiles, options: CompareOptions) -> Result<()> {
        let (olds, news) = (before.roots(), after.roots());
        let partner = |root: &Root, others: &[Root]| others.iter().position(|other| other.volume == root.volume);
        for (roots, others, spec) in [(&olds, &news, &after.spec), (&news, &olds, &before.spec)] {
            for root in roots.iter().filter(|root| partner(root, others).is_none()) {
                let name = root.volume.as_deref().unwrap_or("/");
                tracing::warn!("{name} is not compared: {spec} has no such volume apart from its root");
                self.outcome = self.outcome.worse(Outcome::Warnings);
            }
        }
        let mut any = false;
        for old in &olds {
            if let Some(new) = partner(old, &news).map(|number| &news[number]) {
                any = true;
                let sides = ((&old.tree, old.tree.root()), (&new.tree, new.tree.root()));
                self.compare(sides, options, |path| new.path(path));
            }
        }
        match any {
            true => Ok(()),
            false => {
                let why = [before, after].into_iter().find_map(|files| files.guest.as_ref().err());
                let why = why.map_or_else(String::new, |why| format!(": {why}"));
                Err(Error::NoRoot(format!(
                    "the backups have no volume in common that can be read{why}"
                )))
            }
        }
    }

    fn compare(&mut self, sides: (Side<'_>, Side<'_>), options: CompareOptions, path_of: impl Fn(&[u8]) -> Vec<u8>) {
        compare(sides.0, sides.1, options, &mut |found| {
            if self.cancel.load(Ordering::Relaxed) {
                self.error = Some(vbk_repo::Error::Interrupted.into());
            }
            match found {
                Compared::Failed(path, error) => {
                    tracing::error!("{}: {error}", shown(&path_of(path)));
                    self.outcome = self.outcome.worse(Outcome::of_unread(&error));
                }
                Compared::Differs(path, change, one, other) => self.differs(&path_of(path), change, one, other),
            }
            match self.error.is_some() || output::is_closed() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
    }

    fn differs(&mut self, path: &[u8], change: Change, one: Option<&Stat>, other: Option<&Stat>) {
        let (what, count, attributes) = match change {
            Change::Added => ("added", &mut self.counts.added, Vec::new()),
            Change::Removed => ("removed", &mut self.counts.removed, Vec::new()),
            Change::Kind | Change::Content => ("changed", &mut self.counts.changed, Vec::new()),
            Change::Attributes(names) => ("attributes", &mut self.counts.attributes, names),
        };
        *count += 1;
        let size_of = |stat: Option<&Stat>| {
            stat.filter(|stat| stat.kind == FileKind::File)
                .map(|stat| stat.size_bytes)
        };
        let (before_bytes, after_bytes) = (size_of(one), size_of(other));
        if let Some(json) = &mut self.json {
            let text = json_text(&ChangeJson {
                path: lossy(path),
                path_hex: hex_of(path),
                what,
                attributes,
                kind: other.or(one).map(|stat| kind_name(stat.kind)),
                before_bytes,
                after_bytes,
            });
            match text {
                Ok(text) => json.item(&text),
                Err(error) => self.error = Some(error),
            }
            return;
        }
        let is_directory = other.or(one).is_some_and(|stat| stat.kind == FileKind::Directory);
        let slash = if is_directory && path != b"/" { "/" } else { "" };
        let detail = match (before_bytes, after_bytes) {
            _ if !attributes.is_empty() => details(&attributes, one, other),
            (Some(before), Some(after)) => format!("{} -> {}", units::size(before), units::size(after)),
            (Some(bytes), None) | (None, Some(bytes)) => units::size(bytes),
            (None, None) => String::new(),
        };
        let line = format!("{what:<10}  {}{slash}  {detail}", shown(path));
        self.context.print(format_args!("{}\n", line.trim_end()));
    }
}

/// Describes attributes that differ: `mode 0644 -> 0600, time`.
fn details(attributes: &[&str], one: Option<&Stat>, other: Option<&Stat>) -> String {
    let (Some(one), Some(other)) = (one, other) else {
        return attributes.join(", ");
    };
    let texts = attributes.iter().map(|name| match *name {
        "mode" => format!("mode {:04o} -> {:04o}", one.mode, other.mode),
        "owner" => format!("owner {} -> {}", one.uid, other.uid),
        "group" => format!("group {} -> {}", one.gid, other.gid),
        name => name.to_owned(),
    });
    texts.collect::<Vec<_>>().join(", ")
}

fn directory(files: &BackupFiles, path: &[u8]) -> Result<Located> {
    let found = files.locate(path, Last::Follow)?;
    match found.kind {
        FileKind::Directory => Ok(found),
        _ => Err(Error::Usage(format!(
            "{}:{} is not a directory; --files compares directories",
            files.spec,
            shown(path)
        ))),
    }
}
