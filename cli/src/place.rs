//! Names of repositories: local directories, and not the remote names of other programs.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::exit::{Error, Result};

/// Returns the path, if it is a local one. In other backup programs a colon before the first slash means another host or a
/// service, e.g. `user@host:/srv/backups` or `s3:bucket`; vbk would silently create a directory of that name on the local
/// disk. `./a:b` means such a directory.
pub fn local(path: &Path) -> Result<&Path> {
    match is_elsewhere(path) {
        false => Ok(path),
        true => Err(Error::Usage(refusal(path))),
    }
}

/// Returns whether a name means another host or a service.
pub fn is_elsewhere(path: &Path) -> bool {
    let name = path.as_os_str().as_bytes();
    let first = name.split(|byte| *byte == b'/').next();
    first.is_some_and(|first| first.contains(&b':'))
}

/// Returns the message that refuses such a name.
pub fn refusal(path: &Path) -> String {
    let shown = path.display();
    format!(
        "{shown} names another host or a service, but vbk keeps repositories in local directories; nothing was done. Mount \
         the other host's directory (NFS, sshfs) and name the mount point, or write ./{shown} for a local directory"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_address_is_not_taken_for_a_directory() {
        for name in [
            "user@host:/srv/repo",
            "host:repo",
            "host:",
            "sftp:user@host:/srv/repo",
            "s3:bucket/x",
            "s3://bucket",
            "rest:https://host/",
            "ssh://host/srv/repo",
            "file:///srv/repo",
            "C:\\backups",
            ":/srv",
        ] {
            let refused = local(Path::new(name)).expect_err(name).to_string();
            assert!(
                refused.contains("local directories") && refused.contains("NFS"),
                "{refused}"
            );
        }
        for name in ["/srv/a:b", "./a:b", "../a:b", "repo", "srv/a:b", "", "/", "a@b/repo"] {
            assert_eq!(local(Path::new(name)).expect(name), Path::new(name));
        }
    }
}
