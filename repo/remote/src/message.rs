//! Questions and answers: their heads, in the order in which postcard numbers them. New ones are added at the end, and used only
//! when [`Hello`] and [`Welcome`] agreed on a version that has them. That holds for the fields of types of `vbk_repo` in them too.
//! `body.rs` describes the bodies.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use vbk_repo::block::PAGE_BYTES;
use vbk_repo::id::{BlockId, NodeId};
use vbk_repo::repository::home::Room;
use vbk_repo::repository::{Pruned, Reserve, SealedOptions};
use vbk_repo::store::{PruneOptions, Terms};
use vbk_repo::{Error, ErrorKind};

/// The newest version of the protocol that this vbk speaks: 2 has blocks that are stored as differences (`body.rs`).
pub(crate) const PROTOCOL: u16 = 2;

/// The first version with those.
pub(crate) const DIFFERENCES_PROTOCOL: u16 = 2;

/// The oldest version that it speaks.
pub(crate) const OLDEST_PROTOCOL: u16 = 1;

/// The most names in one question: 128 KiB.
pub(crate) const MAX_NAMES: usize = 4096;

/// The most nodes of manifests in one question or put. A node has 36 KiB, and the root of an image of a PiB half a MiB, so that
/// they fit into a message.
pub(crate) const MAX_NODES: usize = 32;

/// The most nodes of which a client compares the sums with one question.
pub(crate) const MAX_SUMS: usize = 1024;

/// The most damage of a check that is named, and the longest text for one.
pub(crate) const MAX_FINDINGS: u64 = 1000;
pub(crate) const MAX_FINDING: usize = 1000;

/// The most pages in one answer: 16 MiB, the largest block.
pub(crate) const MAX_PAGES: usize = (16 << 20) / PAGE_BYTES;

/// The most rows of pages of one block: an encrypted one is stored in rows of half a page.
pub(crate) const MAX_BLOCK_PAGES: usize = 2 * MAX_PAGES;

/// The most names of records and notes in one question: a forget of everything, where that is much.
pub(crate) const MAX_CHANGES: usize = 256 << 10;

/// Reads a list of at most `MOST` things. A byte on the wire may be 50 in memory, so the length of the message is no bound.
fn at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MOST: usize>(reader: D) -> Result<Vec<T>, D::Error> {
    struct AtMost<T, const MOST: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for AtMost<T, MOST> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MOST}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = list.next_element()? {
                if all.len() == MOST {
                    return Err(serde::de::Error::invalid_length(MOST + 1, &self));
                }
                all.push(one);
            }
            Ok(all)
        }
    }
    reader.deserialize_seq(AtMost::<T, MOST>(PhantomData))
}

/// The first question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The oldest and the newest version of the protocol that the client speaks.
    pub(crate) protocol: (u16, u16),
    /// Its program and version, for messages.
    pub(crate) program: String,
}

/// The answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// The version that both will speak.
    pub(crate) protocol: u16,
    /// Program and version of the server, for messages.
    pub(crate) program: String,
    /// Id of the repository, if its marker states it.
    pub(crate) id: Option<String>,
    /// Check value of the key of an encrypted repository.
    pub(crate) key_check: Option<String>,
    /// Bytes of puts that may be on their way.
    pub(crate) window_bytes: u32,
    /// The answer to [`Ask::Newest`]; `None` if there is none.
    pub(crate) newest: Option<Option<u64>>,
}

/// Number of an open store, chosen by the client, so that it is the same on the next connection.
pub(crate) type Handle = u32;

/// A question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Ask {
    Hello(Hello),
    /// Number of the newest snapshot: [`Answer::Number`].
    Newest,
    /// The files of the key slots: [`Answer::Slots`].
    KeySlots,
    /// An error if less than that is free: [`Answer::Done`].
    CheckReserve(Reserve),
    // A client need not wait for the answer of one that opens a store: the server keeps what is asked about the store until then.
    /// Opens the newest snapshot: [`Answer::Opened`], or [`Answer::Nothing`] if it must be as it is and can't be read.
    Read {
        store: Handle,
        as_it_is: bool,
    },
    /// Opens the store for adding backups: [`Answer::Opened`].
    Write {
        store: Handle,
        command: String,
    },
    /// Opens the store for changes and removals: [`Answer::Opened`].
    Manage {
        store: Handle,
        command: String,
    },
    /// Closes a store: [`Answer::Done`] when others can have it.
    Close(Handle),
    /// [`Answer::Number`].
    Generation(Handle),
    /// Body: ids. [`Answer::Located`].
    Locate(Handle),
    /// Index entries from an id on: [`Answer::Surveyed`].
    Survey {
        store: Handle,
        from: [u8; 32],
    },
    /// [`Answer::Ids`].
    Condemned(Handle),
    /// [`Answer::Stored`].
    Get {
        store: Handle,
        /// Blocks, and the first page and the number of pages of each.
        #[serde(deserialize_with = "at_most::<_, _, MAX_NAMES>")]
        wanted: Vec<([u8; 32], u16, u16)>,
    },
    /// Body: ids. [`Answer::Nodes`].
    Nodes(Handle),
    /// [`Answer::Listing`], in parts.
    Listing {
        store: Handle,
        records: bool,
        notes: bool,
    },
    /// The named records and notes, and nothing else: [`Answer::Listing`], in parts.
    Lookup {
        store: Handle,
        #[serde(deserialize_with = "at_most::<_, _, MAX_CHANGES>")]
        records: Vec<String>,
        #[serde(deserialize_with = "at_most::<_, _, MAX_CHANGES>")]
        notes: Vec<String>,
    },
    /// Body: blocks. [`Answer::Done`].
    Put {
        store: Handle,
        #[serde(deserialize_with = "at_most::<_, _, MAX_NAMES>")]
        blocks: Vec<BlockShape>,
    },
    /// Body: nodes. [`Answer::Done`].
    PutNodes {
        store: Handle,
        #[serde(deserialize_with = "at_most::<_, _, MAX_NODES>")]
        nodes: Vec<([u8; 32], u32)>,
        /// Only a trusted client's count.
        terms: Terms,
    },
    /// Names the stored backup that the next commit builds on. [`Answer::Done`].
    BuildsOn {
        store: Handle,
        record: String,
    },
    /// [`Answer::Done`].
    Flush(Handle),
    /// [`Answer::Done`].
    Commit {
        store: Handle,
        key: String,
        record: Vec<u8>,
        #[serde(deserialize_with = "at_most::<_, _, MAX_CHANGES>")]
        notes: Vec<(String, Option<Vec<u8>>)>,
        /// The generation that it was made out of.
        at: Option<u64>,
        /// Only a trusted client's count.
        terms: Terms,
    },
    /// [`Answer::Done`].
    Amend {
        store: Handle,
        #[serde(deserialize_with = "at_most::<_, _, MAX_CHANGES>")]
        remove_records: Vec<String>,
        #[serde(deserialize_with = "at_most::<_, _, MAX_CHANGES>")]
        notes: Vec<(String, Option<Vec<u8>>)>,
        /// The generation that it was made out of.
        at: Option<u64>,
        /// Only a trusted client's count.
        terms: Terms,
    },
    /// Body: ids. [`Answer::Done`].
    Condemn(Handle),
    /// Body: ids. [`Answer::Done`].
    Pardon(Handle),
    /// [`Answer::Done`].
    Publish(Handle),
    /// [`Answer::Room`].
    Room(Handle),
    /// Removes what no backup names: [`Answer::Number`] with the bytes removed so far, now and then, and [`Answer::Pruned`].
    Prune {
        store: Handle,
        options: PruneOptions,
    },
    /// Ends a prune of that store early. [`Answer::Done`].
    Stop(Handle),
    /// Space on disk: [`Answer::Report`].
    DiskUsage,
    /// Damaged tables of a snapshot: [`Answer::Report`].
    CheckTables(u64),
    /// Body: ids of nodes, each with the sum of what the client takes for it. Those that are not stored so: [`Answer::Ids`].
    CompareNodes(Handle),
    /// The bin: [`Answer::Forgotten`], in parts.
    Forgotten(Handle),
    /// A [`crate::status::ServedStatus`], of which a client sees what its right allows: [`Answer::Report`].
    Status,
    /// Checks what is stored, until [`Ask::Stop`] of that store: [`Answer::Findings`], now and then, and [`Answer::Checked`].
    Check(Handle),
    /// Keeps another key slot: its name and file. [`Answer::Done`].
    AddSlot(String, Vec<u8>),
    /// Removes a key slot, if the other one that is named is still there as it was. [`Answer::Done`].
    RemoveSlot {
        name: String,
        stays: Option<(String, Vec<u8>)>,
    },
    /// Makes the repository, in the place of [`Ask::Hello`]: [`Answer::Done`], and the end of the connection.
    Create(SealedOptions),
}

/// A record in a listing: its key and length, the seconds of its commit, and whether its own time is not believed.
pub(crate) type ListedRecord = (String, u32, Option<(i64, bool)>);

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Welcome(Welcome),
    Failed(Fault),
    Done,
    Nothing,
    Number(Option<u64>),
    /// Names and contents.
    Slots(Vec<(String, Vec<u8>)>),
    Opened {
        /// Number of a snapshot, 0 of a store open for writing.
        number: u64,
        /// The [`vbk_repo::store::Identity`], as JSON.
        identity: String,
    },
    /// Body: index entries.
    Located,
    /// Body: ids and index entries. There are more unless it is the last part.
    Surveyed {
        is_last: bool,
    },
    /// Body: ids.
    Ids,
    /// Body: headers and pages of the blocks that could be read.
    Stored(Vec<Result<StoredShape, Fault>>),
    /// Lengths; body: the nodes that could be read.
    Nodes(Vec<Result<u32, Fault>>),
    /// A part of a listing. Body: the values.
    Listing {
        records: Vec<ListedRecord>,
        /// Names and lengths of notes.
        notes: Vec<(String, u32)>,
        foreign_changes: Vec<String>,
        generation: u64,
    },
    Room(Room),
    Pruned(Pruned),
    /// A value as JSON.
    Report(String),
    /// A part of the bin: keys, lengths, and the seconds of the removals and of the times until which they stay. Body: the
    /// records.
    Forgotten(Vec<(String, u32, i64, i64)>),
    /// Damage that a check found.
    Findings(Vec<String>),
    /// The end of a check: the bytes that it read, and the number of all that it found.
    Checked {
        bytes: u64,
        found: u64,
    },
}

/// Lengths of a sealed block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockShape {
    pub(crate) id: [u8; 32],
    pub(crate) plain_bytes: u32,
    pub(crate) lengths: StoredShape,
}

/// Lengths of a header and of pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredShape {
    pub(crate) header: u32,
    #[serde(deserialize_with = "at_most::<_, _, MAX_BLOCK_PAGES>")]
    pub(crate) pages: Vec<u32>,
}

/// An error on its way. Those that callers distinguish keep their form, of the others the kind and the message arrive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    BackupExists(String),
    BlockMissing([u8; 32]),
    BlockDamaged([u8; 32], String),
    NodeDamaged([u8; 32], String),
    Locked(String),
    Moved,
    /// Blocks and nodes.
    Missing(Vec<[u8; 32]>, Vec<[u8; 32]>),
    Other(ErrorKind, String),
}

impl From<&Error> for Fault {
    fn from(error: &Error) -> Self {
        match error {
            Error::BackupExists(backup) => Self::BackupExists(backup.clone()),
            Error::BlockMissing(id) => Self::BlockMissing(id.0),
            Error::BlockDamaged { id, what } => Self::BlockDamaged(id.0, what.clone()),
            Error::NodeDamaged { id, what } => Self::NodeDamaged(id.0, what.clone()),
            Error::Locked { holder, .. } => Self::Locked(holder.clone()),
            Error::Moved => Self::Moved,
            Error::Missing { blocks, nodes } => Self::Missing(
                blocks.iter().map(|id| id.0).collect(),
                nodes.iter().map(|id| id.0).collect(),
            ),
            other => Self::Other(other.kind(), other.to_string()),
        }
    }
}

impl Fault {
    /// The error as the client's callers see it. `repository` is only for the message.
    pub(crate) fn into_error(self, repository: &std::path::Path) -> Error {
        match self {
            Self::BackupExists(backup) => Error::BackupExists(backup),
            Self::BlockMissing(id) => Error::BlockMissing(BlockId(id)),
            Self::BlockDamaged(id, what) => Error::BlockDamaged { id: BlockId(id), what },
            Self::NodeDamaged(id, what) => Error::NodeDamaged { id: NodeId(id), what },
            Self::Locked(holder) => Error::Locked {
                path: repository.to_owned(),
                holder,
            },
            Self::Moved => Error::Moved,
            Self::Missing(blocks, nodes) => Error::Missing {
                blocks: blocks.into_iter().map(BlockId).collect(),
                nodes: nodes.into_iter().map(NodeId).collect(),
            },
            Self::Other(ErrorKind::Interrupted, _) => Error::Interrupted,
            Self::Other(kind, message) => Error::Remote { kind, message },
        }
    }
}
