//! Names of repositories: a directory of this machine, and not what other programs write for one elsewhere.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::exit::{Error, Result};

/// The path as it is, if it is one on this machine. What has a colon before its first slash means another host or a
/// service to the programs that many come from, as `user@host:/srv/backups` and `s3:bucket`; as a directory it would be
/// made on the local disk without a word. `./a:b` says that a directory of such a name is meant.
pub fn local(path: &Path) -> Result<&Path> {
    match is_elsewhere(path) {
        false => Ok(path),
        true => Err(Error::Usage(refusal(path))),
    }
}

/// Whether a name is one of another host or of a service.
pub fn is_elsewhere(path: &Path) -> bool {
    let name = path.as_os_str().as_bytes();
    let first = name.split(|byte| *byte == b'/').next();
    first.is_some_and(|first| first.contains(&b':'))
}

/// Why such a name is not taken, and what to do.
pub fn refusal(path: &Path) -> String {
    let shown = path.display();
    format!(
        "{shown} names another host or a service, and vbk keeps repositories in local directories; nothing was done. Mount \
         the other host's directory (NFS, sshfs) and name the mount point; a directory of this very name is written ./{shown}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_programs_write_for_another_host_is_no_directory() {
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
