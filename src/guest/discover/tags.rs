//! Logical volumes whose tag names a guest and its disk: `vbk_guest=web1/vda`. Such a tag consists of the characters
//! that lvm(8) allows in tags: letters, digits and `_+.-/=!:&#`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use vbk_repo::name::{DiskName, GuestName};

use crate::host::lvm;
use crate::host::program::{ProgramError, Programs};

/// Prefix of the tag.
pub(crate) const PREFIX: &str = "vbk_guest=";

/// The guests named by tags.
#[derive(Debug, Default)]
pub(super) struct Tags {
    pub guests: BTreeMap<GuestName, Vec<TaggedDisk>>,
    /// Invalid tags, or the reason why none could be read.
    pub notes: Vec<String>,
}

/// A disk named by a tag. There should be exactly one volume.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TaggedDisk {
    pub name: DiskName,
    pub volumes: Vec<Volume>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Volume {
    /// Full name: `vg0/web1-root`.
    pub full_name: String,
    /// Path: `/dev/vg0/web1-root`.
    pub path: PathBuf,
    pub size_bytes: Option<u64>,
}

#[derive(Deserialize)]
struct Row {
    lv_full_name: String,
    #[serde(default)]
    lv_path: String,
    #[serde(default)]
    lv_tags: String,
    #[serde(default)]
    lv_size: String,
}

impl Tags {
    /// Queries `lvs`. Without lvm2 there are no tags and no notes.
    pub(super) fn read(programs: &Programs) -> Self {
        let rows: Vec<Row> = match lvm::report(programs, "lvs", "lv_full_name,lv_path,lv_tags,lv_size", &[]) {
            Ok(rows) => rows,
            Err(ProgramError::Missing { .. }) => return Self::default(),
            Err(error) => {
                return Self {
                    notes: vec![format!("can't list logical volumes: {error}")],
                    ..Self::default()
                };
            }
        };
        let mut tags = Self::default();
        for row in &rows {
            tags.row(row);
        }
        tags
    }

    fn row(&mut self, row: &Row) {
        let ours: Vec<&str> = row
            .lv_tags
            .split(',')
            .filter_map(|tag| tag.trim().strip_prefix(PREFIX))
            .collect();
        let volume = &row.lv_full_name;
        let value = match ours.as_slice() {
            [] => return,
            [value] => *value,
            [first, second, ..] => {
                self.notes.push(format!(
                    "volume {volume} is left out: it has several tags, {PREFIX}{first} and {PREFIX}{second}"
                ));
                return;
            }
        };
        // A volume without a path is part of another one, so its tag is a mistake.
        if row.lv_path.is_empty() {
            self.notes.push(format!(
                "volume {volume} is left out: it is tagged, but has no device of its own"
            ));
            return;
        }
        let names = value.split_once('/').and_then(|(guest, disk)| {
            let names = (GuestName::new(guest).ok()?, DiskName::new(disk).ok()?);
            Some(names)
        });
        let Some((guest, name)) = names else {
            self.notes.push(format!(
                "volume {volume} is left out: its tag {PREFIX}{value} should name a guest and a disk, e.g. \
                 {PREFIX}web1/vda"
            ));
            return;
        };
        let found = Volume {
            full_name: volume.clone(),
            path: PathBuf::from(&row.lv_path),
            size_bytes: row.lv_size.trim().parse().ok(),
        };
        let disks = self.guests.entry(guest).or_default();
        match disks.iter_mut().find(|disk| disk.name == name) {
            Some(disk) => disk.volumes.push(found),
            None => disks.push(TaggedDisk {
                name,
                volumes: vec![found],
            }),
        }
        disks.sort_by(|a, b| a.name.cmp(&b.name));
    }
}
