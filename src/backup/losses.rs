//! Warnings about disks that have less than in the latest backup: seldom meant, and noticed on the day of a restore otherwise.
//! Each is given once: the next backup compares with this one.

use vbk_repo::backup::{Backup, Entry};
use vbk_repo::name::DiskName;

use crate::snapshot::PlannedDisk;
use crate::text::size;

/// Returns warnings for disks of the latest backup that are not backed up now.
pub fn missing<'a>(latest: Option<&Entry>, disks: impl Iterator<Item = &'a DiskName> + Clone) -> Vec<String> {
    let Some(Entry { backup, .. }) = latest else {
        return Vec::new();
    };
    let gone = backup
        .images
        .iter()
        .filter(|image| !disks.clone().any(|disk| *disk == image.disk));
    gone.map(|image| {
        format!(
            "disk {} of the latest backup ({}) is not in this one; the rules of `vbk forget` keep the newest backup that has it",
            image.disk,
            backup.spec()
        )
    })
    .collect()
}

/// Returns warnings for disks that are smaller than before: disks seldom shrink, but a name may have been mistyped.
pub fn shrunk(latest: Option<&Entry>, planned: &[PlannedDisk]) -> Vec<String> {
    let smaller = planned.iter().filter_map(|PlannedDisk { disk, .. }| {
        let before = latest?.backup.image(disk.name.as_str()).ok()?;
        // Sizes that read the same are given in bytes.
        let text = |bytes| match size(disk.size_bytes) == size(before.size_bytes) {
            true => format!("{bytes} bytes"),
            false => size(bytes),
        };
        (disk.size_bytes < before.size_bytes).then(|| {
            format!(
                "disk {} ({}) has {}, but had {} in the latest backup: does it belong to another guest?",
                disk.name,
                disk.source.display(),
                text(disk.size_bytes),
                text(before.size_bytes)
            )
        })
    });
    smaller.collect()
}

/// Returns warnings for disks that have no data any more. Those that are smaller have their warning already.
pub fn emptied(latest: Option<&Entry>, made: &Backup) -> Vec<String> {
    let empty = made.images.iter().filter(|image| image.data_bytes == 0);
    let emptied = empty.filter_map(|image| {
        let Entry { backup, .. } = latest?;
        let before = backup.image(image.disk.as_str()).ok()?;
        (before.data_bytes > 0 && image.size_bytes >= before.size_bytes).then(|| {
            format!(
                "disk {} has no data any more, but had {} in {}",
                image.disk,
                size(before.data_bytes),
                backup.spec()
            )
        })
    });
    emptied.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vbk_repo::id::BackupId;

    use super::*;
    use crate::retention::disks::tests::backup;

    fn entry(disks: &[(&str, u64, u64)]) -> Entry {
        Entry {
            id: BackupId([0; 32]),
            backup: Arc::new(backup(disks)),
        }
    }

    #[test]
    fn a_disk_that_only_the_latest_backup_has_is_missing() {
        let names = ["vda", "vdc"].map(|name| name.parse::<DiskName>().expect("a name"));
        let latest = entry(&[("vda", 9, 9), ("vdb", 9, 9)]);
        let told = missing(Some(&latest), names.iter());
        assert_eq!(told.len(), 1);
        assert!(
            told[0].starts_with("disk vdb of the latest backup (web1@2026-11-20T00-00-00Z) is not in this one"),
            "{told:?}"
        );
        assert_eq!(missing(None, names.iter()), [""; 0]);
    }

    #[test]
    fn a_disk_is_emptied_that_had_data_and_has_none() {
        let latest = entry(&[("vda", 60, 50), ("vdb", 60, 0), ("vdc", 60, 50), ("vdd", 60, 50)]);
        let made = entry(&[
            ("vda", 60, 0),
            ("vdb", 60, 0),
            ("vdc", 60, 1),
            ("vdd", 0, 0),
            ("vde", 60, 0),
        ]);
        assert_eq!(
            emptied(Some(&latest), &made.backup),
            ["disk vda has no data any more, but had 50 MiB in web1@2026-11-20T00-00-00Z"]
        );
        assert_eq!(emptied(None, &made.backup), [""; 0]);
    }
}
