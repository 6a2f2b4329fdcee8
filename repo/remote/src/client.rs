//! A repository that a server has open, seen from here.

mod home;
mod link;
mod local;
mod ssh;
mod store;
mod tls;

pub use home::RemoteHome;
pub use local::LocalHome;
pub use ssh::Ssh;
pub use tls::Tls;
#[cfg(test)]
pub(crate) use tls::config;
