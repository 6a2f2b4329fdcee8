//! Tells of the end of a run over all guests: by a command, by calling a URL, and by mail. What can't be told is a warning.
//!
//! curl and sendmail do the work, where the host has them. What they are to send goes through a pipe: other users see the words of a
//! command, and whoever knows such a URL can call it too.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use vbk::host::program::{self, ProgramError, Programs};
use vbk_repo::file_system::file_system;
use vbk_repo::repository::Repository;

use super::{Done, report};
use crate::config::Notices;
use crate::exit::Error;
use crate::facts::Facts;
use crate::terminal::units;

/// Time limit for each of them.
const LIMIT: Duration = Duration::from_secs(90);
/// Limit of a message: less than what a pipe holds, so that nothing has to wait for a reader.
const MAX_MESSAGE_BYTES: usize = 24 << 10;

/// The end of a run over all guests.
pub struct Night<'a> {
    pub host: &'a str,
    pub started: Timestamp,
    pub took: Duration,
    /// The guests, by name; none if the run ended before the first.
    pub done: &'a [Done],
    /// Reason why it ended so early.
    pub error: Option<&'a Error>,
    /// Number of all warnings.
    pub warnings: u64,
    /// The repository, if it was opened.
    pub repository: Option<&'a Repository>,
}

impl Night<'_> {
    fn failed(&self) -> usize {
        self.done.iter().filter(|done| done.result.is_err()).count()
    }

    /// Returns whether all guests were backed up, perhaps with warnings.
    fn is_good(&self) -> bool {
        self.error.is_none() && self.failed() == 0
    }

    /// `vbk on node3: 40 guests backed up, 2 failed, 3 warnings`
    fn title(&self) -> String {
        let host = self.host;
        if let Some(error) = self.error {
            return format!("vbk on {host}: no guest was backed up ({})", error.word());
        }
        let (failed, all) = (self.failed(), self.done.len());
        let mut title = format!(
            "vbk on {host}: {} backed up",
            units::count((all - failed) as u64, "guest")
        );
        if failed > 0 {
            _ = write!(title, ", {failed} failed");
        }
        if self.warnings > 0 {
            _ = write!(title, ", {}", units::count(self.warnings, "warning"));
        }
        title
    }

    /// Returns the message: the title, sums, the guests that failed or had warnings, and the state of the repository.
    fn text(&self) -> String {
        let mut text = format!(
            "{}\n\nBegun {} UTC, took {}\n",
            self.title(),
            units::time(self.started),
            units::duration(self.took)
        );
        if let Some(error) = self.error {
            _ = writeln!(text, "{}", error.message());
        }
        if self.error.is_none() {
            _ = writeln!(text, "{}", report::sums(self.done));
        }
        if let Some(table) = report::table(self.done, true, true) {
            _ = write!(text, "\n{table}");
        }
        if let Some(repository) = self.repository {
            text.push_str(&state_of(repository));
        }
        cut(text)
    }
}

/// Describes the repository in the morning.
fn state_of(repository: &Repository) -> String {
    let mut text = format!("\nRepository: {}\n", repository.path().display());
    if let Some(found) = repository.local_path().ok().and_then(|path| file_system(path).ok()) {
        let (free, size) = (units::size(found.free_bytes), units::size(found.size_bytes));
        _ = writeln!(text, "Free:       {free} of {size}");
    }
    if let Ok(facts) = repository.view().and_then(|view| Facts::of(&view)) {
        let (backups, guests) = (
            units::count(facts.backups, "backup"),
            units::count(facts.guests, "guest"),
        );
        _ = writeln!(text, "Backups:    {backups} of {guests}");
        let damage = match facts.damaged_backups {
            0 => "none known".to_owned(),
            number => format!("in {}; `vbk list` shows which", units::count(number, "backup")),
        };
        _ = writeln!(text, "Damage:     {damage}");
    }
    text
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_MESSAGE_BYTES {
        let end = (0..=MAX_MESSAGE_BYTES).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push_str("\n... and more: see the log\n");
    }
    text
}

/// Tells of a night in all ways that are configured. Returns a line for each that failed.
pub fn tell(programs: &Programs, notices: &Notices, night: &Night<'_>) -> Vec<String> {
    let (text, is_good) = (night.text(), night.is_good());
    let mut failed = Vec::new();
    let mut note = |what: &str, told: Result<(), ProgramError>| {
        failed.extend(told.err().map(|why| format!("{what}: {why}")));
    };
    if let Some(command) = notices.on_success.as_deref().filter(|_| is_good) {
        note("the on-success command", on_success(programs, command, night, &text));
    }
    let (name, url) = match is_good {
        true => ("success-url", &notices.success_url),
        false => ("failure-url", &notices.failure_url),
    };
    if let Some(url) = url {
        note(name, call(programs, url, &text));
    }
    let is_trouble = !is_good || night.warnings > 0;
    if let Some(address) = notices.mail_to.as_deref().filter(|_| is_trouble || notices.mail_always) {
        note("mail-to", mail(programs, address, &night.title(), &text));
    }
    failed
}

/// Runs the administrator's command. It gets `VBK_HOST`, `VBK_GUESTS` and `VBK_WARNINGS`, their numbers, and `VBK_SUMMARY`, the
/// message.
fn on_success(programs: &Programs, command: &str, night: &Night<'_>, text: &str) -> Result<(), ProgramError> {
    let mut shell = programs.command("sh");
    shell
        .arg("-c")
        .arg(command)
        .env("VBK_HOST", night.host)
        .env("VBK_GUESTS", night.done.len().to_string())
        .env("VBK_WARNINGS", night.warnings.to_string())
        .env("VBK_SUMMARY", text.replace('\0', " "));
    program::act(shell, LIMIT)
}

/// Calls a URL with a message, as POST.
fn call(programs: &Programs, url: &str, text: &str) -> Result<(), ProgramError> {
    let mut curl = programs.command("curl");
    // --disable comes first: root's .curlrc is for a person.
    curl.args([
        "--disable",
        "--silent",
        "--show-error",
        "--fail",
        "--proto",
        "=http,https",
    ]);
    curl.args([
        "--max-time",
        "20",
        "--retry",
        "2",
        "--output",
        "/dev/null",
        "--config",
        "-",
    ]);
    // curl(1) reads a file if the data begin with @; these begin with the title.
    let config = format!(
        "url = {}\nheader = \"Content-Type: text/plain; charset=utf-8\"\ndata-binary = {}\n",
        quoted(url),
        quoted(text)
    );
    send(curl, config.as_bytes())
}

/// Quotes a value for a configuration of curl: see `--config` in curl(1).
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\0', " ");
    format!(
        "\"{}\"",
        escaped.replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t")
    )
}

/// Sends mail in the host's own way.
fn mail(programs: &Programs, address: &str, title: &str, text: &str) -> Result<(), ProgramError> {
    let mut sendmail = programs.command("sendmail");
    // -i: a line with a dot alone does not end the message.
    sendmail.arg("-i").args(address.split(',').map(str::trim));
    let title: String = title
        .chars()
        .map(|c| if c.is_ascii_graphic() { c } else { ' ' })
        .collect();
    let message = format!(
        "To: {address}\nSubject: {title}\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\
         Content-Transfer-Encoding: 8bit\nAuto-Submitted: auto-generated\n\n{text}"
    );
    send(sendmail, message.as_bytes())
}

/// Runs a program with this input.
fn send(mut command: Command, input: &[u8]) -> Result<(), ProgramError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| ProgramError::Start { program, source };
    let piped = || {
        let (reader, mut writer) = std::io::pipe()?;
        // It fits into the pipe: see MAX_MESSAGE_BYTES.
        writer.write_all(input)?;
        Ok(reader)
    };
    command.stdin(piped().map_err(failed)?);
    program::act(command, LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_for_curl_is_one_line_and_says_the_same() {
        assert_eq!(quoted("a \"b\"\\\n\tc"), "\"a \\\"b\\\"\\\\\\n\\tc\"");
        // Escaping at most doubles it.
        const { assert!(2 * MAX_MESSAGE_BYTES + 1024 < 64 << 10) };
    }

    #[test]
    fn a_long_message_is_cut_between_letters() {
        let text = cut("\u{e4}".repeat(MAX_MESSAGE_BYTES));
        assert!(text.len() < MAX_MESSAGE_BYTES + 100 && text.ends_with("see the log\n"));
        assert_eq!(cut("short".into()), "short");
    }

    #[test]
    fn a_run_that_did_not_begin_says_so_and_is_not_good() {
        let error = Error::Busy("another one is running".into());
        let night = Night {
            host: "node3",
            started: Timestamp::UNIX_EPOCH,
            took: Duration::from_secs(3),
            done: &[],
            error: Some(&error),
            warnings: 0,
            repository: None,
        };
        assert!(!night.is_good());
        let expected = "vbk on node3: no guest was backed up (locked)\n\nBegun 1970-01-01 00:00:00 UTC, took 3.0s\nanother one is running\n";
        assert_eq!(night.text(), expected);
    }
}
