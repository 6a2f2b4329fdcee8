//! Names of repositories: directories of this machine, addresses of other hosts, and not the remote names of other programs.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use vbk_remote::address::SshAddress;
use vbk_remote::client::{Again, LocalHome, Ssh};
use vbk_repo::repository::Repository;

use crate::exit::{Error, Result};

/// Start of the address of a repository on another host.
const SSH: &[u8] = b"ssh://";

/// Returns whether a name is an address and not a directory.
pub fn is_address(name: &Path) -> bool {
    name.as_os_str().as_bytes().starts_with(SSH)
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
    if is_address(name) {
        return address(name).map(drop);
    }
    let bytes = name.as_os_str().as_bytes();
    let first = bytes.split(|byte| *byte == b'/').next();
    if !first.is_some_and(|first| first.contains(&b':')) {
        return Ok(());
    }
    let shown = name.display();
    Err(format!(
        "{shown} names another host or a service in a way that vbk does not know; nothing was done. A repository on another host \
         is ssh://[USER@]HOST[:PORT]/PATH; ./{shown} is a local directory"
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

/// Opens a repository by its name.
pub fn open(name: &Path, ssh: &Ssh, again: Again) -> vbk_repo::Result<Repository> {
    match is_address(name).then(|| address(name)) {
        // Through the process that has it open for all, if there is one.
        None => Repository::open_through(name, |directory| Arc::new(LocalHome::new(directory))),
        Some(Ok(address)) => Ok(Repository::at(Arc::new(ssh.open(&address, again)?))),
        Some(Err(message)) => Err(vbk_repo::Error::Remote {
            kind: vbk_repo::ErrorKind::Invalid,
            message,
        }),
    }
}

fn address(name: &Path) -> std::result::Result<SshAddress, String> {
    let text = name
        .to_str()
        .ok_or_else(|| format!("{} is not UTF-8", name.display()))?;
    text.parse::<SshAddress>().map_err(|error| error.to_string())
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
        let address = Path::new("ssh://backup@dc2/srv/vbk");
        assert_eq!(valid(address).expect("is valid"), address);
        assert!(
            local(address)
                .expect_err("is no directory")
                .to_string()
                .contains("vbk init")
        );
    }
}
