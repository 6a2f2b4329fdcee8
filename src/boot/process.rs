//! A running QEMU: its console, its monitor, and its end. It never outlives vbk.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::boot::BootError;
use crate::boot::machine::{Accelerator, Account, Inherited, Machine, PROGRAM, Wishes};
use crate::boot::qmp::{Agent, Event, Qmp};
use crate::sys;

/// Time that QEMU has to start.
const START: Duration = Duration::from_secs(60);
/// Time for an answer of the monitor.
const ANSWER: Duration = Duration::from_secs(20);
/// Largest screenshot: 4096 x 2160 points, as PPM with 3 bytes each, and a little.
const MAX_SCREEN_BYTES: u64 = 32 << 20;
/// Last bytes of QEMU's own messages, which an error shows. A guest may make QEMU repeat one for ever.
const KEPT_ERROR_BYTES: usize = 2000;
/// Bytes that [`Running::write_console`] takes at once: a pipe that can be written to has room for so many (PIPE_BUF,
/// pipe(7)).
pub const MAX_TYPED_BYTES: usize = 4096;

/// Files of one boot.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// QEMU's working directory, which was prepared for the machine. A QEMU that its guest took over can put anything there.
    pub work: &'a Path,
    /// Directory with the images of the disks, which only this process needs to reach.
    pub disks: &'a Path,
}

/// A guest that runs in QEMU. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    console: ChildStdout,
    keyboard: Option<ChildStdin>,
    qmp: Qmp,
    agent: Option<Agent>,
    messages: Messages,
    work: PathBuf,
    /// Processor that runs the guest.
    pub accelerator: Accelerator,
}

/// Makes a child process get a signal when this thread ends, however it ends. Call it in the main thread, whose end is that
/// of the process.
pub fn die_with_parent(command: &mut Command, signal: Signal) {
    sys::die_with_parent(command, signal);
}

impl Running {
    /// Starts a machine. If no accelerator is given and KVM does not work here, it is started with TCG. Gives up once
    /// `cancelled` returns true.
    pub fn start(
        program: &Path,
        machine: &Machine,
        wishes: &Wishes,
        accelerator: Option<Accelerator>,
        place: Place<'_>,
        cancelled: &mut dyn FnMut() -> bool,
    ) -> Result<Self, BootError> {
        let mut start = |accelerator| Self::start_with(program, machine, wishes, accelerator, place, cancelled);
        match accelerator {
            Some(accelerator) => start(accelerator),
            None => match Accelerator::of_host() {
                Accelerator::Tcg => start(Accelerator::Tcg),
                // On a host that is itself a guest, KVM may exist and fail.
                Accelerator::Kvm => start(Accelerator::Kvm).or_else(|error| {
                    if matches!(error, BootError::Cancelled) {
                        return Err(error);
                    }
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
        place: Place<'_>,
        cancelled: &mut dyn FnMut() -> bool,
    ) -> Result<Self, BootError> {
        let open = |name: &String| {
            let path = place.disks.join(format!("{name}.img"));
            let opened = File::options().read(true).write(true).open(&path);
            opened.map_err(BootError::io("open", path))
        };
        let images: Vec<_> = machine
            .disks
            .iter()
            .map(|disk| open(&disk.name))
            .collect::<Result<_, _>>()?;
        let pair = || UnixStream::pair().map_err(BootError::io("connect to", PROGRAM));
        let ((monitor, its_monitor), (agent, its_agent)) = (pair()?, pair()?);
        let files = Inherited {
            images: images.iter().map(AsRawFd::as_raw_fd).collect(),
            monitor: its_monitor.as_raw_fd(),
            agent: its_agent.as_raw_fd(),
        };
        let mut command = Command::new(program);
        command
            .args(machine.arguments(accelerator, wishes, &files)?)
            .current_dir(place.work)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C asks vbk, which asks the guest to power off.
            .process_group(0);
        if let Some(user) = wishes.user {
            // Before QEMU starts, and not by its own option: a change of the user later would undo `die_with_parent`
            // (prctl(2)), and its sandbox forbids one. Groups of this process are dropped with it.
            command.uid(user.uid).gid(group_of(user, accelerator));
        }
        let sockets = [files.monitor, files.agent];
        sys::inherit(&mut command, [&files.images[..], &sockets].concat());
        sys::die_with_parent(&mut command, Signal::SIGKILL);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => BootError::NoQemu,
            _ => BootError::io("start", PROGRAM)(error),
        })?;
        // The end of QEMU is the end of the connections.
        drop((images, its_monitor, its_agent));
        let (console, keyboard) = (child.stdout.take(), child.stdin.take());
        let mut messages = Messages::of(child.stderr.take());
        let mut was_cancelled = false;
        let mut is_alive = || {
            was_cancelled |= cancelled();
            !was_cancelled && matches!(child.try_wait(), Ok(None))
        };
        let connected = Qmp::over(monitor, START, &mut is_alive).and_then(|mut qmp| {
            qmp.execute("cont", &json!({}), ANSWER)?;
            Ok(qmp)
        });
        match (connected, console) {
            (Ok(qmp), Some(console)) => Ok(Self {
                child,
                console,
                keyboard,
                qmp,
                agent: Some(Agent::over(agent)),
                messages,
                work: place.work.to_owned(),
                accelerator,
            }),
            (connected, _) => {
                kill(&mut child);
                let said = messages.end();
                Err(match connected {
                    _ if was_cancelled => BootError::Cancelled,
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

    /// Tests for room for [`MAX_TYPED_BYTES`]: a guest may not read its console.
    pub fn can_type(&self) -> bool {
        let Some(keyboard) = &self.keyboard else {
            return false;
        };
        let mut files = [PollFd::new(keyboard.as_fd(), PollFlags::POLLOUT)];
        let is_ready = poll(&mut files, PollTimeout::ZERO).is_ok_and(|count| count > 0);
        is_ready
            && files[0]
                .revents()
                .is_some_and(|events| events.contains(PollFlags::POLLOUT))
    }

    /// Types on the console, at most [`MAX_TYPED_BYTES`]. Call it only after [`Running::can_type`]; otherwise it may wait for
    /// the guest.
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

    /// Returns true once if a write to a disk failed for lack of space, so that QEMU paused the guest: see
    /// [`Running::resume`].
    pub fn is_paused_by_disk(&mut self) -> bool {
        // A QEMU that has ended answers no more; the end of its console tells that.
        self.events().is_ok_and(|events| events.contains(&Event::Paused))
    }

    /// Lets a paused guest run on. QEMU tries the write again that failed, and pauses the guest again if there is still no room.
    pub fn resume(&mut self) -> Result<(), BootError> {
        self.qmp.execute("cont", &json!({}), ANSWER).map(drop)
    }

    pub(super) fn events(&mut self) -> Result<Vec<Event>, BootError> {
        self.qmp.events()
    }

    /// Takes the connection to the guest agent.
    pub(super) fn agent(&mut self) -> Option<Agent> {
        self.agent.take()
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
        let path = self.work.join(name);
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
            Some(status) if !status.success() => {
                let said = self.messages.end();
                Err(BootError::Failed(if said.is_empty() {
                    status.to_string()
                } else {
                    said
                }))
            }
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

/// Returns the group that QEMU needs: that of KVM's device if other users can't open it, otherwise its user's own.
fn group_of(user: Account, accelerator: Accelerator) -> u32 {
    let kvm = std::fs::metadata("/dev/kvm")
        .ok()
        .filter(|_| accelerator == Accelerator::Kvm);
    // Root's group would give it more than that.
    match kvm.filter(|kvm| kvm.mode() & 0o006 != 0o006 && kvm.gid() != 0) {
        Some(kvm) => kvm.gid(),
        None => user.gid,
    }
}

/// The end of what QEMU says on standard error. A thread reads it until QEMU has ended.
#[derive(Debug)]
struct Messages {
    reader: Option<JoinHandle<VecDeque<u8>>>,
}

impl Messages {
    fn of(pipe: Option<ChildStderr>) -> Self {
        let read = |mut pipe: ChildStderr| {
            let (mut kept, mut part) = (VecDeque::new(), [0; 1024]);
            while let Ok(count @ 1..) = pipe.read(&mut part) {
                kept.extend(&part[..count]);
                kept.drain(..kept.len().saturating_sub(KEPT_ERROR_BYTES));
            }
            kept
        };
        let builder = std::thread::Builder::new().name("vbk-qemu-errors".into());
        Self {
            reader: pipe.and_then(|pipe| builder.spawn(move || read(pipe)).ok()),
        }
    }

    /// Returns the messages in one line, once. QEMU must have ended.
    fn end(&mut self) -> String {
        let kept = self.reader.take().and_then(|reader| reader.join().ok());
        let bytes = Vec::from(kept.unwrap_or_default());
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().filter(|line| !line.contains("warning:"));
        let lines: Vec<_> = lines.map(|line| line.replace(char::is_control, " ")).collect();
        lines.join("; ")
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        // QEMU was killed before.
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_many_messages_is_kept() {
        let script =
            "for i in $(seq 5000); do echo \"line $i\"; done >&2; echo 'warning: x' >&2; printf 'no\\tdisk\\n' >&2";
        let mut command = Command::new("sh");
        let mut child = command
            .args(["-c", script])
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut messages = Messages::of(child.stderr.take());
        child.wait().expect("ends");
        let said = messages.end();
        assert!(said.ends_with("line 4999; line 5000; no disk"), "{said}");
        assert!(said.len() < 2 * KEPT_ERROR_BYTES);
    }
}
