//! `vbk boot`

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vbk::boot::process::{MAX_TYPED_BYTES, Running};
use vbk_repo::state::BootAccelerator;

use crate::args::BootArgs;
use crate::booting::behind::{BehindRestore, KeptFile, targets};
use crate::booting::{BootOptions, accelerator, check_whole, start};
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::restoring::print_behind;
use crate::warnings::warn_of_clock;

/// Interval of looking at signals.
const INTERVAL: Duration = Duration::from_millis(200);
/// Interval at which a write is tried again for which there was no room.
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(5);
/// Time that QEMU has to end after its console did.
const END: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Report {
    backup: String,
    accelerator: BootAccelerator,
    /// The guest ended by itself, or after the power button.
    powered_off: bool,
    /// Disks that were restored while the guest ran, with its changes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    restored: Vec<RestoredJson>,
    /// File with the guest's writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<PathBuf>,
}

#[derive(Serialize)]
struct RestoredJson {
    disk: String,
    target: PathBuf,
}

/// Boots a backup and connects the terminal to its console, until the guest ends.
pub fn run(context: &Context<'_>, args: &BootArgs) -> Result<Outcome> {
    check_whole(&args.backup)?;
    // A second signal ends the guest, and not this process, which has a terminal to restore.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(Error::io("watch for signals"))?;
    let repository = context.repository()?;
    let view = context.view_to_read_of(&repository)?;
    let catalogue = view.catalogue()?;
    let entry = catalogue.find(&args.backup)?;
    warn_of_clock(&catalogue, &args.backup, entry);
    let disks = targets(&args.restore, &entry.backup)?;
    let mut save = args.save.clone();
    let mut behind = match disks.is_empty() {
        true => None,
        false => {
            let file = KeptFile::new(args.save.as_deref(), &entry.backup)?;
            save = Some(file.path.clone());
            Some(BehindRestore::claim(
                &repository,
                &view,
                entry,
                disks,
                file,
                (args.force, args.overwrite),
            )?)
        }
    };
    let options = BootOptions {
        machine: &args.machine,
        save,
        vnc: args.vnc,
        is_kept_after_end: false,
        limit_bytes: None,
        // The file takes all that the guest writes until it is off, perhaps days later.
        scratch_bytes: args.machine.scratch_size.or(behind.as_ref().map(|_| u64::MAX)),
        way: context.way_options(),
    };
    let started = start(&repository, &view, entry, &options, &mut || has_come(&mut signals));
    let mut booted = match started {
        Ok(booted) => booted,
        Err(error) => {
            if let Some(behind) = behind {
                behind.discard();
            }
            return Err(error);
        }
    };
    let spec = entry.backup.spec();
    let accelerator = accelerator(booted.guest.accelerator);
    let vnc = args
        .vnc
        .map(|number| format!(", screen at 127.0.0.1:{}", 5900 + number));
    context.say(format_args!(
        "{spec} runs with {}{}; Ctrl-C presses its power button",
        booted.guest.accelerator.name(),
        vnc.unwrap_or_default()
    ));
    if let Some(behind) = &mut behind {
        context.say(behind.describe());
        if let Err(error) = behind.start() {
            behind.explain();
            return Err(error);
        }
    }
    let attended = attend(context, &mut booted.guest, &mut signals, behind.as_mut(), args.grace);
    // Closes the file with the guest's writes.
    drop(booted);
    context.say("");
    let mut report = Report {
        backup: spec,
        accelerator,
        powered_off: false,
        restored: Vec::new(),
        changes: args.save.clone(),
    };
    if let Some(behind) = behind {
        report.powered_off = attended.inspect_err(|_| behind.explain())?;
        let restored = behind.complete(&mut |news| {
            if let Some(news) = news {
                context.say(news);
            }
            has_come(&mut signals)
        })?;
        for (disk, restored) in restored {
            let (name, target) = (disk.image.disk.to_string(), disk.path);
            context.say(format_args!(
                "{}/{name} with the guest's changes is restored to {}",
                report.backup,
                target.display()
            ));
            print_behind(context, restored.behind.as_ref(), &target);
            report.restored.push(RestoredJson { disk: name, target });
        }
    } else {
        report.powered_off = attended?;
    }
    context.say(format_args!("{} has ended", report.backup));
    context.json_result(&report)?;
    match report.powered_off {
        true => Ok(Outcome::Done),
        false => Ok(Outcome::Warnings),
    }
}

/// Returns whether a signal has come. Signals that come together count as one.
fn has_come(signals: &mut Signals) -> bool {
    signals.pending().count() > 0
}

/// Passes the console on and what is typed, until the guest is off. Returns false if it was killed.
fn attend(
    context: &Context<'_>,
    guest: &mut Running,
    signals: &mut Signals,
    mut behind: Option<&mut BehindRestore>,
    grace: Duration,
) -> Result<bool> {
    let mut keyboard = Keyboard::open();
    let mut asked: Option<Instant> = None;
    let mut pause = Pause::default();
    loop {
        let signalled = has_come(signals);
        let is_first = signalled && asked.is_none();
        if is_first {
            asked = Some(Instant::now());
            context.say("");
            context.say(format_args!(
                "the guest was asked to power off; it is killed in {} s, or at once with Ctrl-C",
                grace.as_secs()
            ));
            // A guest that has just ended has no button.
            if let Err(error) = guest.press_power_button() {
                tracing::debug!("the power button: {error}");
            }
        }
        let is_late = asked.is_some_and(|at| at.elapsed() >= grace);
        if is_late || signalled && !is_first {
            tracing::warn!("the guest did not power off, and was killed: its disks are as after a power cut");
            return Ok(false);
        }
        pause.look(context, guest);
        if let Some(news) = behind.as_mut().and_then(|behind| behind.news()) {
            context.say(news);
        }
        // What is typed waits until the guest reads its console.
        let readable = keyboard
            .as_ref()
            .filter(|_| guest.can_type())
            .map(|keyboard| &keyboard.input);
        let is_typing = readable.is_some();
        match guest.read_console(INTERVAL, readable)? {
            Some(bytes) => show(context, &bytes),
            None => {
                guest.end(END)?;
                return Ok(true);
            }
        }
        if let Some(typed) = keyboard.as_mut().filter(|_| is_typing).and_then(Keyboard::typed) {
            guest.write_console(&typed);
        }
        // Standard input has ended.
        if keyboard.as_ref().is_some_and(|keyboard| keyboard.is_at_end) {
            keyboard = None;
        }
    }
}

/// A pause of the guest, because there is no room for what it writes.
#[derive(Default)]
struct Pause {
    /// Time of the last attempt to write.
    tried: Option<Instant>,
    is_paused: bool,
}

impl Pause {
    /// Lets the guest try again, and tells the user once.
    fn look(&mut self, context: &Context<'_>, guest: &mut Running) {
        if guest.is_paused_by_disk() {
            if self.tried.is_none() {
                tracing::warn!(
                    "the guest is paused, because there is no room for a write to its disk: the file system of the scratch file \
                     is full, or --scratch-size reached. The write is tried again every {} s",
                    BETWEEN_ATTEMPTS.as_secs()
                );
            }
            (self.tried, self.is_paused) = (Some(Instant::now()), true);
        }
        if self.tried.is_none_or(|at| at.elapsed() < BETWEEN_ATTEMPTS) {
            return;
        }
        if !std::mem::take(&mut self.is_paused) {
            self.tried = None;
            context.say("there is room again, and the guest runs");
            return;
        }
        self.tried = Some(Instant::now());
        // A guest that has just ended has nothing to write.
        if let Err(error) = guest.resume() {
            tracing::debug!("can't resume the guest: {error}");
        }
    }
}

/// Passes the console on, as it is: it is a terminal of the guest. With --json it goes to standard error.
fn show(context: &Context<'_>, bytes: &[u8]) {
    let written = match context.json() {
        true => std::io::stderr().write_all(bytes),
        false => std::io::stdout()
            .write_all(bytes)
            .and_then(|()| std::io::stdout().flush()),
    };
    if let Err(error) = written {
        tracing::debug!("can't show the console: {error}");
    }
}

/// Standard input, one key at a time if it is a terminal. Its mode is restored on drop.
struct Keyboard {
    input: File,
    before: Option<Termios>,
    is_at_end: bool,
}

impl Keyboard {
    /// Opens it. The terminal keeps its signals: Ctrl-C is for vbk.
    fn open() -> Option<Self> {
        let stdin = std::io::stdin();
        let input = File::from(stdin.as_fd().try_clone_to_owned().ok()?);
        let before = stdin.is_terminal().then(|| tcgetattr(&input).ok()).flatten();
        if let Some(before) = &before {
            let mut mode = before.clone();
            mode.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
            tcsetattr(&input, SetArg::TCSANOW, &mode).ok()?;
        }
        Some(Self {
            input,
            before,
            is_at_end: false,
        })
    }

    /// Returns what was typed.
    fn typed(&mut self) -> Option<Vec<u8>> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut files = [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)];
        if !poll(&mut files, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            return None;
        }
        let mut bytes = vec![0; MAX_TYPED_BYTES];
        let count = self.input.read(&mut bytes).unwrap_or(0);
        bytes.truncate(count);
        self.is_at_end = count == 0;
        (count > 0).then_some(bytes)
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // The terminal may be gone.
            let _ = tcsetattr(&self.input, SetArg::TCSANOW, before);
        }
    }
}
