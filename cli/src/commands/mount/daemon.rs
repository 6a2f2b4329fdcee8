//! A command that continues in the background: `vbk mount` starts vbk again, and waits until that process is ready.
//!
//! The child reports that by a last line on standard output, after its output for a person or a script, which the parent
//! passes on. Starting the program again is safe after threads have started; forking is not.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::unistd::{dup2_stderr, dup2_stdout, setsid};

use crate::exit::{Error, Outcome, Result};
use crate::handover::{Handover, SECRETS_ON_STDIN};
use crate::leftover_mounts::clean_logs;
use crate::machine::{BACKGROUND_LOG, is_background, runtime_directory};
use crate::terminal::output;

/// First character of the last line of the child's report, before the outcome. It can't occur in JSON or in a message.
const END: char = '\u{4}';

/// A process in the background that is ready.
pub struct Background {
    /// The process.
    pub child: Child,
    /// Its log.
    pub log: PathBuf,
    /// Outcome of the start.
    pub outcome: Outcome,
}

/// Starts vbk with these arguments in the background and passes its report on. If the child ends before it is ready, it
/// has printed the reason, and this process ends with the same code.
///
/// The child gets the secrets from [`Handover::received`].
pub fn start(arguments: impl IntoIterator<Item = OsString>, secrets: &Handover) -> Result<Background> {
    clean_logs();
    let log = log_path()?;
    let program = std::env::current_exe().map_err(failed("start in the background"))?;
    let mut command = Command::new(program);
    let handed = !secrets.is_empty();
    if handed {
        command.env(SECRETS_ON_STDIN, "1");
    }
    let mut child = command
        .args(arguments)
        .env(BACKGROUND_LOG, &log)
        .stdin(if handed { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed("start in the background"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A child that has ended reports the reason itself.
        let _ = pipe.write_all(&secrets.text());
    }
    if let Some(outcome) = pass_on(&mut child)? {
        return Ok(Background { child, log, outcome });
    }
    let status = child.wait().map_err(failed("wait for the background"))?;
    std::process::exit(status.code().unwrap_or(1));
}

/// Copies the child's report; returns `None` if the child ended before it was ready.
fn pass_on(child: &mut Child) -> Result<Option<Outcome>> {
    let mut outcome = None;
    // Errors and warnings arrive here until the child is ready and turns to its log. They are read at the same time as the
    // report, or a child with many of them would wait for ever.
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

/// Detaches the background process from the terminal, so that Ctrl-C there does not reach it. Called first.
pub fn begin() {
    if is_background() {
        // Fails only if this process leads a group already, which one started by `start` does not.
        let _ = setsid();
    }
}

/// Lets the parent return, and directs the output of the background process to its log. Called when its report is
/// printed: from here on nothing reaches the terminal.
pub fn ready(outcome: Outcome) -> Result<()> {
    let Some(log) = std::env::var_os(BACKGROUND_LOG) else {
        return Ok(());
    };
    let warnings = if outcome == Outcome::Done { "" } else { "warnings" };
    output::write_bytes(format!("{END}{warnings}\n").as_bytes());
    if output::is_closed() {
        return Err(Error::Io {
            doing: "report that the mount is ready".into(),
            source: io::ErrorKind::BrokenPipe.into(),
        });
    }
    let file = File::options().create(true).append(true).open(&log);
    let file = file.map_err(failed("open the log"))?;
    // Standard error holds the lock to the end of the process: see `clean_logs`.
    file.lock_shared().map_err(failed("lock the log"))?;
    let null = File::options().write(true).open("/dev/null");
    let null = null.map_err(failed("open /dev/null"))?;
    // The starting directory may be unmounted. All paths are absolute by now.
    std::env::set_current_dir("/").map_err(failed("go to /"))?;
    dup2_stdout(&null)
        .and_then(|()| dup2_stderr(&file))
        .map_err(|errno| failed("write to the log")(errno.into()))
}

/// Removes the log of the background process if it is empty. Called when the process ends without an error.
pub fn end() {
    let Some(log) = std::env::var_os(BACKGROUND_LOG) else {
        return;
    };
    if std::fs::metadata(&log).is_ok_and(|log| log.len() == 0) {
        let _ = std::fs::remove_file(log);
    }
}

/// Returns the log file of this process, if it is the one in the background.
pub fn log() -> Option<PathBuf> {
    std::env::var_os(BACKGROUND_LOG).map(PathBuf::from)
}

fn log_path() -> Result<PathBuf> {
    let root = runtime_directory()?;
    let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&root);
    made.map_err(Error::io(format!("create {}", root.display())))?;
    let stamp = jiff::Timestamp::now().as_nanosecond();
    Ok(root.join(format!("mount-{}-{stamp:x}.log", std::process::id())))
}

fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    Error::io(doing)
}
