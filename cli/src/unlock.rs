//! Where the key of an encrypted repository comes from: an option, the environment, systemd, or the person at the
//! terminal. Never an argument, which everybody on the machine could read.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use vbk_repo::keys::{RecoveryKey, Unlock};
use zeroize::Zeroizing;

use crate::exit::{Error, Result};

/// Set for a process in the background that gets an exported key on its standard input.
pub const KEY_ON_STDIN: &str = "VBK_BACKGROUND_KEY";

/// Names of systemd credentials (`LoadCredential=` of a unit).
const CREDENTIALS: [(&str, bool); 2] = [("vbk-passphrase", false), ("vbk-key-file", true)];

/// The files that were named.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyPaths<'a> {
    /// A key file.
    pub key_file: Option<&'a Path>,
    /// A file with a passphrase in it.
    pub passphrase_file: Option<&'a Path>,
}

/// What opens `repository`.
pub fn find(named: &KeyPaths<'_>, repository: &Path) -> Result<Unlock> {
    if std::env::var_os(KEY_ON_STDIN).is_some() {
        let mut text = Zeroizing::new(Vec::new());
        let read = std::io::stdin().read_to_end(&mut text);
        read.map_err(|error| Error::Other(format!("can't read the key: {error}")))?;
        return Ok(Unlock::KeyFile(text));
    }
    if let Some(found) = given(named)? {
        return Ok(found);
    }
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    for (name, is_key) in CREDENTIALS {
        let path = directory.as_ref().map(|directory| directory.join(name));
        if let Some(path) = path.filter(|path| path.exists()) {
            return if is_key {
                key_file(&path)
            } else {
                passphrase_file(&path)
            };
        }
    }
    if !std::io::stderr().is_terminal() {
        return Err(vbk_repo::Error::KeyNeeded {
            path: repository.to_owned(),
        }
        .into());
    }
    Ok(from_text(ask(&format!(
        "Passphrase or recovery key of {}: ",
        repository.display()
    ))?))
}

/// What the files that were named hold, if one was.
pub fn given(named: &KeyPaths<'_>) -> Result<Option<Unlock>> {
    match (named.key_file, named.passphrase_file) {
        (Some(path), _) => key_file(path).map(Some),
        (None, Some(path)) => passphrase_file(path).map(Some),
        (None, None) => Ok(None),
    }
}

/// The way in that a key file is.
pub fn key_file(path: &Path) -> Result<Unlock> {
    std::fs::read(path)
        .map(|bytes| Unlock::KeyFile(bytes.into()))
        .map_err(|error| Error::Other(format!("can't read key file {}: {error}", path.display())))
}

/// The way in that the first line of a file is.
pub fn passphrase_file(path: &Path) -> Result<Unlock> {
    let text = std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|error| Error::Other(format!("can't read passphrase file {}: {error}", path.display())))?;
    Ok(from_text(Zeroizing::new(
        text.lines().next().unwrap_or_default().to_owned(),
    )))
}

/// A recovery key has a checksum, so nothing else is taken for one.
fn from_text(text: Zeroizing<String>) -> Unlock {
    match RecoveryKey::parse(&text) {
        Ok(key) => Unlock::Recovery(key),
        Err(_) => Unlock::Passphrase(text),
    }
}

/// A new passphrase, asked for twice.
pub fn ask_new() -> Result<Unlock> {
    if !std::io::stderr().is_terminal() {
        return Err(Error::Usage(
            "a passphrase can't be asked for without a terminal; use --passphrase-file FILE or --key-file FILE".into(),
        ));
    }
    let first = ask("New passphrase: ")?;
    let second = ask("The same again: ")?;
    if first != second {
        return Err(Error::Other("the two passphrases differ; nothing was done".into()));
    }
    new_passphrase(first)
}

fn new_passphrase(text: Zeroizing<String>) -> Result<Unlock> {
    match from_text(text) {
        // A slot for a passphrase of this text would never open: it is tried as a recovery key.
        Unlock::Recovery(_) => Err(Error::Usage(
            "that is a recovery key; choose a passphrase of your own. Nothing was done".into(),
        )),
        passphrase => Ok(passphrase),
    }
}

fn ask(prompt: &str) -> Result<Zeroizing<String>> {
    rpassword::prompt_password(prompt)
        .map(Zeroizing::new)
        .map_err(|error| Error::Other(format!("can't ask for a passphrase: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_key_is_no_new_passphrase() {
        let key = RecoveryKey::generate().expect("random").text();
        for text in [key.to_string(), key.to_lowercase().replace('-', " ")] {
            assert!(matches!(new_passphrase(Zeroizing::new(text)), Err(Error::Usage(_))));
        }
        let way = new_passphrase(Zeroizing::new(key[1..].to_owned()));
        assert!(matches!(way, Ok(Unlock::Passphrase(_))));
    }
}
