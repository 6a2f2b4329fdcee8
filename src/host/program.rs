//! Runs other programs: lvm2, virsh, the administrator's own commands. Each has a time limit, bounded output, and an
//! end that vbk waits for.
//!
//! A program gets its own process group: Ctrl-C at the terminal asks vbk to end, and must not cut `lvcreate` in two.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use vbk_repo::ErrorKind;

/// Output that is kept of a program; the rest is cut off, and parsing then fails at the early end.
const MAX_OUTPUT_BYTES: u64 = 64 << 20;
/// Time that the output of a program may stay open after its end: a child of it may hold the pipe, and its output is
/// not the program's answer.
const OUTPUT_LEFT: Duration = Duration::from_secs(2);
/// Time that a killed program has to end. One that waits for a disk that does not answer ends when the disk does, or
/// never (lvm2 examines every disk of the host); it is then left to itself.
const KILLED_LEFT: Duration = Duration::from_secs(5);
/// Time that a program has to end after it was asked to.
const ASKED_LEFT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 20 });
/// Interval at which a reader of output checks whether the program has ended.
const OUTPUT_POLL_MS: u8 = 50;
/// Time for which starting a program is retried while its file is being written.
const BUSY_LIMIT: Duration = Duration::from_secs(1);

/// Search path of programs.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    path: Option<OsString>,
}

/// A failure of a program.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The program is not installed.
    #[error("{program} is not installed{}", package_of(.program))]
    Missing {
        /// Name of the program.
        program: String,
    },
    /// The program can't be started.
    #[error("can't start {program}: {source}")]
    Start {
        /// Name of the program.
        program: String,
        /// The I/O error.
        source: std::io::Error,
    },
    /// The program took too long and was killed.
    #[error("{command} did not end within {limit_secs} s and was killed")]
    TimedOut {
        /// The whole command.
        command: String,
        /// Time limit.
        limit_secs: u64,
    },
    /// The program took too long, was asked to end, and still runs.
    #[error(
        "{command} did not end within {limit_secs} s, was asked to end, and still runs as process {pid}; it was not \
         killed, because that could leave a guest's disk suspended"
    )]
    StillRunning {
        /// The whole command.
        command: String,
        /// Time limit.
        limit_secs: u64,
        /// Process id.
        pid: u32,
    },
    /// The program failed and left devices suspended: all I/O on them waits.
    #[error("{source}; and {}", suspended(.devices, *.resumed))]
    Suspended {
        /// The failure.
        source: Box<ProgramError>,
        /// Device mapper names of the devices, in the order in which to resume them.
        devices: Vec<String>,
        /// True if they were resumed.
        resumed: bool,
    },
    /// The program ended with an error.
    #[error("{command} failed ({status}): {said}")]
    Failed {
        /// The whole command.
        command: String,
        /// Exit status.
        status: ExitStatus,
        /// Last lines that it printed on stderr.
        said: String,
    },
    /// The program succeeded, but its answer is not valid.
    #[error("the answer of {command} is not understood: {what}")]
    Answer {
        /// The whole command.
        command: String,
        /// The flaw in the answer.
        what: String,
    },
}

impl ProgramError {
    /// Replaces the command line in the message by a shorter description.
    pub fn about(mut self, description: String) -> Self {
        match &mut self {
            Self::TimedOut { command, .. }
            | Self::StillRunning { command, .. }
            | Self::Failed { command, .. }
            | Self::Answer { command, .. } => *command = description,
            Self::Suspended { .. } => {}
            Self::Missing { .. } | Self::Start { .. } => {}
        }
        self
    }

    /// Returns the kind of the error, by which a caller decides what to do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } => ErrorKind::NotFound,
            Self::Start { source, .. } => ErrorKind::of_io(source),
            Self::TimedOut { .. } | Self::StillRunning { .. } | Self::Failed { .. } => ErrorKind::Unavailable,
            Self::Suspended { source, .. } => source.kind(),
            Self::Answer { .. } => ErrorKind::Unsupported,
        }
    }
}

fn suspended(devices: &[String], resumed: bool) -> String {
    match resumed {
        true => format!("left {} suspended, resumed now", devices.join(", ")),
        false => format!(
            "LEFT {} SUSPENDED, SO THE GUEST'S DISK HANGS; when no lvm2 command runs any more, type: {}",
            devices.join(", "),
            resume_commands(devices)
        ),
    }
}

/// Returns the commands that resume suspended devices.
pub(crate) fn resume_commands(devices: &[String]) -> String {
    let each = devices.iter().map(|device| format!("dmsetup resume {device}"));
    each.collect::<Vec<_>>().join("; ")
}

/// Returns a hint with the Debian package of a program that vbk itself calls.
fn package_of(program: &str) -> &'static str {
    match program {
        "lvs" | "vgs" | "lvcreate" | "lvremove" | "lvextend" | "lvchange" | "dmsetup" => {
            "; on Debian: apt install lvm2"
        }
        "thin_delta" | "thin_dump" => "; on Debian: apt install thin-provisioning-tools",
        "virsh" => "; on Debian: apt install libvirt-clients",
        "curl" => "; on Debian: apt install curl",
        "sendmail" => "; on Debian: apt install a mail server that sends, e.g. msmtp-mta or postfix",
        _ => "",
    }
}

impl Programs {
    /// Programs of the system, found by PATH.
    pub fn system() -> Self {
        Self::default()
    }

    /// Programs found by another PATH, which is also passed to them.
    pub fn found_in(path: impl Into<OsString>) -> Self {
        Self {
            path: Some(path.into()),
        }
    }

    /// Runs a program to its end and returns its stdout. Messages are in English, stdin is empty.
    pub fn run<S: AsRef<OsStr>>(&self, name: &str, args: &[S], limit: Duration) -> Result<String, ProgramError> {
        let mut command = self.command(name);
        command.args(args);
        run(command, limit)
    }

    /// Runs a program and ignores its output. Processes that it leaves running may keep the output open.
    pub fn act<S: AsRef<OsStr>>(&self, name: &str, args: &[S], limit: Duration) -> Result<(), ProgramError> {
        let mut command = self.command(name);
        command.args(args);
        act(command, limit)
    }

    /// Runs a program that must not be killed in the middle of its work, like [`Programs::act`]. At its time limit it
    /// is asked to end (SIGTERM, which lvm2 blocks during its critical section), and left to itself if it does not.
    pub fn change<S: AsRef<OsStr>>(&self, name: &str, args: &[S], limit: Duration) -> Result<(), ProgramError> {
        let mut command = self.command(name);
        let mut child = spawn(command.args(args).stdout(Stdio::null()).stderr(Stdio::piped()))?;
        let stderr = collect(child.stderr.take());
        let started = Instant::now();
        let (mut ended, mut pause) = (None, Duration::from_millis(1));
        let mut asked: Option<Instant> = None;
        while ended.is_none() && asked.is_none_or(|asked| asked.elapsed() < ASKED_LEFT) {
            if asked.is_none() && started.elapsed() >= limit {
                tracing::warn!(
                    "{} takes more than {} s and is asked to end",
                    describe(&command),
                    limit.as_secs()
                );
                if let Ok(pid) = i32::try_from(child.id()) {
                    // Not yet waited for, so the number is still the child's.
                    let _ = killpg(Pid::from_raw(pid), Signal::SIGTERM);
                }
                asked = Some(Instant::now());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
            // An error would mean that another thread waited for our child.
            ended = child.try_wait().ok().flatten();
        }
        let (command, limit_secs) = (describe(&command), limit.as_secs());
        match ended {
            // This includes a program that had just finished when it was asked to end.
            Some(status) if status.success() => Ok(()),
            Some(_) if asked.is_some() => Err(ProgramError::TimedOut { command, limit_secs }),
            Some(status) => Err(ProgramError::Failed {
                command,
                status,
                said: last_words(&stderr.recv_timeout(OUTPUT_LEFT).unwrap_or_default()),
            }),
            None => Err(ProgramError::StillRunning {
                command,
                limit_secs,
                pid: child.id(),
            }),
        }
    }

    /// Prepares a command for needs beyond [`Programs::run`]: with its own process group, in English, without input.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.env("LC_ALL", "C").env("LVM_SUPPRESS_FD_WARNINGS", "1");
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        command.stdin(Stdio::null()).process_group(0);
        command
    }
}

/// Runs a prepared command to its end and returns its stdout. Kills its process group after `limit`.
pub fn run(mut command: Command, limit: Duration) -> Result<String, ProgramError> {
    let started = Instant::now();
    let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let stdout = collect(child.stdout.take());
    end_of(&mut child, &command, started, limit, &|| false)?;
    // A truncated answer looks complete: guests would be missing from a list.
    stdout
        .recv_timeout(OUTPUT_LEFT)
        .map_err(|_| output_stays_open(&command))
}

/// Runs a prepared command to its end and discards its stdout. Kills its process group after `limit`.
pub fn act(mut command: Command, limit: Duration) -> Result<(), ProgramError> {
    let started = Instant::now();
    let mut child = spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()))?;
    end_of(&mut child, &command, started, limit, &|| false)
}

/// Runs a prepared command and passes its stdout to `read` while it runs, for output too large to keep. Output that
/// `read` does not consume is discarded. Kills its process group after `limit`, or when `stop` returns true. A bad exit
/// status wins over the result of `read`.
pub(crate) fn stream<T: Send>(
    mut command: Command,
    limit: Duration,
    stop: &dyn Fn() -> bool,
    read: impl FnOnce(&mut dyn Read) -> T + Send,
) -> Result<T, ProgramError> {
    let started = Instant::now();
    let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let over = OnceLock::new();
    let mut output = Output {
        pipe: child.stdout.take().expect("is a pipe"),
        over: &over,
        is_cut: false,
    };
    let (ended, found) = std::thread::scope(|scope| {
        let reader = std::thread::Builder::new().name("vbk-output".into());
        let reader = reader.spawn_scoped(scope, move || {
            let found = read(&mut output);
            // A program whose output is not read would end with SIGPIPE, which would hide its real error.
            let _ = std::io::copy(&mut output, &mut std::io::sink());
            (found, output.is_cut)
        });
        let ended = end_of(&mut child, &command, started, limit, stop);
        // The program leaves little in the pipe; if it failed, its output is not used.
        let left = if ended.is_ok() { OUTPUT_LEFT } else { Duration::ZERO };
        let _ = over.set(Instant::now() + left);
        (ended, reader.map(|reader| reader.join().expect("readers do not panic")))
    });
    ended?;
    let (found, is_cut) = found.map_err(|source| ProgramError::Start {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    })?;
    match is_cut {
        true => Err(output_stays_open(&command)),
        false => Ok(found),
    }
}

/// Output of a running program. Ends with an error some time after the program's end, if a process still holds it.
struct Output<'a> {
    pipe: ChildStdout,
    /// Time after which nothing is read; set when the program ends.
    over: &'a OnceLock<Instant>,
    /// True if it was cut at that time.
    is_cut: bool,
}

impl Read for Output<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        loop {
            if self.over.get().is_some_and(|over| Instant::now() >= *over) {
                self.is_cut = true;
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            // Never blocks in `read`: an unkillable process may hold the other end.
            let mut pipe = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
            match poll(&mut pipe, OUTPUT_POLL_MS) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return self.pipe.read(bytes),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn output_stays_open(command: &Command) -> ProgramError {
    ProgramError::Answer {
        command: describe(command),
        what: "it ended, but a process that it started still holds its output".to_owned(),
    }
}

/// Waits for the end of a program and turns a bad one into an error.
fn end_of(
    child: &mut Child,
    command: &Command,
    started: Instant,
    limit: Duration,
    stop: &dyn Fn() -> bool,
) -> Result<(), ProgramError> {
    let stderr = collect(child.stderr.take());
    match wait(child, started, limit, stop) {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(ProgramError::Failed {
            command: describe(command),
            status,
            said: last_words(&stderr.recv_timeout(OUTPUT_LEFT).unwrap_or_default()),
        }),
        None => Err(ProgramError::TimedOut {
            command: describe(command),
            limit_secs: limit.as_secs(),
        }),
    }
}

/// Starts a prepared command. Retries for a moment if the program's file is being written, e.g. by an upgrade.
pub(crate) fn spawn(command: &mut Command) -> Result<Child, ProgramError> {
    let started = Instant::now();
    loop {
        let source = match command.spawn() {
            Ok(child) => return Ok(child),
            Err(source) => source,
        };
        let program = command.get_program().to_string_lossy().into_owned();
        match source.kind() {
            std::io::ErrorKind::ExecutableFileBusy if started.elapsed() < BUSY_LIMIT => {
                std::thread::sleep(Duration::from_millis(10));
            }
            std::io::ErrorKind::NotFound => return Err(ProgramError::Missing { program }),
            _ => return Err(ProgramError::Start { program, source }),
        }
    }
}

/// Waits for the end of a child; `None` if it had to be killed.
fn wait(child: &mut Child, started: Instant, limit: Duration, stop: &dyn Fn() -> bool) -> Option<ExitStatus> {
    let mut pause = Duration::from_millis(1);
    loop {
        // An error would mean that another thread waited for our child.
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if started.elapsed() >= limit || stop() {
            kill_group(child);
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Kills a child and its descendants in the same process group, and waits for the child, but not for ever.
pub(crate) fn kill_group(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // Not yet waited for, so the number is still the child's.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let killed = Instant::now();
    while matches!(child.try_wait(), Ok(None)) && killed.elapsed() < KILLED_LEFT {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn collect(output: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = sync_channel(1);
    if let Some(output) = output {
        // Ends with the program, or with the last child that holds the pipe.
        let reader = std::thread::Builder::new().name("vbk-output".into());
        let _ = reader.spawn(move || {
            let mut bytes = Vec::new();
            let _ = output.take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes);
            let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
        });
    }
    receiver
}

/// Joins the last lines of stderr: programs give the reason last, but rarely in one line.
pub(crate) fn last_words(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.len() {
        0 => "it printed nothing".to_owned(),
        count => lines[count.saturating_sub(3)..].join("; "),
    }
}

/// Formats a command as an administrator would type it.
pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
