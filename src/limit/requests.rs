//! Changes of the limit while a backup runs: the file `limit` in the run's directory, which `vbk limit` writes.
//!
//! A line is `RATE`, for all guests of the run, or `GUEST RATE`, for one of them, which comes first. No file, an empty
//! one, or no line that fits: what the run was started with. The file is replaced as a whole, so a reader sees the old
//! one or the new one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use vbk_repo::name::GuestName;

use super::ReadLimit;

/// The file's name in a run's directory.
pub const FILE: &str = "limit";
/// A longer file is not ours.
const MAX_BYTES: u64 = 1 << 20;

/// What is asked of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Requests {
    /// For all guests.
    all: Option<ReadLimit>,
    /// For one.
    guests: BTreeMap<String, ReadLimit>,
}

impl Requests {
    /// Reads the file; nothing is asked if it is not there. A line that is not understood is an error.
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
            // A rate may have a space in it, as in `60 MB/s`, but no guest and a rate make a rate.
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

    /// Replaces the file. No barrier: it is for processes that run now.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension(format!("new-{}", std::process::id()));
        let written = fs::File::create(&new)
            .and_then(|mut file| file.write_all(self.text().as_bytes()))
            .and_then(|()| fs::rename(&new, path));
        written.inspect_err(|_| {
            let _ = fs::remove_file(&new);
        })
    }

    fn text(&self) -> String {
        let all = self.all.iter().map(|limit| format!("{}\n", exact(*limit)));
        let guests = self
            .guests
            .iter()
            .map(|(guest, limit)| format!("{guest} {}\n", exact(*limit)));
        all.chain(guests).collect()
    }

    /// What is asked for a guest, if anything.
    pub fn of(&self, guest: &GuestName) -> Option<ReadLimit> {
        self.guests.get(guest.as_str()).copied().or(self.all)
    }

    /// Asks for a limit: of one guest, or of all, which makes what was asked for one void. `None` asks for what the run was
    /// started with.
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

/// A run that goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningBackup {
    /// Its directory.
    pub directory: PathBuf,
    /// The command that it carries out, as far as it is known.
    pub command: String,
    /// The guests that it backs up, if it says so.
    guests: Option<Vec<String>>,
}

impl RunningBackup {
    /// Whether it may back up a guest; one that does not tell its guests may.
    pub fn may_have(&self, guest: &GuestName) -> bool {
        let Some(guests) = &self.guests else {
            return true;
        };
        guests.iter().any(|name| name == guest.as_str())
    }
}

/// The runs below a runtime directory, by their name. A run goes on while somebody holds the lock of the file `lock` in
/// its directory (flock(2)); what is left of one that was killed is passed over.
pub fn running(runtime_directory: &Path) -> io::Result<Vec<RunningBackup>> {
    let entries = match fs::read_dir(runtime_directory.join("runs")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut runs = Vec::new();
    for entry in entries {
        let directory = entry?.path();
        if is_locked(&directory.join("lock")) {
            runs.push(describe(directory));
        }
    }
    runs.sort_by(|a, b| a.directory.cmp(&b.directory));
    Ok(runs)
}

fn is_locked(lock: &Path) -> bool {
    // A lock that we get for a moment is a shared one, and so no trouble for others who only look.
    fs::File::open(lock).is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
}

fn describe(directory: PathBuf) -> RunningBackup {
    let small = |file: &str| {
        let path = directory.join(file);
        let small = fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() <= MAX_BYTES);
        small.then(|| fs::read_to_string(&path).ok()).flatten()
    };
    let json = small("run.json").and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    let json = json.unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let guests = match (&json["guests"], &json["guest"]) {
        (serde_json::Value::Array(guests), _) => Some(guests.iter().filter_map(text).collect()),
        (_, guest) => text(guest).map(|guest| vec![guest]),
    };
    let command = text(&json["command"]).or_else(|| small("command"));
    RunningBackup {
        command: command.map_or_else(|| "a backup".to_owned(), |command| command.trim().to_owned()),
        guests,
        directory,
    }
}

/// To the byte, and not as people like it.
fn exact(limit: ReadLimit) -> String {
    match limit {
        ReadLimit::BytesPerSec(rate) => format!("{rate}B"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(name: &str) -> GuestName {
        name.parse().expect("a name")
    }

    #[test]
    fn what_is_asked_comes_back_and_one_guest_goes_before_all() {
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
    fn what_is_not_understood_is_an_error_and_not_no_limit() {
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
        assert_eq!(running(runtime.path()).expect("lists"), []);
        let make = |name: &str| {
            let directory = runtime.path().join("runs").join(name);
            fs::create_dir_all(&directory).expect("makes");
            let lock = fs::File::create(directory.join("lock")).expect("makes");
            (directory, lock)
        };
        let (killed, _) = make("killed");
        let (named, named_lock) = make("named");
        let (plain, plain_lock) = make("plain");
        named_lock.lock().expect("locks");
        plain_lock.lock().expect("locks");
        fs::create_dir(runtime.path().join("runs/without a lock")).expect("makes");
        fs::write(
            named.join("run.json"),
            r#"{"command": "vbk backup web1", "guests": ["web1"]}"#,
        )
        .expect("writes");
        fs::write(plain.join("command"), "vbk backup --all\n").expect("writes");
        let runs = running(runtime.path()).expect("lists");
        let seen: Vec<_> = runs.iter().map(|run| (&run.directory, run.command.as_str())).collect();
        assert_eq!(seen, [(&named, "vbk backup web1"), (&plain, "vbk backup --all")]);
        assert!(runs[0].may_have(&guest("web1")) && !runs[0].may_have(&guest("web2")));
        assert!(runs[1].may_have(&guest("web2")));
        drop((named_lock, plain_lock));
        assert_eq!(running(runtime.path()).expect("lists"), []);
        assert!(killed.exists(), "it is not for us to remove");
    }
}
