//! What a backup is, and where it is kept.
//!
//! # The format, from the top down
//!
//! | thing | what it is | where it is written down |
//! |---|---|---|
//! | repository | a directory with a marker, a store, views and second copies | [`repository::directory`] |
//! | record | one backup: JSON under the key `GUEST@TIME`; its id is the hash of its bytes | [`backup`] |
//! | file | what describes the guest, as `config.xml`: an image like those of disks, listed apart in the record | [`backup::Backup::files`] |
//! | note | what is known of backups and may change: JSON under a name | [`state`] |
//! | manifest | a root that lists segments, and segments that list blocks; each stored under its hash | [`manifest`] |
//! | block | a piece of a disk, sealed: a header with the hashes of its pages, and the pages | [`block`], [`codec`] |
//! | store | column families of RocksDB; the names, numbers and order of what is in them | [`store::rocks`] |
//! | encryption | how blocks, manifests, records and notes are sealed, and what their names are then | [`store::encrypted`], `cipher.rs` |
//! | key | the master key, what is derived from it, and the slots that wrap it | [`keys`], `keys/slot.rs` |
//!
//! All hashes are BLAKE3-256; in an encrypted repository those that name something are keyed, see [`block::Hashing`]. All
//! numbers in manifests and sealed blocks are little-endian; keys and numbers of the store itself are big-endian, so that
//! they sort.
//!
//! # Versions
//!
//! The numbers of the formats are [`repository::LAYOUT_FORMAT`] in the marker, [`store::STORE_FORMAT`] and the names of the
//! features that a reader must know in [`store::Identity`], [`backup::RECORD_FORMAT`] in each record (2 if it has files: who
//! knew only 1 would take their blocks for unused), and a version in each key slot and sealed block. What is newer than this vbk is refused before anything is changed, not guessed at.
//! `tests/golden/` has repositories of every format that was released.
//!
//! # What may be trusted
//!
//! A record's id covers the record, which names the root of each image; the root's id covers the root, which names the
//! segments; a segment's id covers the ids of its blocks; a block's id covers its header's hashes, and those its pages.
//! Each step is proved when it is read ([`manifest::decode_segment`], [`codec::Header::prove`],
//! [`codec::Header::open_page`]), so nothing that was changed on the way is given out, and a damaged page costs no more
//! than itself. In an encrypted repository it costs the pages that share its row as well, see `store/encrypted/rows.rs`.
//!
//! What is proved that way is each backup by itself. That none is missing, and none was put back, is known in an encrypted
//! repository only: a sealed note lists the records and notes, and is compared with them whenever they are read
//! (`store/encrypted/epoch.rs`). An older copy of the whole repository fits its own note; only a host that remembers
//! [`standing::Standing::epoch`] notices that one.
//!
//! # What survives what
//!
//! Blocks and segments become durable at barriers; a record is written last, when all that it names is durable. A crash
//! at any point therefore leaves backups that are whole and never one that is not; [`store::rocks`] has the argument
//! step by step, `store/rocks/sweep.rs` the one for a prune, and `repository/directory/views.rs` the one for what readers see.
//!
//! Damage to a page costs that page, or the few of its row where they are encrypted. The store's tables, with the index,
//! manifests and records, are there twice
//! (`repository/directory/second_copies.rs`), its small files in the store and in the newest view; [`repository::directory::store_repair`] puts them right from there, and [`repair`]
//! gets pages back from elsewhere.
//!
//! # Threads and memory
//!
//! Everything blocks, and everything public may be used by many threads. One writer: 144 MiB of write buffers, 32 MiB of
//! cache. One view: 32 MiB of cache. Readers of images share what [`reader`] lists.

pub mod backup;
pub mod block;
pub mod catalogue;
mod cipher;
pub mod codec;
pub mod diff;
mod error;
pub mod id;
pub mod keys;
pub mod manifest;
pub mod mark;
pub mod name;
pub mod pool;
pub mod reader;
pub mod repair;
pub mod repository;
pub mod standing;
pub mod state;
pub mod stats;
pub mod store;
#[cfg(test)]
mod tests;
pub mod verify;
pub mod writer;

pub use error::{Error, ErrorKind, Result};
