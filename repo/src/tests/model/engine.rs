//! Makes backups in the way of vbk's engine, in one thread.

use std::collections::{BTreeSet, HashSet};

use super::expected::{GUESTS, Kept};
use super::homes::Home;
use super::steps::Way;
use super::{Bench, condemned};
use crate::backup::Image;
use crate::block::{BlockIndex, is_zero};
use crate::catalogue::Catalogue;
use crate::codec::{Compression, Sealer};
use crate::differences::{New, bases, seal};
use crate::error::{ErrorKind, Result};
use crate::slots::SlotReader;
use crate::store::{Record, StoreManager};
use crate::tests::testing::{SMALL, backup};
use crate::writer::ImageWriter;

impl<H: Home> Bench<H> {
    /// Makes a backup. An unfinished one keeps the blocks that it stored, unless the disk is full or the step simulates
    /// a kill.
    pub(super) fn back_up(&mut self, guest: usize, way: Way) -> Result<()> {
        let store = self.store();
        let done = self.try_back_up(&*store, guest, way);
        let keep = match &done {
            Ok(None) => way.give_up.is_some_and(|(_, flush)| flush),
            Ok(Some(_)) => false,
            Err(error) => error.kind() != ErrorKind::NoSpace,
        };
        if keep {
            let flushed = store.flush();
            if matches!(done, Ok(None)) {
                flushed?;
            }
        }
        if let Some(key) = done? {
            let kept = Kept {
                disks: self.guests[guest].clone(),
                protected: false,
            };
            for id in kept.disks.iter().flat_map(|disk| disk.ids(&*store)) {
                self.blocks.maybe.remove(&id);
                self.blocks.sure.insert(id);
                self.condemned.remove(&id);
            }
            assert!(self.backups.insert(key, kept).is_none(), "a name was given twice");
        }
        Ok(())
    }

    /// Returns the name of the backup, or `None` if it gave up.
    fn try_back_up(&mut self, store: &dyn StoreManager, guest: usize, way: Way) -> Result<Option<String>> {
        let name = GUESTS[guest].0;
        let catalogue = Catalogue::load(store)?;
        let now = "2026-11-20T05:54:00Z".parse().expect("a time");
        let guest_name = name.parse().expect("a name");
        let previous = catalogue.latest(&guest_name);
        let time = catalogue.free_time(&guest_name, now);
        let again = condemned(store)?;
        let again_set: HashSet<_> = again.iter().copied().collect();
        let mut sealer = Sealer::new(Compression::Zstd(1))?;
        let mut images: Vec<Image> = Vec::new();
        let mut runs = 0;
        for (number, disk) in self.guests[guest].clone().iter().enumerate() {
            let disk_name = format!("vd{number}");
            let image = previous.and_then(|entry| entry.backup.image(&disk_name).ok());
            let known = image.and_then(|image| SlotReader::open(store, image.manifest).ok()?.segment(0).ok());
            let known = known.unwrap_or_default();
            let blocks: Vec<_> = disk.blocks().collect();
            let size_bytes = disk.bytes().len() as u64;
            let writer = ImageWriter::create(store, SMALL, size_bytes);
            for (first, run) in (0..).step_by(way.run).zip(blocks.chunks(way.run)) {
                if way.give_up.is_some_and(|(after, _)| runs == after) {
                    return Ok(None);
                }
                runs += 1;
                let hashed = run
                    .iter()
                    .map(|block| (!is_zero(block)).then(|| store.hashing().block(block)));
                let hashed: Vec<_> = hashed.collect();
                let slots: Vec<_> = hashed
                    .iter()
                    .map(|hashes| hashes.as_ref().map(|hashes| hashes.id))
                    .collect();
                let mut asked = Vec::new();
                for (index, (block, hashes)) in (first..).zip(run.iter().zip(&hashed)) {
                    let Some(hashes) = hashes else { continue };
                    let before = known.get(index).copied().flatten();
                    if before != Some(hashes.id) || again.contains(&hashes.id) {
                        asked.push((*block, hashes, before));
                    }
                }
                let ids: Vec<_> = asked.iter().map(|(_, hashes, _)| hashes.id).collect();
                let mut new = Vec::new();
                for ((plain, hashes, before), place) in asked.into_iter().zip(store.locate(&ids)?) {
                    let is_again = again.contains(&hashes.id);
                    if place.is_none() || is_again {
                        new.push(New {
                            plain,
                            hashes,
                            before: before.filter(|_| !is_again),
                        });
                    }
                }
                let bases = bases(store, &again_set, &new)?;
                let sealed = seal(&mut sealer, 1, &new, &bases)?;
                let put: BTreeSet<_> = sealed.iter().map(|block| block.id).collect();
                self.blocks.maybe.extend(put.difference(&self.blocks.sure));
                self.condemned.loosen(|id| !put.contains(id));
                store.put(sealed)?;
                writer.set(BlockIndex(first as u64), &slots)?;
                if way.barriers {
                    store.flush()?;
                }
            }
            images.push(Image {
                data_bytes: size_bytes,
                ..Image::new(
                    disk_name.parse().expect("a name"),
                    "model",
                    size_bytes,
                    writer.finish()?,
                )
            });
        }
        let backup = backup(name, &time.to_string(), images);
        let (key, bytes) = (backup.spec(), backup.encode());
        store.commit(&Record {
            key: key.clone(),
            bytes,
        })?;
        Ok(Some(key))
    }
}
