//! Runs other programs: lvm2, virsh, the administrator's own commands. Each has a time limit, an end that is waited
//! for, and output of bounded size.
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

/// What a program may print; more is cut off, and what reads it finds that it ends too early.
const MAX_OUTPUT_BYTES: u64 = 64 << 20;
/// How long the output of a program that has ended may stay open: a child of it may hold it, and what it writes then is no
/// answer of the program.
const OUTPUT_LEFT: Duration = Duration::from_secs(2);
/// How long a killed program may take to end. One that waits for a disk that does not answer ends when the disk does, or
/// never (lvm2 looks at every disk of the host); it is left to itself then.
const KILLED_LEFT: Duration = Duration::from_secs(5);
/// How long a program that was asked to end may take for it.
const ASKED_LEFT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 20 });
/// How often who reads output looks whether the program has ended.
const OUTPUT_POLL_MS: u8 = 50;
/// How long a program may be busy being written.
const BUSY_LIMIT: Duration = Duration::from_secs(1);

/// Where programs are looked for.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    path: Option<OsString>,
}

/// Why a program did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not installed.
    #[error("{program} is not installed{}", package_of(.program))]
    Missing {
        /// Its name.
        program: String,
    },
    /// It can't be started.
    #[error("can't start {program}: {source}")]
    Start {
        /// Its name.
        program: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It took too long and was killed.
    #[error("{command} did not end within {limit_secs} s and was killed")]
    TimedOut {
        /// The whole command.
        command: String,
        /// The limit.
        limit_secs: u64,
    },
    /// It took too long, was asked to end, and goes on.
    #[error(
        "{command} did not end within {limit_secs} s, was asked to end, and goes on as process {pid}; it was not killed: in the \
         midst of its work that could leave a guest's disk suspended"
    )]
    GoesOn {
        /// The whole command.
        command: String,
        /// The limit.
        limit_secs: u64,
        /// Its process.
        pid: u32,
    },
    /// It failed, and devices are suspended: what reads or writes them waits.
    #[error("{source}; and {}", suspended(.devices, *.resumed))]
    Suspended {
        /// Its failure.
        source: Box<ProgramError>,
        /// The devices, as the device mapper names them, in the order in which to resume them.
        devices: Vec<String>,
        /// They were resumed.
        resumed: bool,
    },
    /// It ended with an error.
    #[error("{command} failed ({status}): {said}")]
    Failed {
        /// The whole command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last words on stderr.
        said: String,
    },
    /// It ended well, but its answer makes no sense.
    #[error("the answer of {command} is not understood: {what}")]
    Answer {
        /// The whole command.
        command: String,
        /// What is wrong with it.
        what: String,
    },
}

impl ProgramError {
    /// The same of a command that is told in other words, where the whole would say little to who reads it.
    pub fn about(mut self, told: String) -> Self {
        match &mut self {
            Self::TimedOut { command, .. }
            | Self::GoesOn { command, .. }
            | Self::Failed { command, .. }
            | Self::Answer { command, .. } => *command = told,
            Self::Suspended { .. } => {}
            Self::Missing { .. } | Self::Start { .. } => {}
        }
        self
    }

    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } => ErrorKind::NotFound,
            Self::Start { source, .. } => ErrorKind::of_io(source),
            Self::TimedOut { .. } | Self::GoesOn { .. } | Self::Failed { .. } => ErrorKind::Unavailable,
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

/// The commands that make suspended devices work again.
pub(crate) fn resume_commands(devices: &[String]) -> String {
    let each = devices.iter().map(|device| format!("dmsetup resume {device}"));
    each.collect::<Vec<_>>().join("; ")
}

/// The Debian package of the programs that vbk itself calls, for the message.
fn package_of(program: &str) -> &'static str {
    match program {
        "lvs" | "vgs" | "lvcreate" | "lvremove" | "lvextend" | "lvchange" | "dmsetup" => {
            "; on Debian: apt install lvm2"
        }
        "thin_delta" | "thin_dump" => "; on Debian: apt install thin-provisioning-tools",
        "virsh" => "; on Debian: apt install libvirt-clients",
        _ => "",
    }
}

impl Programs {
    /// Those of the system, found by PATH.
    pub fn system() -> Self {
        Self::default()
    }

    /// Those found by another PATH, which they get too.
    pub fn found_in(path: impl Into<OsString>) -> Self {
        Self {
            path: Some(path.into()),
        }
    }

    /// Runs a program to its end and gives what it printed on stdout. Messages are in English, stdin is empty.
    pub fn run<S: AsRef<OsStr>>(&self, name: &str, args: &[S], limit: Duration) -> Result<String, ProgramError> {
        let mut command = self.command(name);
        command.args(args);
        run(command, limit)
    }

    /// Runs a program whose answer does not matter; what it leaves running may hold its output.
    pub fn act<S: AsRef<OsStr>>(&self, name: &str, args: &[S], limit: Duration) -> Result<(), ProgramError> {
        let mut command = self.command(name);
        command.args(args);
        act(command, limit)
    }

    /// Runs a program that must not be killed in the midst of its work, as [`Programs::act`] does. At its limit it is asked to
    /// end (SIGTERM, which lvm2 blocks while it may not be disturbed), and left to itself if it does not.
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
            // An error here would mean that another thread has waited for our child.
            ended = child.try_wait().ok().flatten();
        }
        let (command, limit_secs) = (describe(&command), limit.as_secs());
        match ended {
            // Also one that was done when it was asked.
            Some(status) if status.success() => Ok(()),
            Some(_) if asked.is_some() => Err(ProgramError::TimedOut { command, limit_secs }),
            Some(status) => Err(ProgramError::Failed {
                command,
                status,
                said: last_words(&stderr.recv_timeout(OUTPUT_LEFT).unwrap_or_default()),
            }),
            None => Err(ProgramError::GoesOn {
                command,
                limit_secs,
                pid: child.id(),
            }),
        }
    }

    /// A command in the way of this module, for what [`Programs::run`] can't do: its own process group, English, no
    /// input.
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

/// Runs a prepared command to its end and gives what it printed on stdout. With `limit` over, its process group is
/// killed.
pub fn run(mut command: Command, limit: Duration) -> Result<String, ProgramError> {
    let started = Instant::now();
    let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let stdout = collect(child.stdout.take());
    end_of(&mut child, &command, started, limit, &|| false)?;
    // Half an answer looks like a whole one: guests would be missing in a list.
    stdout
        .recv_timeout(OUTPUT_LEFT)
        .map_err(|_| output_stays_open(&command))
}

/// Runs a prepared command to its end, and throws away what it prints on stdout. With `limit` over, its process group is
/// killed.
pub fn act(mut command: Command, limit: Duration) -> Result<(), ProgramError> {
    let started = Instant::now();
    let mut child = spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()))?;
    end_of(&mut child, &command, started, limit, &|| false)
}

/// Runs a prepared command and gives its stdout to `read` while it runs, for output too large to keep. What `read` leaves
/// is thrown away. With `limit` over, or when `stop` becomes true, its process group is killed. Its exit status comes before
/// what `read` found.
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
            // A program whose output nobody takes would end with SIGPIPE, and hide what was wrong with it.
            let _ = std::io::copy(&mut output, &mut std::io::sink());
            (found, output.is_cut)
        });
        let ended = end_of(&mut child, &command, started, limit, stop);
        // What the program left in the pipe is little; nothing of one that failed is used.
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

/// The output of a program that runs. Ends with an error some time after the program's end, if something still holds it.
struct Output<'a> {
    pipe: ChildStdout,
    /// From then on nothing is read.
    over: &'a OnceLock<Instant>,
    /// Whether it ended so.
    is_cut: bool,
}

impl Read for Output<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        loop {
            if self.over.get().is_some_and(|over| Instant::now() >= *over) {
                self.is_cut = true;
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            // Never waits in `read`: the other end may be held by a process that no signal reaches.
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
        what: "it ended, and what it started still holds its output".to_owned(),
    }
}

/// Waits for the end of a program, and tells why it is not a good one.
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

/// Starts a prepared command. A program that is just being written, as by an upgrade, is waited for a moment.
pub fn spawn(command: &mut Command) -> Result<Child, ProgramError> {
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
        // An error here would mean that somebody else has waited for our child.
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

/// Kills a child and all that it started, as far as they stayed in its process group, and waits for the child, but not for
/// ever.
pub fn kill_group(child: &mut Child) {
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

/// The last lines, in one: programs give the reason last, but rarely in one line.
pub(crate) fn last_words(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.len() {
        0 => "it said nothing".to_owned(),
        count => lines[count.saturating_sub(3)..].join("; "),
    }
}

/// The command as somebody would type it.
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
