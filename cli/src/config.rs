//! The configuration file: the guests and their settings. `vbk config check --help` has an example with every key.
//!
//! Its commands run as root, so a file with commands that other users can change is refused.

mod read;
mod safety;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vbk::guest::discover::{ConfiguredGuest, Known};
use vbk::retention::KeepPolicy;
use vbk_remote::client::Bandwidth;
use vbk_repo::name::{GuestName, matches};

use crate::exit::{Error, Result};

pub use self::safety::others_may_write;
pub use self::settings::GuestSettings;
use self::settings::Section;

/// Path of the configuration if no other is named.
pub const DEFAULT_PATH: &str = "/etc/vbk/config.toml";

/// Name of a single disk for which none is given, which is also the name of a guest's first virtio disk.
pub const ONLY_DISK: &str = "vda";

/// Content of the file.
#[derive(Debug, Default)]
pub struct Config {
    /// The file; `None` if it does not exist.
    pub path: Option<PathBuf>,
    /// Directory with further files, which have guests only.
    pub include: Option<PathBuf>,
    /// The files of that directory, in the order of their names.
    pub included: Vec<PathBuf>,
    /// The repository, if neither an option nor the environment names one.
    pub repository: Option<PathBuf>,
    /// Key file of the repository.
    pub key_file: Option<PathBuf>,
    /// File with the passphrase of the repository.
    pub passphrase_file: Option<PathBuf>,
    /// File with the token for the server of the repository.
    pub token_file: Option<PathBuf>,
    /// The repository must be encrypted.
    pub encrypted: bool,
    /// Number of guests that are backed up at a time.
    pub jobs: Option<u32>,
    /// File for Prometheus metrics.
    pub metrics: Option<PathBuf>,
    /// Guests' file systems are never handed to the kernel: `vbk mount --files` reads them in user space.
    pub safe_mounts: bool,
    /// Time for which a lost connection to another host is tried again.
    pub reconnect_for: Option<Duration>,
    /// Limit of the bytes to and from other hosts.
    pub bandwidth: Option<Bandwidth>,
    /// Limit of the copies of what is read from a repository on another host; 0 for none.
    pub cache: Option<u64>,
    /// Who is told of the end of a night, and how.
    pub notices: Notices,
    /// Guests that --all leaves out, as patterns with `*` and `?`.
    pub exclude: Vec<String>,
    defaults: Section,
    guests: BTreeMap<GuestName, GuestSection>,
}

/// A section `[guest.NAME]`.
#[derive(Debug)]
struct GuestSection {
    /// The file that has it.
    file: PathBuf,
    settings: Section,
}

/// Ways to tell of failures, and of the end of a run over all guests.
#[derive(Debug, Default)]
pub struct Notices {
    /// Shell command for guests that were not backed up.
    pub on_failure: Option<String>,
    /// Shell command for a run that backed up all guests.
    pub on_success: Option<String>,
    /// URL that is called after a run that backed up all guests.
    pub success_url: Option<String>,
    /// URL that is called after any other run.
    pub failure_url: Option<String>,
    /// Mail addresses, separated by commas.
    pub mail_to: Option<String>,
    /// Mail is sent after every run, and not only after failures and warnings.
    pub mail_always: bool,
}

/// Backups of a guest that `vbk forget` keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// All backups, because the configuration says so.
    All,
    /// Those that the rules keep.
    Rules(KeepPolicy),
}

/// Use of the guest's agent, which freezes its file systems for the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GuestAgent {
    /// Used if there is one and it answers.
    #[default]
    Auto,
    /// Required: without it there is no backup.
    Always,
    /// Not used.
    Never,
}

impl Config {
    /// Reads the file that an option or the environment names, or else the usual one, which need not exist.
    pub fn find(named: Option<&Path>) -> Result<Self> {
        match named {
            Some(path) => Self::load(path),
            None => Self::load_if_there(Path::new(DEFAULT_PATH)),
        }
    }

    /// Reads the usual file if it exists. An unreadable file or a dangling link is an error: without its settings vbk could
    /// back up too little, or read without a limit.
    fn load_if_there(path: &Path) -> Result<Self> {
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            _ => Self::load(path),
        }
    }

    /// Reads a file and those of the directory that it includes. The error for invalid ones lists every mistake in them, a line
    /// each.
    pub fn load(path: &Path) -> Result<Self> {
        let invalid =
            |errors: Vec<String>| Error::Usage(format!("the configuration can't be used:\n{}", errors.join("\n")));
        let mut config = read::config(path, &safety::read(path)?).map_err(invalid)?;
        if let Some(directory) = &config.include {
            config.included = files_of(directory)?;
        }
        let mut errors = Vec::new();
        for file in config.included.clone() {
            errors.extend(read::included(&mut config, &file, &safety::read(&file)?));
        }
        if !errors.is_empty() {
            return Err(invalid(errors));
        }
        for file in config.files() {
            if let (true, Some(why)) = (config.has_commands(file), others_may_write(file)) {
                return Err(Error::Usage(format!(
                    "the configuration {} has commands in it, and other users than you and root can change it: {why}; nothing \
                     was run",
                    file.display()
                )));
            }
        }
        Ok(config)
    }

    /// Returns the files that were read.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.path.iter().chain(&self.included).map(PathBuf::as_path)
    }

    /// Returns the settings of a guest, which need not have a section.
    pub fn guest(&self, name: &GuestName) -> GuestSettings {
        GuestSettings::new(self.guests.get(name).map(|section| &section.settings), &self.defaults)
    }

    /// Returns the settings of guests without a section.
    pub fn defaults(&self) -> GuestSettings {
        GuestSettings::new(None, &self.defaults)
    }

    /// Returns whether the file's repository settings apply to this repository: the file names it, or none at all.
    pub fn is_of(&self, repository: &Path) -> bool {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        self.repository
            .as_deref()
            .is_none_or(|known| known == repository || real(known) == real(repository))
    }

    /// Returns the setting that names the key of the repository, for messages.
    pub fn key_name(&self) -> Option<&'static str> {
        match (&self.key_file, &self.passphrase_file) {
            (Some(_), _) => Some("key-file in the configuration"),
            (None, Some(_)) => Some("passphrase-file in the configuration"),
            (None, None) => None,
        }
    }

    /// Returns the guests that have a section, by name.
    pub fn guests(&self) -> impl Iterator<Item = &GuestName> {
        self.guests.keys()
    }

    /// Returns whether --all leaves a guest out.
    pub fn excludes(&self, name: &GuestName) -> bool {
        self.exclude.iter().any(|pattern| matches(pattern, name.as_str()))
    }

    /// Returns the input for finding the guests of this host.
    pub fn known_guests(&self) -> Known {
        let guest = |name: &GuestName| {
            let settings = self.guest(name);
            ConfiguredGuest {
                name: name.clone(),
                disks: settings.disks,
                skip_disks: settings.skip_disks,
                domain: settings.domain,
                device_bytes_per_sec: settings.device_bytes_per_sec,
            }
        };
        Known {
            guests: self.guests().map(guest).collect(),
            device_bytes_per_sec: self.defaults.device_bytes_per_sec,
        }
    }

    /// Returns whether a file has commands that vbk runs.
    fn has_commands(&self, file: &Path) -> bool {
        let in_section = |section: &Section| section.pre_freeze.is_some() || section.post_thaw.is_some();
        let of_all =
            self.notices.on_failure.is_some() || self.notices.on_success.is_some() || in_section(&self.defaults);
        let in_guest = |section: &GuestSection| section.file == file && in_section(&section.settings);
        self.path.as_deref() == Some(file) && of_all || self.guests.values().any(in_guest)
    }
}

/// Lists the files `*.toml` of a directory by name. Those that editors and package managers leave there have other endings, or
/// begin with a dot.
fn files_of(directory: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error: std::io::Error| {
        Error::Usage(format!(
            "can't list {}, which the configuration includes: {error}",
            directory.display()
        ))
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !is_hidden && path.extension().is_some_and(|ending| ending == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
