//! What a backup is, and where it is kept.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod backup;
pub mod block;
pub mod catalogue;
pub mod codec;
mod error;
pub mod lock;
pub mod manifest;
pub mod name;
pub mod reader;
pub mod repository;
pub mod store;
#[cfg(test)]
mod testing;
pub mod verify;
mod views;
pub mod writer;

pub use error::{Error, ErrorKind, Result};
