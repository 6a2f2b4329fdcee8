//! What libvirt knows of the guests of this host. Asks `virsh`, with a time limit on every question; what it answers is
//! taken for what a stranger wrote, because who may define a domain need not be root.

pub mod define;
mod domain;
pub mod rename;
mod xml;

use std::time::Duration;

use vbk_repo::ErrorKind;

use crate::host::program::{ProgramError, Programs};

pub use domain::{Domain, DomainDisk, Medium};

/// How long libvirt may take for an answer.
const LIMIT: Duration = Duration::from_secs(20);

/// Why libvirt's answer is of no use.
#[derive(Debug, thiserror::Error)]
pub enum LibvirtError {
    /// `virsh` failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A description is not what libvirt writes.
    #[error("the description of {domain} is not understood: {what}")]
    Description {
        /// The domain, or what it is called elsewhere.
        domain: String,
        /// What is wrong with it.
        what: String,
    },
    /// There is no such domain.
    #[error("libvirt knows no domain {0:?}; `virsh list --all` names those it knows")]
    NoSuchDomain(String),
}

impl LibvirtError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Program(error) => error.kind(),
            Self::Description { .. } => ErrorKind::Unsupported,
            Self::NoSuchDomain(_) => ErrorKind::NotFound,
        }
    }
}

/// Asks libvirt.
#[derive(Debug, Clone, Copy)]
pub struct Libvirt<'a> {
    programs: &'a Programs,
}

impl<'a> Libvirt<'a> {
    /// The libvirt that these programs talk to.
    pub fn new(programs: &'a Programs) -> Self {
        Self { programs }
    }

    /// The names of all domains, running or not.
    pub fn names(self) -> Result<Vec<String>, LibvirtError> {
        self.list(&["list", "--all", "--name"])
    }

    /// The names of the domains that run. One that is paused does too: QEMU has its disks.
    pub fn running(self) -> Result<Vec<String>, LibvirtError> {
        self.list(&["list", "--name"])
    }

    /// A domain as it would start next time, with the secrets that its description has: passwords of consoles, which a
    /// restored guest needs.
    pub fn domain(self, name: &str) -> Result<Domain, LibvirtError> {
        match self.describe(name) {
            Ok(domain) if domain.name == name => Ok(domain),
            // virsh takes a number for the id of a running domain before it looks for a name, and what looks like a
            // UUID for that. The UUID itself can't be mistaken.
            Ok(_) => self.domain_of_uuid(name),
            Err(error @ LibvirtError::Program(ProgramError::Failed { .. })) => match self.names()? {
                names if names.iter().any(|known| known == name) => Err(error),
                _ => Err(LibvirtError::NoSuchDomain(name.to_owned())),
            },
            Err(error) => Err(error),
        }
    }

    /// A running domain as it is now: disks may have been attached or moved since it was started.
    pub fn running_domain(self, domain: &Domain) -> Result<Domain, LibvirtError> {
        let ask = |domain: &str| Domain::parse(&self.programs.run("virsh", &["dumpxml", "--domain", domain], LIMIT)?);
        match ask(&domain.name)? {
            now if now.uuid == domain.uuid => Ok(now),
            // A name that looks like the number of another one.
            _ => ask(&domain.uuid),
        }
    }

    fn domain_of_uuid(self, name: &str) -> Result<Domain, LibvirtError> {
        for uuid in self.list(&["list", "--all", "--uuid"])? {
            match self.describe(&uuid) {
                Ok(domain) if domain.name == name => return Ok(domain),
                // One that went meanwhile, or makes no sense, is another one.
                Ok(_) | Err(LibvirtError::Description { .. } | LibvirtError::Program(ProgramError::Failed { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Err(LibvirtError::NoSuchDomain(name.to_owned()))
    }

    fn describe(self, domain: &str) -> Result<Domain, LibvirtError> {
        // As the value of an option a name may begin with a dash.
        let args = ["dumpxml", "--inactive", "--security-info", "--domain", domain];
        Domain::parse(&self.programs.run("virsh", &args, LIMIT)?)
    }

    fn list(self, args: &[&str]) -> Result<Vec<String>, LibvirtError> {
        let answer = self.programs.run("virsh", args, LIMIT)?;
        let lines = answer.lines().filter(|line| !line.trim().is_empty());
        Ok(lines.map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests;
