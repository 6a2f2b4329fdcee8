//! What a client puts is checked before it is stored: nobody can put other bytes under the name of a block that somebody else
//! will want.
//!
//! In a plain repository each page is decoded and hashed. In an encrypted one only a holder of the key could do that, so only
//! lengths are checked, and all who have its key trust each other.
//!
//! A part of a manifest names no more than one of its kind can: a proof or a prune that follows what hostile ones name would
//! need more memory than any disk does.

use vbk_repo::block::{Hashing, PAGE_BYTES, pages_in};
use vbk_repo::codec::{Header, Sealed};
use vbk_repo::id::NodeId;
use vbk_repo::manifest::{self, Head, Kind, PAGE_SEGMENTS, SEGMENT_SLOTS};
use vbk_repo::store::{ENCRYPTION, Identity};
use vbk_repo::{Error, ErrorKind, Result};

/// Longest node: the root of an image of 2 PiB.
const MAX_NODE_BYTES: usize = 1 << 20;

/// The checks of one repository.
pub(super) struct Door {
    block_bytes: usize,
    is_encrypted: bool,
}

impl Door {
    pub(super) fn of(identity: &Identity) -> Self {
        Self {
            block_bytes: identity.block_size.bytes(),
            is_encrypted: identity.features.iter().any(|feature| feature == ENCRYPTION),
        }
    }

    /// An error unless each block is what its id says.
    pub(super) fn check_blocks(&self, blocks: &[Sealed]) -> Result<()> {
        blocks.iter().try_for_each(|block| self.check_block(block))
    }

    fn check_block(&self, block: &Sealed) -> Result<()> {
        let refused = |what: &str| Error::BlockDamaged {
            id: block.id,
            what: format!("the server refused it: {what}"),
        };
        if self.is_encrypted {
            // A block that does not compress is a little longer sealed than plain, and its length is hidden. A row has half a
            // page.
            let is_long = block.stored_bytes() as usize > 2 * self.block_bytes.max(PAGE_BYTES);
            return match is_long || block.pages.len() > 2 * pages_in(self.block_bytes) {
                true => Err(refused("it is longer than a block can be")),
                false => Ok(()),
            };
        }
        let plain_bytes = block.plain_bytes as usize;
        if plain_bytes == 0 || plain_bytes > self.block_bytes || block.pages.len() != pages_in(plain_bytes) {
            return Err(refused("it has another length"));
        }
        let header = Header::prove(Hashing::Plain, block.id, plain_bytes, &block.header)?;
        let mut page = vec![0; PAGE_BYTES];
        for (number, stored) in block.pages.iter().enumerate() {
            // A decoder skips what does not belong to it, so the hash does not bound the stored length; no answer would have room
            // for such a block, for all who have it.
            if stored.len() > header.page_len(number) {
                return Err(refused(&format!("page {number} is longer than its plain bytes")));
            }
            header.open_page(number, stored, &mut page[..header.page_len(number)])?;
        }
        Ok(())
    }

    /// An error unless each node is what its id says.
    pub(super) fn check_nodes(&self, nodes: &[(NodeId, Vec<u8>)]) -> Result<()> {
        for (id, bytes) in nodes {
            if bytes.len() > MAX_NODE_BYTES {
                return Err(refused_node(*id, "it is too long"));
            }
            let head = match self.is_encrypted {
                true => Head::split(bytes).ok_or_else(|| refused_node(*id, "it has no head"))?.0,
                false => manifest::prove(Hashing::Plain, *id, bytes)?.0,
            };
            if !is_possible(&head) {
                return Err(refused_node(*id, "it names more than one of its kind can"));
            }
        }
        Ok(())
    }
}

/// Returns whether a manifest can have a part with this head. A root is only as long as a node may be.
fn is_possible(head: &Head) -> bool {
    let (names, drops) = match head.kind {
        Kind::Full => (SEGMENT_SLOTS, 0),
        Kind::Delta => (SEGMENT_SLOTS, SEGMENT_SLOTS),
        // Pairs.
        Kind::Page => (2 * PAGE_SEGMENTS, 0),
        Kind::Root => (usize::MAX, 0),
    };
    head.names.len() <= names && head.drops.len() <= drops
}

fn refused_node(id: NodeId, what: &str) -> Error {
    Error::Remote {
        kind: ErrorKind::Invalid,
        message: format!("the server refused part {id} of a manifest: {what}"),
    }
}
