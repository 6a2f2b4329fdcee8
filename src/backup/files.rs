//! Files that describe a guest: stored like images, so that mark, verify and repair treat them alike.

use std::collections::HashSet;

use vbk_repo::backup::{Image, MAX_FILE_BYTES};
use vbk_repo::block::{BlockIndex, is_zero};
use vbk_repo::id::BlockId;
use vbk_repo::name::{DiskName, check_file_name};
use vbk_repo::repository::Writer;
use vbk_repo::writer::ImageWriter;

use super::BackupPlan;
use crate::error::{Error, Result};

/// Refuses a plan that could not be committed, before the first byte is read.
pub(super) fn check(plan: &BackupPlan) -> Result<()> {
    let mut names: HashSet<_> = plan.disks.iter().map(|disk| &disk.name).collect();
    for (name, bytes) in &plan.files {
        check_file_name(name)?;
        if !names.insert(name) {
            return Err(Error::DiskTwice(name.to_string()));
        }
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(Error::Repository(vbk_repo::Error::FileTooLarge {
                name: name.to_string(),
                have_bytes: bytes.len() as u64,
                limit_bytes: MAX_FILE_BYTES,
            }));
        }
    }
    Ok(())
}

/// Stores a file as an image.
pub(super) fn store(
    writer: &Writer,
    plan: &BackupPlan,
    condemned: &HashSet<BlockId>,
    name: &DiskName,
    bytes: &[u8],
) -> Result<Image> {
    let (store, block_size) = (writer.store(), writer.identity().block_size);
    let slots = ImageWriter::create(store, block_size, bytes.len() as u64);
    let (mut new_bytes, mut stored_bytes) = (0, 0);
    let mut blocks = Vec::new();
    for (number, plain) in (0..).zip(bytes.chunks(block_size.bytes())) {
        match is_zero(plain) {
            true => slots.set_zero(BlockIndex(number), 1)?,
            false => blocks.push((number, plain, store.hashing().block(plain))),
        }
    }
    let ids: Vec<BlockId> = blocks.iter().map(|(_, _, hashes)| hashes.id).collect();
    let mut put = HashSet::new();
    for ((number, plain, hashes), known) in blocks.into_iter().zip(store.locate(&ids)?) {
        if (known.is_none() || condemned.contains(&hashes.id)) && put.insert(hashes.id) {
            let sealed = writer
                .sealers()
                .with(plan.compression, |sealer| sealer.seal(plain, &hashes))?;
            new_bytes += plain.len() as u64;
            stored_bytes += sealed.stored_bytes();
            store.put(vec![sealed])?;
        }
        slots.set(BlockIndex(number), &[Some(hashes.id)])?;
    }
    Ok(Image {
        data_bytes: bytes.len() as u64,
        new_bytes,
        stored_bytes,
        ..Image::new(name.clone(), "configuration", bytes.len() as u64, slots.finish()?)
    })
}
