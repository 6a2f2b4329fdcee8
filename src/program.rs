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
            Self::TimedOut { command, .. } | Self::Failed { command, .. } | Self::Answer { command, .. } => {
                *command = told
            }
            Self::Missing { .. } | Self::Start { .. } => {}
        }
        self
    }

    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } => ErrorKind::NotFound,
            Self::Start { source, .. } => ErrorKind::of_io(source),
            Self::TimedOut { .. } | Self::Failed { .. } => ErrorKind::Unavailable,
            Self::Answer { .. } => ErrorKind::Unsupported,
        }
    }
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
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Result<String, ProgramError> {
        Programs::system().run("sh", &["-c", script], limit)
    }

    #[test]
    fn a_program_gives_its_output_or_its_last_words() {
        let long = Duration::from_secs(20);
        assert_eq!(sh("echo $LC_ALL", long).expect("runs"), "C\n");
        let error = sh("echo one >&2; echo two >&2; exit 5", long)
            .expect_err("fails")
            .to_string();
        assert!(
            error.contains("one; two") && error.contains("exit status: 5"),
            "{error}"
        );
        let error = Programs::system()
            .run("no-such-program", &["x"], long)
            .expect_err("fails");
        assert!(matches!(error, ProgramError::Missing { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = dir.path().join("mark");
        let script = format!("(sleep 1; touch {}) & wait", mark.display());
        let clock = Instant::now();
        let error = sh(&script, Duration::from_millis(200)).expect_err("is killed");
        assert!(matches!(error, ProgramError::TimedOut { .. }), "{error}");
        assert!(clock.elapsed() < Duration::from_secs(1));
        std::thread::sleep(Duration::from_millis(1300));
        assert!(!mark.exists(), "the child was killed too");
    }

    #[test]
    fn a_program_that_can_not_be_killed_does_not_hold_us() {
        let fs = crate::snapshot::tests::files::Loop::mounted("mkfs.xfs -q");
        let path = fs.path().display().to_string();
        let freeze = |option| {
            let frozen = sh(&format!("/usr/sbin/fsfreeze {option} {path}"), Duration::from_secs(20));
            frozen.expect("needs root");
        };
        freeze("-f");
        let clock = Instant::now();
        // Waits in the kernel, where no signal reaches it.
        let touched = sh(&format!("exec touch {path}/file"), Duration::from_millis(200));
        let took = clock.elapsed();
        freeze("-u");
        assert!(matches!(touched, Err(ProgramError::TimedOut { .. })), "{touched:?}");
        assert!((KILLED_LEFT..KILLED_LEFT * 3).contains(&took), "{took:?}");
    }

    #[test]
    fn output_is_given_while_a_program_runs_and_its_failure_comes_first() {
        let stream = |script: &str, limit| {
            let mut command = Programs::system().command("sh");
            command.args(["-c", script]);
            super::stream(command, limit, &|| false, |output| {
                let mut start = [0; 3];
                output.read_exact(&mut start).map(|()| start)
            })
        };
        let long = Duration::from_secs(20);
        // More than a pipe holds: what is not taken must not stop it.
        let found = stream("echo abcdef; head -c 1000000 /dev/zero", long).expect("runs");
        assert_eq!(found.expect("reads"), *b"abc");
        let error = stream("echo abcdef; echo why >&2; exit 3", long).expect_err("fails");
        assert!(error.to_string().contains("why"), "{error}");
        let clock = Instant::now();
        let error = stream("echo abcdef; sleep 30", Duration::from_millis(300)).expect_err("is killed");
        assert!(matches!(error, ProgramError::TimedOut { .. }), "{error}");
        assert!(clock.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_child_that_holds_the_output_does_not_hold_us_and_leaves_no_answer() {
        let clock = Instant::now();
        let late = "(sleep 30; echo web1) & exit 0";
        let error = sh(late, Duration::from_secs(20)).expect_err("an empty answer would be a wrong one");
        assert!(matches!(error, ProgramError::Answer { .. }), "{error}");
        // A service that was started keeps what it was given.
        Programs::system()
            .act("sh", &["-c", late], Duration::from_secs(20))
            .expect("ends well");
        let read = |script: &str, limit, stop: &dyn Fn() -> bool| {
            let mut command = Programs::system().command("sh");
            command.args(["-c", script]);
            super::stream(command, limit, stop, |output| {
                let mut all = String::new();
                output.read_to_string(&mut all).map(|_| all)
            })
        };
        let error = read(late, Duration::from_secs(20), &|| false).expect_err("half an answer is none");
        assert!(matches!(error, ProgramError::Answer { .. }), "{error}");
        // Beyond the reach of the kill, as one that waits for a disk.
        let out_of_reach = "setsid sleep 30 & wait";
        for (limit_ms, is_stopped) in [(300, false), (20_000, true)] {
            let error = read(out_of_reach, Duration::from_millis(limit_ms), &|| is_stopped).expect_err("is killed");
            assert!(matches!(error, ProgramError::TimedOut { .. }), "{error}");
        }
        assert!(clock.elapsed() < Duration::from_secs(15), "{:?}", clock.elapsed());
    }
}
