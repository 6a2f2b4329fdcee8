//! Keys as text files: key files, which open a slot, and exported keys, which are the master key itself.
//!
//! ```text
//! # key file of vbk repository ...           # exported key of vbk repository ...
//! 64 hexadecimal digits                      vbk-exported-key 1
//!                                            repository ID
//!                                            key 64 hexadecimal digits
//!                                            checksum 16 hexadecimal digits
//! ```
//!
//! Empty lines and lines that start with `#` are ignored. Errors name the line and never show its content.

use std::path::Path;

use zeroize::Zeroizing;

use crate::block::{derive, keyed_hash};
use crate::cipher::random;
use crate::error::{Error, Result};
use crate::files::{self, Mode, Synced};
use crate::id::{from_hex, to_hex};

const EXPORTED: &str = "vbk-exported-key";
const EXPORT_FORMAT: &str = "1";
const CHECKSUM: &str = "vbk 2026-11-21 v1 exported key check";

/// Content of a key file.
pub(super) enum KeyText {
    /// A key file's key.
    Slot(Zeroizing<[u8; 32]>),
    /// The master key of the repository with this id.
    Master {
        repository: String,
        master: Zeroizing<[u8; 32]>,
    },
}

pub(super) fn parse(bytes: &[u8]) -> Result<KeyText> {
    let text = std::str::from_utf8(bytes).map_err(|_| bad("the key file is not a text file"))?;
    let mut lines = (1..)
        .zip(text.trim_start_matches('\u{FEFF}').lines())
        .map(|(number, line)| (number, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let (number, first) = lines
        .next()
        .ok_or_else(|| bad("the key file has no key in it; one line has 64 hexadecimal digits"))?;
    if let Some(format) = first.strip_prefix(EXPORTED) {
        if format.trim() != EXPORT_FORMAT {
            return Err(bad("the exported key has a format that this vbk does not know"));
        }
        return parse_export(lines);
    }
    let key = from_hex(first).map(Zeroizing::new);
    match (key, lines.next()) {
        (Some(key), None) => Ok(KeyText::Slot(key)),
        (Some(_), Some((number, _))) => Err(bad(format!("line {number} of the key file comes after its key"))),
        (None, _) => Err(bad(format!(
            "line {number} of the key file is not 64 hexadecimal digits"
        ))),
    }
}

fn parse_export<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Result<KeyText> {
    let (mut repository, mut key, mut checksum) = (None, None, None);
    for (number, line) in lines {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let field = match word {
            "repository" => &mut repository,
            "key" => &mut key,
            "checksum" => &mut checksum,
            _ => {
                return Err(bad(format!("line {number} of the exported key has an unknown word")));
            }
        };
        if field.replace(rest.trim()).is_some() {
            return Err(bad(format!("line {number} of the exported key repeats an earlier one")));
        }
    }
    let (Some(repository), Some(key), Some(stated)) = (repository, key, checksum) else {
        return Err(bad(
            "the exported key is cut off; it must have the lines repository, key and checksum",
        ));
    };
    let master = from_hex(key)
        .map(Zeroizing::new)
        .ok_or_else(|| bad("the line \"key\" of the exported key does not have 64 hexadecimal digits"))?;
    if !stated.eq_ignore_ascii_case(&self::checksum(repository, &master)) {
        return Err(bad("the exported key is damaged: its checksum does not match"));
    }
    Ok(KeyText::Master {
        repository: repository.to_owned(),
        master,
    })
}

/// Returns the text of an exported key. `repository` is an id without leading or trailing spaces or line ends.
pub(super) fn export(master: &[u8; 32], repository: &str) -> Zeroizing<String> {
    let key = Zeroizing::new(to_hex(master));
    let checksum = checksum(repository, master);
    Zeroizing::new(format!(
        "# exported key of vbk repository {repository}\n\
         # Whoever has this file can read every backup in it, and can do so when all key slots are lost.\n\
         # Keep it safe, and not beside the repository.\n\
         {EXPORTED} {EXPORT_FORMAT}\n\
         repository {repository}\n\
         key {key}\n\
         checksum {checksum}\n",
        key = *key
    ))
}

fn checksum(repository: &str, master: &[u8; 32]) -> String {
    let key = Zeroizing::new(derive(CHECKSUM, master));
    to_hex(&keyed_hash(&key, &[repository.as_bytes()])[..8])
}

/// Creates a key file that only its owner can read, and returns its text. Durable when this returns. An existing file
/// is never replaced.
pub(super) fn create(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let key = Zeroizing::new(random::<32>()?);
    let digits = Zeroizing::new(to_hex(&*key));
    let text = format!(
        "# key file of vbk repository: opens every backup in it. Keep it safe, and not beside the repository.\n{}\n",
        *digits
    );
    let text = Zeroizing::new(text.into_bytes());
    // If this fails, the file is removed: its key is not in use yet.
    files::create(path, &text, Mode::Private, Synced::FileAndDirectory).map_err(Error::io("create", path))?;
    Ok(text)
}

fn bad(what: impl Into<String>) -> Error {
    Error::BadKey { what: what.into() }
}
