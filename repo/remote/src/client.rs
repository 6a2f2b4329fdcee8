//! A repository that a server has open, seen from here.

mod home;
mod link;
mod local;
mod ssh;
mod store;

pub use home::RemoteHome;
pub use local::LocalHome;
pub use ssh::Ssh;
