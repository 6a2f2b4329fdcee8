//! What a backup is, and where it is kept.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod backup;
pub mod block;
pub mod codec;
mod error;
pub mod manifest;
pub mod name;
pub mod store;

pub use error::{Error, ErrorKind, Result};
