//! Defines a restored domain in libvirt.

use std::path::{Path, PathBuf};
use std::time::Duration;

use vbk_repo::ErrorKind;
use vbk_repo::files::{self, Mode, Synced};

use crate::host::program::{ProgramError, Programs};

/// Time limit. libvirt answers at once, or waits for a guest that hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// A failure to define a domain.
#[derive(Debug, thiserror::Error)]
pub enum DefineError {
    /// libvirt refused.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A file can't be written.
    #[error("can't create {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
}

impl DefineError {
    /// Returns the kind of the error, by which a caller decides what to do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Program(error) => error.kind(),
            Self::File { source, .. } => ErrorKind::of_io(source),
        }
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, DefineError>;

/// Tests that libvirt has a domain of this name, running or not.
pub fn is_defined(programs: &Programs, name: &str) -> Result<bool> {
    let names = programs.run("virsh", &["list", "--all", "--name"], LIMIT)?;
    Ok(names.lines().any(|line| line == name))
}

/// Defines a domain, and writes its UEFI variables to the given path, which must not exist yet. If libvirt refuses,
/// nothing is left behind. `scratch` is the path of a temporary file for the XML, which is removed afterwards because
/// the XML may hold passwords.
pub fn define(programs: &Programs, xml: &str, nvram: Option<(&Path, &[u8])>, scratch: &Path) -> Result<()> {
    if let Some((path, bytes)) = nvram {
        write_new(path, bytes)?;
    }
    let defined = write_new(scratch, xml.as_bytes()).and_then(|()| {
        let path = scratch.display().to_string();
        let defined = programs.act("virsh", &["define", "--validate", "--file", &path], LIMIT);
        remove(scratch);
        Ok(defined?)
    });
    if let (Err(_), Some((path, _))) = (&defined, nvram) {
        remove(path);
    }
    defined
}

/// Creates a file that only its owner can read: libvirt gives it to the guest's user when it starts the guest. Not by a
/// draft, because a rename would replace the NVRAM of another guest.
fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    files::create(path, bytes, Mode::Private, Synced::File).map_err(|source| DefineError::File {
        path: path.to_owned(),
        source,
    })
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!("can't remove {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A virsh that keeps its input and refuses a domain with the word `bad` in it.
    fn host() -> (tempfile::TempDir, Programs) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("virsh");
        let script = r#"#!/bin/sh
case $1 in
list) printf 'web1\nweb 2\n\n' ;;
define) cp "$4" "$(dirname "$0")/defined"; ! grep -q bad "$4" || { echo "error: bad domain" >&2; exit 1; } ;;
esac"#;
        fs::write(&path, script).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("sets");
        let path = std::env::var("PATH").expect("a path");
        let programs = Programs::found_in(format!("{}:{path}", dir.path().display()));
        (dir, programs)
    }

    #[test]
    fn a_domain_is_defined_with_its_nvram_and_nothing_else_is_left() {
        let (dir, programs) = host();
        let (nvram, scratch) = (dir.path().join("web2.fd"), dir.path().join("xml"));
        define(&programs, "<domain/>", Some((&nvram, b"vars")), &scratch).expect("defines");
        let defined = fs::read_to_string(dir.path().join("defined")).expect("reads");
        assert_eq!(defined, "<domain/>");
        assert_eq!(fs::read(&nvram).expect("reads"), b"vars");
        assert!(!scratch.exists());
        let mode = fs::metadata(&nvram).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // An NVRAM of another guest stays unchanged.
        define(&programs, "<domain/>", Some((&nvram, b"other")), &scratch).expect_err("is refused");
        assert_eq!(fs::read(&nvram).expect("reads"), b"vars");
    }

    #[test]
    fn a_refused_domain_leaves_no_files() {
        let (dir, programs) = host();
        let (nvram, scratch) = (dir.path().join("web2.fd"), dir.path().join("xml"));
        let error = define(&programs, "<bad/>", Some((&nvram, b"vars")), &scratch).expect_err("is refused");
        assert!(error.to_string().contains("bad domain"), "{error}");
        assert!(!nvram.exists() && !scratch.exists());
    }

    #[test]
    fn a_domain_is_matched_by_its_whole_name() {
        let (_dir, programs) = host();
        let is = |name| is_defined(&programs, name).expect("asks");
        assert!(is("web1") && is("web 2") && !is("web") && !is("web2"));
    }
}
