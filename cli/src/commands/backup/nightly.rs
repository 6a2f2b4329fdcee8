//! Parts that only a run over all guests has: a lock against a second run, a time limit, and the administrator's command
//! for failures.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use vbk::host::program::{self, ProgramError, Programs};
use vbk_repo::ErrorKind;

use crate::exit::{Error, Result};
use crate::terminal::units;

/// Time limit for the on-failure command.
const HOOK_LIMIT: Duration = Duration::from_secs(60);
/// Limit for an error's text. Linux takes 128 KiB for one variable (execve(2)).
const MAX_TEXT_BYTES: usize = 16 << 10;

/// Lock of a run over all guests. The kernel releases it however the run ends; the text in the file, process id and start
/// time, is for people.
pub struct NightlyLock {
    _file: File,
}

impl NightlyLock {
    /// Takes the lock, which is `nightly.lock` in `directory`. Fails at once if another run has it.
    pub fn take(directory: &Path, now: Timestamp) -> Result<Self> {
        let path = directory.join("nightly.lock");
        let failed = |error: std::io::Error| Error::io(format!("lock {}", path.display()))(error);
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(directory)
            .map_err(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                // The holder may not have written its text yet, or may be another program altogether.
                let mut text = String::new();
                let _ = file.take(100).read_to_string(&mut text);
                let details = describe(&text).unwrap_or_default();
                return Err(Error::Busy(format!("another `vbk backup --all` is running{details}")));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        let text = format!("{} {now}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// ` since 2026-11-21 02:10:00 (process 123)`
fn describe(text: &str) -> Option<String> {
    let (pid, since) = text.trim().split_once(' ')?;
    let (pid, since): (u32, Timestamp) = (pid.parse().ok()?, since.parse().ok()?);
    Some(format!(" since {} (process {pid})", units::time(since)))
}

/// Timer that cancels a run when its time is over. Dropping it stops the timer.
pub struct Deadline {
    over: Arc<AtomicBool>,
    timer: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Deadline {
    /// Starts the timer, which sets `cancel` after `limit`. Without a limit it never does.
    pub fn start(limit: Option<Duration>, cancel: Arc<AtomicBool>) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let Some(limit) = limit else {
            return Ok(Self { over, timer: None });
        };
        let (stop, stopped) = channel();
        let sets = Arc::clone(&over);
        let timer = std::thread::Builder::new().name("vbk-deadline".into()).spawn(move || {
            if stopped.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                // In this order: a thread that sees `cancel` must find the reason.
                sets.store(true, Ordering::SeqCst);
                cancel.store(true, Ordering::SeqCst);
            }
        });
        let timer = timer.map_err(Error::io("start a timer"))?;
        Ok(Self {
            over,
            timer: Some((stop, timer)),
        })
    }

    /// Returns whether the timer cancelled the run, and not a person.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Turns an interruption by the timer into an error that says so, with its consequence. Returns other errors unchanged.
    pub fn reason_for(&self, error: Error, outcome: &str) -> Error {
        match error.kind() {
            ErrorKind::Interrupted if self.is_over() => {
                Error::TimeOver(format!("the time limit was reached; {outcome}"))
            }
            _ => error,
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        if let Some((stop, timer)) = self.timer.take() {
            drop(stop);
            // The timer can't panic.
            let _ = timer.join();
        }
    }
}

/// Runs the administrator's command for a guest that was not backed up, or for a run. The command gets `VBK_GUEST`,
/// `VBK_ERROR`, `VBK_KIND` (one word) and `VBK_HOST` in its environment, and a minute.
pub fn on_failure(
    programs: &Programs,
    shell_command: &str,
    guest: &str,
    error: &Error,
    host: &str,
) -> std::result::Result<(), ProgramError> {
    let mut command = programs.command("sh");
    command
        .arg("-c")
        .arg(shell_command)
        .env("VBK_GUEST", variable(guest))
        .env("VBK_ERROR", variable(&error.message()))
        .env("VBK_KIND", error.word())
        .env("VBK_HOST", variable(host));
    program::act(command, HOOK_LIMIT)
}

/// Shortens a text so that the environment can hold it.
fn variable(text: &str) -> String {
    let ends = text.char_indices().map(|(start, letter)| start + letter.len_utf8());
    let end = ends.take_while(|end| *end <= MAX_TEXT_BYTES).last().unwrap_or(0);
    text[..end].replace('\0', " ")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn now() -> Timestamp {
        "2026-11-21T02:10:30Z".parse().expect("is a time")
    }

    fn later(hours: i64) -> Timestamp {
        now() + jiff::SignedDuration::from_hours(hours)
    }

    fn message(result: Result<NightlyLock>) -> String {
        let error = result.err().expect("is locked");
        assert_eq!(error.kind(), ErrorKind::Locked);
        error.message()
    }

    #[test]
    fn two_nightly_runs_never_overlap() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let runtime = dir.path().join("run/vbk");
        let lock = NightlyLock::take(&runtime, now()).expect("is free");
        let pid = std::process::id();
        assert_eq!(
            message(NightlyLock::take(&runtime, later(1))),
            format!(
                "another `vbk backup --all` is running since {} (process {pid})",
                units::time(now())
            )
        );
        drop(lock);
        drop(NightlyLock::take(&runtime, later(1)).expect("is free again"));
        // The text of a shorter process id leaves nothing of a longer one.
        let text = std::fs::read_to_string(runtime.join("nightly.lock")).expect("is there");
        assert_eq!(text, format!("{pid} {}\n", later(1)));
    }

    #[test]
    fn a_nightly_lock_is_held_until_its_process_dies() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let path = dir.path().join("nightly.lock");
        std::fs::write(&path, "what is this").expect("writes");
        // flock(1) runs its command beside itself, and both hold the lock; with exec there is only one.
        let mut other = std::process::Command::new("sh");
        other
            .args(["-c", r#"exec 9<"$0"; flock 9; echo held; exec sleep 100"#])
            .arg(&path);
        let mut other = other.stdout(std::process::Stdio::piped()).spawn().expect("starts");
        let mut held = [0; 5];
        other
            .stdout
            .take()
            .expect("is piped")
            .read_exact(&mut held)
            .expect("holds it");
        let text = message(NightlyLock::take(dir.path(), now()));
        assert_eq!(text, "another `vbk backup --all` is running");
        other.kill().and_then(|()| other.wait()).expect("is killed");
        NightlyLock::take(dir.path(), now()).expect("is free");
    }

    #[test]
    fn a_nightly_lock_refuses_a_symlink() {
        let dir = tempfile::tempdir().expect("makes a directory");
        std::os::unix::fs::symlink("/dev/null", dir.path().join("nightly.lock")).expect("links");
        assert!(NightlyLock::take(dir.path(), now()).is_err());
    }

    #[test]
    fn an_expired_deadline_sets_the_cancel_flag() {
        let cancel = Arc::new(AtomicBool::new(false));
        let deadline = Deadline::start(Some(Duration::from_millis(50)), Arc::clone(&cancel)).expect("starts");
        let begun = Instant::now();
        while !cancel.load(Ordering::SeqCst) {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(deadline.is_over() && begun.elapsed() >= Duration::from_millis(45));
    }

    #[test]
    fn a_run_that_ends_in_time_does_not_wait_for_its_deadline() {
        let begun = Instant::now();
        for limit in [Some(Duration::from_secs(3600)), None] {
            let cancel = Arc::new(AtomicBool::new(false));
            let deadline = Deadline::start(limit, Arc::clone(&cancel)).expect("starts");
            assert!(!deadline.is_over());
            drop(deadline);
            assert!(!cancel.load(Ordering::SeqCst));
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn the_failure_hook_receives_guest_kind_host_and_error() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let out = dir.path().join("out");
        let command = format!(
            "printf '%s|' \"$VBK_GUEST\" \"$VBK_KIND\" \"$VBK_HOST\" \"$VBK_ERROR\" >{}",
            out.display()
        );
        let error = Error::Busy("no\0 \"way\" $(touch owned)".into());
        on_failure(&Programs::system(), &command, "we b'1", &error, "node3").expect("works");
        let text = std::fs::read_to_string(&out).expect("was written");
        assert_eq!(text, "we b'1|locked|node3|no  \"way\" $(touch owned)|");
        let long = Error::Bug("ä".repeat(1 << 20));
        on_failure(&Programs::system(), "true", "web1", &long, "node3").expect("is cut");
        let failed = on_failure(&Programs::system(), "echo no mail >&2; exit 3", "web1", &error, "node3");
        assert!(failed.is_err_and(|error| error.to_string().contains("no mail")));
    }
}
