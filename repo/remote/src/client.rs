//! A repository that a server has open, seen from here.

mod again;
mod bandwidth;
mod connection;
mod copies;
mod create;
mod early;
mod gate;
mod home;
mod kept;
mod lanes;
mod link;
mod local;
mod puts;
mod ssh;
mod state;
mod store;
mod tls;

pub use again::Again;
pub use bandwidth::{Bandwidth, BandwidthRule};
pub use home::RemoteHome;
pub(crate) use kept::node_sum;
pub use lanes::LaneOptions;
pub use local::{local_home, local_home_starting};
pub use ssh::Ssh;
pub use tls::Tls;
#[cfg(test)]
pub(crate) use tls::config;
