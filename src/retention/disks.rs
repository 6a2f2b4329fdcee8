//! Finds the backups that have the last data of a disk: a disk that a later backup lacks, or has with much less in it, may have
//! been lost by mistake. Pure, and goes by the figures in the records.

use std::collections::BTreeSet;
use std::fmt;

use vbk_repo::backup::{Backup, Image};
use vbk_repo::name::DiskName;

use crate::text::size;

/// A disk has much less data than before if it has less than one of so many parts.
const MUCH_LESS: u64 = 5;

/// A disk of an earlier backup whose data the latest one has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The disk.
    pub disk: DiskName,
    /// Difference between the two backups.
    pub what: Lost,
}

/// Difference between a disk in an earlier backup and in the latest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The latest backup does not have the disk.
    Disk,
    /// The latest backup has less of its data.
    Data {
        /// Bytes that are not zero in the earlier backup.
        before_bytes: u64,
        /// Those in the latest one.
        after_bytes: u64,
    },
    /// The disk is smaller in the latest backup.
    End {
        /// Size in the earlier backup.
        before_bytes: u64,
        /// Size in the latest one.
        after_bytes: u64,
    },
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = &self.disk;
        match self.what {
            Lost::Disk => write!(f, "disk {disk} is in it, but not in the latest one"),
            Lost::Data {
                before_bytes,
                after_bytes: 0,
            } => write!(
                f,
                "disk {disk} has {} of data in it, but none in the latest one",
                size(before_bytes)
            ),
            Lost::Data {
                before_bytes,
                after_bytes,
            } => write!(
                f,
                "disk {disk} has {} of data in it, but {} in the latest one",
                size(before_bytes),
                size(after_bytes)
            ),
            Lost::End {
                before_bytes,
                after_bytes,
            } => write!(
                f,
                "disk {disk} has {} in it, but {} in the latest one",
                size(before_bytes),
                size(after_bytes)
            ),
        }
    }
}

/// Returns for each backup of a guest the disks whose data it is the newest one to have. `backups` are in the order in which they
/// were made, each with whether it is good. A damaged one is returned too, but an earlier one is still looked for.
///
/// The latest good backup is what the others are compared with. From there back, each backup counts in which a disk has
/// much more than in all that were looked at: so a little that was written to a disk after it was wiped hides nothing.
pub fn losses(backups: &[(&Backup, bool)]) -> Vec<Vec<Loss>> {
    let mut found = vec![Vec::new(); backups.len()];
    let latest = backups
        .iter()
        .rposition(|(_, good)| *good)
        .or(backups.len().checked_sub(1));
    let Some(latest) = latest else {
        return found;
    };
    let disks: BTreeSet<&str> = backups[..latest]
        .iter()
        .flat_map(|(backup, _)| backup.images.iter().map(|image| image.disk.as_str()))
        .collect();
    for disk in disks {
        let last = backups[latest].0.image(disk).ok();
        let mut most = last.map(Most::of);
        for (at, (backup, good)) in backups[..latest].iter().enumerate().rev() {
            let Ok(image) = backup.image(disk) else { continue };
            if !most.is_none_or(|most| most.is_much_less_than(image)) || image.data_bytes == 0 {
                continue;
            }
            found[at].push(Loss {
                disk: image.disk.clone(),
                what: Lost::between(image, last),
            });
            if *good {
                most = Some(Most::of(image).max(most));
            }
        }
    }
    found
}

impl Lost {
    fn between(before: &Image, after: Option<&Image>) -> Self {
        match after {
            None => Self::Disk,
            Some(after) if after.data_bytes.saturating_mul(MUCH_LESS) < before.data_bytes => Self::Data {
                before_bytes: before.data_bytes,
                after_bytes: after.data_bytes,
            },
            Some(after) => Self::End {
                before_bytes: before.size_bytes,
                after_bytes: after.size_bytes,
            },
        }
    }
}

/// The most that a disk has in some backups.
#[derive(Debug, Clone, Copy)]
struct Most {
    size_bytes: u64,
    data_bytes: u64,
}

impl Most {
    fn of(image: &Image) -> Self {
        Self {
            size_bytes: image.size_bytes,
            data_bytes: image.data_bytes,
        }
    }

    fn max(self, other: Option<Self>) -> Self {
        let other = other.unwrap_or(self);
        Self {
            size_bytes: self.size_bytes.max(other.size_bytes),
            data_bytes: self.data_bytes.max(other.data_bytes),
        }
    }

    fn is_much_less_than(self, image: &Image) -> bool {
        self.size_bytes < image.size_bytes || self.data_bytes.saturating_mul(MUCH_LESS) < image.data_bytes
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use vbk_repo::backup::{Consistency, RECORD_FORMAT};
    use vbk_repo::id::NodeId;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A backup whose disks have these sizes and data, in MiB.
    pub(crate) fn backup(disks: &[(&str, u64, u64)]) -> Backup {
        let image = |&(disk, size, data): &(&str, u64, u64)| Image {
            data_bytes: data * MIB,
            ..Image::new(disk.parse().expect("a name"), "/dev/x", size * MIB, NodeId([0; 32]))
        };
        Backup {
            format: RECORD_FORMAT,
            guest: "web1".parse().expect("a name"),
            time: "2026-11-20T00-00-00Z".parse().expect("a time"),
            sequence: 0,
            duration_ms: 0,
            host: String::new(),
            vbk_version: String::new(),
            consistency: Consistency::Crash,
            images: disks.iter().map(image).collect(),
            files: Vec::new(),
        }
    }

    /// The losses as text, by the number of the backup.
    fn told(backups: &[(Backup, bool)]) -> Vec<(usize, String)> {
        let given: Vec<_> = backups.iter().map(|(backup, good)| (backup, *good)).collect();
        let all = losses(&given).into_iter().enumerate();
        all.flat_map(|(at, losses)| losses.into_iter().map(move |loss| (at, loss.to_string())))
            .collect()
    }

    /// The losses of disk vdb of good backups, with these sizes and data, oldest first; `None`: without the disk.
    fn of_vdb(history: &[Option<(u64, u64)>]) -> Vec<(usize, String)> {
        let vda = ("vda", 100, 90);
        let one = |vdb: &Option<(u64, u64)>| match vdb {
            Some((size, data)) => backup(&[vda, ("vdb", *size, *data)]),
            None => backup(&[vda]),
        };
        told(&history.iter().map(|vdb| (one(vdb), true)).collect::<Vec<_>>())
    }

    #[test]
    fn the_newest_backup_with_a_disk_that_is_gone_empty_much_emptier_or_smaller_is_found() {
        let full = Some((50, 40));
        let gone = [(1, "disk vdb is in it, but not in the latest one".to_owned())];
        assert_eq!(of_vdb(&[full, full, None]), gone);
        assert_eq!(of_vdb(&[full, full, None, None]), gone);
        let empty = "disk vdb has 40 MiB of data in it, but none in the latest one".to_owned();
        assert_eq!(of_vdb(&[full, full, Some((50, 0))]), [(1, empty.clone())]);
        assert_eq!(of_vdb(&[full, full, Some((0, 0))]), [(1, empty)]);
        let less = "disk vdb has 40 MiB of data in it, but 7 MiB in the latest one".to_owned();
        assert_eq!(of_vdb(&[full, full, Some((50, 7))]), [(1, less)]);
        let smaller = "disk vdb has 50 MiB in it, but 49 MiB in the latest one".to_owned();
        assert_eq!(of_vdb(&[full, full, Some((49, 39))]), [(1, smaller)]);
    }

    #[test]
    fn a_disk_that_has_its_data_or_that_never_had_any_is_no_loss() {
        let full = Some((50, 40));
        assert_eq!(of_vdb(&[]), []);
        assert_eq!(of_vdb(&[full]), []);
        assert_eq!(of_vdb(&[full, full]), []);
        assert_eq!(of_vdb(&[None, full]), []);
        assert_eq!(of_vdb(&[full, None, full]), []);
        assert_eq!(of_vdb(&[full, Some((50, 0)), Some((60, 8))]), []);
        assert_eq!(of_vdb(&[Some((50, 0)), None]), []);
    }

    #[test]
    fn what_was_written_after_the_loss_hides_nothing() {
        let found = of_vdb(&[Some((50, 40)), Some((50, 40)), Some((50, 1)), Some((50, 1)), None]);
        assert_eq!(found.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1, 3]);
        // A disk that empties and fills again is held once.
        let found = of_vdb(&[Some((50, 40)), Some((50, 5)), Some((50, 40)), Some((50, 5))]);
        assert_eq!(found.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn a_damaged_backup_is_no_substitute() {
        let (full, bare) = (backup(&[("vda", 9, 9), ("vdb", 9, 9)]), backup(&[("vda", 9, 9)]));
        let told = |good: [bool; 3]| {
            let all = [&full, &full, &bare].into_iter().cloned().zip(good);
            let found = told(&all.collect::<Vec<_>>());
            found.iter().map(|(at, _)| *at).collect::<Vec<_>>()
        };
        assert_eq!(told([true, true, true]), [1]);
        assert_eq!(told([true, false, true]), [0, 1]);
        assert!(told([true, true, false]).is_empty());
    }
}
