//! `vbk cp`

use std::cell::{Cell, RefCell};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;
use vbk_inside::copy::{Copied, Copier, CopyEvent, CopyOptions, Fault, Stopped, open_target};
use vbk_inside::fs::{FileKind, FileTree};
use vbk_inside::path::Last;
use vbk_repo::reader::ReadResources;

use crate::args::{CpArgs, InsidePath};
use crate::context::{Context, threads};
use crate::exit::{Error, Outcome, Result};
use crate::file_forms::{hex_of, lossy, shown};
use crate::guest_files::{BackupFiles, Located};
use crate::secrets;
use crate::signals;
use crate::terminal::progress::Progress;
use crate::terminal::units;
use crate::warnings::{warn_of_clock, warn_of_foreign_changes};

/// Failed objects that --json names.
const MAX_NAMED: usize = 10_000;

#[derive(Serialize)]
struct Report {
    target: PathBuf,
    files: u64,
    directories: u64,
    written_bytes: u64,
    warnings: u64,
    /// Number of objects that were not copied.
    failed: u64,
    /// The first of them.
    failures: Vec<FailureJson>,
    duration_ms: u64,
}

#[derive(Serialize)]
struct FailureJson {
    /// Path at the target.
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    reason: String,
}

/// Destination of a copy.
struct Target {
    /// An existing directory.
    directory: PathBuf,
    /// New name in it, if the sources do not keep theirs.
    name: Option<Vec<u8>>,
}

/// Objects that were not copied.
#[derive(Default)]
struct Failures {
    outcome: Cell<Option<Outcome>>,
    named: RefCell<Vec<FailureJson>>,
    /// Those that were refused before a copy began.
    refused: Cell<u64>,
}

/// Copies files out of backups.
pub fn run(context: &Context<'_>, args: &CpArgs) -> Result<Outcome> {
    let clock = Instant::now();
    let Some((target, sources)) = args.paths.split_last() else {
        return Err(Error::Usage("name a BACKUP:PATH and a target".into()));
    };
    let parse = |text: &std::ffi::OsString| InsidePath::parse_whole(text.clone()).map_err(Error::Usage);
    let sources = sources.iter().map(parse).collect::<Result<Vec<_>>>()?;
    let target = Target::new(Path::new(target), sources.len())?;
    let cancel = signals::cancel_flag_with_hangup().map_err(Error::io("watch for signals"))?;
    let view = context.view_to_read()?;
    let catalogue = view.catalogue()?;
    warn_of_foreign_changes(&catalogue);
    let resources = ReadResources::new(threads());
    let secrets = secrets::find(&args.luks)?;
    let progress = Progress::counting(context.quiet());
    let failures = Failures::default();
    let observer = |event: CopyEvent<'_>| failures.observe(&progress, &target.directory, event);
    let mut copiers: Vec<(Arc<dyn FileTree>, Copier<'_>)> = Vec::new();
    let mut opened: Vec<(&InsidePath, BackupFiles)> = Vec::new();
    for source in &sources {
        if !opened.iter().any(|(known, _)| known.backup == source.backup) {
            let entry = catalogue.find(&source.backup)?;
            warn_of_clock(&catalogue, &source.backup, entry);
            opened.push((
                source,
                BackupFiles::open(&view, &resources, entry, Some(&source.backup), &secrets)?,
            ));
        }
        let Some((_, files)) = opened.iter().find(|(known, _)| known.backup == source.backup) else {
            continue;
        };
        let path = source.path.as_deref().unwrap_or_default();
        let last = if args.recursive { Last::Keep } else { Last::Follow };
        let found = match files.locate(path, last) {
            Ok(found) => found,
            Err(error) if sources.len() == 1 => return Err(error),
            Err(error) => {
                tracing::error!("{}", error.text());
                failures.refuse(path, &error.text());
                continue;
            }
        };
        if found.kind == FileKind::Directory && !args.recursive {
            tracing::error!("{}:{}: is a directory; -r copies it", files.spec, shown(path));
            failures.refuse(path, "is a directory");
            continue;
        }
        let number = match copiers.iter().position(|(tree, _)| Arc::ptr_eq(tree, &found.tree)) {
            Some(number) => number,
            None => {
                copiers.push((
                    Arc::clone(&found.tree),
                    copier(&found, &target, args, &cancel, &observer)?,
                ));
                copiers.len() - 1
            }
        };
        let stopped = copy(&mut copiers[number].1, &found, path, &target);
        stopped.map_err(|stopped| match stopped {
            Stopped::Interrupted => vbk_repo::Error::Interrupted.into(),
            Stopped::Target { path, source } => Error::Io {
                doing: format!("write {}", target.directory.join(path).display()),
                source,
            },
        })?;
    }
    progress.finish();
    let mut sum = Copied::default();
    for (_, copier) in &copiers {
        let copied = copier.copied();
        sum.files += copied.files;
        sum.directories += copied.directories;
        sum.written_bytes += copied.written_bytes;
        sum.warnings += copied.warnings;
        sum.failed += copied.failed;
    }
    drop(copiers);
    sum.failed += failures.refused.get();
    let took = clock.elapsed();
    let shown_target = target.path();
    context.say(format_args!(
        "{} and {} ({} written) copied to {} in {}{}",
        units::count(sum.files, "file"),
        count_directories(sum.directories),
        units::size(sum.written_bytes),
        shown(shown_target.as_os_str().as_bytes()),
        units::duration(took),
        match sum.failed {
            0 => String::new(),
            failed => format!("; {failed} could not be copied"),
        }
    ));
    let warned = if sum.warnings > 0 {
        Outcome::Warnings
    } else {
        Outcome::Done
    };
    let outcome = warned.worse(failures.outcome.get().unwrap_or(Outcome::Done));
    context.json_result(&Report {
        target: shown_target,
        files: sum.files,
        directories: sum.directories,
        written_bytes: sum.written_bytes,
        warnings: sum.warnings,
        failed: sum.failed,
        failures: failures.named.into_inner(),
        duration_ms: units::milliseconds(took),
    })?;
    Ok(outcome)
}

fn count_directories(number: u64) -> String {
    match number {
        1 => "1 directory".to_owned(),
        number => format!("{number} directories"),
    }
}

fn copier<'a>(
    found: &Located,
    target: &Target,
    args: &CpArgs,
    cancel: &'a AtomicBool,
    observer: &'a dyn Fn(CopyEvent<'_>),
) -> Result<Copier<'a>> {
    let directory = open_target(&target.directory);
    let directory = directory.map_err(Error::io(format!("open {}", target.directory.display())))?;
    let options = CopyOptions { force: args.force };
    Ok(Copier::new(
        Arc::clone(&found.tree),
        directory,
        options,
        cancel,
        observer,
    ))
}

fn copy(copier: &mut Copier<'_>, found: &Located, path: &[u8], target: &Target) -> std::result::Result<(), Stopped> {
    let own = found.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    match &target.name {
        Some(name) => copier.copy(found.node, name),
        // As cp(1): the root, and a directory named as DIR/., are merged with the target itself.
        None if found.kind == FileKind::Directory && (own.is_empty() || path.ends_with(b"/.")) => {
            copier.copy_entries(found.node)
        }
        // A link's own name, where the path leads through one to a file of another name.
        None => copier.copy(found.node, name_of(path).unwrap_or(own)),
    }
}

/// Returns the last name in a path, unless it is one that does not name the object.
fn name_of(path: &[u8]) -> Option<&[u8]> {
    let last = path.split(|byte| *byte == b'/').rfind(|part| !part.is_empty())?;
    // A path without a slash is the name of a volume.
    (path.contains(&b'/') && last != b"." && last != b"..").then_some(last)
}

impl Target {
    fn new(path: &Path, sources: usize) -> Result<Self> {
        let is_directory = match std::fs::metadata(path) {
            Ok(metadata) => metadata.is_dir(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(Error::io(format!("open {}", path.display()))(error)),
        };
        if is_directory {
            return Ok(Self {
                directory: path.to_owned(),
                name: None,
            });
        }
        let ends_as_directory = path.as_os_str().as_bytes().ends_with(b"/");
        let Some(name) = path.file_name().filter(|_| sources == 1 && !ends_as_directory) else {
            return Err(Error::Usage(format!("{} is not an existing directory", path.display())));
        };
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        Ok(Self {
            directory: directory.to_owned(),
            name: Some(name.as_bytes().to_vec()),
        })
    }

    fn path(&self) -> PathBuf {
        match &self.name {
            Some(name) => self.directory.join(std::ffi::OsStr::from_bytes(name)),
            None => self.directory.clone(),
        }
    }
}

impl Failures {
    fn observe(&self, progress: &Progress, directory: &Path, event: CopyEvent<'_>) {
        let at = |path: &[u8]| shown(directory.join(std::ffi::OsStr::from_bytes(path)).as_os_str().as_bytes());
        match event {
            CopyEvent::Written(bytes) => progress.add(bytes),
            CopyEvent::Warning(path, text) => progress.suspend(|| tracing::warn!("{}: {text}", at(path))),
            CopyEvent::Failed(path, fault) => {
                let hint = match fault {
                    Fault::Exists => "; --force replaces it",
                    _ => "",
                };
                progress.suspend(|| tracing::error!("{}: {fault}{hint}", at(path)));
                self.note(path, &fault.to_string());
                self.add(match fault {
                    Fault::Source(error) => Outcome::of_unread(error),
                    Fault::Target(_) | Fault::Exists | Fault::ExistsAsDirectory | Fault::ExistsAsOther => {
                        Outcome::Failed
                    }
                });
            }
        }
    }

    fn refuse(&self, path: &[u8], reason: &str) {
        self.refused.set(self.refused.get() + 1);
        self.note(path, reason);
        self.add(Outcome::Failed);
    }

    fn note(&self, path: &[u8], reason: &str) {
        let mut named = self.named.borrow_mut();
        if named.len() < MAX_NAMED {
            named.push(FailureJson {
                path: lossy(path),
                path_hex: hex_of(path),
                reason: reason.to_owned(),
            });
        }
    }

    fn add(&self, outcome: Outcome) {
        let before = self.outcome.get().unwrap_or(Outcome::Done);
        self.outcome.set(Some(before.worse(outcome)));
    }
}
