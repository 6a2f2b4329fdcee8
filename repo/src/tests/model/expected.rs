//! The model that a repository is compared with: disks, their backups, and the known bounds of the stored blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use crate::block::is_zero;
use crate::id::BlockId;
use crate::store::StoreReader;
use crate::tests::testing::SMALL;

/// Each guest's number of disks.
pub(super) const GUESTS: [(&str, usize); 2] = [("db", 1), ("web1", 2)];
pub(super) const MAX_BLOCKS: usize = 20;
pub(super) const CONTENTS: u8 = 16;

const FIRST_LIKE_OTHERS: usize = 11;

/// Contents of blocks: so few different ones that backups share most of them.
static CONTENT: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let mut noise = 1_u32;
    let mut content = |number: u8| -> Vec<u8> {
        let bytes = (0..SMALL.bytes()).map(|at| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match number {
                0 => 0,
                1 => u8::from(at == 40_000),
                2..6 => (at % (7 + usize::from(number))) as u8,
                _ => (noise >> 24) as u8,
            }
        });
        bytes.collect()
    };
    let mut contents: Vec<_> = (0..CONTENTS).map(&mut content).collect();
    // Those are much like others, and stored as differences from these where they take their place.
    for number in FIRST_LIKE_OTHERS..usize::from(CONTENTS) {
        contents[number] = contents[number - 5].clone();
        contents[number][number] ^= 1;
    }
    contents
});

#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    contents: Vec<u8>,
    last_bytes: usize,
}

impl Disk {
    pub(super) fn blocks(&self) -> impl Iterator<Item = &'static [u8]> {
        let last = self.contents.len().saturating_sub(1);
        self.contents.iter().enumerate().map(move |(index, &content)| {
            let whole = &CONTENT[usize::from(content)][..];
            if index == last {
                &whole[..self.last_bytes]
            } else {
                whole
            }
        })
    }

    /// Writes contents; the disk grows, with zeros, as far as necessary.
    pub(super) fn write(&mut self, at: usize, contents: &[u8], last_bytes: usize, cut: bool) {
        let end = (at + contents.len()).min(MAX_BLOCKS);
        if self.contents.len() < end || cut {
            self.contents.resize(end, 0);
            self.last_bytes = last_bytes;
        }
        self.contents[at..end].copy_from_slice(&contents[..end - at]);
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.blocks().collect::<Vec<_>>().concat()
    }

    pub(super) fn ids(&self, store: &dyn StoreReader) -> Vec<BlockId> {
        let stored = self.blocks().filter(|block| !is_zero(block));
        stored.map(|block| store.hashing().block(block).id).collect()
    }
}

/// A backup that was acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) disks: Vec<Disk>,
    pub(super) protected: bool,
}

pub(super) type Backups = BTreeMap<String, Kept>;

pub(super) fn ids_of(store: &dyn StoreReader, backups: &Backups) -> BTreeSet<BlockId> {
    let disks = backups.values().flat_map(|kept| &kept.disks);
    disks.flat_map(|disk| disk.ids(store)).collect()
}

/// A set of blocks that is only partly known, because some facts are not settled before a barrier.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    pub(super) sure: BTreeSet<BlockId>,
    pub(super) maybe: BTreeSet<BlockId>,
}

impl Bounds {
    pub(super) fn check(&self, found: &BTreeSet<BlockId>) {
        let lost: Vec<_> = self.sure.difference(found).collect();
        let strange: Vec<_> = found
            .iter()
            .filter(|id| !self.sure.contains(id) && !self.maybe.contains(id))
            .collect();
        assert!(
            lost.is_empty() && strange.is_empty(),
            "lost {lost:?}, strange {strange:?}"
        );
    }

    pub(super) fn settle(&mut self, found: BTreeSet<BlockId>) {
        self.check(&found);
        *self = Self {
            sure: found,
            maybe: BTreeSet::new(),
        };
    }

    /// Allows everything that is not in `left` to be gone.
    pub(super) fn loosen(&mut self, left: impl Fn(&BlockId) -> bool) {
        let gone: Vec<_> = self.sure.iter().copied().filter(|id| !left(id)).collect();
        self.sure.retain(left);
        self.maybe.extend(gone);
    }

    pub(super) fn remove(&mut self, id: &BlockId) {
        self.sure.remove(id);
        self.maybe.remove(id);
    }
}
