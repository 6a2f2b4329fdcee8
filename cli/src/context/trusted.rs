//! Compares the repository of a run with the one that this host knows, and remembers its new state.

use std::path::Path;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use vbk_repo::ErrorKind;
use vbk_repo::repository::Repository;
use vbk_repo::standing::Standing;

use super::{Context, Purpose};
use crate::config::Config;
use crate::exit::{Error, Result};
use crate::machine;
use crate::place;
use crate::trust::Memory;
use crate::unlock;

impl Context<'_> {
    /// Fails if the newest view in the repository is not what this host knows, before anything is repaired there.
    pub fn check_newest(&self, repository: &Repository) -> Result<()> {
        match repository.standing_of_view() {
            Some(standing) => self.judge(repository, &standing, Purpose::Write),
            None => Ok(()),
        }
    }

    /// Returns whether this host remembers more of a state with this number than its number.
    pub(super) fn knows_state_of(&self, repository: &Repository, standing: &Standing) -> bool {
        let known = self.memory.as_ref().map(|memory| memory.get(repository.path()));
        let known = known.and_then(|known| Some(known.ok()??.standing));
        known.is_some_and(|known| known.state.is_some() && known.generation == standing.generation)
    }

    /// Notes a repository that was opened, with its key if it has one, and whose content is what this host knows.
    pub(super) fn is_known(&self, repository: &Repository, standing: &Standing) {
        let _ = self.trusted.set(repository.clone());
        self.note(repository, standing);
    }

    /// Notes a repository that was opened for writing. What another writer has committed and not published yet counts only at the
    /// end of this run: if the process that has the repository open is killed now, the next run does not see it.
    pub(super) fn is_open(&self, repository: &Repository, standing: &Standing) {
        let is_shown = repository
            .newest_view()
            .is_ok_and(|newest| newest >= standing.generation);
        match is_shown {
            true => self.is_known(repository, standing),
            false => _ = self.trusted.set(repository.clone()),
        }
    }

    /// Extends the error for a missing repository by the probable reason.
    pub fn explain(&self, error: vbk_repo::Error, path: &Path) -> Error {
        let is_elsewhere = place::is_address(path);
        let is_missing = match error {
            vbk_repo::Error::NotARepository { .. } => true,
            _ => is_elsewhere && error.kind() == ErrorKind::NotFound,
        };
        let known = self.memory.as_ref().and_then(|memory| memory.get(path).ok()?);
        if !is_missing {
            return error.into();
        }
        let shown = path.display();
        if is_elsewhere && known.is_none() {
            // The other host names the directory: with a forced command it is another one than in the address.
            return Error::NotThere(format!(
                "can't open {shown}: {error} on that host; if there was one, is its file system mounted? `vbk init {shown}` makes one \
                 there"
            ));
        }
        let is_empty = std::fs::read_dir(path).map_or(!path.exists(), |mut entries| entries.next().is_none());
        Error::NotThere(match (known, is_empty) {
            (Some(known), _) => format!(
                "{shown} is not a vbk repository, although this host used one there ({known}); is its file system mounted? \
                 If it is lost, `vbk --repo {shown} trust --forget` forgets it"
            ),
            (None, true) if !self.sources.repo_is_typed => {
                format!("{shown} is not a vbk repository: it is empty or does not exist; is its file system mounted?")
            }
            (None, true) => format!(
                "{shown} is not a vbk repository; if there was one, is its file system mounted? `vbk init {shown}` creates \
                 one"
            ),
            (None, false) => {
                format!("{shown} is not a vbk repository; `vbk init` makes one in a new or empty directory")
            }
        })
    }

    /// Fails if this repository should be encrypted and is not. Anyone who can write to the storage may have put a plain
    /// repository in the place of an encrypted one.
    pub fn check_encrypted(&self, repository: &Repository) -> Result<()> {
        match self.expects_encryption(repository.path())? {
            Some(what) if !repository.is_encrypted() && !machine::is_background() => Err(Error::Usage(format!(
                "{} is not encrypted, although {what}; nothing was read or written. Leave that out if the repository is meant to be plain",
                repository.path().display()
            ))),
            _ => Ok(()),
        }
    }

    /// Returns the reason to expect an encrypted repository, as the rest of a sentence.
    pub fn expects_encryption(&self, repository: &Path) -> Result<Option<String>> {
        if let Some(option) = self.sources.key_option {
            return Ok(Some(format!("{option} was given")));
        }
        // A command that names its repository does not need the configuration.
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

    /// Compares a repository with the memory of this host. For reading a difference is a warning, for writing an error.
    pub(super) fn judge(&self, repository: &Repository, standing: &Standing, purpose: Purpose) -> Result<()> {
        self.is_writer.fetch_or(purpose == Purpose::Write, Ordering::SeqCst);
        // The process that started this one has compared it.
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
            // Another run may have written meanwhile, and a damaged marker says nothing about the repository.
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
        let remedy = format!("If that is intended, `vbk --repo {shown} trust` accepts the repository as it is");
        let was_doubted = self.is_doubted.swap(true, Ordering::SeqCst);
        match purpose {
            Purpose::Write => Err(Error::Distrusted(format!("{text}; nothing was written. {remedy}"))),
            Purpose::Read => {
                // It can be read anyway: it may be all that is left.
                if !was_doubted {
                    tracing::warn!("{text}. It is only read, not written. {remedy}");
                }
                Ok(())
            }
        }
    }

    /// Returns whether the repository that is read is not the one that this host knows.
    pub fn is_doubted(&self) -> bool {
        self.is_doubted.load(Ordering::SeqCst)
    }

    /// Returns whether any repository that the run read is not the one that this host knows.
    pub fn has_doubts(&self) -> bool {
        self.is_doubted() || self.doubts_other.load(Ordering::SeqCst)
    }

    /// Returns the memory of this host, if this user has a place for one.
    pub fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    /// Notes the newest state of the repository of this run.
    pub fn remember(&self) {
        let Some(repository) = self.trusted.get() else {
            return;
        };
        // The run may have kept a verification from recording its result.
        if self.is_writer.load(Ordering::SeqCst) && !self.is_doubted() && repository.has_late_results() {
            match repository.manager("verify", &mut |_| false) {
                Ok(manager) => repository.record_late_results(&manager),
                Err(error) => tracing::debug!(%error, "the next writer records the results of verifications"),
            }
        }
        let standing = repository.standing();
        if !repository.is_encrypted() && repository.local_path().is_err() {
            self.note(repository, &standing);
        } else if !self
            .memory
            .as_ref()
            .is_some_and(|memory| covers(memory, repository, &standing))
        {
            // Something was written, and its epoch and state are in the view.
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
        // A power cut must not take back the state that is noted.
        repository.settle();
        let noted = memory.note(repository.path(), standing, Timestamp::now());
        let _ = noted.inspect_err(|error| self.warn_of(memory, error));
    }

    /// Notes the state of a repaired repository, even if it is an older one.
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

    /// Notes a repository that this run created.
    pub fn remember_new(&self, repository: &Repository) {
        if let Some(memory) = &self.memory {
            let noted = memory.replace(repository.path(), &repository.standing(), Timestamp::now());
            let _ = noted.inspect_err(|error| self.warn_of(memory, error));
        }
    }

    fn warn_of(&self, memory: &Memory, error: &std::io::Error) {
        let text = format!(
            "{}: {error}; this host can't notice if the repository is replaced or set back",
            memory.directory().display()
        );
        // A process that only reads may have no directory that it can write to.
        match self.is_writer.load(Ordering::SeqCst) || error.kind() == std::io::ErrorKind::InvalidData {
            true => tracing::warn!("{text}"),
            false => tracing::info!("{text}"),
        }
    }
}

/// Returns whether the memory has everything that `standing` has.
fn covers(memory: &Memory, repository: &Repository, standing: &Standing) -> bool {
    let known = memory.get(repository.path());
    known.is_ok_and(|known| known.is_some_and(|known| known.standing.join(standing) == known.standing))
}
