//! The log on standard error: with colours for a terminal, plain for a file, with priorities for the journal.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::terminal::printable;

/// Starts the log.
pub fn start(verbose: u8, quiet: bool) {
    let level = match verbose {
        0 if quiet => "error",
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    // RocksDB lists all its options, over a thousand lines.
    let store = match verbose {
        0..=2 => "rocksdb=info",
        _ => "rocksdb=debug",
    };
    // VBK_LOG takes tracing's own filters, e.g. VBK_LOG=rocksdb=debug. fuser warns of each kind of request that a
    // read-only file system need not answer.
    let usual = || EnvFilter::new(format!("{level},fuser=error,{store}"));
    let filter = match std::env::var("VBK_LOG") {
        Ok(given) if !given.is_empty() => EnvFilter::try_new(given).unwrap_or_else(|_| usual()),
        _ => usual(),
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    if goes_to_journal() {
        // The journal keeps time and priority itself.
        log.without_time()
            .with_level(false)
            .with_ansi(false)
            .with_writer(Journal)
            .init();
    } else if io::stderr().is_terminal() {
        // A person looks on, and knows the time.
        log.without_time()
            .with_writer(|| Shown)
            .with_ansi(!is_colourless())
            .init();
    } else {
        log.with_timer(Seconds).with_writer(|| Shown).with_ansi(false).init();
    }
}

/// Prints the error that ended the command.
pub fn complain(text: impl Display) {
    let text = printable::lines(&format!("vbk: {text}\n"));
    let text = if goes_to_journal() {
        prefixed(Level::ERROR, &text)
    } else {
        text
    };
    // There is no other place to report that this failed.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Prints the error that ended the command as JSON in one line, without a priority: scripts read it.
pub fn complain_json(text: &str) {
    let _ = io::stderr().write_all(format!("{}\n", printable::json(text)).as_bytes());
}

/// Returns whether standard output goes where the log goes, e.g. to one terminal or to the journal, so that what one has said the
/// other need not repeat.
pub fn is_beside_output() -> bool {
    let of = |stat: nix::sys::stat::FileStat| (stat.st_dev, stat.st_ino);
    let (out, err) = (fstat(io::stdout().as_fd()), fstat(io::stderr().as_fd()));
    out.ok().map(of).is_some_and(|out| err.ok().map(of) == Some(out))
}

/// Returns whether the user wants no colours (no-color.org): the variable is set, and not empty.
fn is_colourless() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Returns whether systemd connected standard error to the journal (systemd.exec(5), `JOURNAL_STREAM`). Device and inode
/// decide, because processes with another output inherit the variable.
fn goes_to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    fstat(io::stderr().as_fd()).is_ok_and(|stderr| stream == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

/// Puts its priority before every line (sd-daemon(3)).
fn prefixed(level: Level, text: &str) -> String {
    let priority = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    };
    text.lines().map(|line| format!("<{priority}>{line}\n")).collect()
}

/// The time of an event in a file: whole seconds, UTC.
struct Seconds;

impl FormatTime for Seconds {
    fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
        out.write_str(&jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    }
}

/// Makes the writers of events for the journal.
struct Journal;

/// Writes one event of a level.
struct Event(Level);

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Event;

    fn make_writer(&'a self) -> Event {
        Event(Level::INFO)
    }

    fn make_writer_for(&'a self, of: &Metadata<'_>) -> Event {
        Event(*of.level())
    }
}

impl Write for Event {
    /// Gets a whole event at a time.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = printable::event(&String::from_utf8_lossy(event));
        io::stderr().write_all(prefixed(self.0, &text).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes events to a terminal or a file.
struct Shown;

impl Write for Shown {
    /// Gets a whole event at a time.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = printable::event(&String::from_utf8_lossy(event));
        io::stderr().write_all(text.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn every_line_has_its_priority() {
        assert_eq!(prefixed(Level::WARN, "one\ntwo\n"), "<4>one\n<4>two\n");
        assert_eq!(prefixed(Level::ERROR, "one"), "<3>one\n");
        assert_eq!(prefixed(Level::TRACE, ""), "");
    }

    /// Run by the other test with its standard error somewhere.
    #[test]
    #[ignore = "part of another test"]
    fn a_log() {
        start(1, false);
        tracing::warn!("a snapshot of {} is\nhalf full", "web1");
        tracing::info!("goes on");
        tracing::info!("{}", "a\u{1b}[2Jb\rc\u{202e}d");
        complain("it failed\nhint: try again");
    }

    fn said(stream: impl FnOnce(&File) -> Option<String>) -> String {
        let dir = tempfile::tempdir().expect("makes a directory");
        let path = dir.path().join("err");
        let file = File::create(&path).expect("creates");
        let mut command = Command::new(std::env::current_exe().expect("has a name"));
        command.args(["--exact", "terminal::log::tests::a_log", "--ignored", "--nocapture"]);
        command.env_remove("VBK_LOG").env_remove("JOURNAL_STREAM");
        if let Some(stream) = stream(&file) {
            command.env("JOURNAL_STREAM", stream);
        }
        assert!(command.stderr(file).output().expect("runs").status.success());
        std::fs::read_to_string(path).expect("is there")
    }

    #[test]
    fn the_journal_gets_priorities_and_no_time_and_a_file_gets_time_and_levels() {
        let name_of = |file: &File| {
            let file = file.metadata().expect("is open");
            format!("{}:{}", file.dev(), file.ino())
        };
        let journal = "<4>a snapshot of web1 is\n<4>half full\n<6>goes on\n<6>a\\x1b[2Jb\\u{d}c\\u{202e}d\n<3>vbk: it failed\n<3>hint: try again\n";
        assert_eq!(said(|file| Some(name_of(file))), journal);
        for plain in [
            said(|_| None),
            said(|file| Some(format!("{}0", name_of(file)))),
            said(|_| Some("x".into())),
        ] {
            assert!(
                plain.contains(" WARN a snapshot of web1 is\nhalf full") && plain.contains(" INFO goes on"),
                "{plain}"
            );
            assert!(
                !plain.contains('<') && !plain.contains('\u{1b}') && plain.starts_with("20"),
                "{plain}"
            );
        }
    }
}
