//! A path inside a backup: `GUEST@TIME[/DISK]:PATH`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::builder::{OsStringValueParser, TypedValueParser};
use vbk_repo::catalogue::BackupSpec;

/// A backup, and a path inside it if one was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InsidePath {
    /// The backup, perhaps with a disk.
    pub backup: BackupSpec,
    /// Bytes after the colon.
    pub path: Option<Vec<u8>>,
}

impl InsidePath {
    /// Returns the parser of arguments.
    pub fn parser() -> impl TypedValueParser<Value = Self> {
        OsStringValueParser::new().try_map(|text| Self::parse(&text.into_vec()))
    }

    /// Splits at the first colon that is not part of a time such as `2026-11-20T05:54:00`.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let colons = text
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b':')
            .map(|(at, _)| at);
        let colon = colons.into_iter().find(|at| !is_in_time(&text[..*at], &text[at + 1..]));
        let (backup, path) = match colon {
            Some(at) => (&text[..at], Some(text[at + 1..].to_vec())),
            None => (text, None),
        };
        let backup = std::str::from_utf8(backup).map_err(|_| "the name of the backup is not UTF-8".to_owned())?;
        let backup = backup.parse().map_err(|error: vbk_repo::Error| match colon {
            Some(_) => error.to_string(),
            None => format!("{error}; a path inside it follows a colon, e.g. web1@latest:/etc/fstab"),
        })?;
        Ok(Self { backup, path })
    }

    /// Parses a path that must be given.
    pub fn parse_whole(text: OsString) -> Result<Self, String> {
        let parsed = Self::parse(&text.into_vec())?;
        match parsed.path.as_deref() {
            None | Some(b"") => Err(format!(
                "no path; write it after a colon, e.g. {}:/etc/fstab",
                parsed.backup
            )),
            Some(_) => Ok(parsed),
        }
    }
}

/// Returns whether a colon between these stands between hours and minutes, or minutes and seconds.
fn is_in_time(before: &[u8], after: &[u8]) -> bool {
    let two_digits = |text: &[u8]| matches!(text, [a, b, ..] if a.is_ascii_digit() && b.is_ascii_digit());
    let ends_after = |text: &[u8]| matches!(text.get(2), None | Some(b':' | b'Z' | b'/'));
    let hour = |text: &[u8]| matches!(text, [.., b'T' | b' ', a, b] if a.is_ascii_digit() && b.is_ascii_digit());
    let minute = |text: &[u8]| match text {
        [hours @ .., b':', a, b] => a.is_ascii_digit() && b.is_ascii_digit() && hour(hours),
        _ => false,
    };
    before.contains(&b'@') && two_digits(after) && ends_after(after) && (hour(before) || minute(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_begins_after_the_colon_that_is_not_in_the_time() {
        for (text, backup, path) in [
            ("web1@latest:/etc", "web1@latest", Some("/etc")),
            ("web1@latest:", "web1@latest", Some("")),
            ("web1@latest", "web1@latest", None),
            ("web1@latest:/a:b:10:20", "web1@latest", Some("/a:b:10:20")),
            ("web1@latest/vda:p1/etc", "web1@latest/vda", Some("p1/etc")),
            ("web1@2026-11-20:/etc", "web1@2026-11-20", Some("/etc")),
            ("web1@2026-11-20T05-54-00Z:p1", "web1@2026-11-20T05-54-00Z", Some("p1")),
            ("web1@2026-11-20T05:54:/10:20", "web1@2026-11-20T05:54", Some("/10:20")),
            ("web1@2026-11-20 05:54:00Z:/x", "web1@2026-11-20 05:54:00Z", Some("/x")),
            ("web1@2026-11-20T05:54:00", "web1@2026-11-20T05:54:00", None),
            ("web1@2026-11-20T05:54:00:", "web1@2026-11-20T05:54:00", Some("")),
            ("web1@2026-11-20T05:54/vda:/x", "web1@2026-11-20T05:54/vda", Some("/x")),
            ("web1@2026-11-20T05:/x", "web1@2026-11-20T05", Some("/x")),
            (
                "web1@2026-11-20T05:54:00:10:/x",
                "web1@2026-11-20T05:54:00",
                Some("10:/x"),
            ),
            ("abcd1234:/T05:30", "abcd1234", Some("/T05:30")),
        ] {
            let parsed = InsidePath::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(parsed.backup, backup.parse().expect("a backup"), "{text}");
            assert_eq!(parsed.path.as_deref(), path.map(str::as_bytes), "{text}");
        }
        for bad in ["", ":", "/etc", "web1:/etc", "web1@:/etc"] {
            assert!(InsidePath::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let bytes = InsidePath::parse(b"web1@latest:/\xff").expect("any bytes are a path");
        assert_eq!(bytes.path.as_deref(), Some(&b"/\xff"[..]));
    }
}
