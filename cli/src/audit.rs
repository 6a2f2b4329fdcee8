//! The audit log of a repository on this machine: what is changed here for those that reach it from elsewhere.

use vbk_remote::server::{AuditLog, Who};
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::home::Home;

use crate::exit::Result;

/// Logs a change by this user, before it is made: it counts from that moment on.
pub fn note(directory: &Directory, what: &str, of: &[String]) -> Result<()> {
    let who = Who {
        name: format!("local user {}", nix::unistd::getuid()),
        address: None,
    };
    Ok(AuditLog::of(directory.name(), who).note(what, of)?)
}
