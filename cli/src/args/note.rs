//! The arguments of `vbk note`.

use clap::Args;
use vbk_repo::catalogue::BackupSpec;

/// Longest note in bytes.
const MAX_BYTES: usize = 1000;

/// Text below the help of `vbk note`.
pub const HELP: &str = "\
`vbk list`, `vbk show` and their JSON have the note, and `vbk copy` takes it
along. It replaces an earlier one. It does not keep the backup: `vbk protect`
does.";

/// Arguments of `vbk note`.
#[derive(Debug, Args)]
#[command(override_usage = "vbk note [OPTIONS] <BACKUP> <TEXT>\n       vbk note [OPTIONS] <BACKUP> --remove")]
pub struct NoteArgs {
    /// The backup, e.g. web1@2026-11-21
    #[arg(value_name = "BACKUP")]
    pub backup: BackupSpec,

    /// The note, in one line
    #[arg(value_name = "TEXT", value_parser = parse_note, required_unless_present = "remove", conflicts_with = "remove")]
    pub text: Option<String>,

    /// Remove the note
    #[arg(long)]
    pub remove: bool,

    /// Exit with code 75 if another process writes to the repository, instead of waiting for it
    #[arg(long)]
    pub no_wait: bool,
}

fn parse_note(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("a note has words; --remove removes one".into());
    }
    if text.len() > MAX_BYTES {
        return Err(format!(
            "a note has at most {MAX_BYTES} bytes, and this one {}",
            text.len()
        ));
    }
    match text.chars().any(char::is_control) {
        true => Err("a note is one line, without control characters".into()),
        false => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_one_short_line() {
        assert_eq!(parse_note(" für später "), Ok("für später".into()));
        for bad in ["", " ", "a\nb", "\u{1b}[2J", &"x".repeat(1001)] {
            assert!(parse_note(bad).is_err(), "{bad:?}");
        }
    }
}
