//! The context of every command: the repository, the configuration, output, and the number of threads.

mod other;
mod trusted;
mod views;

use std::cell::Cell;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::Serialize;
use vbk_remote::address::SshAddress;
use vbk_remote::client::{Again, Bandwidth, LaneOptions, RemoteHome, Ssh, Tls, local_home};
use vbk_remote::token::Token;
use vbk_repo::keys::Unlock;
use vbk_repo::repository::{CreateOptions, Manager, Repository, Wait, Writer};

use crate::args::{Global, Sources};
use crate::config::{Config, DEFAULT_PATH};
use crate::exit::{Error, Result};
use crate::machine;
use crate::place;
use crate::signals;
use crate::terminal::{output, units};
use crate::token_file;
use crate::trust::Memory;
use crate::unlock;
use crate::unlock::KeyPaths;

pub use self::other::Other;

/// Copies of what was read from a repository on another host, unless said otherwise.
const CACHE_BYTES: u64 = 1 << 30;

/// Command of a writer that protects backups.
pub const PROTECT: &str = "protect";

/// Options of every command, and what follows from them.
pub struct Context<'a> {
    global: &'a Global,
    sources: Sources,
    config: OnceLock<Config>,
    memory: Option<Memory>,
    /// The repository of this run, once it was found to be the one that this host knows.
    trusted: OnceLock<Repository>,
    /// The repository is not the one that this host knows, and was read anyway.
    is_doubted: AtomicBool,
    /// A repository that the run read besides its own is not the one that this host knows.
    doubts_other: AtomicBool,
    /// The run writes to the repository.
    is_writer: AtomicBool,
    /// Milliseconds that the run waited for other writers.
    waited_ms: AtomicU64,
}

/// Use of a repository by a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Read,
    Write,
}

impl<'a> Context<'a> {
    /// Makes the context from the command line.
    pub fn new(global: &'a Global, sources: Sources) -> Self {
        Self {
            global,
            sources,
            config: OnceLock::new(),
            memory: machine::trust_dir().map(Memory::at),
            trusted: OnceLock::new(),
            is_doubted: AtomicBool::new(false),
            doubts_other: AtomicBool::new(false),
            is_writer: AtomicBool::new(false),
            waited_ms: AtomicU64::new(0),
        }
    }

    /// Returns the configuration. It is read at first use, so that a command whose options name everything works without it.
    pub fn config(&self) -> Result<&Config> {
        if let Some(config) = self.config.get() {
            return Ok(config);
        }
        let config = Config::find(self.global.config_file.as_deref())?;
        Ok(self.config.get_or_init(|| config))
    }

    /// Returns whether the result is printed as JSON.
    pub fn json(&self) -> bool {
        self.global.json
    }

    /// Returns whether only errors and warnings are printed.
    pub fn quiet(&self) -> bool {
        self.global.quiet
    }

    /// Returns whether long lists are printed in full.
    pub fn verbose(&self) -> bool {
        self.global.verbose > 0
    }

    /// Returns the path of the repository, as it was given.
    pub fn repository_path(&self) -> Result<&Path> {
        match &self.global.repo {
            Some(path) => place::valid(path),
            None => self.config()?.repository.as_deref().ok_or_else(|| {
                let config = self.global.config_file.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
                Error::Usage(format!(
                    "no repository named; use --repo DIR, set VBK_REPO to the directory, or write repository = \"DIR\" in {}",
                    config.display()
                ))
            }),
        }
    }

    /// Returns whether an option, the environment or the configuration names a repository.
    pub fn names_repository(&self) -> Result<bool> {
        Ok(self.global.repo.is_some() || self.config()?.repository.is_some())
    }

    /// Returns the files that open a repository: those that options or the environment name, or else those of the
    /// configuration. The latter open only the configuration's own repository, if it names one.
    fn key_paths(&self, repository: &Path) -> Result<KeyPaths<'_>> {
        let given = KeyPaths {
            key_file: self.global.key_file.as_deref(),
            passphrase_file: self.global.passphrase_file.as_deref(),
        };
        if given.key_file.is_some() || given.passphrase_file.is_some() {
            return Ok(given);
        }
        let config = self.config()?;
        Ok(match config.is_of(repository) {
            true => KeyPaths {
                key_file: config.key_file.as_deref(),
                passphrase_file: config.passphrase_file.as_deref(),
            },
            false => KeyPaths::default(),
        })
    }

    /// Opens the repository for reading.
    pub fn repository(&self) -> Result<Repository> {
        self.open(Purpose::Read)
    }

    /// Opens the repository for a command that will write to it.
    pub fn repository_to_write(&self) -> Result<Repository> {
        self.open(Purpose::Write)
    }

    fn open(&self, purpose: Purpose) -> Result<Repository> {
        self.unlocked(self.locked(purpose)?)
    }

    /// Opens the repository without its keys. Compares it with the memory of this host first, before anything is read from
    /// it and before a key is asked for.
    fn locked(&self, purpose: Purpose) -> Result<Repository> {
        self.checked(self.open_at(self.repository_path()?)?, purpose)
    }

    fn checked(&self, repository: Repository, purpose: Purpose) -> Result<Repository> {
        self.check_encrypted(&repository)?;
        let standing = repository.standing();
        self.judge(&repository, &standing, purpose)?;
        // A writer changes files of the store as soon as it opens that.
        if purpose == Purpose::Write && self.knows_state_of(&repository, &standing) {
            self.check_newest(&repository)?;
        }
        Ok(repository)
    }

    /// Connects to the repository without its keys, if it is on another host; `None` for a directory of this machine.
    pub fn locked_server(&self) -> Result<Option<Arc<RemoteHome>>> {
        let Some(home) = self.connect(self.repository_path()?)?.map(Arc::new) else {
            return Ok(None);
        };
        self.checked(Repository::at(Arc::clone(&home) as _), Purpose::Read)?;
        Ok(Some(home))
    }

    fn unlocked(&self, repository: Repository) -> Result<Repository> {
        if !repository.is_encrypted() {
            return Ok(repository);
        }
        self.with_key(&repository).map(|(_, opened)| opened)
    }

    /// Opens a repository without its keys and without a look at what this host knows of it.
    pub fn open_at(&self, path: &Path) -> Result<Repository> {
        match self.connect(path)? {
            Some(home) => {
                let cache = self.cache()?;
                let cache = cache.as_ref().map(|(directory, bytes)| (&**directory, *bytes));
                Ok(Repository::at(Arc::new(home.with_cache(cache))))
            }
            // Through the process that has it open for all, if there is one.
            None => {
                let again = again_for(Again::RECONNECT_FOR);
                let opened = Repository::open_through(path, |directory| local_home(directory, again));
                opened.map_err(|error| self.explain(error, path))
            }
        }
    }

    /// Connects to a repository on another host; `None` for a directory of this machine.
    fn connect(&self, path: &Path) -> Result<Option<RemoteHome>> {
        let again = match place::is_address(path) {
            true => self.again()?,
            false => Again::never(),
        };
        if let Some(address) = place::server(path)? {
            let token = self.token_of(path)?;
            let (lanes, bandwidth) = (self.lanes(), self.bandwidth()?);
            let tls = Tls {
                address,
                token,
                lanes,
                bandwidth,
            };
            return Ok(Some(tls.open(again)?));
        }
        let ssh = self.ssh(path)?;
        place::connect(path, &ssh, again).map_err(|error| self.explain(error, path))
    }

    /// Makes a repository on another host, and opens it. The keys stay here.
    pub fn create_at(&self, address: &SshAddress, options: &CreateOptions) -> Result<Repository> {
        let name = address.to_string();
        let path = Path::new(&name);
        self.ssh(path)?.create(address, &options.sealed()?)?;
        let repository = self.open_at(path)?;
        Ok(match &options.encryption {
            Some((keys, _)) => repository.with_keys(keys.clone()),
            None => repository,
        })
    }

    /// The way to another host; also to none, which then is not used.
    fn ssh(&self, path: &Path) -> Result<Ssh> {
        Ok(Ssh {
            rsh: self.global.rsh.clone(),
            remote_program: self.global.remote_path.clone(),
            is_silent: machine::is_background(),
            // The directory that a mount in the background was started in may be unmounted.
            directory: machine::is_background().then(|| "/".into()),
            lanes: self.lanes(),
            bandwidth: match place::is_address(path) {
                true => self.bandwidth()?,
                false => Bandwidth::default(),
            },
        })
    }

    fn bandwidth(&self) -> Result<Bandwidth> {
        Ok(match &self.global.bandwidth {
            Some(bandwidth) => bandwidth.clone(),
            None => self.config()?.bandwidth.clone().unwrap_or_default(),
        })
    }

    /// Returns the directory and the limit for copies of a repository on another host; `None` if there are to be none.
    fn cache(&self) -> Result<Option<(PathBuf, u64)>> {
        let bytes = match self.global.cache {
            Some(bytes) => bytes,
            None => self.config()?.cache.unwrap_or(CACHE_BYTES),
        };
        Ok(machine::copies_dir()
            .filter(|_| bytes > 0)
            .map(|directory| (directory, bytes)))
    }

    /// Returns the typed options by which a process that this one starts reaches the repository as this one does.
    pub fn way_options(&self) -> &[OsString] {
        &self.sources.way
    }

    fn lanes(&self) -> LaneOptions {
        LaneOptions {
            most: self.global.connections.into(),
            ..LaneOptions::default()
        }
    }

    /// Returns the way in which a lost connection is made again.
    fn again(&self) -> Result<Again> {
        let reconnect_for = match self.global.reconnect_for {
            Some(time) => time,
            None => self.config()?.reconnect_for.unwrap_or(Again::RECONNECT_FOR),
        };
        Ok(again_for(reconnect_for))
    }

    /// Returns the token for a server. The configuration's is only for its own repository, if it names one.
    fn token_of(&self, repository: &Path) -> Result<Token> {
        let given = self.global.token_file.as_deref();
        let configured = match given {
            Some(_) => None,
            None => Some(self.config()?)
                .filter(|config| config.is_of(repository))
                .and_then(|config| config.token_file.as_deref()),
        };
        token_file::find(given.or(configured), repository)
    }

    /// Opens the repository without its keys, for reading.
    pub fn locked_repository(&self) -> Result<Repository> {
        self.locked(Purpose::Read)
    }

    /// Opens the repository without its keys, for a command that will write to it.
    pub fn locked_repository_to_write(&self) -> Result<Repository> {
        self.locked(Purpose::Write)
    }

    /// Opens a repository with its key, which it returns as well; asks for it at a terminal.
    pub fn with_key(&self, repository: &Repository) -> Result<(Unlock, Repository)> {
        unlock::open(&self.key_paths(repository.path())?, repository)
    }

    /// Opens the content of a repository, if it needs no key or one was given; never asks for one. `None` if that fails.
    pub fn opened_without_question(&self, repository: &Repository) -> Option<Repository> {
        if !repository.is_encrypted() {
            return Some(repository.clone());
        }
        let unlocked = self.given_key(repository.path()).transpose()?;
        match unlocked.and_then(|key| Ok(repository.clone().unlock(&key)?)) {
            Ok(repository) => Some(repository),
            Err(error) => {
                tracing::warn!("the key that was given does not open the repository: {}", error.text());
                None
            }
        }
    }

    /// Returns the key file that was named for a new repository.
    pub fn new_key_file(&self, repository: &Path) -> Result<Option<&Path>> {
        Ok(self.key_paths(repository)?.key_file)
    }

    /// Returns the key for a new repository, if options, the environment or the configuration name one.
    pub fn given_key(&self, repository: &Path) -> Result<Option<Unlock>> {
        unlock::given(&self.key_paths(repository)?)
    }

    /// The repository, for changes and removals. Works on a full disk too, where that is possible.
    pub fn manager(&self, command: &str, no_wait: bool, cancel: &AtomicBool) -> Result<Manager> {
        self.manager_of(&self.repository_to_write()?, command, no_wait, cancel)
    }

    /// The same again in one run, without a second question for the key.
    pub fn manager_again(&self, command: &str, no_wait: bool, cancel: &AtomicBool) -> Result<Manager> {
        self.manager_of(&self.opened()?, command, no_wait, cancel)
    }

    /// The repository that this run has opened for writing.
    pub fn opened(&self) -> Result<Repository> {
        match self.trusted.get() {
            Some(repository) => Ok(repository.clone()),
            None => self.repository_to_write(),
        }
    }

    /// The repository, if this run has opened it.
    pub fn opened_already(&self) -> Option<&Repository> {
        self.trusted.get()
    }

    fn manager_of(
        &self,
        repository: &Repository,
        command: &str,
        no_wait: bool,
        cancel: &AtomicBool,
    ) -> Result<Manager> {
        let mut is_told = false;
        let writer = self.waiting(no_wait, cancel, |wait| {
            repository.manager(command, &mut |holder| {
                let goes_on = wait(holder);
                if goes_on && command == PROTECT && !std::mem::replace(&mut is_told, true) {
                    tracing::warn!("no backup is forgotten until then: `vbk forget` lets `vbk protect` go first");
                }
                goes_on
            })
        })?;
        let standing = writer.standing()?;
        self.judge(repository, &standing, Purpose::Write)?;
        self.is_open(repository, &standing);
        repository.record_late_results(&writer);
        Ok(writer)
    }

    /// A repository that was opened here, for writing. Waits for other writers, and names them, unless `no_wait`.
    pub fn writer(&self, repository: &Repository, command: &str, no_wait: bool, cancel: &AtomicBool) -> Result<Writer> {
        if repository.has_late_results() {
            drop(self.manager_of(repository, "verify", no_wait, cancel)?);
        }
        let writer = self.waiting(no_wait, cancel, |wait| repository.writer(command, wait))?;
        let standing = writer.standing()?;
        self.judge(repository, &standing, Purpose::Write)?;
        self.is_open(repository, &standing);
        Ok(writer)
    }

    /// Runs a function that takes the writer's lock. Unless `no_wait` is set, it waits for another writer and names it.
    pub fn waiting<T>(
        &self,
        no_wait: bool,
        cancel: &AtomicBool,
        run: impl FnOnce(Wait<'_>) -> vbk_repo::Result<T>,
    ) -> Result<T> {
        let began = Cell::new(None);
        let result = waiting(no_wait, cancel, |wait| {
            run(&mut |holder| {
                began.set(began.get().or_else(|| Some(Instant::now())));
                wait(holder)
            })
        });
        if let Some(began) = began.get() {
            self.waited_ms
                .fetch_add(units::milliseconds(began.elapsed()), Ordering::Relaxed);
        }
        Ok(result?)
    }

    /// Returns the time that the run has waited for other writers.
    pub fn waited(&self) -> Duration {
        Duration::from_millis(self.waited_ms.load(Ordering::Relaxed))
    }

    /// Prints a line for people.
    pub fn say(&self, text: impl std::fmt::Display) {
        if !self.json() && !self.quiet() {
            output::line(text);
        }
    }

    /// Prints requested output, e.g. a list, even with --quiet.
    pub fn print(&self, text: impl std::fmt::Display) {
        if !self.json() {
            output::write(text);
        }
    }

    /// Prints the result as JSON, with --json.
    pub fn json_result(&self, value: &impl Serialize) -> Result<()> {
        if self.json() {
            let text = serde_json::to_string_pretty(value).map_err(|error| Error::Bug(error.to_string()))?;
            output::write_json(&text);
        }
        Ok(())
    }
}

/// Tries for that long, and tells people.
fn again_for(reconnect_for: Duration) -> Again {
    Again::new(reconnect_for, signals::is_cancelled, |line| tracing::warn!("{line}"))
}

/// See [`Context::waiting`].
pub fn waiting<T>(
    no_wait: bool,
    cancel: &AtomicBool,
    run: impl FnOnce(Wait<'_>) -> vbk_repo::Result<T>,
) -> vbk_repo::Result<T> {
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
        Err(vbk_repo::Error::Locked { .. }) if cancel.load(Ordering::SeqCst) => Err(vbk_repo::Error::Interrupted),
        result => result,
    }
}

/// Returns the number of threads that may compute at once.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Returns whether standard output is a terminal, which should not get a disk's bytes.
pub fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}
