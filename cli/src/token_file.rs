//! Finds the token for a server: in a file that an option, the environment or the configuration names, or in a credential of
//! systemd. Never in an argument, which every user of the machine could read.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use parking_lot::Mutex;
use vbk_remote::token::Token;
use zeroize::Zeroizing;

use crate::core_files::keep_out_of_core_files;
use crate::exit::{Error, Result};
use crate::handover::Handover;

/// Name of the systemd credential (`LoadCredential=` of a unit).
const CREDENTIAL: &str = "vbk-token";

/// Longest line of a token.
const MAX_BYTES: u64 = 4096;

/// The token that this process used last.
static USED: Mutex<Option<Zeroizing<String>>> = Mutex::new(None);

/// Returns the token for a repository, from the named file if there is one.
pub fn find(named: Option<&Path>, repository: &Path) -> Result<Token> {
    keep_out_of_core_files();
    let handed = Handover::received()?.and_then(|handover| handover.token.as_ref());
    let (text, place) = match (handed, named, credential()) {
        (Some(line), ..) => (
            line.clone(),
            "the token of the process that started this one".to_owned(),
        ),
        (None, Some(path), _) => (read(path, true)?, path.display().to_string()),
        // systemd protects it by means that its mode doesn't show.
        (None, None, Some(path)) => (read(&path, false)?, path.display().to_string()),
        (None, None, None) => {
            return Err(Error::Usage(format!(
                "no token for {}; name its file with --token-file FILE (VBK_TOKEN_FILE) or token-file in the configuration, or \
                 give it as the systemd credential {CREDENTIAL}. `vbk token add NAME` on the server makes one",
                repository.display()
            )));
        }
    };
    let token: Token = text
        .parse()
        .map_err(|error| Error::Usage(format!("{place} has no valid token: {error}; nothing was sent")))?;
    *USED.lock() = Some(token.line());
    Ok(token)
}

/// Returns the token for a process that this one starts.
pub fn used() -> Option<Zeroizing<String>> {
    USED.lock().clone()
}

fn credential() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?).join(CREDENTIAL);
    path.exists().then_some(path)
}

fn read(path: &Path, is_checked: bool) -> Result<Zeroizing<String>> {
    let failed = |source| Error::Io {
        doing: format!("read the token file {}", path.display()),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let shown = path.display();
    // A pipe has no owner that would tell anything.
    if is_checked && metadata.is_file() {
        if metadata.uid() != 0 && metadata.uid() != geteuid().as_raw() {
            return Err(Error::Usage(format!(
                "the token file {shown} is not used: it belongs to user {}, who can read it; `chown` it",
                metadata.uid()
            )));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(Error::Usage(format!(
                "the token file {shown} is not used: other users can read it (mode {:o}); run `chmod 600 {shown}`. If others use \
                 this machine, `vbk token rotate NAME` on the server makes what they may have read worthless",
                metadata.mode() & 0o7777
            )));
        }
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Ok(Zeroizing::new(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        fs::write(&path, "\nvbk1:x\nmore\n").expect("writes");
        for (mode, is_used) in [
            (0o600, true),
            (0o400, true),
            (0o640, false),
            (0o604, false),
            (0o620, false),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("sets");
            match read(&path, true) {
                Ok(line) => assert!(is_used && *line == "vbk1:x", "{mode:o}"),
                Err(error) => assert!(!is_used && error.to_string().contains("chmod 600"), "{mode:o}: {error}"),
            }
        }
        assert!(read(&path, false).is_ok(), "a credential of systemd");
    }

    #[test]
    fn a_file_without_a_token_is_named_and_not_shown() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        fs::write(&path, "vbk1:host:1::secret").expect("writes");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("sets");
        let error = find(Some(&path), Path::new("vbk://h"))
            .expect_err("is no token")
            .to_string();
        assert!(
            error.contains("token has no valid token") && !error.contains("secret"),
            "{error}"
        );
    }
}
