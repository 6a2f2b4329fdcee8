//! The audit log of a repository on this machine: what is changed here for those that reach it from elsewhere.

use vbk_remote::server::{AuditLog, Who};
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::home::Home;

use crate::exit::Result;

/// Makes a change that is logged before, as one of this user, and logs that it failed if it does.
pub fn noted<T>(directory: &Directory, what: &str, of: &[String], make: impl FnOnce() -> Result<T>) -> Result<T> {
    let who = Who {
        name: format!("local user {}", nix::unistd::getuid()),
        address: None,
    };
    AuditLog::of(directory.name(), who).noted(what, of, make)
}
