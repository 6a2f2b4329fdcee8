//! vbk's end of a helper: starts the process that acts on a guest and undoes it (`freeze/process.rs`), and reads its
//! report. The helper's standard input is a pipe from vbk. Its end, which is also vbk's end, makes the helper undo; so
//! does the helper's time limit.
//!
//! The helper has a process group of its own. It writes its report and its programs' output to files in memory: a pipe
//! without a reader would end a program that writes to it, and if vbk is gone the most important program has yet to
//! run.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::task::Task;
use crate::host::program::{ProgramError, Programs, kill_group, last_words, spawn};

/// This program, even after an upgrade has replaced its file.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// Argument that makes this program a helper; the task follows it. A program that freezes guests must call
/// [`super::run_helper`] when it gets this argument.
pub const HELPER: &str = "freeze-helper";

/// Interval between attempts to start a helper.
const START_AGAIN: Duration = Duration::from_secs(1);
/// Time limit for the start. It takes milliseconds; the rest is for a host that swaps.
const START_WAIT: Duration = Duration::from_secs(20);
/// Time from a command's limit until its end must be reported.
const REPORT_WAIT: Duration = Duration::from_secs(10);
/// Interval of polling; short, because the guest is frozen while vbk sleeps.
const POLL: Duration = Duration::from_millis(2);
/// Length of the commands' output above which its beginning is dropped.
const MAX_OUTPUT_BYTES: u64 = 16 << 20;
/// Length of output that is kept.
const KEPT_OUTPUT_BYTES: u64 = 64 << 10;
/// Length of output that goes into messages: its end.
const SHOWN_OUTPUT_BYTES: u64 = 4 << 10;
/// Exit status of timeout(1) when it kills.
const KILLED: i32 = 128 + 9;

/// A helper could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// Another helper is still working on the guest.
    #[error("{0} is still thawing it")]
    Busy(String),
    /// The process can't be started.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Result of an undo.
pub(super) struct Undone {
    /// True if vbk requested it; false if the helper reached its limit and undid on its own.
    pub asked: bool,
    /// Output of the command, or its failure as the rest of a sentence.
    pub result: Result<String, String>,
    /// Last output of a helper that is still trying.
    pub still_trying: Option<String>,
}

/// A running helper. When it is dropped, vbk makes it undo and waits for that.
pub(super) struct Helper {
    child: Child,
    input: Option<ChildStdin>,
    report: File,
    output: File,
    /// Offset in the output where the next command's begins.
    begun_bytes: u64,
    waited: bool,
    /// Parameters of a second helper, in case this one is killed.
    orders: Option<Orders>,
}

/// Parameters with which a helper is started.
struct Orders {
    programs: Programs,
    task: Task,
    environment: Vec<(&'static str, String)>,
}

impl Helper {
    /// Starts a helper, which starts the act. The helper keeps the input of `outer` open as long as it lives.
    pub(super) fn start(
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
        // The helper opens it by that name before it reports that it is armed. Without `unsafe`, there is no other way
        // to pass a fourth file to a child.
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
            // vbk opens all files close-on-exec, this end of the pipe above all; only the helper's own end is passed
            // on.
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
            let why = std::io::Error::other(format!("it does not start: {}", helper.said()));
            helper.abandon();
            return Err(busy.map_or_else(|| failed(why).into(), StartError::Busy));
        }
        Ok(helper)
    }

    /// Returns its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `act` has succeeded, and returns its output; the error is its failure as the rest of a sentence.
    pub(super) fn acted(&mut self, act_limit: Duration) -> Result<String, String> {
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

    /// Requests the undo, and waits briefly for its end. [`Helper::undo`] must still be called.
    pub(super) fn begin_undo(&mut self, wait: Duration) {
        self.input = None;
        self.wait_for("undone ", wait);
    }

    /// Requests the undo, and waits for its end. The helper is not killed if it takes longer than `wait`.
    pub(super) fn undo(mut self, wait: Duration) -> Undone {
        self.finish(wait)
    }

    /// Ends the helper without undoing, for an act that had no effect.
    pub(super) fn abandon(mut self) {
        kill_group(&mut self.child);
        self.waited = true;
    }

    fn finish(&mut self, wait: Duration) -> Undone {
        self.input = None;
        self.waited = true;
        let mut still_trying = None;
        let result = match self.wait_for("undone ", wait).as_deref() {
            Some("0") => Ok(self.said()),
            Some(status) => Err(format!("failed (exit status {status}): {}", self.said())),
            None if self.has_ended() => match self.second(wait) {
                Ok(second) => {
                    let undone = second.undo(wait);
                    still_trying = undone.still_trying;
                    undone.result
                }
                Err(why) => Err(format!("was cut off, and can't be started again: {why}")),
            },
            None => Err(format!("did not end within {} s and still runs", wait.as_secs_f32())),
        };
        if result.is_err() && !self.has_ended() {
            still_trying = Some(self.said());
        }
        // It still writes its last report and ends.
        let begun = Instant::now();
        while result.is_ok() && !self.has_ended() && begun.elapsed() < REPORT_WAIT {
            std::thread::sleep(POLL);
        }
        if self.has_ended() {
            // A process that a hook left behind may write to it for ever.
            let _ = self.output.set_len(0);
            let _ = fcntl(&self.output, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW));
        }
        Undone {
            asked: self.line("asked").is_some(),
            result,
            still_trying,
        }
    }

    /// Starts a second helper that only undoes, because this one was killed before it did. Waits for the act, which may
    /// continue without its helper. Retries a failed start for as long as `wait`.
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

    /// Waits for a line of the report with this prefix, and returns the rest of it.
    fn wait_for(&mut self, begin: &str, wait: Duration) -> Option<String> {
        let begun = Instant::now();
        loop {
            // In this order, so that a report written just before its end is seen.
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

    /// Returns the rest of the complete line of the report with this prefix.
    fn line(&self, begin: &str) -> Option<String> {
        let report = read_end(&self.report, 0);
        let complete = &report[..report.rfind('\n')?];
        complete
            .lines()
            .find_map(|line| line.strip_prefix(begin))
            .map(str::to_owned)
    }

    /// Returns the last output of the latest command.
    fn said(&self) -> String {
        last_words(&read_end(&self.output, self.begun_bytes))
    }

    /// Returns the memory that the output takes.
    #[cfg(test)]
    pub fn output_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.output.metadata().map_or(0, |output| output.blocks() * 512)
    }

    /// Frees the memory of a verbose command's output, except for its end.
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

/// The unit tests' program has its own arguments: one of its tests is the helper.
#[cfg(test)]
fn helper_command(programs: &Programs, task: &str) -> Command {
    let mut command = programs.command(THIS_PROGRAM);
    command
        .args([
            "--exact",
            "guest::freeze::tests::a_helper",
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

/// Reads the end of a file in memory, but nothing before `from_bytes`.
fn read_end(file: &File, from_bytes: u64) -> String {
    let len = file.metadata().map_or(0, |file| file.len());
    let start = from_bytes.max(len.saturating_sub(SHOWN_OUTPUT_BYTES)).min(len);
    let mut bytes = vec![0; usize::try_from(len - start).unwrap_or_default()];
    let read = file.read_at(&mut bytes, start).unwrap_or_default();
    bytes.truncate(read);
    String::from_utf8_lossy(&bytes).into_owned()
}
