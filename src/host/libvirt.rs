//! libvirt's knowledge of this host's guests. Queries `virsh`, with a time limit on every query. Its answers are
//! untrusted, because users other than root may define domains.

pub mod define;
mod domain;
pub mod hardware;
pub mod rename;
mod xml;

use std::time::Duration;

use vbk_repo::ErrorKind;

use crate::host::program::{ProgramError, Programs};

pub use domain::{Domain, DomainDisk, Medium};

/// Time limit of a query.
const LIMIT: Duration = Duration::from_secs(20);

/// A query to libvirt failed.
#[derive(Debug, thiserror::Error)]
pub enum LibvirtError {
    /// `virsh` failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A description is not in libvirt's format.
    #[error("can't parse the description of {domain}: {what}")]
    Description {
        /// Name of the domain, or a description of it.
        domain: String,
        /// The flaw in it.
        what: String,
    },
    /// No domain has this name.
    #[error("libvirt has no domain {0:?}; `virsh list --all` lists its domains")]
    NoSuchDomain(String),
}

impl LibvirtError {
    /// Returns the kind of the error, by which a caller decides what to do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Program(error) => error.kind(),
            Self::Description { .. } => ErrorKind::Unsupported,
            Self::NoSuchDomain(_) => ErrorKind::NotFound,
        }
    }
}

/// A connection to libvirt through `virsh`.
#[derive(Debug, Clone, Copy)]
pub struct Libvirt<'a> {
    programs: &'a Programs,
}

impl<'a> Libvirt<'a> {
    /// Connects through these programs.
    pub fn new(programs: &'a Programs) -> Self {
        Self { programs }
    }

    /// Lists the names of all domains, running or not.
    pub fn names(self) -> Result<Vec<String>, LibvirtError> {
        self.list(&["list", "--all", "--name"])
    }

    /// Lists the names of running domains, including paused ones: QEMU has their disks open.
    pub fn running(self) -> Result<Vec<String>, LibvirtError> {
        self.list(&["list", "--name"])
    }

    /// Returns a domain's persistent configuration with its secrets: a restored guest needs the passwords of its
    /// consoles.
    pub fn domain(self, name: &str) -> Result<Domain, LibvirtError> {
        match self.describe(name) {
            Ok(domain) if domain.name == name => Ok(domain),
            // virsh takes a number for the id of a running domain before it looks for a name, and takes text in the
            // form of a UUID for a UUID. The domain's own UUID is unambiguous.
            Ok(_) => self.domain_of_uuid(name),
            Err(error @ LibvirtError::Program(ProgramError::Failed { .. })) => match self.names()? {
                names if names.iter().any(|known| known == name) => Err(error),
                _ => Err(LibvirtError::NoSuchDomain(name.to_owned())),
            },
            Err(error) => Err(error),
        }
    }

    /// Returns a running domain's current configuration: disks may have been attached or moved since it was started.
    pub fn running_domain(self, domain: &Domain) -> Result<Domain, LibvirtError> {
        let ask = |domain: &str| Domain::parse(&self.programs.run("virsh", &["dumpxml", "--domain", domain], LIMIT)?);
        match ask(&domain.name)? {
            now if now.uuid == domain.uuid => Ok(now),
            // The name looks like the id of another domain.
            _ => ask(&domain.uuid),
        }
    }

    fn domain_of_uuid(self, name: &str) -> Result<Domain, LibvirtError> {
        for uuid in self.list(&["list", "--all", "--uuid"])? {
            match self.describe(&uuid) {
                Ok(domain) if domain.name == name => return Ok(domain),
                // A domain that has disappeared in the meantime, or can't be parsed, is not the one we look for.
                Ok(_) | Err(LibvirtError::Description { .. } | LibvirtError::Program(ProgramError::Failed { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Err(LibvirtError::NoSuchDomain(name.to_owned()))
    }

    fn describe(self, domain: &str) -> Result<Domain, LibvirtError> {
        // After `--domain`, a name may begin with a dash.
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
