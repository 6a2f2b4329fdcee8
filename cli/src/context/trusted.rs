//! Whether the repository of a run is the one that this host knows, and what it is remembered as.

use std::path::Path;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use vbk_repo::repository::Repository;
use vbk_repo::standing::Standing;

use super::{Context, Purpose};
use crate::config::Config;
use crate::exit::{Error, Result};
use crate::machine;
use crate::trust::Memory;
use crate::unlock;

impl Context<'_> {
    /// An error if the newest view that is in the repository is not what this host knows, before anything is put right there.
    pub fn check_newest(&self, repository: &Repository) -> Result<()> {
        match repository.standing_of_view() {
            Some(standing) => self.judge(repository, &standing, Purpose::Write),
            None => Ok(()),
        }
    }

    /// Notes a repository that was opened, by its key if it has one, and whose content was found to be the known one.
    pub(super) fn is_known(&self, repository: &Repository, standing: &Standing) {
        let _ = self.trusted.set(repository.clone());
        self.note(repository, standing);
    }

    /// Says what may be wrong where there is no repository.
    pub fn explain(&self, error: vbk_repo::Error, path: &Path) -> Error {
        let vbk_repo::Error::NotARepository { .. } = error else {
            return error.into();
        };
        let shown = path.display();
        let known = self.memory.as_ref().and_then(|memory| memory.get(path).ok()?);
        let is_empty = std::fs::read_dir(path).map_or(!path.exists(), |mut entries| entries.next().is_none());
        Error::NotThere(match (known, is_empty) {
            (Some(known), _) => format!(
                "{shown} is not a vbk repository, though this host used one there ({known}); is its file system mounted? If \
                 it is gone for good, `vbk --repo {shown} trust --forget` forgets it"
            ),
            (None, true) if !self.sources.repo_is_typed => {
                format!("{shown} is not a vbk repository: it is empty or does not exist; is its file system mounted?")
            }
            (None, true) => format!(
                "{shown} is not a vbk repository; if there was one, is its file system mounted? `vbk init {shown}` makes a \
                 new one"
            ),
            (None, false) => {
                format!("{shown} is not a vbk repository; `vbk init` makes one in a new or empty directory")
            }
        })
    }

    /// An error if something says that this repository is encrypted and it is not. Somebody who can write to the storage may
    /// have put a plain repository in the place of an encrypted one.
    pub fn check_encrypted(&self, repository: &Repository) -> Result<()> {
        match self.expects_encryption(repository.path())? {
            Some(what) if !repository.is_encrypted() && !machine::is_background() => Err(Error::Usage(format!(
                "{} is not encrypted, although {what}; nothing was read or written. Leave that out if it is as it should be",
                repository.path().display()
            ))),
            _ => Ok(()),
        }
    }

    /// What says that a repository is encrypted, as the rest of a sentence.
    pub fn expects_encryption(&self, repository: &Path) -> Result<Option<String>> {
        if let Some(option) = self.sources.key_option {
            return Ok(Some(format!("{option} was given")));
        }
        // What names its repository in full does not need the configuration.
        let config = match self.config() {
            Err(_) if self.global.repo.is_some() => None,
            config => Some(config?),
        };
        let is_of = |config: &&Config| match config.repository {
            None => !self.sources.repo_is_typed,
            Some(_) => config.is_of(repository),
        };
        let config = config.filter(is_of);
        if let Some(name) = config.and_then(Config::key_name) {
            return Ok(Some(format!("{name} was given")));
        }
        if config.is_some_and(|config| config.encrypted) {
            return Ok(Some("the configuration says encrypted = true".to_owned()));
        }
        Ok(unlock::credential().map(|(name, ..)| format!("the credential {name} was given")))
    }

    /// Compares a repository with what this host knows of it.
    pub(super) fn judge(&self, repository: &Repository, standing: &Standing, purpose: Purpose) -> Result<()> {
        self.is_writer.fetch_or(purpose == Purpose::Write, Ordering::SeqCst);
        // The process that started this one has done it.
        let Some(memory) = self.memory.as_ref().filter(|_| !machine::is_background()) else {
            return Ok(());
        };
        let known = match memory.get(repository.path()) {
            Ok(Some(known)) => known,
            Ok(None) => return Ok(()),
            Err(error) => {
                self.warn_of(memory, &error);
                return Ok(());
            }
        };
        let mut changes = standing.changes_since(&known.standing);
        if !changes.is_empty() {
            // Another run may have gone on between the two looks; and a damaged marker says nothing of the repository.
            let again = repository.standing_of_view();
            changes = again.map_or(changes, |standing| standing.changes_since(&known.standing));
        }
        if changes.is_empty() {
            return Ok(());
        }
        let shown = repository.path().display();
        let changes: Vec<_> = changes.iter().map(ToString::to_string).collect();
        let text = format!(
            "{shown} is not what this host knows: {}. The host last used {known}. Perhaps the repository was restored from an \
             older copy, another disk is mounted there, or someone changed it",
            changes.join(", ")
        );
        let remedy = format!("If that is meant, `vbk --repo {shown} trust` accepts what is there now");
        let was_doubted = self.is_doubted.swap(true, Ordering::SeqCst);
        match purpose {
            Purpose::Write => Err(Error::Distrusted(format!("{text}; nothing was written. {remedy}"))),
            Purpose::Read => {
                // What is there can be read all the same: it may be all that is left.
                if !was_doubted {
                    tracing::warn!("{text}. It is read, and nothing is written. {remedy}");
                }
                Ok(())
            }
        }
    }

    /// Whether what is read is not what this host knew.
    pub fn is_doubted(&self) -> bool {
        self.is_doubted.load(Ordering::SeqCst)
    }

    /// Where this host remembers repositories.
    pub fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    /// Notes how far the repository of this run has come.
    pub fn remember(&self) {
        let Some(repository) = self.trusted.get() else {
            return;
        };
        let standing = repository.standing();
        if !repository.is_encrypted() {
            self.note(repository, &standing);
        } else if !self
            .memory
            .as_ref()
            .is_some_and(|memory| covers(memory, repository, &standing))
        {
            // Something was written, and the epoch that came with it stands in the view.
            self.note(repository, &repository.standing_of_view().unwrap_or(standing));
        }
    }

    fn note(&self, repository: &Repository, standing: &Standing) {
        let Some(memory) = &self.memory else {
            return;
        };
        if machine::is_background() || self.is_doubted() || covers(memory, repository, standing) {
            return;
        }
        // What is noted must be what a power cut leaves.
        repository.settle();
        let noted = memory.note(repository.path(), standing, Timestamp::now());
        let _ = noted.inspect_err(|error| self.warn_of(memory, error));
    }

    /// Notes the state of a repository that was put right, also if it is an older one.
    pub fn remember_mended(&self, repository: &Repository) {
        let known = self
            .memory
            .as_ref()
            .and_then(|memory| memory.get(repository.path()).ok()?);
        let (Some(memory), Some(known), Some(standing)) = (&self.memory, known, repository.standing_of_view()) else {
            return;
        };
        if standing.is_same_as(&known.standing) && standing != known.standing {
            let noted = memory.replace(repository.path(), &standing, Timestamp::now());
            let _ = noted.inspect_err(|error| self.warn_of(memory, error));
        }
    }

    /// Notes a repository that this run made.
    pub fn remember_anew(&self, repository: &Repository) {
        if let Some(memory) = &self.memory {
            let noted = memory.replace(repository.path(), &repository.standing(), Timestamp::now());
            let _ = noted.inspect_err(|error| self.warn_of(memory, error));
        }
    }

    fn warn_of(&self, memory: &Memory, error: &std::io::Error) {
        let text = format!(
            "{}: {error}; this host can't notice that the repository is replaced or put back",
            memory.directory().display()
        );
        // Who only reads may well have no place to write anything.
        match self.is_writer.load(Ordering::SeqCst) || error.kind() == std::io::ErrorKind::InvalidData {
            true => tracing::warn!("{text}"),
            false => tracing::info!("{text}"),
        }
    }
}

/// Whether the memory says all that `standing` does.
fn covers(memory: &Memory, repository: &Repository, standing: &Standing) -> bool {
    let known = memory.get(repository.path());
    known.is_ok_and(|known| known.is_some_and(|known| known.standing.join(standing) == known.standing))
}
