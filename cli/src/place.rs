//! Names of repositories: directories of this machine, addresses of other hosts, and not the remote names of other programs.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use vbk_remote::address::{SshAddress, VbkAddress};
use vbk_remote::client::{Again, RemoteHome, Ssh};

use crate::exit::{Error, Result};

/// Starts of the addresses of repositories on other hosts.
const SSH: &[u8] = b"ssh://";
const VBK: &[u8] = b"vbk://";

/// Returns whether a name is an address and not a directory.
pub fn is_address(name: &Path) -> bool {
    let name = name.as_os_str().as_bytes();
    name.starts_with(SSH) || name.starts_with(VBK)
}

/// Returns the address of a repository that is reached over TLS, if a name is one.
pub fn server(name: &Path) -> Result<Option<VbkAddress>> {
    match address(name).map_err(Error::Usage)? {
        Some(Address::Vbk(address)) => Ok(Some(address)),
        Some(Address::Ssh(_)) | None => Ok(None),
    }
}

/// Returns the name, if it is that of a directory of this machine or a valid address. In other backup programs a colon before
/// the first slash means another host or a service, e.g. `user@host:/srv/backups` or `s3:bucket`; vbk would silently look for a
/// directory of that name. `./a:b` means such a directory.
pub fn valid(name: &Path) -> Result<&Path> {
    check(name).map_err(Error::Usage)?;
    Ok(name)
}

/// Fails with the message that refuses a name, if it is not valid.
pub fn check(name: &Path) -> std::result::Result<(), String> {
    if address(name)?.is_some() {
        return Ok(());
    }
    let bytes = name.as_os_str().as_bytes();
    let first = bytes.split(|byte| *byte == b'/').next();
    if !first.is_some_and(|first| first.contains(&b':')) {
        return Ok(());
    }
    let shown = name.display();
    Err(format!(
        "{shown} names another host or a service in a way that vbk does not know; nothing was done. A repository on another host \
         is ssh://[USER@]HOST[:PORT]/PATH or vbk://HOST[:PORT][/REPOSITORY]; ./{shown} is a local directory"
    ))
}

/// Returns the name, if it is that of a directory of this machine.
pub fn local(name: &Path) -> Result<&Path> {
    match is_address(name) {
        false => valid(name),
        true => Err(Error::Usage(format!(
            "{} is on another host; run this command there, with the directory",
            name.display()
        ))),
    }
}

/// Returns the address of a new repository, if it is on another host that ssh reaches; `None` for a directory of this machine. A
/// token is of one repository, so there is none by which another could be made.
pub fn new_elsewhere(name: &Path) -> Result<Option<SshAddress>> {
    match address(valid(name)?).map_err(Error::Usage)? {
        None => Ok(None),
        Some(Address::Ssh(address)) => Ok(Some(address)),
        Some(Address::Vbk(address)) => Err(Error::Usage(format!(
            "{address} is on another host, and a token is for a repository that there is; a new one is made there: `vbk init \
             DIRECTORY`, or from here by ssh: `vbk init ssh://{}/DIRECTORY`",
            address.host
        ))),
    }
}

/// Returns the message for a command that needs the files of a repository on another host; `None` for a directory of this
/// machine.
pub fn command_there(name: &Path, command: &str) -> Result<Option<String>> {
    let there = match address(name).map_err(Error::Usage)? {
        None => return Ok(None),
        Some(Address::Vbk(address)) => {
            let dir = match &address.repository {
                None => "the repository's directory".to_owned(),
                Some(name) => format!("the directory {name} below the one that is served"),
            };
            format!("`vbk {command} DIR`, where DIR is {dir}")
        }
        Some(Address::Ssh(address)) => {
            let port = address.port.map(|port| format!("-p {port} ")).unwrap_or_default();
            // Two shells read it: the one here, and the one there.
            let path = quoted(&quoted(&address.path));
            format!("`ssh -t {port}{} vbk {command} {path}`", quoted(&address.destination()))
        }
    };
    Ok(Some(format!(
        "{} is on another host, and {command} needs the repository's files; run it there: {there}",
        name.display()
    )))
}

/// Quotes a word for a shell, if it needs that.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-@:,+%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Connects to a repository on another host, but for one that is reached over TLS: see [`server`]. `None` for a directory of this
/// machine.
pub fn connect(name: &Path, ssh: &Ssh, again: Again) -> vbk_repo::Result<Option<RemoteHome>> {
    let refused = |message| vbk_repo::Error::Remote {
        kind: vbk_repo::ErrorKind::Invalid,
        message,
    };
    match address(name).map_err(refused)? {
        None => Ok(None),
        Some(Address::Ssh(address)) => ssh.open(&address, again).map(Some),
        Some(Address::Vbk(address)) => Err(refused(format!("there is no token for {address}"))),
    }
}

enum Address {
    Ssh(SshAddress),
    Vbk(VbkAddress),
}

/// Returns the address that a name is; `None` for that of a directory.
fn address(name: &Path) -> std::result::Result<Option<Address>, String> {
    if !is_address(name) {
        return Ok(None);
    }
    let text = name
        .to_str()
        .ok_or_else(|| format!("{} is not UTF-8", name.display()))?;
    let parsed = match name.as_os_str().as_bytes().starts_with(VBK) {
        true => text.parse().map(Address::Vbk),
        false => text.parse().map(Address::Ssh),
    };
    parsed.map(Some).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_programs_are_taken_for_nothing() {
        for name in [
            "user@host:/srv/repo",
            "host:repo",
            "host:",
            "sftp:user@host:/srv/repo",
            "s3:bucket/x",
            "s3://bucket",
            "rest:https://host/",
            "file:///srv/repo",
            "C:\\backups",
            ":/srv",
        ] {
            let refused = valid(Path::new(name)).expect_err(name).to_string();
            assert!(refused.contains("ssh://[USER@]HOST"), "{refused}");
        }
        assert!(valid(Path::new("ssh://host")).is_err());
        for name in ["/srv/a:b", "./a:b", "../a:b", "repo", "srv/a:b", "", "/", "a@b/repo"] {
            assert_eq!(local(Path::new(name)).expect(name), Path::new(name));
        }
    }

    #[test]
    fn a_command_for_another_host_is_quoted_for_both_shells() {
        let there = |name: &str| command_there(Path::new(name), "repair").expect("is valid");
        assert_eq!(there("/srv/vbk"), None);
        for (name, command) in [
            ("ssh://backup@dc2/srv/vbk", "`ssh -t backup@dc2 vbk repair /srv/vbk`"),
            ("ssh://dc2:2222/~/a", "`ssh -t -p 2222 dc2 vbk repair a`"),
            ("ssh://dc2/a b", r"`ssh -t dc2 vbk repair ''\''/a b'\'''`"),
            (
                "vbk://dc2/shop",
                "`vbk repair DIR`, where DIR is the directory shop below",
            ),
        ] {
            let said = there(name).expect("is elsewhere");
            assert!(said.contains(command), "{said}");
        }
    }

    #[test]
    fn an_address_is_valid_where_no_directory_is_needed() {
        for address in ["ssh://backup@dc2/srv/vbk", "vbk://dc2", "vbk://dc2:99/shop"] {
            let address = Path::new(address);
            assert_eq!(valid(address).expect("is valid"), address);
            let refused = local(address).expect_err("is no directory").to_string();
            assert!(refused.contains("run this command there"), "{refused}");
        }
        for address in ["vbk://", "vbk://dc2/a/b"] {
            let refused = valid(Path::new(address)).expect_err(address).to_string();
            assert!(refused.contains("vbk://HOST[:PORT]"), "{refused}");
        }
    }
}
