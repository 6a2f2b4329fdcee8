//! The audit log: what clients changed or removed, and what was refused to them.
//!
//! | file in `DIR/serve` | what | bound |
//! |---|---|---|
//! | `audit.log` | changes and removals by clients, and changes of tokens. A line is durable before the change is made; a second line says so if that fails | [`KEPT`] older ones of [`LOG_BYTES`] |
//! | `refused.log` | refusals | one older one of [`REFUSED_BYTES`] |
//!
//! A line is a JSON object. Refusals have a file of their own, so that a client without rights can't fill the one that counts, or
//! push lines out of it. Every process that serves clients appends to the same files, under a lock of the file.

use std::fmt::Display;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::libc::{O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK};
use nix::unistd::geteuid;
use serde::Serialize;
use vbk_repo::files;
use vbk_repo::{Error, Result};

use super::key::SERVE;

/// Length at which a log of changes is put aside.
const LOG_BYTES: u64 = if cfg!(test) { 8 << 10 } else { 16 << 20 };
/// Logs of changes that were put aside and are kept.
const KEPT: u32 = 8;
/// Length at which a log of refusals is put aside.
const REFUSED_BYTES: u64 = if cfg!(test) { 8 << 10 } else { 1 << 20 };
/// Names in a line; a change of more has several lines.
const NAMES: usize = 100;
/// Characters of a text that a client chose.
const TEXT: usize = 300;

/// A client, as the server knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Who {
    /// Name of its token, or another one that the administrator chose.
    pub name: String,
    /// Address that it comes from, if that is known.
    pub address: Option<String>,
}

/// The audit log of a repository, for one client.
#[derive(Debug, Clone)]
pub struct AuditLog {
    repository: PathBuf,
    who: Who,
}

#[derive(Serialize)]
struct Line<'a> {
    time: Timestamp,
    client: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'a str>,
    what: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    of: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<&'a str>,
}

impl AuditLog {
    /// The log of the repository in a directory.
    pub fn of(repository: &Path, who: Who) -> Self {
        Self {
            repository: repository.to_owned(),
            who,
        }
    }

    fn line(&self) -> Line<'_> {
        Line {
            time: Timestamp::now(),
            client: &self.who.name,
            address: self.who.address.as_deref(),
            what: "",
            of: &[],
            failed: None,
            refused: None,
        }
    }

    /// Logs a change that is about to be made. Durable when this returns; after an error the change must not be made.
    pub fn note(&self, what: &str, of: &[String]) -> Result<()> {
        let of: Vec<_> = of.iter().map(|name| shortened(name)).collect();
        let of = &of[..];
        let parts: Vec<&[String]> = match of {
            [] => vec![of],
            _ => of.chunks(NAMES).collect(),
        };
        let lines: Vec<_> = parts
            .into_iter()
            .map(|of| Line {
                what,
                of,
                ..self.line()
            })
            .collect();
        self.append("audit.log", &lines, true)
    }

    /// Makes a change that is logged first, and logs that it failed if it does. An error of the log is one of the change, which then
    /// is not made.
    pub fn noted<T, E: Display + From<Error>>(
        &self,
        what: &str,
        of: &[String],
        make: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        self.note(what, of)?;
        make().inspect_err(|error| {
            let failed = shortened(&error.to_string());
            let line = Line {
                what,
                of: &of.iter().take(NAMES).map(|name| shortened(name)).collect::<Vec<_>>(),
                failed: Some(&failed),
                ..self.line()
            };
            // The error itself is reported to the client.
            let _ = self.append("audit.log", &[line], true);
        })
    }

    /// Logs a refusal, if that is possible.
    pub(super) fn refused(&self, what: &str) {
        let refused = shortened(what);
        let line = Line {
            what: "refused",
            refused: Some(&refused),
            ..self.line()
        };
        if let Err(error) = self.append("refused.log", &[line], false) {
            tracing::debug!("a refusal is not logged: {error}");
        }
    }

    fn append(&self, name: &str, lines: &[Line<'_>], synced: bool) -> Result<()> {
        let shown = self.repository.join(SERVE).join(name);
        let mut bytes = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut bytes, line).expect("plain fields");
            bytes.push(b'\n');
        }
        self.append_bytes(name, &bytes, synced)
            .map_err(Error::io("write", &shown))
    }

    fn append_bytes(&self, name: &str, bytes: &[u8], synced: bool) -> io::Result<()> {
        // Root may write into the directory of another user, who may put links anywhere into it.
        let directory = self.directory()?;
        let path = &PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        let (most, kept) = match synced {
            true => (LOG_BYTES, KEPT),
            false => (REFUSED_BYTES, 1),
        };
        let (mut file, is_new) = self.locked(path, most, kept)?;
        file.write_all(bytes)?;
        if synced {
            file.sync_data()?;
            if is_new {
                files::sync_directory_where_possible(&self.repository.join(SERVE))?;
            }
        }
        Ok(())
    }

    /// Opens and locks the file under a name; puts a long one aside first.
    fn locked(&self, path: &Path, most: u64, kept: u32) -> io::Result<(File, bool)> {
        loop {
            let file = self.open(path)?;
            file.lock()?;
            let opened = file.metadata()?;
            // Another process may have put it aside meanwhile.
            if !fs::symlink_metadata(path).is_ok_and(|named| named.ino() == opened.ino()) {
                continue;
            }
            if opened.len() < most {
                return Ok((file, opened.len() == 0));
            }
            let older = |number: u32| path.with_extension(format!("log.{number}"));
            for number in (1..kept).rev() {
                rename_if_there(&older(number), &older(number + 1))?;
            }
            rename_if_there(path, &older(1))?;
        }
    }

    /// Opens the directory, and makes it if it is missing: for the owner of the repository.
    fn directory(&self) -> io::Result<File> {
        let path = self.repository.join(SERVE);
        let is_new = match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            made => made.map(|()| true)?,
        };
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(O_DIRECTORY | O_NOFOLLOW)
            .open(&path)?;
        if is_new {
            self.give_to_owner(&directory)?;
            files::sync_directory_where_possible(&self.repository)?;
        }
        Ok(directory)
    }

    /// Opens a file for appending, and makes it if it is missing.
    fn open(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW | O_NONBLOCK);
        let file = options.open(path)?;
        let found = file.metadata()?;
        // A second name may be that of somebody else's file.
        if !found.is_file() || found.nlink() > 1 {
            return Err(io::Error::other("it is no file of its own"));
        }
        if found.len() == 0 {
            self.give_to_owner(&file)?;
        }
        Ok(file)
    }

    fn give_to_owner(&self, file: &File) -> io::Result<()> {
        let owner = fs::metadata(&self.repository)?;
        match geteuid().is_root() && owner.uid() != 0 {
            true => fchown(file, Some(owner.uid()), Some(owner.gid())),
            false => Ok(()),
        }
    }
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn log(directory: &Path, name: &str) -> AuditLog {
        let who = Who {
            name: name.into(),
            address: Some("192.0.2.1".into()),
        };
        AuditLog::of(directory, who)
    }

    fn lines(directory: &Path, name: &str) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(directory.join(SERVE).join(name)).unwrap_or_default();
        let lines = text.lines();
        lines.map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[test]
    fn a_change_is_logged_before_it_is_made_and_its_failure_after() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = log(dir.path(), "web");
        let names: Vec<_> = (0..250).map(|number| format!("web1@{number}")).collect();
        let made = log.noted("forget", &names, || {
            assert_eq!(lines(dir.path(), "audit.log").len(), 3);
            Result::Ok(7)
        });
        assert_eq!(made.expect("is made"), 7);
        let name = ["web".to_owned()];
        let failed: Result<()> = log.noted("token add", &name, || Err(Error::Interrupted));
        assert!(failed.is_err());
        let all = lines(dir.path(), "audit.log");
        assert_eq!(all.len(), 5);
        assert_eq!(all[2]["of"].as_array().map(Vec::len), Some(50));
        for line in &all {
            assert_eq!(
                (&line["client"], &line["address"]),
                (&"web".into(), &"192.0.2.1".into())
            );
        }
        assert_eq!(
            (&all[4]["what"], &all[4]["of"][0]),
            (&"token add".into(), &"web".into())
        );
        assert!(all[4]["failed"].is_string());
        assert_eq!(lines(dir.path(), "refused.log").len(), 0);
    }

    #[test]
    fn a_change_that_can_t_be_logged_is_not_made() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(SERVE), "in the way").expect("writes");
        let made = log(dir.path(), "web").noted("forget", &[], || -> Result<()> { panic!("is made") });
        assert!(made.is_err());
    }

    #[test]
    fn a_link_or_a_pipe_in_the_place_of_the_log_leads_nowhere() {
        let dir = tempfile::tempdir().expect("a directory");
        let other = tempfile::tempdir().expect("a directory");
        let (log, target) = (log(dir.path(), "web"), other.path().join("target"));
        log.note("forget", &[]).expect("logs");
        let path = dir.path().join(SERVE).join("audit.log");
        let refused = || log.note("forget", &[]).is_err();
        fs::remove_file(&path).expect("removes");
        symlink(&target, &path).expect("links");
        assert!(refused() && !target.exists());
        fs::remove_file(&path).expect("removes");
        fs::write(&target, "").expect("writes");
        fs::hard_link(&target, &path).expect("links");
        assert!(refused());
        fs::remove_file(&path).expect("removes");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("makes a pipe");
        assert!(refused());
        fs::remove_dir_all(dir.path().join(SERVE)).expect("removes");
        symlink(other.path(), dir.path().join(SERVE)).expect("links");
        assert!(refused());
        assert_eq!(fs::read_to_string(&target).expect("reads"), "");
        assert_eq!(fs::read_dir(other.path()).expect("lists").count(), 1);
    }

    #[test]
    fn logs_are_bounded_and_refusals_push_nothing_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let (one, other) = (log(dir.path(), "one"), log(dir.path(), "other"));
        one.note("forget", &["web1@x".into()]).expect("logs");
        for _ in 0..500 {
            other.refused(&"x".repeat(10_000));
        }
        assert_eq!(lines(dir.path(), "audit.log").len(), 1);
        for number in 0..1000 {
            other.note("forget", &[format!("web1@{number}")]).expect("logs");
        }
        let mut bytes = 0;
        let mut names = Vec::new();
        for entry in fs::read_dir(dir.path().join(SERVE)).expect("lists") {
            let entry = entry.expect("lists");
            bytes += entry.metadata().expect("is there").len();
            names.push(entry.file_name().into_string().expect("a name"));
        }
        names.sort();
        assert_eq!(names.len(), 1 + KEPT as usize + 2, "{names:?}");
        assert!(bytes < (u64::from(KEPT) + 3) * (LOG_BYTES + 1000), "{bytes}");
        let last = lines(dir.path(), "audit.log");
        assert_eq!(last.last().expect("a line")["of"][0], "web1@999");
    }

    #[test]
    fn processes_that_log_at_once_lose_no_line() {
        let dir = tempfile::tempdir().expect("a directory");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let log = log(dir.path(), &thread.to_string());
                scope.spawn(move || {
                    for number in 0..50 {
                        log.note("forget", &[number.to_string()]).expect("logs");
                    }
                });
            }
        });
        let older = (1..=KEPT).map(|number| format!("audit.log.{number}"));
        let files = older.chain(["audit.log".to_owned()]);
        let count: usize = files.map(|file| lines(dir.path(), &file).len()).sum();
        assert_eq!(count, 200);
    }
}
