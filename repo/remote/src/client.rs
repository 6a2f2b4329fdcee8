//! A repository that a server has open, seen from here.

mod home;
mod link;
mod ssh;
mod store;

pub use home::RemoteHome;
pub use ssh::Ssh;
