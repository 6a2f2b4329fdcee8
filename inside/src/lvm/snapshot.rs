//! Snapshots of the old kind: the origin, and a store of the chunks that changed since (drivers/md/dm-snap-persistent.c).

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::map::check;
use crate::device::{Device, SharedDevice, le32, le64, read_array};

/// `SNAP_MAGIC`.
const MAGIC: u32 = 0x7041_6e53;
/// Smallest and largest chunk that LVM makes, in sectors.
const CHUNK_SECTORS: std::ops::RangeInclusive<u32> = 1..=1024;
/// Length of an exception: the chunk's number in the origin and in the store.
const EXCEPTION_BYTES: u64 = 16;
/// Most exceptions of all snapshots of a group. In memory they take 128 MiB; with chunks of 4 KiB, they have 32 GiB of
/// changes.
const MAX_EXCEPTIONS: usize = 8 << 20;

/// Numbers of chunks in the origin and in the store, in the order of the origin.
type Exceptions = Arc<[(u64, u64)]>;

/// Number of exceptions that further snapshots of the group may have.
#[derive(Clone)]
pub(super) struct Room(Arc<Mutex<usize>>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(MAX_EXCEPTIONS)))
    }
}

/// A snapshot's view of its origin.
pub(super) struct Snapshot {
    origin: SharedDevice,
    store: SharedDevice,
    chunk_bytes: u64,
    /// Read when first needed.
    exceptions: Mutex<Option<Exceptions>>,
    room: Room,
}

impl Snapshot {
    /// Opens a snapshot; the inner error says why there is nothing to read.
    pub(super) fn open(origin: SharedDevice, store: SharedDevice, room: &Room) -> io::Result<Result<Self, String>> {
        let Some(header) = read_array::<16>(store.as_ref(), 0)? else {
            return Ok(Err("the store of the snapshot is too small".to_owned()));
        };
        let chunk_sectors = le32(&header, 12);
        Ok(if le32(&header, 0) != MAGIC {
            Err("the snapshot was not yet in use".to_owned())
        } else if le32(&header, 4) == 0 {
            Err("the snapshot is invalid: its store was full".to_owned())
        } else if le32(&header, 8) != 1 || !chunk_sectors.is_power_of_two() || !CHUNK_SECTORS.contains(&chunk_sectors) {
            Err("the header of the snapshot is damaged".to_owned())
        } else {
            Ok(Self {
                origin,
                store,
                chunk_bytes: u64::from(chunk_sectors) * 512,
                exceptions: Mutex::new(None),
                room: room.clone(),
            })
        })
    }

    fn exceptions(&self) -> io::Result<Exceptions> {
        let mut known = self.exceptions.lock();
        if let Some(known) = known.as_ref() {
            return Ok(Arc::clone(known));
        }
        let mut room = self.room.0.lock();
        let mut found = self.read_exceptions(*room)?;
        *room -= found.len();
        // A chunk is in the store once. In a store that says otherwise, the first one counts.
        found.sort_by_key(|(old, _)| *old);
        found.dedup_by_key(|(old, _)| *old);
        Ok(Arc::clone(known.insert(found.into())))
    }

    /// Reads the tables: one chunk of exceptions, from chunk 1 on, and then as many chunks of data.
    fn read_exceptions(&self, max: usize) -> io::Result<Vec<(u64, u64)>> {
        let per_table = self.chunk_bytes / EXCEPTION_BYTES;
        let chunks = self.store.size_bytes() / self.chunk_bytes;
        let mut table = vec![0; self.chunk_bytes as usize];
        let mut found = Vec::new();
        for at in (1..chunks).step_by(per_table as usize + 1) {
            self.store.read_at(at * self.chunk_bytes, &mut table)?;
            for exception in table.chunks_exact(EXCEPTION_BYTES as usize) {
                let (old, new) = (le64(exception, 0), le64(exception, 8));
                // Chunk 0 of the store is its header, so this is the end of the list.
                if new == 0 {
                    return Ok(found);
                }
                if found.len() >= max {
                    return Err(io::Error::new(
                        io::ErrorKind::Unsupported,
                        format!("snapshots with more than {MAX_EXCEPTIONS} changed chunks"),
                    ));
                }
                found.push((old, new));
            }
        }
        Ok(found)
    }
}

impl Device for Snapshot {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        check(offset_bytes, buf.len(), self.size_bytes())?;
        let exceptions = self.exceptions()?;
        let (mut at, mut rest) = (offset_bytes, buf);
        while !rest.is_empty() {
            let (chunk, within) = (at / self.chunk_bytes, at % self.chunk_bytes);
            let next = exceptions.partition_point(|(old, _)| *old < chunk);
            let (changed, len) = match exceptions.get(next) {
                Some((old, new)) if *old == chunk => (Some(*new), self.chunk_bytes - within),
                Some((old, _)) => (None, old.saturating_mul(self.chunk_bytes) - at),
                None => (None, u64::MAX),
            };
            let (piece, others) = rest.split_at_mut(len.min(rest.len() as u64) as usize);
            match changed {
                Some(new) => {
                    let start = new
                        .checked_mul(self.chunk_bytes)
                        .and_then(|start| start.checked_add(within));
                    let start = start.ok_or(io::ErrorKind::InvalidData)?;
                    check(start, piece.len(), self.store.size_bytes())?;
                    self.store.read_at(start, piece)?;
                }
                None => self.origin.read_at(at, piece)?,
            }
            at += piece.len() as u64;
            rest = others;
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.origin.size_bytes()
    }
}
