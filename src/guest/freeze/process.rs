//! The helper process itself, as `vbk freeze-helper`: acts, waits for the end of its input or for its limit, and undoes.
//!
//! Everything that it needs is there before the guest is frozen: its program is in memory and locked there, its files are
//! open, and it is out of reach of the OOM killer. From then on it needs the kernel's help only for starting programs
//! (virsh, the administrator's post-thaw), and a start that fails is tried again. Nothing ends it but SIGKILL:
//!
//! | what vbk leaves to it | what is done about it |
//! |---|---|
//! | oom_score_adj of the unit, memory.oom.group, MemoryMax | -1000, which the kernel excepts from all of them; the administrator's commands get the old one back |
//! | TERM, INT, HUP, QUIT of a service or terminal | ignored, also by what it starts; a process group of its own |
//! | a log, a terminal or a pipe that is gone | it writes into files in memory only |
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

/// Runs a command that timeout(1) started: that has handlers of its own, so its command does not inherit that signals are
/// ignored. `$1` is the oom_score_adj to take, or nothing.
const IGNORE: &str = r#"
trap "" TERM INT HUP QUIT
[ -z "$1" ] || echo "$1" 2>/dev/null >/proc/self/oom_score_adj
shift
exec "$@"
"#;

/// How much longer than its own timeout(1) the act may take.
const ACT_MARGIN: Duration = Duration::from_secs(5);
/// A helper of an earlier backup of the guest, that is just ending, still has the lock.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// The guest is frozen while the helper sleeps.
const POLL: Duration = Duration::from_millis(2);
/// Tells of a try that fails, at most so often.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// Pauses between tries; the last one stays.
const PAUSES_SECS: [u64; 5] = [1, 2, 5, 10, 30];
/// The most of an answer that is read.
const ANSWER_BYTES: usize = 16 << 10;
/// The file in which a process says how ready it is to be killed (proc(5)).
const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";
/// The status of a shell for a program that is not there.
const NOT_FOUND: i32 = 127;

/// Runs a task that vbk has written (`freeze/helper.rs`). Standard input is the pipe from vbk, standard output the report,
/// and standard error takes the words of programs. False if nothing was begun.
pub fn run(task: &str, report: &mut dyn Write) -> bool {
    let task: Task = match serde_json::from_str(task) {
        Ok(task) => task,
        Err(error) => return refuse(&format!("its task is not understood: {error}")),
    };
    // Before anything is begun, and inherited by all that is started.
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
        (_, Err(error)) => return refuse(&format!("can't make a file in memory: {error}")),
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

/// Excepts this process and what it starts from the OOM killer, as far as it may; gives what it had before. A process
/// without rights at least does not go before others.
fn spare_from_oom_killer() -> String {
    let before = fs::read_to_string(OOM_SCORE_ADJ).unwrap_or_default().trim().to_owned();
    let wishes: &[&str] = match before.parse::<i32>() {
        Ok(before) if before <= 0 => &["-1000"],
        _ => &["-1000", "0"],
    };
    let _ = wishes.iter().find(|wish| fs::write(OOM_SCORE_ADJ, wish).is_ok());
    before
}

/// Locks a file; the error is its holder.
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

/// True at the end of the input, which is also vbk's end; false when the limit is over first.
fn wait_for_end_of_input(begun: Instant, limit: Duration) -> bool {
    let input = std::io::stdin();
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let millis = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
        let mut pipe = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        // Nothing is ever written to it, so what there is to read is its end.
        match poll(&mut pipe, millis) {
            Ok(1..) => return true,
            _ if left.is_zero() => return false,
            _ => {}
        }
    }
}

struct Helper {
    programs: Programs,
    /// Takes what virsh says.
    answer: File,
    /// The oom_score_adj of vbk.
    oom_before: String,
    task: Task,
}

impl Helper {
    /// The act's exit status. timeout(1) ends it also if this process is killed.
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

    /// The administrator's programs are as likely to be killed as vbk; nothing for virsh, which stays spared.
    fn score_of_commands(&self) -> &str {
        match self.task.undo {
            Undo::Command(_) => &self.oom_before,
            Undo::Thaw(_) => "",
        }
    }

    /// Runs a command of the administrator's once. A start that fails is not a run.
    fn undo_once(&mut self, words: &[String]) -> i32 {
        let wrapped = ["-c", IGNORE, "vbk-undo", self.score_of_commands()];
        let words: Vec<String> = wrapped
            .iter()
            .map(|word| (*word).to_owned())
            .chain(words.iter().cloned())
            .collect();
        let mut teller = Teller::new(&self.task);
        loop {
            match self.start("sh", &words, None) {
                Ok(mut child) => return status_of(wait(&mut child, None)),
                Err(error) => {
                    let why = error.to_string();
                    let what = format!("its post-thaw command can't be started ({why}); this is tried again");
                    teller.failed(&why, &what);
                }
            }
            teller.pause();
        }
    }

    fn thaw(&mut self, domain: &str) -> i32 {
        let mut thawing = Thawing::new(domain);
        let mut teller = Teller::new(&self.task);
        loop {
            match thawing.tried(&mut |words, limit| self.ask(words, limit)) {
                Outcome::Thawed(said) => {
                    refuse(&said);
                    teller.ended("its file systems are thawed");
                    return 0;
                }
                Outcome::Off => {
                    refuse("the guest does not run any more");
                    teller.ended("it does not run any more, so nothing of it is frozen");
                    return 0;
                }
                Outcome::Gone => {
                    let what = format!(
                        "libvirt knows no domain {domain} any more; if it was migrated, `virsh domfsthaw` on its new host thaws it"
                    );
                    refuse(&what);
                    teller.ended(&what);
                    return 1;
                }
                Outcome::Again(why) => {
                    let what = format!(
                        "its file systems may be frozen: `virsh domfsthaw {domain}` fails ({why}); it is tried again until the \
                         guest is thawed or off"
                    );
                    teller.failed(&why, &what);
                }
            }
            teller.pause();
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

    /// Runs a program to its end or its limit; gives its status, and its words.
    fn run(&mut self, program: &str, words: &[String], limit: Duration) -> Result<(i32, String), ProgramError> {
        // What a killed program still writes into the old one does not matter.
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

    /// Starts a program, with all its output in a file in memory: that one, or the one that vbk reads.
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

/// Waits for a program, and kills it with all that it started at its limit.
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

/// The status as a shell gives it; that of a killed one without an end.
fn status_of(status: Option<ExitStatus>) -> i32 {
    let killed = 128 + libc::SIGKILL;
    status.map_or(killed, |status| {
        status.code().unwrap_or(128 + status.signal().unwrap_or(libc::SIGKILL))
    })
}

/// Tells vbk and the system's log of tries that fail, and paces them.
struct Teller {
    guest: String,
    journal: PathBuf,
    begun: Instant,
    told: Option<Instant>,
    last: String,
    pauses: usize,
}

impl Teller {
    fn new(task: &Task) -> Self {
        Self {
            guest: task.guest.clone(),
            journal: task.journal.clone(),
            begun: Instant::now(),
            told: None,
            last: String::new(),
            pauses: 0,
        }
    }

    fn failed(&mut self, why: &str, what: &str) {
        // Only what is new: vbk may be gone, and its file in memory must not grow for ever.
        if self.last != why {
            self.last = why.to_owned();
            refuse(why);
        }
        if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            self.log(&format!("{what}; so far for {} s", self.begun.elapsed().as_secs()));
        }
    }

    fn ended(&mut self, what: &str) {
        if self.told.is_some() {
            self.log(&format!("{what}, after {} s", self.begun.elapsed().as_secs()));
        }
    }

    /// Needs no other program: where none can be started, this is what must be told.
    fn log(&self, what: &str) {
        // Facility daemon, severity error (syslog(3)).
        let line = format!("<27>vbk[{}]: guest {}: {what}", std::process::id(), self.guest);
        let sent = UnixDatagram::unbound().and_then(|socket| {
            // A log that is stuck must not keep a guest frozen.
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
