//! Results of verifications that ended while another process had the repository to itself. Each is a file in the directory
//! `verified`, which the next writer records and removes.
//!
//! A file is the JSON of a [`Finding`]. In an encrypted repository it is sealed: SALT (24 bytes), then the sealed JSON with spaces
//! up to a multiple of 4 KiB, under the name `V` and the name of the file; `cipher.rs` describes the sealing.
//!
//! 1. The file is synced before it gets its name, and its directory after that: a result that is kept survives loss of power.
//! 2. It is removed after its notes are durable. A crash in between has it recorded twice, which changes nothing.
//! 3. A file that an attacker puts back is recorded again. What is known from a later time stays.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::cipher::SALT_BYTES;
use crate::error::{Error, Result};
use crate::files::{self, Mode, Synced};
use crate::keys::Keys;

const PAD_BYTES: usize = 4 << 10;

fn directory(repository: &Path) -> PathBuf {
    repository.join("verified")
}

fn thing(name: &str) -> Vec<u8> {
    [b"V", name.as_bytes()].concat()
}

/// Keeps a result for the next writer. Durable when this returns.
pub(super) fn keep(repository: &Path, keys: Option<&Keys>, finding: &Finding) -> Result<()> {
    let directory = directory(repository);
    match fs::create_dir(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io("create", &directory)(error));
        }
        _ => files::sync_directory(repository).map_err(Error::io("sync", repository))?,
    }
    let name = format!("{}-{}", finding.at.as_nanosecond(), std::process::id());
    let mut bytes = serde_json::to_vec(finding).expect("a result has only plain fields");
    if let Some(keys) = keys {
        bytes.resize(bytes.len().next_multiple_of(PAD_BYTES), b' ');
        let (salt, mut key) = keys.cipher().fresh(&thing(&name))?;
        key.seal(0, &mut bytes)?;
        bytes = [&salt[..], &bytes].concat();
    }
    let path = directory.join(name);
    files::write_whole(&path, &bytes, Mode::Umask, Synced::File).map_err(Error::io("write", &path))?;
    files::sync_directory(&directory).map_err(Error::io("sync", &directory))
}

/// Returns the names of the kept results, oldest first.
pub(super) fn names(repository: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory(repository)).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    // Drafts of a process that was killed have another form.
    let is_result = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    let mut names: Vec<_> = names.filter(is_result).collect();
    names.sort_by_key(|name| (name.len(), name.clone()));
    names
}

/// Reads a kept result; `None` if it is gone or damaged.
pub(super) fn read(repository: &Path, keys: Option<&Keys>, name: &str) -> Result<Option<Finding>> {
    let path = directory(repository).join(name);
    let mut bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(Error::io("read", &path))?,
    };
    if let Some(keys) = keys {
        let Some((salt, sealed)) = bytes.split_first_chunk::<SALT_BYTES>() else {
            return Ok(None);
        };
        let mut plain = sealed.to_vec();
        if keys.cipher().reopen(&thing(name), salt).open(0, &mut plain).is_none() {
            return Ok(None);
        }
        bytes = plain;
    }
    Ok(serde_json::from_slice(&bytes).ok())
}

/// Removes a kept result.
pub(super) fn remove(repository: &Path, name: &str) -> Result<()> {
    let path = directory(repository).join(name);
    files::remove_if_there(&path).map_err(Error::io("remove", &path))
}
