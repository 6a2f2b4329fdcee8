//! Repositories besides the one of the run: a command opens them by their own names, and some with their own keys.

use std::path::Path;
use std::sync::atomic::Ordering;

use vbk_repo::keys::Keys;
use vbk_repo::repository::{Repository, View};

use super::{Context, Purpose};
use crate::args::{Global, OtherKeys, Sources};
use crate::exit::{Error, Result};

/// Another repository, open for reading.
pub struct Other {
    /// The repository.
    pub repository: Repository,
    /// Its newest view.
    pub view: View,
}

impl Context<'_> {
    /// Fails if --repo names a repository to a command that takes both of its own as arguments.
    pub fn check_no_repo(&self) -> Result<()> {
        match self.sources.repo_is_typed {
            true => Err(Error::Usage(
                "--repo is not used here: the command names both repositories, FROM and TO; leave it out. Nothing was done".into(),
            )),
            false => Ok(()),
        }
    }

    /// Returns the options of a run whose repository is this one.
    pub fn options_at(&self, repository: &Path) -> (Global, Sources) {
        let global = Global {
            repo: Some(repository.to_owned()),
            ..self.global.clone()
        };
        let sources = Sources {
            repo_is_typed: true,
            ..self.sources.clone()
        };
        (global, sources)
    }

    /// Opens another repository for reading. Where its own keys are not named, those of the run's repository may open it.
    pub fn other(&self, path: &Path, keys: &OtherKeys<'_>) -> Result<Other> {
        let (mut global, mut sources) = self.options_at(path);
        let is_keyed = keys.key_file.is_some() || keys.passphrase_file.is_some();
        if is_keyed {
            global.key_file = keys.key_file.map(Path::to_owned);
            global.passphrase_file = keys.passphrase_file.map(Path::to_owned);
        }
        if let Some(token) = keys.token_file {
            global.token_file = Some(token.to_owned());
        }
        // A key of the run's repository says nothing about this one.
        sources.key_option = None;
        let other = Context::new(&global, sources);
        self.noting_doubt(&other, other.open_other(is_keyed, keys.options))
    }

    /// Opens another repository without its keys, for reading.
    pub fn other_locked(&self, path: &Path, keys: &OtherKeys<'_>) -> Result<Repository> {
        let (mut global, sources) = self.options_at(path);
        if let Some(token) = keys.token_file {
            global.token_file = Some(token.to_owned());
        }
        let other = Context::new(&global, sources);
        self.noting_doubt(&other, other.locked_repository())
    }

    /// Notes for the exit code whether the other repository is not the one that this host knows.
    fn noting_doubt<T>(&self, other: &Context<'_>, opened: Result<T>) -> Result<T> {
        self.doubts_other.fetch_or(other.is_doubted(), Ordering::SeqCst);
        opened
    }

    fn open_other(&self, is_keyed: bool, options: &str) -> Result<Other> {
        let path = self.repository_path()?;
        let repository = self.open_at(path)?;
        if is_keyed && !repository.is_encrypted() {
            return Err(Error::Usage(format!(
                "{} is not encrypted, although {options}-key-file or {options}-passphrase-file was given; nothing was read or \
                 written. Leave that out if the repository is meant to be plain",
                path.display()
            )));
        }
        self.judge(&repository, &repository.standing(), Purpose::Read)?;
        let repository = self.unlocked(repository).map_err(|error| match error {
            Error::Unopened(error) if !is_keyed => Error::Usage(format!(
                "{error}; {options}-key-file FILE or {options}-passphrase-file FILE names the key of {}",
                path.display()
            )),
            error => error,
        })?;
        let view = self.view_of(&repository)?;
        self.remember();
        Ok(Other { repository, view })
    }

    /// Opens the repository for a command that will write to it; with keys that are at hand, if they are the right ones.
    pub fn repository_to_write_with(&self, keys: Option<&Keys>) -> Result<Repository> {
        let repository = self.locked(Purpose::Write)?;
        let check = repository.standing().key_check;
        match keys.filter(|keys| check.as_deref() == Some(&*keys.check())) {
            Some(keys) => Ok(repository.with_keys(keys.clone())),
            None => self.unlocked(repository),
        }
    }
}
