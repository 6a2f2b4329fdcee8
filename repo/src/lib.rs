//! The repository of vbk: the format of a backup, and the place where backups are stored.
//!
//! # The format, from the top down
//!
//! | thing | what it is | where it is described |
//! |---|---|---|
//! | repository | a directory with a marker, a store, views and second copies | [`repository::directory`] |
//! | record | one backup: JSON under the key `GUEST@TIME`; its id is the hash of its bytes | [`backup`] |
//! | file | a file that describes the guest, e.g. `config.xml`: an image like those of disks, listed separately in the record | [`backup::Backup::files`] |
//! | note | a fact about backups that may change: JSON under a name | [`state`] |
//! | manifest | a tree of nodes that lists the blocks of an image; each node is stored under its hash | [`manifest`] |
//! | block | a piece of a disk, sealed: a header with the hashes of its pages, and the pages | [`block`], [`codec`] |
//! | difference | a block that is stored as its difference from another one, its base | [`codec`], [`differences`], [`store::whole`] |
//! | store | column families of RocksDB; the names, numbers and order of their rows | [`store::rocks`] |
//! | encryption | how blocks, manifests, records and notes are sealed, and the names that they are stored under | [`store::encrypted`], `cipher.rs` |
//! | key | the master key, the keys derived from it, and the slots that wrap it | [`keys`], `keys/slot.rs` |
//!
//! All hashes are BLAKE3-256; in an encrypted repository those that serve as names are keyed, see [`block::Hashing`].
//! All numbers in manifests and sealed blocks are little-endian; keys and numbers of the store itself are big-endian,
//! so that they sort.
//!
//! # Versions
//!
//! The format numbers are [`repository::LAYOUT_FORMAT`] in the marker, [`store::STORE_FORMAT`] and the names of the
//! features that a reader must know in [`store::Identity`], [`backup::RECORD_FORMAT`] in each record, and a
//! version in each key slot, sealed block and node of a manifest. A format newer than this vbk is refused before anything is changed; vbk never guesses at it. `tests/golden/`
//! has repositories of every released format.
//!
//! # Proof of integrity
//!
//! A record's id covers the record, which names the root of each image; the id of each node of a manifest covers the
//! node, which names further nodes, and in the end blocks; a block's id covers the hashes in its header, and those cover
//! its pages. Each step is proved when it is read ([`manifest::prove`], [`codec::Header::prove`],
//! [`codec::Header::open_page`]), so no reader ever gets bytes that were changed, and a damaged page costs no more than
//! itself. In an encrypted repository it also costs the pages that share its row, see `store/encrypted/rows.rs`.
//!
//! This proves each backup by itself. Only an encrypted repository also proves that no backup is missing and none was
//! put back: a sealed note lists the records and notes, and every read compares them with it
//! (`store/encrypted/epoch.rs`). An older copy of the whole repository matches its own note; only a host that remembers
//! [`standing::Standing::epoch`] notices such a copy.
//!
//! # Crashes and damage
//!
//! Blocks and nodes become durable at barriers; a record is written last, when all that it names is durable. A crash
//! at any point therefore leaves complete backups only; [`store::rocks`] has the argument step by step,
//! `store/rocks/sweep.rs` the one for a prune, and `repository/directory/views.rs` the one for what readers see.
//!
//! Damage to a page costs that page, or the few pages of its row if they are encrypted. The store's tables, which
//! contain the index, manifests and records, are stored twice (`repository/directory/second_copies.rs`), its small
//! files in the store and in the newest view; [`repository::directory::store_repair`] restores them from there, and
//! [`repair`] gets pages back from other sources.
//!
//! # Threads and memory
//!
//! All calls block, and all public types may be used by many threads. One writer: 144 MiB of write buffers, 32 MiB of
//! cache. One view: 32 MiB of cache. Readers of images share the memory that [`reader`] lists.

pub mod backup;
pub mod barrier;
pub mod block;
pub mod catalogue;
mod cipher;
pub mod codec;
pub mod copy;
pub mod diff;
pub mod differences;
mod error;
pub mod file_system;
pub mod files;
pub mod id;
pub mod kept;
pub mod keys;
pub mod manifest;
pub mod mark;
pub mod mounts;
pub mod name;
pub mod pool;
pub mod reader;
pub mod repair;
pub mod repository;
pub mod runs;
pub mod slots;
pub mod standing;
pub mod state;
pub mod stats;
pub mod store;
pub mod storing;
#[cfg(test)]
mod tests;
pub mod text;
pub mod turns;
pub mod verify;
pub mod writer;

pub use error::{Error, ErrorKind, Result};
