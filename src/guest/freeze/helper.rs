//! vbk's end of a helper: starts the process that does something to a guest and undoes it (`freeze/process.rs`), and reads
//! its report. Its standard input is a pipe from vbk; the pipe's end, which is also vbk's end, tells it to undo; so does its
//! time limit.
//!
//! It has a process group of its own, and writes what it reports and what its programs say into files in memory: a pipe
//! without a reader would end a program that writes to it, and with vbk gone the one that matters most is still to run.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::task::Task;
use crate::host::program::{ProgramError, Programs, kill_group, last_words, spawn};

/// This program, also after an upgrade has replaced its file.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// The word that makes this program a helper; the task follows it. A program that freezes guests begins with
/// [`super::run_helper`] when it is given it.
pub const HELPER: &str = "freeze-helper";

/// A process that could not be started is tried again so soon.
const START_AGAIN: Duration = Duration::from_secs(1);
/// Starting takes milliseconds; this is for a host that swaps.
const START_WAIT: Duration = Duration::from_secs(20);
/// What a command may take beyond its limit until its end is reported.
const REPORT_WAIT: Duration = Duration::from_secs(10);
/// The guest is frozen while vbk sleeps.
const POLL: Duration = Duration::from_millis(2);
/// What commands say is cut off from the front beyond this.
const MAX_OUTPUT_BYTES: u64 = 16 << 20;
/// What is kept of it.
const KEPT_OUTPUT_BYTES: u64 = 64 << 10;
/// An end of it goes into messages.
const SHOWN_OUTPUT_BYTES: u64 = 4 << 10;
/// What timeout(1) ends with when it kills.
const KILLED: i32 = 128 + 9;

/// Why there is no helper.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// Another one is still at work on the guest.
    #[error("{0} is still thawing it")]
    Busy(String),
    /// It can't be started.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// How undoing went.
pub(super) struct Undone {
    /// The helper had waited for it. If not it undid on its own, at its limit.
    pub asked: bool,
    /// What the command said, or how it failed, as the rest of a sentence.
    pub result: Result<String, String>,
    /// It is still trying: its last words.
    pub goes_on: Option<String>,
}

/// A running helper. Dropped, it undoes, and is waited for.
pub(super) struct Helper {
    child: Child,
    input: Option<ChildStdin>,
    report: File,
    output: File,
    /// Where in the output the words of the next command begin.
    begun_bytes: u64,
    waited: bool,
    /// What a second helper needs, if this one is killed.
    orders: Option<Orders>,
}

/// How a helper is started.
struct Orders {
    programs: Programs,
    task: Task,
    environment: Vec<(&'static str, String)>,
}

impl Helper {
    /// Starts a helper, which starts the act. As long as it lives, the input of `outer` does not end.
    pub fn start(
        programs: &Programs,
        mut task: Task,
        environment: &[(&'static str, &str)],
        outer: Option<&Helper>,
    ) -> Result<Self, StartError> {
        let failed = |source: std::io::Error| ProgramError::Start {
            program: HELPER.into(),
            source,
        };
        let file = |name: &str| {
            let made = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING);
            made.map(File::from).map_err(|errno| failed(errno.into()))
        };
        let (report, output) = (file("vbk-report")?, file("vbk-output")?);
        let shared = |file: &File| file.try_clone().map(Stdio::from).map_err(failed);
        // Opened by that name before the helper says that it is armed. Nothing else can hand a fourth file to a child
        // without `unsafe`.
        let input = outer.and_then(|outer| outer.input.as_ref());
        task.outer = input.map(|input| format!("/proc/{}/fd/{}", std::process::id(), input.as_raw_fd()).into());
        let mut command = helper_command(
            programs,
            &serde_json::to_string(&task).expect("it has only plain fields"),
        );
        command
            .envs(environment.iter().copied())
            .current_dir("/")
            .stdout(shared(&report)?)
            .stderr(shared(&output)?)
            // All that vbk opens is closed in its children, this end above all; only the helper's own end is passed on.
            .stdin(Stdio::piped());
        let mut child = spawn(&mut command)?;
        let mut helper = Self {
            input: child.stdin.take(),
            child,
            report,
            output,
            begun_bytes: 0,
            waited: false,
            orders: Some(Orders {
                programs: programs.clone(),
                task,
                environment: environment
                    .iter()
                    .map(|(name, value)| (*name, (*value).to_owned()))
                    .collect(),
            }),
        };
        if helper.wait_for("armed", START_WAIT).is_none() {
            let busy = helper.line("busy ");
            let why = std::io::Error::other(format!("it does not begin: {}", helper.said()));
            helper.abandon();
            return Err(busy.map_or_else(|| failed(why).into(), StartError::Busy));
        }
        Ok(helper)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `act` has succeeded, and gives what it said; otherwise how it ended, as the rest of a sentence.
    pub fn acted(&mut self, act_limit: Duration) -> Result<String, String> {
        let status = self.wait_for("acted ", act_limit + REPORT_WAIT);
        let said = self.said();
        self.begun_bytes = self.output.metadata().map_or(0, |output| output.len());
        match status.as_deref() {
            Some("0") => Ok(said),
            Some(status) if status == KILLED.to_string() => Err(format!(
                "did not end within {} s and was killed: {said}",
                act_limit.as_secs_f32()
            )),
            Some(status) => Err(format!("failed (exit status {status}): {said}")),
            None => Err(format!("was cut off: {said}")),
        }
    }

    /// Has it undone, and waits for that a moment. [`Helper::undo`] is still to come.
    pub fn begin_undo(&mut self, wait: Duration) {
        self.input = None;
        self.wait_for("undone ", wait);
    }

    /// Has it undone, and waits for that. It is not killed if it takes longer than `wait`.
    pub fn undo(mut self, wait: Duration) -> Undone {
        self.finish(wait)
    }

    /// Ends it without undoing: for what was never begun.
    pub fn abandon(mut self) {
        kill_group(&mut self.child);
        self.waited = true;
    }

    fn finish(&mut self, wait: Duration) -> Undone {
        self.input = None;
        self.waited = true;
        let mut goes_on = None;
        let result = match self.wait_for("undone ", wait).as_deref() {
            Some("0") => Ok(self.said()),
            Some(status) => Err(format!("failed (exit status {status}): {}", self.said())),
            None if self.has_ended() => match self.second(wait) {
                Ok(second) => {
                    let undone = second.undo(wait);
                    goes_on = undone.goes_on;
                    undone.result
                }
                Err(why) => Err(format!("was cut off, and can't be started again: {why}")),
            },
            None => Err(format!("did not end within {} s and goes on", wait.as_secs_f32())),
        };
        if result.is_err() && !self.has_ended() {
            goes_on = Some(self.said());
        }
        // Before it is waited for, it writes its last report and ends.
        let begun = Instant::now();
        while result.is_ok() && !self.has_ended() && begun.elapsed() < REPORT_WAIT {
            std::thread::sleep(POLL);
        }
        if self.has_ended() {
            // What a hook left running may still write to it, for ever.
            let _ = self.output.set_len(0);
            let _ = fcntl(&self.output, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW));
        }
        Undone {
            asked: self.line("asked").is_some(),
            result,
            goes_on,
        }
    }

    /// Another helper, that only undoes: this one was killed before it had. What it had begun may go on without it, and
    /// is waited for. A start that fails is tried again as long as `wait`.
    fn second(&mut self, wait: Duration) -> Result<Self, String> {
        let orders = self.orders.take().ok_or("it was killed twice")?;
        let begun = Instant::now();
        while self.line("acted ").is_none() && begun.elapsed() < orders.task.act_limit {
            std::thread::sleep(POLL);
        }
        let task = Task {
            act: ["sh", "-c", ":"].map(str::to_owned).into(),
            ..orders.task
        };
        let environment: Vec<_> = orders
            .environment
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let begun = Instant::now();
        loop {
            match Self::start(&orders.programs, task.clone(), &environment, None) {
                Ok(mut second) => {
                    second.orders = None;
                    return Ok(second);
                }
                Err(error) if begun.elapsed() >= wait => return Err(error.to_string()),
                Err(_) => std::thread::sleep(START_AGAIN),
            }
        }
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for a line of the report that begins like this, and gives the rest of it.
    fn wait_for(&mut self, begin: &str, wait: Duration) -> Option<String> {
        let begun = Instant::now();
        loop {
            // In this order: what it reported before its end is seen.
            let is_last = self.has_ended() || begun.elapsed() >= wait;
            if let Some(rest) = self.line(begin) {
                return Some(rest);
            }
            if is_last {
                return None;
            }
            self.bound_output();
            std::thread::sleep(POLL);
        }
    }

    /// The rest of the complete line of the report that begins like this.
    fn line(&self, begin: &str) -> Option<String> {
        let report = read_end(&self.report, 0);
        let complete = &report[..report.rfind('\n')?];
        complete
            .lines()
            .find_map(|line| line.strip_prefix(begin))
            .map(str::to_owned)
    }

    /// The last words of the command that ran last.
    fn said(&self) -> String {
        last_words(&read_end(&self.output, self.begun_bytes))
    }

    /// The memory that the output takes.
    #[cfg(test)]
    pub fn output_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.output.metadata().map_or(0, |output| output.blocks() * 512)
    }

    /// Frees what a talkative command has written into memory, but for its end.
    fn bound_output(&self) {
        let len = self.output.metadata().map_or(0, |output| output.len());
        if len > MAX_OUTPUT_BYTES
            && let Ok(len) = i64::try_from(len - KEPT_OUTPUT_BYTES)
        {
            let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = fallocate(&self.output, hole, 0, len);
        }
    }
}

#[cfg(not(test))]
fn helper_command(programs: &Programs, task: &str) -> Command {
    let mut command = programs.command(THIS_PROGRAM);
    command.args([HELPER, task]);
    command
}

/// The program of the unit tests has arguments of its own: one of its tests is the helper.
#[cfg(test)]
fn helper_command(programs: &Programs, task: &str) -> Command {
    let mut command = programs.command(THIS_PROGRAM);
    command
        .args([
            "--exact",
            "freeze::tests::a_helper",
            "--ignored",
            "--nocapture",
            "--test-threads=2",
        ])
        .env(HELPER, task);
    command
}

impl Drop for Helper {
    fn drop(&mut self) {
        if !self.waited
            && let Err(why) = self.finish(REPORT_WAIT).result
        {
            tracing::warn!("a guest was frozen, and undoing it {why}");
        }
    }
}

/// The end of a file in memory, but nothing before `from_bytes`.
fn read_end(file: &File, from_bytes: u64) -> String {
    let len = file.metadata().map_or(0, |file| file.len());
    let start = from_bytes.max(len.saturating_sub(SHOWN_OUTPUT_BYTES)).min(len);
    let mut bytes = vec![0; usize::try_from(len - start).unwrap_or_default()];
    let read = file.read_at(&mut bytes, start).unwrap_or_default();
    bytes.truncate(read);
    String::from_utf8_lossy(&bytes).into_owned()
}
