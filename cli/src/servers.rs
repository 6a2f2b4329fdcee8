//! The processes that serve mounts, as other runs of vbk find them: each writes a record into the runtime directory, and
//! holds a lock on it until its other files are closed.
//!
//! A record is one line of JSON from the moment at which the mount is there, and a second one when the process has closed
//! everything. A process that ended without the second line was killed. It removes a record with a good end itself: a run
//! that waits has it open. Another one stays until `vbk umount` has reported it, or for a week.

mod records;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use vbk_fuse::scratch::KeptFile;
use vbk_fuse::volumes::{self, FuseMount};
use vbk_repo::backup::Backup;
use vbk_repo::repository::Repository;

use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::machine::{BACKGROUND_LOG, runtime_directory, user_of_process};
use crate::terminal::units;

use records::Found;
pub use records::is_record;

/// Largest record that is read; one has a few paths.
const MAX_BYTES: u64 = 64 << 10;
/// Time that a process may take to end which saves nothing. It stays as long as another mount namespace, e.g. of a service,
/// has a copy of the mount.
const END_LIMIT: Duration = Duration::from_secs(30);
/// Time that a process may take to close a file of `--save`: gigabytes may have to reach a slow disk.
const CLOSE_LIMIT: Duration = Duration::from_secs(20 * 60);
/// Time after which a person is told what is waited for.
const SILENCE: Duration = Duration::from_secs(2);
const INTERVAL: Duration = Duration::from_millis(20);

/// The mount that a process serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Served {
    /// The process.
    pub pid: u32,
    /// Time of the mount.
    pub since: Timestamp,
    /// Path of the repository.
    pub repository: PathBuf,
    /// The backup; `None` for all.
    pub backup: Option<String>,
    /// File that keeps what programs write.
    pub save: Option<KeptFile>,
    /// The backup as `vbk restore` takes it, to restore it with that file.
    restore: String,
    /// Directory of the mount, for a mount of files that of the file systems.
    point: PathBuf,
    /// Number of the FUSE file system.
    device: (u32, u32),
    log: Option<PathBuf>,
}

impl Served {
    fn tell_saved(&self, context: &Context<'_>, written_bytes: u64) {
        if let Some(file) = &self.save {
            let (file, size, restore) = (file.path.display(), units::size(written_bytes), &self.restore);
            context.say(format_args!(
                "{file} keeps what was written ({size}); `vbk restore {restore} TARGET --changes {file}` restores the disk \
                 with it"
            ));
        }
    }
}

/// The end of a process that was not killed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct End {
    written_bytes: u64,
    failure: Option<Failure>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Failure {
    text: String,
    code: u8,
}

/// The record of this process. Dropped, it is unlocked, and removed unless it reports a failed end; so it must be the first value of a function that serves a mount.
pub struct Record {
    file: File,
    path: PathBuf,
    served: Option<Served>,
    /// True if it reports a failure.
    stays: bool,
}

impl Record {
    /// Creates the record, before the mount.
    pub fn create() -> Result<Self> {
        let root = runtime_directory()?;
        let failed = |what: &Path| Error::io(format!("create {}", what.display()));
        let made = DirBuilder::new().mode(0o700).recursive(true).create(&root);
        made.map_err(failed(&root))?;
        let stamp = Timestamp::now().as_nanosecond();
        let path = root.join(records::name(&format!("{}-{stamp:x}", std::process::id())));
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(failed(&path))?;
        let record = Self {
            file,
            path,
            served: None,
            stays: false,
        };
        record.file.lock().map_err(failed(&record.path))?;
        Ok(record)
    }

    /// Writes down what is mounted at `point`; for a mount of files, its file systems appear at `shown_at`.
    pub fn begin(
        &mut self,
        (point, shown_at): (&Path, Option<&Path>),
        repository: &Repository,
        backup: Option<&Backup>,
        save: Option<KeptFile>,
    ) -> Result<()> {
        let device = volumes::device_at(&volumes::mount_point(point)?)?;
        let restore = match backup {
            Some(backup) if backup.images.len() > 1 => format!("{}/DISK", backup.spec()),
            Some(backup) => backup.spec(),
            None => String::new(),
        };
        let served = Served {
            pid: std::process::id(),
            since: Timestamp::now(),
            repository: repository.path().to_owned(),
            backup: backup.map(Backup::spec),
            save,
            restore,
            point: volumes::mount_point(shown_at.unwrap_or(point))?,
            // Another program may have unmounted it in this moment.
            device: device.unwrap_or_default(),
            log: std::env::var_os(BACKGROUND_LOG).map(PathBuf::from),
        };
        self.append(&served)?;
        self.served = Some(served);
        Ok(())
    }

    /// Writes down the end, when everything that the mount had open is closed, and says what was saved.
    pub fn end<E: Into<Error>>(
        &mut self,
        context: &Context<'_>,
        written_bytes: u64,
        ended: std::result::Result<(), E>,
    ) -> Result<()> {
        let ended = ended.map_err(Into::into);
        let failure = ended.as_ref().err().map(|error| Failure {
            text: error.text(),
            code: error.exit_code(),
        });
        let written = self.append(&End { written_bytes, failure });
        self.stays = ended.is_err() || written.is_err();
        ended.and(written)?;
        if let Some(served) = &self.served {
            served.tell_saved(context, written_bytes);
        }
        Ok(())
    }

    fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let mut bytes = serde_json::to_vec(line).map_err(|error| Error::Bug(error.to_string()))?;
        bytes.push(b'\n');
        let written = self.file.write_all(&bytes);
        written.map_err(Error::io(format!("write {}", self.path.display())))
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.stays {
            // Another run may have removed it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A process that serves a mount, or did.
#[derive(Debug)]
pub struct Server {
    /// Its mount. Of another user, these are that user's words.
    pub served: Served,
    file: File,
    /// Path of the record, if it is this user's.
    path: Option<PathBuf>,
    owner: u32,
}

/// The processes of this user, for root also those of others, the last one that was started first.
#[derive(Debug, Default)]
pub struct Servers(Vec<Server>);

impl Servers {
    /// Opens all records. To be called before a mount is taken down, whose process may then remove its own.
    pub fn read() -> Self {
        let mut found = records::own();
        if geteuid().is_root() {
            let users = volumes::users_of_ours().unwrap_or_default();
            found.extend(users.into_iter().filter(|user| *user != 0).flat_map(records::of_user));
        }
        let mut servers: Vec<_> = found.into_iter().filter_map(Server::open).collect();
        servers.sort_by_key(|server| std::cmp::Reverse(server.served.since));
        Self(servers)
    }

    /// Returns the process that serves a file system: that of the user who has mounted it, as the kernel says. The kernel may
    /// have given its number to an earlier one, whose process has yet to end.
    pub fn serving(&self, mounted: Option<FuseMount>) -> Option<&Server> {
        let mounted = mounted?;
        let serves = |server: &&Server| mounted.user == Some(server.owner) && server.served.device == mounted.device;
        self.0.iter().find(serves)
    }

    /// Returns this user's process that served the mount at a directory.
    pub fn at(&self, point: &Path) -> Option<&Server> {
        self.own().find(|server| server.served.point == point)
    }

    /// Returns this user's process with this id, if it runs: an earlier one may have had the id, and left its record and the file
    /// of its mount.
    pub fn process(&self, pid: u32) -> Option<&Server> {
        self.own()
            .find(|server| server.served.pid == pid && server.is_running())
    }

    fn own(&self) -> impl Iterator<Item = &Server> {
        self.0.iter().filter(|server| server.is_own())
    }
}

impl Server {
    fn open(found: Found) -> Option<Self> {
        let Found { file, path, owner } = found;
        let served = serde_json::from_str(lines_of(&file)?.lines().next()?).ok()?;
        Some(Self {
            served,
            file,
            path,
            owner,
        })
    }

    fn is_own(&self) -> bool {
        self.path.is_some()
    }

    /// Tests whether this is the process of another user and has ended. Their mounts do not tell root.
    pub fn is_gone_of_another(&self) -> bool {
        !self.is_own() && !self.is_running()
    }

    /// Returns the id of the process, unless it is now that of another user's process.
    pub fn pid(&self) -> Option<u32> {
        let pid = self.served.pid;
        (self.is_own() || user_of_process(pid) == Some(self.owner)).then_some(pid)
    }

    /// Returns the file that keeps what was written.
    pub fn saved(&self) -> Option<PathBuf> {
        self.served.save.as_ref().map(|file| file.path.clone())
    }

    /// Tests whether the process has not yet closed its files.
    pub fn is_running(&self) -> bool {
        let locked = self.file.try_lock_shared();
        let _ = self.file.unlock();
        locked.is_err()
    }

    fn end(&self) -> Option<End> {
        serde_json::from_str(lines_of(&self.file)?.lines().nth(1)?).ok()
    }

    /// Waits until the process has closed its files; false if it has not after the limit.
    fn wait(&self, limit: Duration, waiting: impl FnOnce()) -> bool {
        let start = Instant::now();
        let mut waiting = Some(waiting);
        while self.is_running() {
            if start.elapsed() > limit {
                return false;
            }
            if start.elapsed() > SILENCE
                && let Some(waiting) = waiting.take()
            {
                waiting();
            }
            sleep(INTERVAL);
        }
        true
    }

    /// Waits for the end of the process after its mount was taken down, and says what it saved. Fails as the process did.
    pub fn conclude(&self, context: &Context<'_>) -> Result<Outcome> {
        let Served { pid, point, save, .. } = &self.served;
        let (limit, doing) = match save {
            Some(_) if !self.is_own() => (END_LIMIT, "to end".to_owned()),
            Some(file) => (CLOSE_LIMIT, format!("to close {}", file.path.display())),
            None => (END_LIMIT, "to end".to_owned()),
        };
        let point = point.display();
        let waiting = || context.say(format_args!("waiting for process {pid}, which served {point}, {doing}"));
        if !self.wait(limit, waiting) {
            let text = format!(
                "process {pid}, which served {point}, had {} s {doing} and has not; `vbk umount {point}` waits again",
                limit.as_secs()
            );
            if save.is_some() && self.is_own() {
                return Err(Error::Busy(text));
            }
            tracing::warn!("{text}");
            return Ok(Outcome::Warnings);
        }
        let Some(path) = &self.path else {
            return Ok(self.tell_end_of_another());
        };
        let told = self.tell_end(context);
        // A good end leaves none.
        let _ = std::fs::remove_file(path);
        told.map(|()| Outcome::Done)
    }

    /// Says that a process of another user did not end well. The reason is left to that user, whose record stays.
    fn tell_end_of_another(&self) -> Outcome {
        let is_good = match self.end() {
            Some(end) => end.failure.is_none(),
            None => self.served.save.is_none(),
        };
        if is_good {
            return Outcome::Done;
        }
        tracing::warn!(
            "a process of user {}, which served a mount, was killed or failed; `vbk umount {}` tells that user more",
            self.owner,
            self.served.point.display()
        );
        Outcome::Warnings
    }

    fn tell_end(&self, context: &Context<'_>) -> Result<()> {
        let Served { pid, point, .. } = &self.served;
        let save = self.served.save.as_ref().map(|file| file.path.display());
        let end = self.end();
        let failure = end.as_ref().and_then(|end| end.failure.clone());
        let code = failure.as_ref().map_or(1, |failure| failure.code);
        let text = match (&end, failure, save) {
            (Some(end), None, Some(_)) => {
                self.served.tell_saved(context, end.written_bytes);
                return Ok(());
            }
            (_, None, None) => return Ok(()),
            (_, Some(failure), None) => format!("the process that served {} failed: {}", point.display(), failure.text),
            (_, Some(failure), Some(file)) => format!(
                "{file} is not complete: {}; it keeps what was written before the last sync",
                failure.text
            ),
            (None, None, Some(file)) => format!(
                "{file} is not complete: process {pid}, which served {}, was killed before it had closed it; it keeps what \
                 was written before the last sync",
                point.display()
            ),
        };
        let log = self.served.log.as_ref().filter(|log| log.exists());
        let log = log.map(|log| format!("; its log is {}", log.display()));
        Err(Error::Server {
            text: text + &log.unwrap_or_default(),
            code,
        })
    }

    /// Tests whether there is something to say about a process whose mount is gone.
    pub fn has_news(&self) -> bool {
        self.is_running() || self.served.save.is_some() || self.end().is_some_and(|end| end.failure.is_some())
    }

    /// Removes the new file of a mount that did not come about, when its process has ended.
    pub fn discard(&self) {
        if !self.wait(END_LIMIT, || ()) {
            tracing::warn!("process {} has not ended", self.served.pid);
            return;
        }
        // A path in the record of another user would lead root anywhere.
        let Some(path) = &self.path else {
            return;
        };
        if let Some(file) = &self.served.save {
            file.remove();
        }
        let _ = std::fs::remove_file(path);
    }
}

/// Reads a record from its start, wherever another reader of the same file is.
fn lines_of(file: &File) -> Option<String> {
    let size = file.metadata().ok()?.size();
    let mut bytes = vec![0; usize::try_from(size).ok().filter(|_| size <= MAX_BYTES)?];
    file.read_exact_at(&mut bytes, 0).ok()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(owner: u32, number: u32) -> Server {
        let line = format!(
            r#"{{"pid":1,"since":"2026-11-20T00:00:00Z","repository":"/r","backup":null,"save":null,"restore":"",
                "point":"/mnt","device":[0,{number}],"log":null}}"#
        );
        Server {
            served: serde_json::from_str(&line).expect("parses"),
            file: tempfile::tempfile().expect("a file"),
            path: (owner == 0).then(|| "/run/vbk/mount-1.json".into()),
            owner,
        }
    }

    #[test]
    fn a_user_is_believed_only_about_own_mounts_and_processes() {
        // Of a mount of root's, and of one of theirs.
        let forged = Servers(vec![server(1000, 40), server(1000, 41)]);
        let mounted = |user, number| {
            Some(FuseMount {
                device: (0, number),
                user: Some(user),
            })
        };
        assert!(forged.serving(mounted(0, 40)).is_none());
        assert!(forged.serving(mounted(1001, 41)).is_none());
        let theirs = forged.serving(mounted(1000, 41)).expect("is found");
        assert_eq!(theirs.pid(), None, "the first process is root's");
        assert!(theirs.is_gone_of_another());
        assert!(forged.process(1).is_none() && forged.at(Path::new("/mnt")).is_none());
        let own = Servers(vec![server(1000, 40), server(0, 40)]);
        assert_eq!(own.serving(mounted(0, 40)).expect("is found").owner, 0);
        assert_eq!(own.at(Path::new("/mnt")).and_then(Server::pid), Some(1));
        assert!(own.process(1).is_none(), "it has ended");
    }
}
