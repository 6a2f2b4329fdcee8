//! Names of repositories: directories of this machine, addresses of other hosts, and not the remote names of other programs.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use vbk_remote::address::{SshAddress, VbkAddress};
use vbk_remote::client::{Again, Ssh, local_home};
use vbk_repo::repository::Repository;

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
            "{} is on another host; a repository is made there: `vbk init DIRECTORY`",
            name.display()
        ))),
    }
}

/// Opens a repository by its name, but for one that is reached over TLS: see [`server`]. `cache` is for
/// [`with_cache`](vbk_remote::client::RemoteHome::with_cache).
pub fn open(name: &Path, ssh: &Ssh, again: Again, cache: Option<(&Path, u64)>) -> vbk_repo::Result<Repository> {
    let refused = |message| vbk_repo::Error::Remote {
        kind: vbk_repo::ErrorKind::Invalid,
        message,
    };
    match address(name).map_err(refused)? {
        // Through the process that has it open for all, if there is one.
        None => Repository::open_through(name, local_home),
        Some(Address::Ssh(address)) => {
            let opened = ssh.open(&address, again)?;
            Ok(Repository::at(Arc::new(opened.with_cache(cache))))
        }
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
    fn an_address_is_valid_where_no_directory_is_needed() {
        for address in ["ssh://backup@dc2/srv/vbk", "vbk://dc2", "vbk://dc2:99/shop"] {
            let address = Path::new(address);
            assert_eq!(valid(address).expect("is valid"), address);
            let refused = local(address).expect_err("is no directory").to_string();
            assert!(refused.contains("vbk init"), "{refused}");
        }
        for address in ["vbk://", "vbk://dc2/a/b"] {
            let refused = valid(Path::new(address)).expect_err(address).to_string();
            assert!(refused.contains("vbk://HOST[:PORT]"), "{refused}");
        }
    }
}
