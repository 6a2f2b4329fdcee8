//! Finds the key of an encrypted repository: in a file that an option or the environment names, in a credential of
//! systemd, or at the terminal. Never in an argument, which every user of the machine could read.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use vbk_repo::keys::{RecoveryKey, Unlock};
use vbk_repo::repository::Repository;
use zeroize::Zeroizing;

use crate::core_files::keep_out_of_core_files;
use crate::exit::{Error, Result};
use crate::handover::Handover;
use crate::terminal::log;

/// Number of passphrases that a person may try, as with cryptsetup.
const TRIES: u32 = 3;

/// Names of systemd credentials (`LoadCredential=` of a unit).
const CREDENTIALS: [(&str, bool); 2] = [("vbk-passphrase", false), ("vbk-key-file", true)];

/// Files that were named to open a repository.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyPaths<'a> {
    /// A key file.
    pub key_file: Option<&'a Path>,
    /// A file with a passphrase in it.
    pub passphrase_file: Option<&'a Path>,
}

/// Opens a repository with the key that is named, or with one that a person types at a terminal, who has three tries. Returns
/// the key as well.
pub fn open(named: &KeyPaths<'_>, repository: &Repository) -> Result<(Unlock, Repository)> {
    if let Some(key) = without_question(named)? {
        let opened = opened(repository, &key)?;
        return Ok((key, opened));
    }
    let path = repository.path();
    if !std::io::stderr().is_terminal() {
        return Err(vbk_repo::Error::KeyNeeded { path: path.to_owned() }.into());
    }
    let prompt = format!("Passphrase or recovery key of {}: ", path.display());
    tries(&mut || {
        let key = from_text(ask(&prompt)?);
        let opened = opened(repository, &key)?;
        Ok((key, opened))
    })
}

/// Tries something until a key fits, at most three times.
fn tries<T>(once: &mut dyn FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..TRIES {
        match once() {
            Err(error @ Error::Unopened(_)) => log::complain(format_args!("{}; try again", error.text())),
            result => return result,
        }
    }
    once()
}

fn opened(repository: &Repository, key: &Unlock) -> Result<Repository> {
    repository.clone().unlock(key).map_err(|error| match error {
        error @ (vbk_repo::Error::BadKey { .. } | vbk_repo::Error::WrongKey { .. }) => Error::Unopened(error),
        error => error.into(),
    })
}

/// Returns the key that is named, or that another process or systemd has given to this one.
fn without_question(named: &KeyPaths<'_>) -> Result<Option<Unlock>> {
    keep_out_of_core_files();
    if let Some(key) = Handover::received()?.and_then(|handover| handover.key.as_ref()) {
        return Ok(Some(Unlock::KeyFile(key.as_bytes().to_vec().into())));
    }
    if let Some(found) = given(named)? {
        return Ok(Some(found));
    }
    // systemd protects credentials by means that their modes don't show, so there is no warning.
    let read = |(_, path, is_key): (_, PathBuf, bool)| match is_key {
        true => read_key(&path),
        false => read_passphrase(&path),
    };
    credential().map(read).transpose()
}

/// Returns the credential that systemd gave to this run: its name, its file, and whether that is a key file.
pub fn credential() -> Option<(&'static str, PathBuf, bool)> {
    let directory = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?);
    let mut all = CREDENTIALS
        .map(|(name, is_key)| (name, directory.join(name), is_key))
        .into_iter();
    all.find(|(_, path, _)| path.exists())
}

/// Warns if other users can read a file that opens a repository, as ssh does for its keys.
fn warn_if_others_read(path: &Path) {
    let Ok(metadata) = std::fs::metadata(path) else {
        return;
    };
    let shown = path.display();
    if metadata.uid() != 0 && metadata.uid() != geteuid().as_raw() {
        tracing::warn!(
            "{shown} belongs to user {}, who can read the key of the repository; `chown` and `chmod 600` it",
            metadata.uid()
        );
    } else if metadata.is_file() && metadata.mode() & 0o077 != 0 {
        tracing::warn!(
            "other users can read the key of the repository: {shown} has mode {:o}; run `chmod 600 {shown}`",
            metadata.mode() & 0o7777
        );
    }
}

/// Returns the key in the named file, if one is named.
pub fn given(named: &KeyPaths<'_>) -> Result<Option<Unlock>> {
    match (named.key_file, named.passphrase_file) {
        (Some(path), _) => key_file(path).map(Some),
        (None, Some(path)) => passphrase_file(path).map(Some),
        (None, None) => Ok(None),
    }
}

/// Reads a key file.
pub fn key_file(path: &Path) -> Result<Unlock> {
    keep_out_of_core_files();
    let key = read_key(path)?;
    warn_if_others_read(path);
    Ok(key)
}

fn read_key(path: &Path) -> Result<Unlock> {
    std::fs::read(path)
        .map(|bytes| Unlock::KeyFile(bytes.into()))
        .map_err(failed("key file", path))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::KeyFile { what, path, source }
}

/// Reads the first line of a file as a passphrase or recovery key.
pub fn passphrase_file(path: &Path) -> Result<Unlock> {
    keep_out_of_core_files();
    let passphrase = read_passphrase(path)?;
    warn_if_others_read(path);
    Ok(passphrase)
}

fn read_passphrase(path: &Path) -> Result<Unlock> {
    let text = std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(failed("passphrase file", path))?;
    let line = Zeroizing::new(text.lines().next().unwrap_or_default().to_owned());
    if line.is_empty() {
        let what = format!(
            "passphrase file {} is empty: its first line is the passphrase",
            path.display()
        );
        return Err(Error::Unopened(vbk_repo::Error::BadKey { what }));
    }
    Ok(from_text(line))
}

/// Tells a recovery key from a passphrase: only a recovery key has a valid checksum.
fn from_text(text: Zeroizing<String>) -> Unlock {
    match RecoveryKey::parse(&text) {
        Ok(key) => Unlock::Recovery(key),
        Err(_) => Unlock::Passphrase(text),
    }
}

/// Asks twice for a new passphrase. `instead` are the options that give a new key without a question.
pub fn ask_new(instead: &str) -> Result<Unlock> {
    if !std::io::stderr().is_terminal() {
        return Err(Error::Usage(format!(
            "can't ask for a passphrase without a terminal; use {instead}"
        )));
    }
    keep_out_of_core_files();
    let first = ask("New passphrase: ")?;
    let second = ask("Repeat it: ")?;
    if first != second {
        return Err(Error::Usage("the two passphrases differ; nothing was done".into()));
    }
    new_passphrase(first)
}

fn new_passphrase(text: Zeroizing<String>) -> Result<Unlock> {
    match from_text(text) {
        // A slot for this passphrase would never open: the text is always tried as a recovery key.
        Unlock::Recovery(_) => Err(Error::Usage(
            "that is a recovery key; choose a passphrase of your own. Nothing was done".into(),
        )),
        passphrase => Ok(passphrase),
    }
}

fn ask(prompt: &str) -> Result<Zeroizing<String>> {
    rpassword::prompt_password(prompt)
        .map(Zeroizing::new)
        .map_err(Error::io("ask for a passphrase"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_has_three_tries_and_only_a_wrong_key_is_tried_again() {
        let wrong = || Err(Error::Unopened(vbk_repo::Error::WrongKey { what: "no".into() }));
        for (fits_at, expected, asked) in [(1, true, 1), (3, true, 3), (4, false, 3)] {
            let mut count = 0;
            let found = tries(&mut || {
                count += 1;
                if count == fits_at { Ok(()) } else { wrong() }
            });
            assert_eq!((found.is_ok(), count), (expected, asked));
        }
        let mut count = 0;
        let found: Result<()> = tries(&mut || {
            count += 1;
            Err(Error::Bug("another error".into()))
        });
        assert!(matches!(found, Err(Error::Bug(_))) && count == 1);
    }

    #[test]
    fn an_empty_passphrase_file_is_named_as_such() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for text in ["", "\nsecret\n"] {
            std::fs::write(file.path(), text).expect("writes");
            let error = passphrase_file(file.path()).expect_err("is empty");
            assert!(error.text().contains("is empty"), "{}", error.text());
        }
    }

    #[test]
    fn a_recovery_key_is_refused_as_a_new_passphrase() {
        let key = RecoveryKey::generate().expect("random").text();
        for text in [key.to_string(), key.to_lowercase().replace('-', " ")] {
            assert!(matches!(new_passphrase(Zeroizing::new(text)), Err(Error::Usage(_))));
        }
        let way = new_passphrase(Zeroizing::new(key[1..].to_owned()));
        assert!(matches!(way, Ok(Unlock::Passphrase(_))));
    }
}
