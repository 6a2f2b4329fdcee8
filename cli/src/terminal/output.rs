//! Standard output. Text that goes through here can't drive a terminal, whatever is in a repository. A reader that stops
//! early (`vbk list | head -1`) is not an error; a full disk is one.

use std::io::{ErrorKind, Write};

use parking_lot::Mutex;
use serde::Serialize;
use vbk::host::terminal;

use crate::exit::{Error, Result};
use crate::terminal::printable;

/// The first failure, reported at the end of the run.
static FAILED: Mutex<Option<std::io::Error>> = Mutex::new(None);

/// Returns the number of columns of the terminal that standard output is; `None` if it is a file or a pipe.
pub fn columns() -> Option<usize> {
    terminal::columns(std::io::stdout())
}

/// Writes text for people.
pub fn write(text: impl std::fmt::Display) {
    write_bytes(printable::lines(&text.to_string()).as_bytes());
}

/// Writes JSON and a line break.
pub fn write_json(text: &str) {
    write_bytes(format!("{}\n", json(text)).as_bytes());
}

/// Returns JSON as it is printed.
fn json(text: &str) -> String {
    printable::json(&without_fractions(text))
}

/// Cuts times to whole seconds, because `fromdate` of jq and much else reads no others: strings of the form
/// `2026-11-21T05:54:00.123456789Z`.
fn without_fractions(text: &str) -> String {
    const FORM: &str = "\"0000-00-00T00:00:00.";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dot) = rest.find('.') {
        let (before, after) = rest.split_at(dot);
        let begins = before
            .len()
            .checked_sub(FORM.len() - 1)
            .and_then(|start| before.get(start..));
        let fits = |begins: &str| {
            begins.bytes().zip(FORM.bytes()).all(|(byte, form)| match form {
                b'0' => byte.is_ascii_digit(),
                form => byte == form,
            })
        };
        let end = after[1..].trim_start_matches(|letter: char| letter.is_ascii_digit());
        out.push_str(before);
        let is_time = begins.is_some_and(fits) && end.starts_with("Z\"") && end.len() < after.len() - 1;
        rest = match is_time {
            true => end,
            false => {
                out.push('.');
                &after[1..]
            }
        };
    }
    out + rest
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
            before: json(before),
            is_started: false,
        }
    }

    /// Writes an item.
    pub fn item(&mut self, text: &str) {
        let separator = if self.is_started { ",\n" } else { "\n" };
        self.start();
        write_bytes(format!("{separator}{}", json(text)).as_bytes());
    }

    /// Writes the end, with all that follows the bracket.
    pub fn end(mut self, after: &str) {
        let line = if self.is_started { "\n" } else { "" };
        self.start();
        write_bytes(format!("{line}]{}\n", json(after)).as_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_whole_seconds_and_nothing_else_is_changed() {
        let text = r#"{"at":"2026-11-21T05:54:00.123456789Z","x":1.5,"y":"a 2026-11-21T05:54:00.5Z","z":"2026-11-21T05:54:00.Z"}"#;
        let expected = text.replace(":00.123456789Z", ":00Z");
        assert_eq!(without_fractions(text), expected);
        let all = without_fractions("[\"2026-11-21T05:54:00.1Z\",\"2026-11-21T05:54:01Z\",\"\u{e4}.\"]");
        assert_eq!(all, "[\"2026-11-21T05:54:00Z\",\"2026-11-21T05:54:01Z\",\"\u{e4}.\"]");
    }
}
