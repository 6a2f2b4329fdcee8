//! The memory of this host: the last known state of each repository, by its path. It lies outside of all repositories,
//! because anyone who can write to a repository's storage can change everything in it.
//!
//! One file, `known.json`, replaced whole by rename(2) and synced with its directory: a crash leaves the old one or the new
//! one. Changes are made under flock(2) on `known.lock`, and each starts from the present content of the file, so that a
//! run with older knowledge overwrites nothing newer.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vbk_repo::files::{self, Mode, Synced};
use vbk_repo::standing::Standing;

use crate::place;

/// Format of the file: the newest one that this vbk reads, and the one that it writes.
const FORMAT: u32 = 1;

/// Last known state of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Its real path.
    path: String,
    /// Its state.
    #[serde(flatten)]
    pub standing: Standing,
    /// Time of the note.
    pub noted: Timestamp,
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, noted {}",
            describe(&self.standing),
            crate::terminal::units::time(self.noted)
        )
    }
}

/// `repository 0123, encrypted (key 4567), state 12`
pub fn describe(standing: &Standing) -> String {
    let encrypted = match &standing.key_check {
        Some(check) => format!("encrypted (key {check})"),
        None => "not encrypted".to_owned(),
    };
    let id = standing.id.as_deref().unwrap_or("of unknown id");
    match standing.generation {
        Some(generation) => format!("repository {id}, {encrypted}, state {generation}"),
        None => format!("repository {id}, {encrypted}"),
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    format: u32,
    repositories: Vec<Known>,
}

/// The memory. Reading it changes nothing.
#[derive(Debug, Clone)]
pub struct Memory {
    directory: PathBuf,
}

impl Memory {
    /// Opens the memory in this directory, which is created at the first note.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// Returns the directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the remembered state of the repository at a path.
    pub fn get(&self, repository: &Path) -> io::Result<Option<Known>> {
        let name = name_of(repository);
        let mut all = self.read()?;
        let at = all.iter().position(|known| known.path == name);
        Ok(at.map(|at| all.swap_remove(at)))
    }

    /// Notes the state of a repository that is unknown, or the same one as before and newer. A remembered newer state stays,
    /// and so does the note of another repository at this path.
    pub fn note(&self, repository: &Path, standing: &Standing, now: Timestamp) -> io::Result<()> {
        let adds = |known: Option<&Known>| match known {
            None => Some(standing.clone()),
            Some(known) if !standing.is_same_as(&known.standing) => None,
            Some(known) => Some(known.standing.join(standing)).filter(|joined| *joined != known.standing),
        };
        match self.get(repository) {
            // Most runs see nothing new, so they need neither a lock nor a sync.
            Ok(known) if adds(known.as_ref()).is_none() => return Ok(()),
            // The change below renames a damaged file.
            Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
            _ => {}
        }
        self.change(repository, now, |known| match adds(known) {
            Some(standing) => Some(standing),
            None => known.map(|known| known.standing.clone()),
        })
        .map(drop)
    }

    /// Replaces the remembered state of a repository; returns the old one.
    pub fn replace(&self, repository: &Path, standing: &Standing, now: Timestamp) -> io::Result<Option<Known>> {
        self.change(repository, now, |_| Some(standing.clone()))
    }

    /// Forgets a repository; returns the remembered state.
    pub fn forget(&self, repository: &Path, now: Timestamp) -> io::Result<Option<Known>> {
        self.change(repository, now, |_| None)
    }

    fn change(
        &self,
        repository: &Path,
        now: Timestamp,
        change: impl FnOnce(Option<&Known>) -> Option<Standing>,
    ) -> io::Result<Option<Known>> {
        DirBuilder::new().mode(0o700).recursive(true).create(&self.directory)?;
        // A link in its place is an error, and not followed.
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(self.directory.join("known.lock"))?;
        lock.lock()?;
        let name = name_of(repository);
        let mut all = match self.read() {
            // Kept for people. Its content is lost, and every reader warns of that.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                fs::rename(self.file(), self.directory.join("known.json.damaged"))?;
                Vec::new()
            }
            all => all?,
        };
        let at = all.iter().position(|known| known.path == name);
        let before = at.map(|at| all.swap_remove(at));
        if let Some(standing) = change(before.as_ref()) {
            all.push(Known {
                path: name,
                standing,
                noted: now,
            });
        }
        all.sort_by(|one, other| one.path.cmp(&other.path));
        self.write(&Content {
            format: FORMAT,
            repositories: all,
        })?;
        Ok(before)
    }

    fn file(&self) -> PathBuf {
        self.directory.join("known.json")
    }

    fn read(&self) -> io::Result<Vec<Known>> {
        let bytes = match fs::read(self.file()) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            bytes => bytes?,
        };
        let damaged = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let content: Content =
            serde_json::from_slice(&bytes).map_err(|error| damaged(format!("it is damaged ({error})")))?;
        match content.format {
            FORMAT => Ok(content.repositories),
            found if found > FORMAT => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("it has format {found}; use a newer vbk"),
            )),
            found => Err(damaged(format!("it is damaged (format {found})"))),
        }
    }

    fn write(&self, content: &Content) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(content)?;
        files::write_whole(&self.file(), &text, Mode::Private, Synced::FileAndDirectory)
    }
}

/// Returns the real path of a repository, even if nothing exists there: so a repository whose file system is not mounted is
/// recognized.
fn name_of(repository: &Path) -> String {
    if place::is_address(repository) {
        return repository.to_string_lossy().into_owned();
    }
    let real = repository.canonicalize().or_else(|_| {
        let path = std::path::absolute(repository)?;
        let (parent, name) = (path.parent(), path.file_name());
        match (parent.map(Path::canonicalize), name) {
            (Some(Ok(parent)), Some(name)) => Ok(parent.join(name)),
            _ => Ok::<_, io::Error>(path),
        }
    });
    let path = real.unwrap_or_else(|_| repository.to_owned());
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
