//! Writes the disks of a guest onto volumes that were made for them.

use std::sync::atomic::AtomicBool;

use vbk_repo::reader::ImageReader;

use super::{Fill, RestoreOptions, Restored, restore};
use crate::error::Result;
use crate::guest::volumes::Volumes;
use crate::observer::{Event, Observer};

/// An image to write onto one of the volumes.
pub struct DiskToWrite<'a> {
    /// The disk's name.
    pub name: &'a str,
    /// The backup and disk, for messages.
    pub label: String,
    /// The image.
    pub image: &'a ImageReader,
    /// What of it is not zero.
    pub data_bytes: u64,
}

/// Writes the disks, one after the other, in the order of the volumes. Every byte of each volume is defined then, and
/// durable; what was done is returned in the same order. On any failure the volumes of this run are removed again. Of
/// `options`, label and fill follow from the disks and volumes.
pub fn write<'a>(
    volumes: Volumes<'a>,
    disks: &[DiskToWrite<'_>],
    options: &RestoreOptions,
    cancel: &AtomicBool,
    observer: &dyn Observer,
) -> Result<(Volumes<'a>, Vec<Restored>)> {
    match write_all(&volumes, disks, options, cancel, observer) {
        Ok(restored) => Ok((volumes, restored)),
        Err(error) => {
            let left = volumes.left();
            if let Err(why) = volumes.remove() {
                observer.event(Event::Warning(&format!("{left}: {why}")));
            }
            Err(error)
        }
    }
}

fn write_all(
    volumes: &Volumes<'_>,
    disks: &[DiskToWrite<'_>],
    options: &RestoreOptions,
    cancel: &AtomicBool,
    observer: &dyn Observer,
) -> Result<Vec<Restored>> {
    let plan = volumes.plan();
    let mut restored = Vec::new();
    for (disk, volume) in disks.iter().zip(&plan.volumes) {
        observer.event(Event::Disk {
            name: disk.name,
            size_bytes: disk.image.size_bytes(),
        });
        let options = RestoreOptions {
            label: disk.label.clone(),
            fill: match volumes.read_zero() {
                true => Fill::Data,
                false => Fill::Device,
            },
            ..options.clone()
        };
        let path = plan.path_of(volume);
        let done = restore(disk.image, disk.data_bytes, &path, &options, cancel, observer)?;
        restored.push(done);
    }
    Ok(restored)
}

#[cfg(test)]
mod tests;
