//! End-to-end tests: they drive only the binary, on real partitioned images with real file systems, through FUSE and loop mounts.
//!
//! They need root, /dev/fuse and loop devices, and fail without them with a message that says so. Each has a directory
//! of its own below `target/tmp` ([`support::lab::Lab`]), may run beside the others, and fails if it leaves a mount, a
//! loop device or a process behind.

#![allow(clippy::print_stderr, clippy::print_stdout, reason = "the tests report what they do")]

#[macro_use]
mod support;

mod apart;
mod bad_input;
mod bad_mounts;
mod bad_sources;
mod bad_targets;
mod busy;
mod clocks;
mod completion;
mod config;
mod containers;
mod copy;
mod crash;
mod damage;
mod damage_matrix;
mod diff;
mod differential;
mod docs;
mod figures;
mod files;
mod full_disk;
mod golden;
mod help;
mod host_backup;
mod inside;
mod keys;
mod killed_mounts;
mod kills;
mod layouts;
mod lists;
mod lost_disks;
mod main_job;
mod manual;
mod many;
mod notes;
mod output;
mod page_cache;
mod policy;
mod polite;
mod race;
mod rehearse;
mod restore;
mod rights;
mod saved;
mod sealed;
mod serve;
mod snapshots;
mod ssh;
mod tls;
mod tokens;
mod trust;
mod turns;
mod whole_guest;
mod words;
