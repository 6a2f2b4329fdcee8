//! One run of the program: started, watched, ended, and what it said.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::kernel;
use super::tools::wait_until;

/// No run of a test takes so long; a program that hangs is killed and the test fails.
const TIMEOUT: Duration = Duration::from_secs(100);

/// How long a killed process may take to be gone. One that flushes a file of its own dead mount never is.
const DIES: Duration = Duration::from_secs(15);

/// What a run said.
#[derive(Debug)]
pub struct Said {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    /// The most memory it had at once, as far as it was looked at.
    pub peak_bytes: u64,
}

impl Said {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("{} gave no JSON ({error}): {self}", self.command))
    }

    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "wrong exit code, {self}");
        self
    }

    /// It went well. Of a backup, a disk may have become smaller or empty, which is warned of.
    #[track_caller]
    pub fn went_well(self) -> Self {
        let of_a_disk = ["in the latest backup", "has no data any more"];
        match self.status.code() {
            Some(3) if of_a_disk.iter().any(|words| self.stderr.contains(words)) => self,
            _ => self.code(0),
        }
    }

    /// It went well, and had nothing to say about it on stderr.
    #[track_caller]
    pub fn done(self) -> Self {
        let said = self.code(0);
        assert_eq!(said.stderr, "", "stderr of a success, {said}");
        said
    }

    /// Standard output has all these words in it.
    #[track_caller]
    pub fn tells(self, words: &[&str]) -> Self {
        let text = self.text();
        for word in words {
            assert!(text.contains(word), "no {word:?} on standard output, {self}");
        }
        self
    }

    /// The message has all these words in it, whatever their case.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        let stderr = self.stderr.to_lowercase();
        for word in words {
            assert!(
                stderr.contains(&word.to_lowercase()),
                "no {word:?} in the message, {self}"
            );
        }
        self
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stdout = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(4000)]);
        write!(
            f,
            "{}: {}\n--- stdout\n{stdout}\n--- stderr\n{}\n---",
            self.command, self.status, self.stderr
        )
    }
}

/// A run that goes on. Killed when it is dropped.
pub struct Running {
    child: Child,
    command: String,
    stdout: File,
    stderr: File,
    peak_bytes: u64,
}

impl Running {
    /// Starts `program`; what it says goes to files in `dir`, so that a child in the background can't hold us up.
    pub fn start(mut command: Command, args: &[OsString], dir: &Path) -> Self {
        let file = || tempfile::tempfile_in(dir).expect("makes a file");
        let (stdout, stderr) = (file(), file());
        let handle = |file: &File| Stdio::from(file.try_clone().expect("another handle"));
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(handle(&stdout))
            .stderr(handle(&stderr));
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("can't run {command:?}: {error}"));
        let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        Self {
            child,
            command: format!("vbk {}", args.join(" ")),
            stdout,
            stderr,
            peak_bytes: 0,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("the process is a child that was not waited for");
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// Waits until the process has read so many bytes; false if it ended before.
    pub fn wait_until_read(&mut self, bytes: u64) -> bool {
        let mut ended = false;
        let reached = wait_until(TIMEOUT, || {
            ended = self.has_ended();
            ended || kernel::bytes_read_by(self.child.id()).is_some_and(|read| read >= bytes)
        });
        assert!(reached, "{} reads nothing", self.command);
        !ended
    }

    /// Waits until the message so far has this text in it.
    #[track_caller]
    pub fn wait_until_says(&mut self, text: &str) {
        self.wait_until_in(|this| &this.stderr, text);
    }

    /// Waits until the output so far has this text in it.
    #[track_caller]
    pub fn wait_until_prints(&mut self, text: &str) {
        self.wait_until_in(|this| &this.stdout, text);
    }

    #[track_caller]
    fn wait_until_in(&mut self, file: fn(&Self) -> &File, text: &str) {
        let mut said = String::new();
        let mut ended = false;
        wait_until(TIMEOUT, || {
            ended = self.has_ended();
            said = String::from_utf8_lossy(&read_so_far(file(self))).into_owned();
            ended || said.contains(text)
        });
        let command = &self.command;
        assert!(
            said.contains(text),
            "{command} did not say {text:?} within {TIMEOUT:?} (ended: {ended}): {said}"
        );
    }

    /// Waits for the end.
    #[track_caller]
    pub fn wait(mut self) -> Said {
        let ended = wait_until(TIMEOUT, || {
            self.peak_bytes = kernel::peak_bytes_of(self.child.id()).unwrap_or(0).max(self.peak_bytes);
            self.has_ended()
        });
        let status = self.end();
        let status = status.unwrap_or_else(|| panic!("{} can't even be killed", self.command));
        let said = Said {
            command: std::mem::take(&mut self.command),
            status,
            stdout: read_all(&mut self.stdout),
            stderr: String::from_utf8_lossy(&read_all(&mut self.stderr)).into_owned(),
            peak_bytes: self.peak_bytes,
        };
        assert!(ended, "did not end within {TIMEOUT:?}, {said}");
        assert!(!said.stderr.contains("panicked at"), "a bug, {said}");
        // Our own kill is fine, anything else is a crash.
        let signal = said.status.signal();
        assert!(matches!(signal, None | Some(9)), "ended by a signal, {said}");
        said
    }
}

impl Running {
    /// Kills the process if it still runs; `None` if the kernel does not let it go.
    fn end(&mut self) -> Option<ExitStatus> {
        let _ = self.child.kill();
        wait_until(DIES, || self.has_ended());
        self.child.try_wait().expect("a child")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads what a process that still runs has written, and leaves the offset, which is the process's too.
fn read_so_far(file: &File) -> Vec<u8> {
    let len = file.metadata().expect("is open").len();
    let mut bytes = vec![0; usize::try_from(len).expect("a short message")];
    file.read_exact_at(&mut bytes, 0).expect("reads what was said");
    bytes
}

fn read_all(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .expect("reads what was said");
    bytes
}
