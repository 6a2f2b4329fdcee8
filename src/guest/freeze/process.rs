//! The helper process itself, started as `vbk freeze-helper`: acts, waits for the end of its input or for its limit,
//! and undoes.
//!
//! Everything it needs is ready before the guest is frozen: its program is in memory and locked there, its files are
//! open, and the OOM killer spares it. From then on it needs the kernel only to start programs (virsh, the
//! administrator's post-thaw), and a start that fails is tried again. Nothing but SIGKILL ends it:
//!
//! | threat | defence |
//! |---|---|
//! | oom_score_adj of the unit, memory.oom.group, MemoryMax | -1000, exempt from all these; commands get the old one |
//! | TERM, INT, HUP, QUIT of a service or terminal | ignored, also by its children; a process group of its own |
//! | a log, a terminal or a pipe that has gone | it writes only to files in memory |
//! | RLIMIT_CPU, RLIMIT_FSIZE, niceness | lifted, for thawing |

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::task::{Task, Undo};
use super::thaw::{Outcome, Thawing, Virsh};
use crate::host::program::{ProgramError, Programs, kill_group, last_words, spawn};
use crate::sys;

/// Runs a command under timeout(1), which installs signal handlers, so that its command does not inherit the ignored
/// signals. `$1` is the oom_score_adj to set, or empty.
const IGNORE: &str = r#"
trap "" TERM INT HUP QUIT
[ -z "$1" ] || echo "$1" 2>/dev/null >/proc/self/oom_score_adj
shift
exec "$@"
"#;

/// Time that the act may take beyond its own timeout(1).
const ACT_MARGIN: Duration = Duration::from_secs(5);
/// Time to wait for the lock: a helper of an earlier backup of the guest may be just ending.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Interval of polling; short, because the guest is frozen while the helper sleeps.
const POLL: Duration = Duration::from_millis(2);
/// Minimum interval between reports of failed attempts.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// Pauses between attempts; the last one repeats.
const PAUSES_SECS: [u64; 5] = [1, 2, 5, 10, 30];
/// Length of an answer that is read.
const ANSWER_BYTES: usize = 16 << 10;
/// File in which a process sets its score for the OOM killer (proc(5)).
const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";
/// Exit status of a shell for a missing program.
const NOT_FOUND: i32 = 127;

/// Runs a task that vbk has written (`freeze/helper.rs`). Standard input is the pipe from vbk, standard output the
/// report, and standard error takes the programs' messages. Returns false if nothing was begun.
pub fn run(task: &str, report: &mut dyn Write) -> bool {
    let task: Task = match serde_json::from_str(task) {
        Ok(task) => task,
        Err(error) => return refuse(&format!("can't parse its task: {error}")),
    };
    // Before anything is begun, so that all children inherit it.
    sys::ignore_ending_signals();
    let oom_before = spare_from_oom_killer();
    if matches!(task.undo, Undo::Thaw(_)) {
        sys::lift_limits();
        let _ = sys::set_nice(0);
    }
    let _lock = match task.lock.as_deref().map(lock).transpose() {
        Ok(lock) => lock,
        Err(holder) => {
            let _ = writeln!(report, "busy {holder}");
            return false;
        }
    };
    let outer = task
        .outer
        .as_deref()
        .map(|path| OpenOptions::new().write(true).open(path));
    let (_outer, answer) = match (outer.transpose(), memfd_create("vbk-answer", MFdFlags::MFD_CLOEXEC)) {
        (Ok(outer), Ok(answer)) => (outer, File::from(answer)),
        (Err(error), _) => return refuse(&format!("can't hold the outer helper: {error}")),
        (_, Err(error)) => return refuse(&format!("can't create a file in memory: {error}")),
    };
    let mut helper = Helper {
        programs: Programs::system(),
        answer,
        oom_before,
        task,
    };
    if let Err(error) = helper.run("timeout", &["--version".to_owned()], ACT_MARGIN) {
        return refuse(&error.to_string());
    }
    sys::lock_memory();
    let _ = writeln!(report, "armed");
    let begun = Instant::now();
    let acted = helper.act();
    let _ = writeln!(report, "acted {acted}");
    let asked = wait_for_end_of_input(begun, helper.task.limit);
    let _ = writeln!(report, "{}", if asked { "asked" } else { "limit" });
    let undone = match helper.task.undo.clone() {
        Undo::Command(words) => helper.undo_once(&words),
        Undo::Thaw(domain) => helper.thaw(&domain),
    };
    drop(_lock);
    let _ = writeln!(report, "undone {undone}");
    true
}

fn refuse(why: &str) -> bool {
    let _ = writeln!(std::io::stderr(), "{why}");
    false
}

/// Exempts this process and its children from the OOM killer as far as permitted, and returns the previous score. An
/// unprivileged process at least does not stand out.
fn spare_from_oom_killer() -> String {
    let before = fs::read_to_string(OOM_SCORE_ADJ).unwrap_or_default().trim().to_owned();
    let scores: &[&str] = match before.parse::<i32>() {
        Ok(before) if before <= 0 => &["-1000"],
        _ => &["-1000", "0"],
    };
    let _ = scores.iter().find(|score| fs::write(OOM_SCORE_ADJ, score).is_ok());
    before
}

/// Locks a file; the error describes its holder.
fn lock(path: &Path) -> Result<File, String> {
    let begun = Instant::now();
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW);
    let mut file = options
        .open(path)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    while let Err(error) = file.try_lock() {
        if begun.elapsed() >= LOCK_WAIT {
            let holder = fs::read_to_string(path).unwrap_or_default();
            return match error {
                fs::TryLockError::WouldBlock => Err(format!("process {}", holder.trim())),
                fs::TryLockError::Error(error) => Err(format!("{}: {error}", path.display())),
            };
        }
        std::thread::sleep(POLL);
    }
    let _ = file.set_len(0);
    let _ = write!(file, "{}", std::process::id());
    Ok(file)
}

/// Waits for the end of the input, which is also the end of vbk. Returns false if the limit comes first.
fn wait_for_end_of_input(begun: Instant, limit: Duration) -> bool {
    let input = std::io::stdin();
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let millis = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
        let mut pipe = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        // vbk never writes to it, so only its end makes it readable.
        match poll(&mut pipe, millis) {
            Ok(1..) => return true,
            _ if left.is_zero() => return false,
            _ => {}
        }
    }
}

struct Helper {
    programs: Programs,
    /// File in memory that takes virsh's output.
    answer: File,
    /// oom_score_adj of vbk.
    oom_before: String,
    task: Task,
}

impl Helper {
    /// Runs the act and returns its exit status. timeout(1) ends the act even if this process is killed.
    fn act(&mut self) -> i32 {
        let seconds = format!("{:.3}", self.task.act_limit.as_secs_f64().max(0.001));
        let words = [
            "-s",
            "KILL",
            &seconds,
            "sh",
            "-c",
            IGNORE,
            "vbk-act",
            self.score_of_commands(),
        ];
        let words: Vec<String> = words
            .map(str::to_owned)
            .into_iter()
            .chain(self.task.act.clone())
            .collect();
        match self.start("timeout", &words, None) {
            Ok(mut child) => status_of(wait(&mut child, Some(self.task.act_limit + ACT_MARGIN))),
            Err(error) => {
                refuse(&error.to_string());
                NOT_FOUND
            }
        }
    }

    /// Returns the oom_score_adj for commands: the administrator's are as likely to be killed as vbk; virsh stays
    /// exempt.
    fn score_of_commands(&self) -> &str {
        match self.task.undo {
            Undo::Command(_) => &self.oom_before,
            Undo::Thaw(_) => "",
        }
    }

    /// Runs an administrator's command once. A start that fails is not a run.
    fn undo_once(&mut self, words: &[String]) -> i32 {
        let wrapped = ["-c", IGNORE, "vbk-undo", self.score_of_commands()];
        let words: Vec<String> = wrapped
            .iter()
            .map(|word| (*word).to_owned())
            .chain(words.iter().cloned())
            .collect();
        let mut reporter = Reporter::new(&self.task);
        loop {
            match self.start("sh", &words, None) {
                Ok(mut child) => return status_of(wait(&mut child, None)),
                Err(error) => {
                    let why = error.to_string();
                    let what = format!("its post-thaw command can't be started ({why}); vbk tries again");
                    reporter.failed(&why, &what);
                }
            }
            reporter.pause();
        }
    }

    fn thaw(&mut self, domain: &str) -> i32 {
        let mut thawing = Thawing::new(domain);
        let mut reporter = Reporter::new(&self.task);
        loop {
            match thawing.tried(&mut |words, limit| self.ask(words, limit)) {
                Outcome::Thawed(said) => {
                    refuse(&said);
                    reporter.ended("its file systems are thawed");
                    return 0;
                }
                Outcome::Off => {
                    refuse("the guest is not running any more");
                    reporter.ended("it is not running any more, so nothing is frozen");
                    return 0;
                }
                Outcome::Gone => {
                    let what = format!(
                        "libvirt has no domain {domain} any more; if it was migrated, `virsh domfsthaw` on its new \
                         host thaws it"
                    );
                    refuse(&what);
                    reporter.ended(&what);
                    return 1;
                }
                Outcome::Again(why) => {
                    let what = format!(
                        "its file systems may be frozen: `virsh domfsthaw {domain}` fails ({why}); vbk tries again \
                         until the guest is thawed or off"
                    );
                    reporter.failed(&why, &what);
                }
            }
            reporter.pause();
        }
    }

    fn ask(&mut self, words: &[&str], limit: Duration) -> Virsh {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        match self.run("virsh", &words, limit) {
            Ok((0, said)) => Virsh::Said(said),
            Ok((status, said)) => Virsh::Failed(format!("exit status {status}: {}", last_words(&said))),
            Err(error) => Virsh::Failed(error.to_string()),
        }
    }

    /// Runs a program to its end or its limit; returns its exit status and its output.
    fn run(&mut self, program: &str, words: &[String], limit: Duration) -> Result<(i32, String), ProgramError> {
        // A killed program may still write to the old content, which does not matter.
        let _ = self.answer.set_len(0);
        let _ = self.answer.rewind();
        let output = self.answer.try_clone();
        let output = output.map_err(|source| ProgramError::Start {
            program: program.to_owned(),
            source,
        })?;
        let mut child = self.start(program, words, Some(output))?;
        let status = status_of(wait(&mut child, Some(limit)));
        let mut bytes = vec![0; ANSWER_BYTES];
        let read = self.answer.read_at(&mut bytes, 0).unwrap_or_default();
        bytes.truncate(read);
        Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Starts a program with all its output going to a file in memory: the given one, or the one that vbk reads.
    fn start(&self, program: &str, words: &[String], output: Option<File>) -> Result<Child, ProgramError> {
        let failed = |source| ProgramError::Start {
            program: program.to_owned(),
            source,
        };
        let mut command = self.programs.command(program);
        let (stdout, stderr): (Stdio, Stdio) = match output {
            Some(file) => (file.try_clone().map_err(failed)?.into(), file.into()),
            None => (std::io::stderr().into(), std::io::stderr().into()),
        };
        spawn(command.args(words).stdout(stdout).stderr(stderr))
    }
}

/// Waits for a program; at its limit, kills it and its descendants.
fn wait(child: &mut Child, limit: Option<Duration>) -> Option<ExitStatus> {
    let Some(limit) = limit else {
        return child.wait().ok();
    };
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) if begun.elapsed() < limit => std::thread::sleep(POLL),
            Ok(None) => {
                kill_group(child);
                return None;
            }
            Ok(status) => return status,
            Err(_) => return None,
        }
    }
}

/// Returns the status in a shell's form; for a killed program without a status, that of SIGKILL.
fn status_of(status: Option<ExitStatus>) -> i32 {
    let killed = 128 + libc::SIGKILL;
    status.map_or(killed, |status| {
        status.code().unwrap_or(128 + status.signal().unwrap_or(libc::SIGKILL))
    })
}

/// Reports failed attempts to vbk and to the system's log, and paces them.
struct Reporter {
    guest: String,
    journal: PathBuf,
    begun: Instant,
    reported: Option<Instant>,
    last: String,
    pauses: usize,
}

impl Reporter {
    fn new(task: &Task) -> Self {
        Self {
            guest: task.guest.clone(),
            journal: task.journal.clone(),
            begun: Instant::now(),
            reported: None,
            last: String::new(),
            pauses: 0,
        }
    }

    fn failed(&mut self, why: &str, what: &str) {
        // Only new messages: vbk may be gone, and its file in memory must not grow for ever.
        if self.last != why {
            self.last = why.to_owned();
            refuse(why);
        }
        if self.reported.is_none_or(|reported| reported.elapsed() >= REPORT_EVERY) {
            self.reported = Some(Instant::now());
            self.log(&format!("{what}; so far for {} s", self.begun.elapsed().as_secs()));
        }
    }

    fn ended(&mut self, what: &str) {
        if self.reported.is_some() {
            self.log(&format!("{what}, after {} s", self.begun.elapsed().as_secs()));
        }
    }

    /// Needs no other program: if none can be started, this message matters most.
    fn log(&self, what: &str) {
        // Facility daemon, severity error (syslog(3)).
        let line = format!("<27>vbk[{}]: guest {}: {what}", std::process::id(), self.guest);
        let sent = UnixDatagram::unbound().and_then(|socket| {
            // A stuck log must not keep a guest frozen.
            socket.set_nonblocking(true)?;
            socket.send_to(line.as_bytes(), &self.journal)
        });
        let _ = sent;
    }

    fn pause(&mut self) {
        let secs = PAUSES_SECS[self.pauses.min(PAUSES_SECS.len() - 1)];
        self.pauses += 1;
        std::thread::sleep(Duration::from_secs(secs));
    }
}
