//! The names that can be completed: guests, backups and disks of the repository, and mount points.
//!
//! Nothing is asked and nothing is noted. A repository on another host is not connected to, and one that is encrypted is
//! opened only with a key that an option, the environment or the configuration names.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::sync::OnceLock;

use clap::{CommandFactory, FromArgMatches};
use clap_complete::engine::CompletionCandidate;
use vbk_fuse::files::HIDDEN_ROOT;
use vbk_fuse::volumes;
use vbk_repo::catalogue::Catalogue;
use vbk_repo::name::GuestName;
use vbk_repo::repository::View;

use crate::args::{Cli, Global, Sources};
use crate::context::Context;
use crate::forgotten::{Binned, decoded};
use crate::listing::disk_names;
use crate::place;
use crate::terminal::units;

/// What an argument names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A guest.
    Guest,
    /// A backup, or a disk of it.
    Backup,
    /// A backup, and a path in it after a colon.
    Inside,
    /// A guest, or a backup.
    GuestOrBackup,
    /// A guest with backups in the bin, or one of these.
    Forgotten,
    /// A mount point of vbk.
    Mount,
    /// A disk of this host, perhaps with a name: `vda=/dev/vg0/web1`.
    Disk,
}

/// The names, read when the first of them is needed.
pub(super) struct Names {
    /// The words before the one that is completed, with the program.
    words: Vec<OsString>,
    found: OnceLock<Found>,
}

/// What was found.
#[derive(Default)]
struct Found {
    /// The backups; empty if the repository can't be read without a question.
    catalogue: Catalogue,
    /// Guests with a section in the configuration.
    configured: Vec<GuestName>,
    /// The bin; empty likewise.
    bin: Vec<Binned>,
}

impl Names {
    /// Makes the names for a command line, as far as it is typed.
    pub(super) fn of(words: &[OsString]) -> Self {
        Self {
            words: words.to_vec(),
            found: OnceLock::new(),
        }
    }

    /// Returns the candidates that begin with what is typed.
    pub(super) fn candidates(&self, form: Form, current: &OsStr) -> Vec<CompletionCandidate> {
        let Some(current) = current.to_str() else {
            return Vec::new();
        };
        let mut all = match form {
            Form::Mount => mount_points(),
            Form::Disk => Vec::new(),
            Form::Forgotten => self.forgotten(current),
            Form::Guest => self.guests(""),
            Form::GuestOrBackup if !current.contains('@') => {
                let mut all = self.guests("");
                all.extend(self.guests("@"));
                all
            }
            Form::Backup | Form::Inside | Form::GuestOrBackup => self.backups(form, current),
        };
        all.retain(|candidate| candidate.get_value().as_encoded_bytes().starts_with(current.as_bytes()));
        all
    }

    fn found(&self) -> &Found {
        self.found.get_or_init(|| find(&self.words).unwrap_or_default())
    }

    /// Returns guests with backups in the bin, or, behind the @, these backups.
    fn forgotten(&self, current: &str) -> Vec<CompletionCandidate> {
        let bin = &self.found().bin;
        let names: BTreeSet<_> = match current.contains('@') {
            true => bin.iter().map(|one| one.entry.backup.spec()).collect(),
            false => bin.iter().map(|one| one.entry.backup.guest.to_string()).collect(),
        };
        names.into_iter().map(CompletionCandidate::new).collect()
    }

    fn guests(&self, end: &str) -> Vec<CompletionCandidate> {
        let found = self.found();
        let mut guests: BTreeSet<_> = found.catalogue.guests().into_iter().collect();
        // They may have no backup yet.
        if end.is_empty() {
            guests.extend(&found.configured);
        }
        let guests = guests.into_iter();
        guests
            .map(|guest| CompletionCandidate::new(format!("{guest}{end}")))
            .collect()
    }

    fn backups(&self, form: Form, current: &str) -> Vec<CompletionCandidate> {
        let Some((guest, rest)) = current.split_once('@') else {
            return self.guests("@");
        };
        let catalogue = &self.found().catalogue;
        if let Some((when, _)) = rest.split_once('/') {
            let spec = format!("{guest}@{when}");
            let entry = spec.parse().ok().and_then(|spec| catalogue.find(&spec).ok());
            let disks = entry.map(disk_names).unwrap_or_default().into_iter();
            return disks
                .map(|disk| CompletionCandidate::new(format!("{spec}/{disk}")))
                .collect();
        }
        let Ok(guest) = GuestName::new(guest) else {
            return Vec::new();
        };
        let end = match form {
            Form::Inside => ":",
            _ => "",
        };
        let candidate = |when: &str, backup: &vbk_repo::backup::Entry| {
            let disks = disk_names(backup).join(", ");
            let about = format!("{}, {disks}", units::size(backup.backup.size_bytes()));
            CompletionCandidate::new(format!("{guest}@{when}{end}")).help(Some(about.into()))
        };
        let latest = catalogue.latest(&guest).map(|entry| candidate("latest", entry));
        // The newest first.
        let others = catalogue.of(&guest).rev();
        latest
            .into_iter()
            .chain(others.map(|entry| candidate(&entry.backup.time.to_string(), entry)))
            .collect()
    }
}

/// Reads what the command line so far, the environment and the configuration lead to.
fn find(words: &[OsString]) -> Option<Found> {
    let matches = Cli::command().ignore_errors(true).try_get_matches_from(words).ok()?;
    let global = Global::from_arg_matches(&matches).ok()?;
    let context = Context::new(&global, Sources::of(&matches));
    let view = view(&context);
    let configured = context.config().map(|config| config.guests().cloned().collect());
    Some(Found {
        catalogue: view.as_ref().and_then(|view| view.catalogue().ok()).unwrap_or_default(),
        bin: view.as_ref().and_then(bin).unwrap_or_default(),
        configured: configured.unwrap_or_default(),
    })
}

fn bin(view: &View) -> Option<Vec<Binned>> {
    let forgotten = view.forgotten().ok()?;
    Some(decoded(view.store().hashing(), forgotten, &view.states().ok()?))
}

fn view(context: &Context<'_>) -> Option<View> {
    let path = context.repository_path().ok()?;
    if place::is_address(path) {
        return None;
    }
    let locked = context.open_at(path).ok()?;
    let repository = match locked.is_encrypted() {
        false => locked,
        true => locked.unlock(&context.given_key(path).ok()??).ok()?,
    };
    repository.view().ok()
}

fn mount_points() -> Vec<CompletionCandidate> {
    let mounts = volumes::list_ours().unwrap_or_default().into_iter();
    mounts
        .filter(|mount| !mount.point.starts_with(HIDDEN_ROOT))
        .map(|mount| CompletionCandidate::new(mount.point.into_os_string()))
        .collect()
}
