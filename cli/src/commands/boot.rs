//! `vbk boot`

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vbk_repo::state::BootAccelerator;

use crate::args::BootArgs;
use crate::booting::{BootOptions, accelerator, check_whole, start};
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::warnings::warn_of_clock;

/// Interval of looking at signals.
const INTERVAL: Duration = Duration::from_millis(200);
/// Time that QEMU has to end after its console did.
const END: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Report {
    backup: String,
    accelerator: BootAccelerator,
    /// The guest ended by itself, or after the power button.
    powered_off: bool,
}

/// Boots a backup and connects the terminal to its console, until the guest ends.
pub fn run(context: &Context<'_>, args: &BootArgs) -> Result<Outcome> {
    check_whole(&args.backup)?;
    // A second signal ends the guest, and not this process, which has a terminal to restore.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(Error::io("watch for signals"))?;
    let repository = context.repository()?;
    let view = context.view_of(&repository)?;
    let catalogue = view.catalogue()?;
    let entry = catalogue.find(&args.backup)?;
    warn_of_clock(&catalogue, &args.backup, entry);
    let options = BootOptions {
        machine: &args.machine,
        save: args.save.clone(),
        vnc: args.vnc,
        is_kept_after_end: false,
    };
    let mut booted = start(&repository, &view, entry, &options)?;
    let guest = &mut booted.guest;
    let spec = entry.backup.spec();
    let accelerator = accelerator(guest.accelerator);
    let vnc = args
        .vnc
        .map(|number| format!(", screen at 127.0.0.1:{}", 5900 + number));
    context.say(format_args!(
        "{spec} runs with {}{}; Ctrl-C presses its power button",
        guest.accelerator.name(),
        vnc.unwrap_or_default()
    ));
    let mut keyboard = Keyboard::open();
    let mut asked: Option<Instant> = None;
    let mut powered_off = false;
    loop {
        let signalled = signals.pending().next().is_some();
        let is_first = signalled && asked.is_none();
        if is_first {
            asked = Some(Instant::now());
            context.say("");
            context.say(format_args!(
                "the guest was asked to power off; it is killed in {} s, or at once with Ctrl-C",
                args.grace
            ));
            guest.press_power_button()?;
        }
        let is_late = asked.is_some_and(|at| at.elapsed() >= Duration::from_secs(args.grace));
        if is_late || signalled && !is_first {
            tracing::warn!("the guest did not power off, and was killed");
            break;
        }
        match guest.read_console(INTERVAL, keyboard.as_ref().map(|keyboard| &keyboard.input))? {
            Some(bytes) => show(context, &bytes),
            None => {
                guest.end(END)?;
                powered_off = true;
                break;
            }
        }
        if let Some(typed) = keyboard.as_mut().and_then(Keyboard::typed) {
            guest.write_console(&typed);
        }
        // Standard input has ended.
        if keyboard.as_ref().is_some_and(|keyboard| keyboard.is_at_end) {
            keyboard = None;
        }
    }
    drop(keyboard);
    drop(booted);
    context.say("");
    context.say(format_args!("{spec} has ended"));
    context.json_result(&Report {
        backup: spec,
        accelerator,
        powered_off,
    })?;
    match powered_off {
        true => Ok(Outcome::Done),
        false => Ok(Outcome::Warnings),
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
        let mut bytes = vec![0; 1024];
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
