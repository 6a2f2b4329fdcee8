//! Guests: finding them, holding them still for a snapshot, and the files that describe them.

pub mod discover;
pub mod domain;
pub mod files;
pub mod freeze;
pub mod volumes;
