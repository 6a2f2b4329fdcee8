//! The memory of this host: what each repository was when it was last used, by its path. It lies outside of all
//! repositories, since whoever can write to a repository's storage can change all that is in it.
//!
//! One file, `known.json`, replaced whole by rename(2) and synced with its directory: a crash leaves the old one or the new
//! one. Changes are made under flock(2) on `known.lock`, and each begins with what the file says then, so that of two runs
//! the one that saw less takes nothing away.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vbk_repo::standing::Standing;

/// The newest format of the file that this vbk reads, and the one it writes.
const FORMAT: u32 = 1;

/// A repository as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Its real path.
    path: String,
    /// What it was.
    #[serde(flatten)]
    pub standing: Standing,
    /// When that was noted.
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
    /// The memory in this directory, which is made when there is something to note.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What is known of the repository at a path; `None` if nothing is.
    pub fn get(&self, repository: &Path) -> io::Result<Option<Known>> {
        let name = name_of(repository);
        let mut all = self.read()?;
        let at = all.iter().position(|known| known.path == name);
        Ok(at.map(|at| all.swap_remove(at)))
    }

    /// Notes what a repository is, if it is not known yet or is the same as before and newer. A greater age that is known
    /// stays, and so does all that is known of another repository at this path.
    pub fn note(&self, repository: &Path, standing: &Standing, now: Timestamp) -> io::Result<()> {
        let adds = |known: Option<&Known>| match known {
            None => Some(standing.clone()),
            Some(known) if !standing.is_same_as(&known.standing) => None,
            Some(known) => Some(known.standing.join(standing)).filter(|joined| *joined != known.standing),
        };
        match self.get(repository) {
            // Most runs see nothing new, and need no lock and no sync then.
            Ok(known) if adds(known.as_ref()).is_none() => return Ok(()),
            // The change puts it aside.
            Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
            _ => {}
        }
        self.change(repository, now, |known| match adds(known) {
            Some(standing) => Some(standing),
            None => known.map(|known| known.standing.clone()),
        })
        .map(drop)
    }

    /// Notes what a repository is in the place of what is known; gives that.
    pub fn replace(&self, repository: &Path, standing: &Standing, now: Timestamp) -> io::Result<Option<Known>> {
        self.change(repository, now, |_| Some(standing.clone()))
    }

    /// Forgets a repository; gives what was known.
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
        let lock = private().create(true).open(self.directory.join("known.lock"))?;
        lock.lock()?;
        let name = name_of(repository);
        let mut all = match self.read() {
            // Kept for people; what it said is lost, and said to be by all that read it.
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
        let draft = self.directory.join("known.json.new");
        let text = serde_json::to_vec_pretty(content)?;
        let mut file = private().create(true).open(&draft)?;
        file.set_len(0)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&draft, self.file())?;
        File::open(&self.directory)?.sync_all()
    }
}

/// For files of this user alone, not through links.
fn private() -> fs::OpenOptions {
    let mut options = File::options();
    options.write(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
    options
}

/// A repository's real path, also where there is nothing: a file system that is not mounted is found by it.
fn name_of(repository: &Path) -> String {
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
