//! A running QEMU: its console, its monitor, and its end. It never outlives vbk.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::boot::BootError;
use crate::boot::machine::{AGENT_SOCKET, Accelerator, Machine, PROGRAM, QMP_SOCKET, Wishes};
use crate::boot::qmp::{Agent, Event, Qmp};
use crate::sys;

/// Time that QEMU has to start.
const START: Duration = Duration::from_secs(60);
/// Time for an answer of the monitor.
const ANSWER: Duration = Duration::from_secs(20);
/// Largest screenshot: 4096 x 2160 points, as PPM with 3 bytes each, and a little.
const MAX_SCREEN_BYTES: u64 = 32 << 20;
/// Bytes of QEMU's own messages that an error shows.
const MAX_ERROR_BYTES: u64 = 2000;
/// File for QEMU's messages.
const ERRORS: &str = "errors";

/// A guest that runs in QEMU. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    console: ChildStdout,
    keyboard: Option<ChildStdin>,
    qmp: Qmp,
    directory: PathBuf,
    /// Processor that runs the guest.
    pub accelerator: Accelerator,
}

/// Makes a child process get a signal when this thread ends, however it ends. Call it in the main thread, whose end is that
/// of the process.
pub fn die_with_parent(command: &mut Command, signal: Signal) {
    sys::die_with_parent(command, signal);
}

impl Running {
    /// Starts a machine that was prepared in this directory. If no accelerator is given and KVM does not work here, it is
    /// started with TCG.
    pub fn start(
        program: &Path,
        machine: &Machine,
        wishes: &Wishes,
        accelerator: Option<Accelerator>,
        directory: &Path,
    ) -> Result<Self, BootError> {
        let start = |accelerator| Self::start_with(program, machine, wishes, accelerator, directory);
        match accelerator {
            Some(accelerator) => start(accelerator),
            None => match Accelerator::of_host() {
                Accelerator::Tcg => start(Accelerator::Tcg),
                // On a host that is itself a guest, KVM may exist and fail.
                Accelerator::Kvm => start(Accelerator::Kvm).or_else(|error| {
                    tracing::warn!("KVM does not work here, so the guest runs ten times slower: {error}");
                    start(Accelerator::Tcg)
                }),
            },
        }
    }

    fn start_with(
        program: &Path,
        machine: &Machine,
        wishes: &Wishes,
        accelerator: Accelerator,
        directory: &Path,
    ) -> Result<Self, BootError> {
        for socket in [QMP_SOCKET, AGENT_SOCKET] {
            // Left by a start that failed.
            let _ = std::fs::remove_file(directory.join(socket));
        }
        let errors = directory.join(ERRORS);
        let log = File::create(&errors).map_err(BootError::io("create", &errors))?;
        let mut command = Command::new(program);
        command
            .args(machine.arguments(accelerator, wishes)?)
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C asks vbk, which asks the guest to power off.
            .process_group(0);
        sys::die_with_parent(&mut command, Signal::SIGKILL);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => BootError::NoQemu,
            _ => BootError::io("start", PROGRAM)(error),
        })?;
        let (console, keyboard) = (child.stdout.take(), child.stdin.take());
        let mut is_alive = || matches!(child.try_wait(), Ok(None));
        let connected = Qmp::connect(&directory.join(QMP_SOCKET), START, &mut is_alive);
        match (connected, console) {
            (Ok(qmp), Some(console)) => Ok(Self {
                child,
                console,
                keyboard,
                qmp,
                directory: directory.to_owned(),
                accelerator,
            }),
            (connected, _) => {
                kill(&mut child);
                let said = said(&errors);
                Err(match connected {
                    Err(error) if said.is_empty() => error,
                    _ => BootError::Failed(said),
                })
            }
        }
    }

    /// Returns output of the console, or nothing if none comes within the time. `None` after its end. Also returns early
    /// when `other` can be read.
    pub fn read_console(&mut self, limit: Duration, other: Option<&File>) -> Result<Option<Vec<u8>>, BootError> {
        let failed = || BootError::io("read from", PROGRAM);
        let mut files = vec![PollFd::new(self.console.as_fd(), PollFlags::POLLIN)];
        files.extend(other.map(|other| PollFd::new(other.as_fd(), PollFlags::POLLIN)));
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut files, limit) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Some(Vec::new())),
            Err(errno) => return Err(failed()(errno.into())),
        }
        if files[0].revents().is_none_or(|events| events.is_empty()) {
            return Ok(Some(Vec::new()));
        }
        let mut bytes = vec![0; 64 << 10];
        let count = self.console.read(&mut bytes).map_err(failed())?;
        bytes.truncate(count);
        Ok((count > 0).then_some(bytes))
    }

    /// Types on the console.
    pub fn write_console(&mut self, bytes: &[u8]) {
        if let Some(keyboard) = &mut self.keyboard {
            // A guest that has ended reads nothing.
            let _ = keyboard.write_all(bytes).and_then(|()| keyboard.flush());
        }
    }

    /// Asks the guest to power off, as its power button does.
    pub fn press_power_button(&mut self) -> Result<(), BootError> {
        self.qmp.execute("system_powerdown", &json!({}), ANSWER).map(drop)
    }

    pub(super) fn events(&mut self) -> Result<Vec<Event>, BootError> {
        self.qmp.events()
    }

    pub(super) fn agent(&self) -> Result<Agent, BootError> {
        Agent::connect(&self.directory.join(AGENT_SOCKET))
    }

    /// Copies the screen. Returns the bytes and the format: `png`, or `ppm` from a QEMU that has no other.
    pub fn screen(&mut self) -> Result<(Vec<u8>, &'static str), BootError> {
        let mut dump = |format: &'static str| {
            let name = format!("screen.{format}");
            let arguments = match format {
                "ppm" => json!({"filename": name}),
                _ => json!({"filename": name, "format": format}),
            };
            self.qmp
                .execute("screendump", &arguments, ANSWER)
                .map(|_| (name, format))
        };
        let (name, format) = dump("png").or_else(|_| dump("ppm"))?;
        let path = self.directory.join(name);
        // A QEMU that its guest took over could put a link there.
        let mut options = File::options();
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = options.read(true).custom_flags(flags.bits()).open(&path);
        let mut bytes = Vec::new();
        let read = file.and_then(|file| file.take(MAX_SCREEN_BYTES).read_to_end(&mut bytes));
        read.map_err(BootError::io("read", path))?;
        Ok((bytes, format))
    }

    /// Returns the exit status if QEMU has ended.
    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>, BootError> {
        self.child.try_wait().map_err(BootError::io("wait for", PROGRAM))
    }

    /// Waits for the end after output ended, and returns what QEMU said if it was an error.
    pub fn end(&mut self, limit: Duration) -> Result<(), BootError> {
        let deadline = Instant::now() + limit;
        while self.has_ended()?.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        match self.has_ended()? {
            Some(status) if !status.success() => Err(BootError::Failed(said(&self.directory.join(ERRORS)))),
            _ => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

/// Kills and reaps a process. Both do nothing if it has ended.
fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Returns the end of QEMU's messages in one line.
fn said(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_ERROR_BYTES).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().filter(|line| !line.contains("warning:"));
    let lines: Vec<_> = lines.map(|line| line.replace(char::is_control, " ")).collect();
    match read {
        Ok(_) => lines.join("; "),
        Err(error) => error.to_string(),
    }
}
