//! Standard output: what goes through here drives no terminal, whatever is in a repository. A reader that has seen enough (`vbk list | head -1`) is no error; a full disk is one.

use std::io::{ErrorKind, Write};
use std::sync::Mutex;

use crate::terminal::printable;

/// The first failure, told at the end of the run.
static FAILED: Mutex<Option<std::io::Error>> = Mutex::new(None);

/// Writes text for people.
pub fn write(text: impl std::fmt::Display) {
    write_bytes(printable::lines(&text.to_string()).as_bytes());
}

/// Writes JSON, and a line break.
pub fn write_json(text: &str) {
    write_bytes(format!("{}\n", printable::json(text)).as_bytes());
}

/// Writes bytes as they are.
pub fn write_bytes(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    note(out.write_all(bytes).and_then(|()| out.flush()));
}

/// Writes a line.
pub fn line(text: impl std::fmt::Display) {
    write(format_args!("{text}\n"));
}

fn note(result: std::io::Result<()>) {
    if let Err(error) = result
        && let Ok(mut failed) = FAILED.lock()
    {
        failed.get_or_insert(error);
    }
}

/// Whether nobody reads what is written, or it can't be.
pub fn is_closed() -> bool {
    FAILED.lock().is_ok_and(|failed| failed.is_some())
}

/// What kept the output from being complete, except a reader that went away.
pub fn failure() -> Option<std::io::Error> {
    let failed = FAILED.lock().ok()?.take()?;
    (failed.kind() != ErrorKind::BrokenPipe).then_some(failed)
}
