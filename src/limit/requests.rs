//! Changes of the limit during a backup: the file `limit` in the run's directory, which `vbk limit` writes.
//!
//! A line is `RATE`, for all guests of the run, or `GUEST RATE`, for one guest, which takes precedence. Without a file
//! or a matching line, the limit is the one the run was started with. The file is replaced as a whole, so a reader sees
//! the old one or the new one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vbk_repo::files::{self, Mode, Synced};
use vbk_repo::name::GuestName;

use super::ReadLimit;
use crate::host::run;

/// Name of the file in a run's directory.
pub const FILE: &str = "limit";
/// Limit of the file's length; a longer one is not vbk's.
const MAX_BYTES: u64 = 1 << 20;

/// Limits requested for a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Requests {
    /// Limit for all guests.
    all: Option<ReadLimit>,
    /// Limits for single guests.
    guests: BTreeMap<String, ReadLimit>,
}

impl Requests {
    /// Reads the file; without a file nothing is requested. A line that can't be parsed is an error.
    pub fn load(path: &Path) -> io::Result<Self> {
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
            Ok(file) if !file.is_file() || file.len() > MAX_BYTES => {
                return Err(io::Error::other("not a file of limits"));
            }
            Ok(_) => {}
        }
        let mut requests = Self::default();
        for line in fs::read_to_string(path)?.lines().filter(|line| !line.trim().is_empty()) {
            // A rate may contain a space, e.g. `60 MB/s`, but a guest's name and a rate never form a rate.
            match line.parse() {
                Ok(limit) => requests.all = Some(limit),
                Err(error) => {
                    let (guest, limit) = line.trim().split_once(' ').ok_or_else(|| io::Error::other(error))?;
                    let limit = limit.parse().map_err(io::Error::other)?;
                    requests.guests.insert(guest.to_owned(), limit);
                }
            }
        }
        Ok(requests)
    }

    /// Replaces the file. Not synced: only processes that run now read it. Each writer has its own draft, because no lock
    /// keeps two of them apart.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let draft = path.with_extension(format!("new-{}", std::process::id()));
        files::write_by_draft(path, &draft, self.text().as_bytes(), Mode::Umask, Synced::Nothing)
    }

    fn text(&self) -> String {
        let all = self.all.iter().map(|limit| format!("{}\n", exact(*limit)));
        let guests = self
            .guests
            .iter()
            .map(|(guest, limit)| format!("{guest} {}\n", exact(*limit)));
        all.chain(guests).collect()
    }

    /// Returns the limit requested for a guest, if any.
    pub fn of(&self, guest: &GuestName) -> Option<ReadLimit> {
        self.guests.get(guest.as_str()).copied().or(self.all)
    }

    /// Returns the limit requested for all guests, if any, and those for single guests.
    pub fn all(&self) -> (Option<ReadLimit>, &BTreeMap<String, ReadLimit>) {
        (self.all, &self.guests)
    }

    /// Requests a limit for one guest, or for all, which overrides earlier requests for single guests. `None` requests
    /// the limit that the run was started with.
    pub fn ask(&mut self, guest: Option<&GuestName>, limit: Option<ReadLimit>) {
        match (guest, limit) {
            (None, limit) => {
                self.guests.clear();
                self.all = limit;
            }
            (Some(guest), Some(limit)) => {
                self.guests.insert(guest.as_str().to_owned(), limit);
            }
            (Some(guest), None) => {
                self.guests.remove(guest.as_str());
            }
        }
    }
}

/// A running backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningBackup {
    /// Directory of the run.
    pub directory: PathBuf,
    /// Command of the run, as far as known.
    pub command: String,
    /// Guests that it backs up, if it recorded them.
    guests: Option<Vec<String>>,
}

impl RunningBackup {
    /// Tests that it may back up a guest; a run that did not record its guests may.
    pub fn may_have(&self, guest: &GuestName) -> bool {
        let Some(guests) = &self.guests else {
            return true;
        };
        guests.iter().any(|name| name == guest.as_str())
    }
}

/// Lists the running runs below a runtime directory. Skips the remains of killed ones.
pub fn running(runtime_directory: &Path) -> Vec<RunningBackup> {
    let runs = run::running(runtime_directory).into_iter();
    runs.map(|(directory, info)| {
        let (command, guests) = info.map_or((None, None), |info| (Some(info.command), info.guests));
        RunningBackup {
            command: command.unwrap_or_else(|| "a backup".to_owned()),
            guests,
            directory,
        }
    })
    .collect()
}

/// Formats a limit exactly to the byte.
fn exact(limit: ReadLimit) -> String {
    match limit {
        ReadLimit::BytesPerSec(rate) => format!("{rate}B"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::run::Run;

    fn guest(name: &str) -> GuestName {
        name.parse().expect("a name")
    }

    #[test]
    fn a_request_round_trips_and_that_for_one_guest_overrides_all() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(FILE);
        let mut requests = Requests::load(&path).expect("nothing is asked");
        assert_eq!(requests.of(&guest("web1")), None);
        requests.ask(None, Some(ReadLimit::Share(0.3)));
        requests.ask(Some(&guest("web1")), Some(ReadLimit::BytesPerSec(123_456_789)));
        requests.ask(Some(&guest("60")), Some(ReadLimit::Unlimited));
        requests.store(&path).expect("stores");
        let again = Requests::load(&path).expect("loads");
        assert_eq!(again, requests);
        assert_eq!(again.of(&guest("web1")), Some(ReadLimit::BytesPerSec(123_456_789)));
        assert_eq!(again.of(&guest("web2")), Some(ReadLimit::Share(0.3)));
        requests.ask(Some(&guest("web1")), None);
        assert_eq!(requests.of(&guest("web1")), Some(ReadLimit::Share(0.3)));
        requests.ask(None, None);
        requests.store(&path).expect("stores");
        assert_eq!(Requests::load(&path).expect("loads"), Requests::default());
        let left = fs::read_dir(directory.path()).expect("lists").count();
        assert_eq!(left, 1, "only the file itself");
    }

    #[test]
    fn an_unparsable_request_is_an_error_and_not_unlimited() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(FILE);
        for bad in ["fast", "web1 fast", "0%", "60%\nx", "web1"] {
            fs::write(&path, bad).expect("writes");
            assert!(Requests::load(&path).is_err(), "{bad}");
        }
        assert!(Requests::load(directory.path()).is_err());
    }

    #[test]
    fn only_runs_whose_lock_is_held_are_running() {
        let runtime = tempfile::tempdir().expect("a directory");
        assert_eq!(running(runtime.path()), []);
        let begin = |command: &str| Run::begin(runtime.path(), "host", command).expect("begins");
        let (named, all) = (begin("backup web1"), begin("backup --all"));
        named.note_guests(vec!["web1".to_owned()]).expect("notes");
        // The state that kill -9 leaves, and that of a starting run.
        for name in ["0123456789ab", ".new-0123456789ac"] {
            let directory = runtime.path().join("runs").join(name);
            fs::create_dir(&directory).expect("makes");
            fs::write(directory.join("lock"), "").expect("writes");
        }
        let begins = fs::File::open(runtime.path().join("runs/.new-0123456789ac/lock")).expect("opens");
        begins.lock().expect("locks");
        let runs = running(runtime.path());
        assert_eq!(runs.len(), 2);
        let of = |run: &Run| runs.iter().find(|found| found.directory == run.dir()).expect("runs");
        assert_eq!(
            (&*of(&named).command, &*of(&all).command),
            ("backup web1", "backup --all")
        );
        assert!(of(&named).may_have(&guest("web1")) && !of(&named).may_have(&guest("web2")));
        assert!(of(&all).may_have(&guest("web2")));
        drop((named, all));
        assert_eq!(running(runtime.path()), []);
    }
}
