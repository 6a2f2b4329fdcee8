//! What every command needs: the repository, the way to print, the number of threads.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use vbk_repo::keys::Unlock;
use vbk_repo::repository::{Repository, Wait, Writer};

use crate::args::Global;
use crate::config::{Config, DEFAULT_PATH};
use crate::exit::{Error, Result};
use crate::unlock::KeyPaths;
use crate::{output, unlock};

/// The options of every command, in use.
pub struct Context<'a> {
    global: &'a Global,
    key_option: Option<&'static str>,
    config: OnceLock<Config>,
}

impl<'a> Context<'a> {
    /// From the command line. `key_option` is the option on it that names a key.
    pub fn new(global: &'a Global, key_option: Option<&'static str>) -> Self {
        Self {
            global,
            key_option,
            config: OnceLock::new(),
        }
    }

    /// The configuration. Read when it is first needed: what is named in full works also while the file can't be used.
    pub fn config(&self) -> Result<&Config> {
        if let Some(config) = self.config.get() {
            return Ok(config);
        }
        let config = Config::find(self.global.config_file.as_deref())?;
        Ok(self.config.get_or_init(|| config))
    }

    /// Whether to print JSON.
    pub fn json(&self) -> bool {
        self.global.json
    }

    /// Whether to print nothing but what is wrong.
    pub fn quiet(&self) -> bool {
        self.global.quiet
    }

    /// Whether to print all there is.
    pub fn verbose(&self) -> bool {
        self.global.verbose > 0
    }

    /// The path that was given for the repository.
    pub fn repository_path(&self) -> Result<&Path> {
        match &self.global.repo {
            Some(path) => Ok(path),
            None => self.config()?.repository.as_deref().ok_or_else(|| {
                let config = self.global.config_file.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
                Error::Usage(format!(
                    "no repository named; use --repo DIR, set VBK_REPO to the directory, or write repository = \"DIR\" into {}",
                    config.display()
                ))
            }),
        }
    }

    /// Whether an option, the environment or the configuration names a repository.
    pub fn names_repository(&self) -> Result<bool> {
        Ok(self.global.repo.is_some() || self.config()?.repository.is_some())
    }

    /// What opens a repository: what options or the environment name, or else what the configuration does. That goes
    /// with the configuration's own repository, if it names one, and is no key of any other.
    fn key_paths(&self, repository: &Path) -> Result<KeyPaths<'_>> {
        let given = KeyPaths {
            key_file: self.global.key_file.as_deref(),
            passphrase_file: self.global.passphrase_file.as_deref(),
        };
        if given.key_file.is_some() || given.passphrase_file.is_some() {
            return Ok(given);
        }
        let config = self.config()?;
        let is_same = |known: &Path| {
            let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
            known == repository || real(known) == real(repository)
        };
        Ok(match config.repository.as_deref().is_none_or(is_same) {
            true => KeyPaths {
                key_file: config.key_file.as_deref(),
                passphrase_file: config.passphrase_file.as_deref(),
            },
            false => KeyPaths::default(),
        })
    }

    /// The repository.
    pub fn repository(&self) -> Result<Repository> {
        let repository = self.repository_at(self.repository_path()?)?;
        let configured = match &self.global.repo {
            None => self.config()?.key_name(),
            Some(_) => None,
        };
        match self.key_option.or(configured) {
            // Who gives a key expects that nothing is stored in the clear. Somebody who can write to the storage may have
            // put a plain repository in the place of an encrypted one.
            Some(option) if !repository.is_encrypted() => Err(Error::Usage(format!(
                "{} is not encrypted, although {option} was given; nothing was read or written. Leave {option} out if \
                 that is as it should be",
                repository.path().display()
            ))),
            _ => Ok(repository),
        }
    }

    /// A repository in this directory.
    pub fn repository_at(&self, path: &Path) -> Result<Repository> {
        let repository = Repository::open(path)?;
        if !repository.is_encrypted() {
            return Ok(repository);
        }
        let unlock = self.key_of(&repository)?;
        Ok(repository.unlock(&unlock)?)
    }

    /// The repository, without its keys.
    pub fn locked_repository(&self) -> Result<Repository> {
        Ok(Repository::open(self.repository_path()?)?)
    }

    /// The option on the command line that names a key.
    pub fn key_option(&self) -> Option<&'static str> {
        self.key_option
    }

    /// What opens a repository; asks for it where it can.
    pub fn key_of(&self, repository: &Repository) -> Result<Unlock> {
        unlock::find(&self.key_paths(repository.path())?, repository.path())
    }

    /// The key file that was named for a new repository.
    pub fn new_key_file(&self, repository: &Path) -> Result<Option<&Path>> {
        Ok(self.key_paths(repository)?.key_file)
    }

    /// The key for a new repository that options, environment or configuration name, if they do.
    pub fn given_key(&self, repository: &Path) -> Result<Option<Unlock>> {
        unlock::given(&self.key_paths(repository)?)
    }

    /// The repository, for writing. Waits for other writers, and says for whom, unless `no_wait`.
    pub fn writer(&self, command: &str, no_wait: bool, cancel: &AtomicBool) -> Result<Writer> {
        let repository = self.repository()?;
        self.waiting(no_wait, cancel, |wait| repository.writer(command, wait))
    }

    /// As [`Context::writer`], for what removes something: it works on a full disk too, where that is possible.
    pub fn writer_that_removes(&self, command: &str, no_wait: bool, cancel: &AtomicBool) -> Result<Writer> {
        let repository = self.repository()?;
        self.waiting(no_wait, cancel, |wait| repository.writer_that_removes(command, wait))
    }

    /// Does what needs the writer's lock. Waits for other writers, and says for whom, unless `no_wait`.
    pub fn waiting<T>(
        &self,
        no_wait: bool,
        cancel: &AtomicBool,
        run: impl FnOnce(Wait<'_>) -> vbk_repo::Result<T>,
    ) -> Result<T> {
        let mut waits_for = String::new();
        let result = run(&mut |holder| {
            if no_wait || cancel.load(Ordering::SeqCst) {
                return false;
            }
            if waits_for != holder {
                holder.clone_into(&mut waits_for);
                tracing::warn!("waiting for {holder}, which writes to the repository");
            }
            true
        });
        match result {
            Err(vbk_repo::Error::Locked { .. }) if cancel.load(Ordering::SeqCst) => {
                Err(vbk_repo::Error::Interrupted.into())
            }
            result => Ok(result?),
        }
    }

    /// Prints a line for people.
    pub fn say(&self, text: impl std::fmt::Display) {
        if !self.json() && !self.quiet() {
            output::line(text);
        }
    }

    /// Prints what was asked for, also when quiet: a list, a backup.
    pub fn print(&self, text: impl std::fmt::Display) {
        if !self.json() {
            output::write(text);
        }
    }

    /// Prints the result as JSON, if that was asked for.
    pub fn json_result(&self, value: &impl Serialize) -> Result<()> {
        if self.json() {
            let text = serde_json::to_string_pretty(value).map_err(|error| Error::Other(error.to_string()))?;
            output::write_json(&text);
        }
        Ok(())
    }
}

/// How many threads may compute at once.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The name of this machine.
pub fn host() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default()
}

/// Whether standard output is a terminal, which should not get a disk's bytes.
pub fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}
