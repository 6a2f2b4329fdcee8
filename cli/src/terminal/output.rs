//! Standard output. Text that goes through here can't drive a terminal, whatever is in a repository. A reader that stops
//! early (`vbk list | head -1`) is not an error; a full disk is one.

use std::io::{ErrorKind, Write};

use parking_lot::Mutex;
use serde::Serialize;

use crate::exit::{Error, Result};
use crate::terminal::printable;

/// The first failure, reported at the end of the run.
static FAILED: Mutex<Option<std::io::Error>> = Mutex::new(None);

/// Writes text for people.
pub fn write(text: impl std::fmt::Display) {
    write_bytes(printable::lines(&text.to_string()).as_bytes());
}

/// Writes JSON and a line break.
pub fn write_json(text: &str) {
    write_bytes(format!("{}\n", printable::json(text)).as_bytes());
}

/// Writes bytes unchanged.
pub fn write_bytes(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    note(out.write_all(bytes).and_then(|()| out.flush()));
}

/// Writes a line.
pub fn line(text: impl std::fmt::Display) {
    write(format_args!("{text}\n"));
}

/// Returns a value as JSON in one line.
pub fn json_text(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Bug(error.to_string()))
}

/// A JSON list that is written as its items come, so that it may be longer than the memory. Nothing is written before the
/// first item, so that a command that fails early prints no part of a list.
pub struct JsonList {
    before: String,
    is_started: bool,
}

impl JsonList {
    /// Makes an empty list with the text that precedes its bracket.
    pub fn new(before: &str) -> Self {
        Self {
            before: printable::json(before),
            is_started: false,
        }
    }

    /// Writes an item.
    pub fn item(&mut self, text: &str) {
        let separator = if self.is_started { ",\n" } else { "\n" };
        self.start();
        write_bytes(format!("{separator}{}", printable::json(text)).as_bytes());
    }

    /// Writes the end, with all that follows the bracket.
    pub fn end(mut self, after: &str) {
        self.start();
        write_bytes(format!("\n]{}\n", printable::json(after)).as_bytes());
    }

    fn start(&mut self) {
        if !self.is_started {
            self.is_started = true;
            write_bytes(format!("{}[", self.before).as_bytes());
        }
    }
}

fn note(result: std::io::Result<()>) {
    if let Err(error) = result {
        FAILED.lock().get_or_insert(error);
    }
}

/// Returns whether output was lost, because the reader went away or a write failed.
pub fn is_closed() -> bool {
    FAILED.lock().is_some()
}

/// Returns the error that left the output incomplete, except a reader that went away.
pub fn failure() -> Option<std::io::Error> {
    let failed = FAILED.lock().take()?;
    (failed.kind() != ErrorKind::BrokenPipe).then_some(failed)
}
