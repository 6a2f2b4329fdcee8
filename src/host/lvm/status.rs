//! The kernel's status of a device: `dmsetup status` queries it directly and takes none of LVM's locks, so it answers
//! while lvm2 commands wait for each other.
//!
//! Formats: `snapshot_status` in drivers/md/dm-snap.c, `pool_status` and `thin_status` in drivers/md/dm-thin.c.

use std::time::Duration;

use crate::host::program::{ProgramError, Programs};

const LIMIT: Duration = Duration::from_secs(10);

/// Kind of a device mapper device, and its fill level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum DmStatus {
    /// A valid thick snapshot.
    Snapshot(Space),
    /// A thick snapshot that lost its content, because it overflowed or its device failed. It stays invalid.
    Invalid,
    /// A thin pool that works.
    Pool {
        /// Chunks for data.
        data: Space,
        /// Blocks for metadata.
        metadata: Space,
        /// True if it accepts no new data any more.
        full: bool,
    },
    /// A thin volume that works.
    Thin,
    /// A thin pool or thin volume that has failed.
    Failed,
    /// Anything else.
    Other,
}

/// Used and total space, in the device's own unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    /// Used space.
    pub used: u64,
    /// Total space.
    pub total: u64,
}

impl Space {
    /// Returns the fill level, 0 to 1.
    pub(crate) fn fill(self) -> f64 {
        match self.total {
            0 => 1.0,
            total => self.used as f64 / total as f64,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (used, total) = text.split_once('/')?;
        Some(Self {
            used: used.parse().ok()?,
            total: total.parse().ok()?,
        })
    }
}

/// Queries the status of one device.
pub(crate) fn status(programs: &Programs, dm_name: &str) -> Result<DmStatus, ProgramError> {
    // Without a flush, which would commit the pool's metadata each time.
    let answer = programs.run("dmsetup", &["status", "--noflush", dm_name], LIMIT)?;
    parse(&answer).ok_or_else(|| ProgramError::Answer {
        command: format!("dmsetup status {dm_name}"),
        what: format!("it says {:?}", answer.lines().next().unwrap_or_default()),
    })
}

/// Parses `START LENGTH TARGET PARAMETERS...`, with or without the device's name and a colon before it.
fn parse(answer: &str) -> Option<DmStatus> {
    let line = answer.lines().find(|line| !line.trim().is_empty())?;
    let line = line.split_once(": ").map_or(line, |(_, rest)| rest);
    let mut words = line.split_whitespace();
    words.next()?.parse::<u64>().ok()?;
    words.next()?.parse::<u64>().ok()?;
    let target = words.next()?;
    let words: Vec<&str> = words.collect();
    Some(match (target, words.as_slice()) {
        ("snapshot", [space, ..]) => match Space::parse(space) {
            Some(space) => DmStatus::Snapshot(space),
            // Invalid, Overflow, Merge failed, and Unknown from a store that can't tell: none of them is usable.
            None => DmStatus::Invalid,
        },
        ("thin-pool", ["Fail" | "Error", ..]) | ("thin", ["Fail" | "Error", ..]) => DmStatus::Failed,
        ("thin-pool", [_, metadata, data, _, mode, ..]) => DmStatus::Pool {
            data: Space::parse(data)?,
            metadata: Space::parse(metadata)?,
            full: *mode == "out_of_data_space",
        },
        ("thin", [_, ..]) => DmStatus::Thin,
        ("snapshot" | "thin-pool" | "thin", _) => return None,
        _ => DmStatus::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(used: u64, total: u64) -> Space {
        Space { used, total }
    }

    #[test]
    fn status_lines_of_real_kernels_are_parsed() {
        let pool = |data, metadata, full| Some(DmStatus::Pool { data, metadata, full });
        let cases = [
            (
                "0 65536 snapshot 256/16384 256\n",
                Some(DmStatus::Snapshot(space(256, 16384))),
            ),
            ("0 65536 snapshot Invalid\n", Some(DmStatus::Invalid)),
            ("0 65536 snapshot Overflow\n", Some(DmStatus::Invalid)),
            ("0 65536 snapshot Merge failed\n", Some(DmStatus::Invalid)),
            (
                "0 131072 thin-pool 2 112/1024 7/1024 - rw discard_passdown queue_if_no_space - 256 \n",
                pool(space(7, 1024), space(112, 1024), false),
            ),
            (
                "0 131072 thin-pool 2 112/1024 1024/1024 - out_of_data_space discard_passdown queue_if_no_space - 256",
                pool(space(1024, 1024), space(112, 1024), true),
            ),
            ("0 131072 thin-pool Fail", Some(DmStatus::Failed)),
            ("0 204800 thin Fail", Some(DmStatus::Failed)),
            ("0 204800 thin 0 -", Some(DmStatus::Thin)),
            ("vg0-x: 0 8192 linear \n", Some(DmStatus::Other)),
            ("", None),
            ("0 65536 snapshot", None),
            ("0 8 thin-pool 2 x/y 7/8 - rw", None),
            ("nonsense", None),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line), expected, "{line:?}");
        }
        assert_eq!(space(1, 4).fill(), 0.25);
        assert_eq!(space(0, 0).fill(), 1.0);
    }
}
