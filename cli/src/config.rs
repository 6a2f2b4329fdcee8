//! The configuration file: which guests there are and how each is backed up. `vbk config check --help` has an example
//! with every key.
//!
//! What it says may be run as root, so a file with commands in it that others can change is refused.

mod read;
mod safety;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vbk::guest::discover::{ConfiguredGuest, Known};
use vbk::hints::ChangeHints;
use vbk::hints::decide::FULL_READ_EVERY;
use vbk::limit::ReadLimit;
use vbk::retention::KeepPolicy;
use vbk::snapshot::SnapshotSize;
use vbk_repo::codec::Compression;
use vbk_repo::name::{DiskName, GuestName};

use crate::exit::{Error, Result};

pub use safety::others_may_write;

/// Where the configuration is if nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/vbk/config.toml";

/// What the file says.
#[derive(Debug, Default)]
pub struct Config {
    /// The file; `None` if there is none.
    pub path: Option<PathBuf>,
    /// Used when neither an option nor the environment names one.
    pub repository: Option<PathBuf>,
    /// What opens the repository.
    pub key_file: Option<PathBuf>,
    /// What opens the repository.
    pub passphrase_file: Option<PathBuf>,
    /// The repository must be encrypted.
    pub encrypted: bool,
    /// How many guests are backed up at a time.
    pub jobs: Option<u32>,
    /// Where figures for Prometheus go.
    pub metrics: Option<PathBuf>,
    /// Run by the shell when a guest failed.
    pub on_failure: Option<String>,
    /// Guests that are left out of all, as patterns with `*` and `?`.
    pub exclude: Vec<String>,
    defaults: Section,
    guests: BTreeMap<GuestName, Section>,
}

/// What a section says; `None` where it says nothing.
#[derive(Debug, Clone, Default, PartialEq)]
struct Section {
    read_limit: Option<ReadLimit>,
    keep: Option<Keep>,
    device_bytes_per_sec: Option<u64>,
    snapshot_size: Option<SnapshotSize>,
    extend: Option<Option<f64>>,
    change_hints: Option<ChangeHints>,
    full_read_every: Option<Duration>,
    compression: Option<Compression>,
    pre_freeze: Option<String>,
    post_thaw: Option<String>,
    freeze_timeout: Option<Duration>,
    guest_agent: Option<GuestAgent>,
    backoff: Option<bool>,
    kernel_limit: Option<bool>,
    idle: Option<bool>,
    live: Option<bool>,
    raw: Option<bool>,
    disks: Option<Vec<(DiskName, PathBuf)>>,
    domain: Option<String>,
    skip_disks: Option<Vec<DiskName>>,
}

/// What is kept of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// All backups, as was asked for.
    All,
    /// Those that rules name.
    Rules(KeepPolicy),
}

/// Whether the guest's agent freezes its file systems for the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GuestAgent {
    /// If there is one and it answers.
    #[default]
    Auto,
    /// It must: without it there is no backup.
    Always,
    /// It is not asked.
    Never,
}

/// How a guest is backed up: what its section says, or else `[defaults]`, or else vbk itself.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestSettings {
    /// Whether the file has a section for it.
    pub is_configured: bool,
    /// Its disks; `None`: those that libvirt or tags name.
    pub disks: Option<Vec<(DiskName, PathBuf)>>,
    /// What libvirt calls it; `None`: the same.
    pub domain: Option<String>,
    /// Disks that are not backed up.
    pub skip_disks: Vec<DiskName>,
    /// How fast its disks are read; `None`: nothing is said.
    pub read_limit: Option<ReadLimit>,
    /// The speed that its disks were allocated, in bytes per second each; `None`: libvirt or a measurement says.
    pub device_bytes_per_sec: Option<u64>,
    /// What is kept of it. `None`: nothing is said; never a policy without rules.
    pub keep: Option<Keep>,
    /// Space for a thick snapshot; `None`: as the last one needed, or what fits.
    pub snapshot_size: Option<SnapshotSize>,
    /// How full a snapshot may be, as a share, before it is extended: 0.6 if nothing is said; `None`: it never is.
    pub extend: Option<f64>,
    /// Whether to read only what changed; not, if nothing is said.
    pub change_hints: ChangeHints,
    /// How often everything is read in spite of hints; 30 days if nothing is said.
    pub full_read_every: Duration,
    /// How new blocks are compressed; zstd 3 if nothing is said.
    pub compression: Compression,
    /// Run by the shell before the snapshot.
    pub pre_freeze: Option<String>,
    /// Run by the shell after it, whatever became of it.
    pub post_thaw: Option<String>,
    /// How long the pre-freeze command may take; 60 s if nothing is said.
    pub freeze_timeout: Duration,
    /// Whether the guest's agent takes part.
    pub guest_agent: GuestAgent,
    /// Read less while the host suffers; so if nothing is said.
    pub backoff: bool,
    /// Limit reads in the kernel too, where that is possible; so if nothing is said.
    pub kernel_limit: bool,
    /// Read with idle priority; so if nothing is said.
    pub idle: bool,
    /// Read disks that are in use without a snapshot, where none can be made; not, if nothing is said.
    pub live: bool,
    /// Its disks are raw, whatever they begin like; not, if nothing is said.
    pub raw: bool,
}

impl Config {
    /// The file that an option or the environment names, or else the usual one, which need not be there.
    pub fn find(named: Option<&Path>) -> Result<Self> {
        match named {
            Some(path) => Self::load(path),
            None => Self::load_if_there(Path::new(DEFAULT_PATH)),
        }
    }

    /// A file that is there and can't be read says something all the same, as does a link to nowhere: to go on as if there
    /// were none could back up less than it says, or leave it unlimited.
    fn load_if_there(path: &Path) -> Result<Self> {
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            _ => Self::load(path),
        }
    }

    /// Reads a file. One that can't be used is an error that lists everything that is wrong with it, a line each.
    pub fn load(path: &Path) -> Result<Self> {
        let text = safety::read(path)?;
        let config = read::config(path, &text)
            .map_err(|errors| Error::Usage(format!("the configuration can't be used:\n{}", errors.join("\n"))))?;
        if let (true, Some(why)) = (config.has_commands(), others_may_write(path)) {
            return Err(Error::Usage(format!(
                "the configuration {} has commands in it and can be changed by others than you and root: {why}; nothing was \
                 run",
                path.display()
            )));
        }
        Ok(config)
    }

    /// How a guest is backed up, also one that the file does not name.
    pub fn guest(&self, name: &GuestName) -> GuestSettings {
        let own = self.guests.get(name);
        let nothing = Section::default();
        self.merge(own.unwrap_or(&nothing), own.is_some())
    }

    /// How guests are backed up that the file does not name.
    pub fn defaults(&self) -> GuestSettings {
        self.merge(&Section::default(), false)
    }

    /// Whether what the file says of its repository is said of this one: it names that, or none at all.
    pub fn is_of(&self, repository: &Path) -> bool {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        self.repository
            .as_deref()
            .is_none_or(|known| known == repository || real(known) == real(repository))
    }

    /// The key of the file that names what opens the repository.
    pub fn key_name(&self) -> Option<&'static str> {
        match (&self.key_file, &self.passphrase_file) {
            (Some(_), _) => Some("key-file in the configuration"),
            (None, Some(_)) => Some("passphrase-file in the configuration"),
            (None, None) => None,
        }
    }

    /// The guests that have a section, by name.
    pub fn guests(&self) -> impl Iterator<Item = &GuestName> {
        self.guests.keys()
    }

    /// Whether a guest is left out where all are backed up.
    pub fn excludes(&self, name: &GuestName) -> bool {
        self.exclude.iter().any(|pattern| matches(pattern, name.as_str()))
    }

    /// What finding the guests of this host needs to know.
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

    fn has_commands(&self) -> bool {
        let in_section = |section: &Section| section.pre_freeze.is_some() || section.post_thaw.is_some();
        self.on_failure.is_some() || in_section(&self.defaults) || self.guests.values().any(in_section)
    }

    fn merge(&self, own: &Section, is_configured: bool) -> GuestSettings {
        macro_rules! said {
            ($field:ident) => {
                own.$field.clone().or_else(|| self.defaults.$field.clone())
            };
        }
        GuestSettings {
            is_configured,
            disks: own.disks.clone(),
            domain: own.domain.clone(),
            skip_disks: own.skip_disks.clone().unwrap_or_default(),
            read_limit: said!(read_limit),
            device_bytes_per_sec: said!(device_bytes_per_sec),
            keep: said!(keep),
            snapshot_size: said!(snapshot_size),
            extend: said!(extend).unwrap_or(Some(0.6)),
            change_hints: said!(change_hints).unwrap_or_default(),
            full_read_every: said!(full_read_every).unwrap_or(FULL_READ_EVERY.unsigned_abs()),
            compression: said!(compression).unwrap_or_default(),
            pre_freeze: said!(pre_freeze),
            post_thaw: said!(post_thaw),
            freeze_timeout: said!(freeze_timeout).unwrap_or(Duration::from_secs(60)),
            guest_agent: said!(guest_agent).unwrap_or_default(),
            backoff: said!(backoff).unwrap_or(true),
            kernel_limit: said!(kernel_limit).unwrap_or(true),
            idle: said!(idle).unwrap_or(true),
            live: said!(live).unwrap_or(false),
            raw: said!(raw).unwrap_or(false),
        }
    }
}

/// Whether a pattern with `*` (any text) and `?` (any one character) fits all of a name.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut place) = (0, 0);
    // The last star, and up to where it has swallowed; only that one ever needs to take more.
    let mut star = None;
    while place < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, place));
                at += 1;
            }
            Some(&c) if c == '?' || c == name[place] => (at, place) = (at + 1, place + 1),
            _ => match star {
                Some((star_at, taken)) => {
                    star = Some((star_at, taken + 1));
                    (at, place) = (star_at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&c| c == '*')
}
