//! A command that goes on in the background: `vbk mount` starts vbk again, waits for that process to say that it is
//! ready, and goes on.
//!
//! The child says so by a last line on standard output, after what it would print for a person or a script; the parent
//! passes the rest on. Forking after threads have started is not safe, starting anew is.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::unistd::{dup2_stderr, dup2_stdout, setsid};

use crate::exit::{Error, Outcome, Result};
use crate::leftover_mounts::clean_logs;
use crate::machine::{BACKGROUND_LOG, is_background, runtime_directory};
use crate::terminal::output;
use crate::unlock::KEY_ON_STDIN;

/// Starts the last line of the child's report, before its outcome. It can't be part of JSON or of a message.
const END: char = '\u{4}';

/// A process in the background that is ready.
pub struct Background {
    /// The process.
    pub child: Child,
    /// Its log.
    pub log: PathBuf,
    /// How its start went.
    pub outcome: Outcome,
}

/// Starts vbk with these arguments in the background and passes its report on. If it ends instead of getting ready it
/// has printed why, and this process ends with the same code.
///
/// `key` is the exported key of an encrypted repository; it goes through a pipe, which nobody else can read.
pub fn start(arguments: impl IntoIterator<Item = OsString>, key: Option<&str>) -> Result<Background> {
    clean_logs();
    let log = log_path()?;
    let program = std::env::current_exe().map_err(failed("start in the background"))?;
    let mut command = Command::new(program);
    if key.is_some() {
        command.env(KEY_ON_STDIN, "1");
    }
    let mut child = command
        .args(arguments)
        .env(BACKGROUND_LOG, &log)
        .stdin(if key.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed("start in the background"))?;
    if let (Some(key), Some(mut pipe)) = (key, child.stdin.take()) {
        // A child that has ended says why itself.
        let _ = pipe.write_all(key.as_bytes());
    }
    if let Some(outcome) = pass_on(&mut child)? {
        return Ok(Background { child, log, outcome });
    }
    let status = child.wait().map_err(failed("wait for the background"))?;
    std::process::exit(status.code().unwrap_or(1));
}

/// Copies the child's report; `None` if it ended without being ready.
fn pass_on(child: &mut Child) -> Result<Option<Outcome>> {
    let mut outcome = None;
    // It writes here what went wrong, or warnings, until it is ready; then it turns to its log and this ends. Read at
    // the same time as its report, or a child with much to say would wait for ever.
    let errors = child.stderr.take().map(|mut err| {
        std::thread::Builder::new().name("vbk-stderr".into()).spawn(move || {
            let mut text = Vec::new();
            let read = err.read_to_end(&mut text);
            eprint!("{}", String::from_utf8_lossy(&text));
            read
        })
    });
    let errors = errors.transpose().map_err(failed("read from the background"))?;
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).lines() {
            let line = line.map_err(failed("read from the background"))?;
            match line.strip_prefix(END) {
                Some(warnings) => {
                    outcome = Some(match warnings {
                        "" => Outcome::Done,
                        _ => Outcome::Warnings,
                    });
                    break;
                }
                None => output::line(line),
            }
        }
    }
    if let Some(Ok(read)) = errors.map(std::thread::JoinHandle::join) {
        read.map_err(failed("read from the background"))?;
    }
    Ok(outcome)
}

/// Called first in the background process: Ctrl-C in the terminal it was started from is not for it.
pub fn begin() {
    if is_background() {
        // Fails only if this process leads a group already, which one started by `start` does not.
        let _ = setsid();
    }
}

/// Called in the background process when its report is printed: lets the parent return, and turns to the log. From
/// here on nothing reaches the terminal.
pub fn ready(outcome: Outcome) -> Result<()> {
    let Some(log) = std::env::var_os(BACKGROUND_LOG) else {
        return Ok(());
    };
    let warnings = if outcome == Outcome::Done { "" } else { "warnings" };
    output::write_bytes(format!("{END}{warnings}\n").as_bytes());
    if output::is_closed() {
        return Err(Error::Io {
            doing: "say that the mount is ready".into(),
            source: io::ErrorKind::BrokenPipe.into(),
        });
    }
    let file = File::options().create(true).append(true).open(&log);
    let file = file.map_err(failed("open the log"))?;
    // Held by standard error from here on, to the end of the process: see `clean_logs`.
    file.lock_shared().map_err(failed("lock the log"))?;
    let null = File::options().write(true).open("/dev/null");
    let null = null.map_err(failed("open /dev/null"))?;
    // The directory it was started from may be unmounted. All paths are absolute by now.
    std::env::set_current_dir("/").map_err(failed("go to /"))?;
    dup2_stdout(&null)
        .and_then(|()| dup2_stderr(&file))
        .map_err(|errno| failed("turn to the log")(errno.into()))
}

/// Called in the background process when it ends well: removes the log if nothing is in it.
pub fn end() {
    let Some(log) = std::env::var_os(BACKGROUND_LOG) else {
        return;
    };
    if std::fs::metadata(&log).is_ok_and(|log| log.len() == 0) {
        let _ = std::fs::remove_file(log);
    }
}

/// The file that the log of this process goes to, if it is the one in the background.
pub fn log() -> Option<PathBuf> {
    std::env::var_os(BACKGROUND_LOG).map(PathBuf::from)
}

fn log_path() -> Result<PathBuf> {
    let root = runtime_directory()?;
    let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&root);
    made.map_err(Error::io(format!("make {}", root.display())))?;
    let stamp = jiff::Timestamp::now().as_nanosecond();
    Ok(root.join(format!("mount-{}-{stamp:x}.log", std::process::id())))
}

fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    Error::io(doing)
}
