//! Hints from thin pools: two snapshots of one volume are compared by their mappings in the pool's metadata, and none
//! of their data is read.
//!
//! # Why shared blocks are unchanged
//!
//! A thin volume maps its blocks to data blocks of the pool. Where both snapshots map a block to the same data block at
//! the same moment, reading it from one or the other reads the same bytes: they are equal, whatever happened between.
//! dm-thin never writes in place to a data block that another volume maps too. So all that is needed is that the base
//! still holds what was read from it for its backup: it is read-only, and [`ThinPair`] is checked for the rest.
//!
//! # The metadata snapshot
//!
//! `thin_delta` may read a live pool only through a metadata snapshot, and a pool can have one. It is made when both
//! snapshots exist, and released when they are compared. It is kept in the pool, also over a reboot, and makes the
//! pool copy metadata that it changes; so none of ours must stay. The kernel reports its block number
//! (`dmsetup status`), but not its owner. So a mark, `MARKS/VG-POOL`, says which one is ours:
//!
//! | step | mark | pool | after a kill here |
//! |---|---|---|---|
//! | 1. lock the mark | any | - | the lock ends with the process |
//! | 2. release what a killed run left | N | has N | it is released the next time |
//! | 3. empty the mark, reserve | empty | has N | the administrator has to release it, as the error says |
//! | 4. write N to the mark | N | has N | step 2 of the next run releases it |
//! | 5. compare | N | has N | the same |
//! | 6. empty the mark, release | empty | has N | as in step 3 |
//!
//! Between two calls of dmsetup in steps 3 and 6, a kill leaves one that can't be told from another program's, and
//! another program may be reading through its own: then nothing is touched and disks are read in full. The mark is
//! emptied before the release and not after, because the next metadata snapshot, whoever makes it, often gets the same
//! number. A mark with another number than the pool's is emptied as soon as it is seen.

mod delta;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vbk_repo::block::BlockSize;

use super::{Collector, HintError, Unchanged};
use crate::host::lvm;
use crate::host::program::{self, ProgramError, Programs};

/// Time limit for dmsetup. A message waits for the pool to commit.
const DMSETUP_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for thin_delta; it reads all the metadata of two volumes, at random offsets.
const DELTA_LIMIT: Duration = Duration::from_secs(10 * 60);
/// Longest wait for other runs on the same pool.
const LOCK_LIMIT: Duration = Duration::from_secs(15 * 60);
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// Longest wait of a cleaning for other runs.
const CLEAN_WAIT: Duration = Duration::from_secs(1);

/// Two snapshots of one thin volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinPair {
    /// The volume group.
    pub vg: String,
    /// The thin pool.
    pub pool: String,
    /// The snapshot that was read for the backup before.
    pub base: ThinSnapshot,
    /// The snapshot that is to be read now.
    pub new: ThinSnapshot,
}

/// LVM's report of a thin snapshot (`lvs -o thin_id,origin_uuid,lv_permissions,transaction_id,lv_size`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinSnapshot {
    /// Its number in the pool.
    pub thin_id: u32,
    /// The UUID of the volume it is a snapshot of.
    pub origin_uuid: String,
    /// The pool's transaction at which it was made.
    pub transaction: u64,
    /// It can't be written to.
    pub read_only: bool,
    /// Its size.
    pub size_bytes: u64,
}

impl ThinPair {
    /// The pool's own device, as dmsetup names it. LVM's suffix follows one hyphen; those in names are doubled
    /// (lvm2, dm_build_dm_name).
    fn pool_device(&self) -> String {
        lvm::dm_name(&self.vg, &self.pool, POOL_LAYER)
    }

    fn metadata_device(&self) -> String {
        format!(
            "/dev/mapper/{}",
            lvm::dm_name(&self.vg, &format!("{}_tmeta", self.pool), "")
        )
    }

    fn name(&self) -> String {
        format!("{}/{}", self.vg, self.pool)
    }

    fn check(&self) -> Result<(), HintError> {
        let (base, new) = (&self.base, &self.new);
        let what = if ![&self.vg, &self.pool].into_iter().all(|name| lvm::is_name(name)) {
            "this is not an LVM name"
        } else if base.origin_uuid != new.origin_uuid || new.origin_uuid.is_empty() {
            "the two snapshots are not of the same volume"
        } else if base.thin_id == new.thin_id {
            "a snapshot can't be compared with itself"
        } else if base.transaction >= new.transaction {
            "the base is not older than the snapshot; the volume group may have been restored"
        } else if base.size_bytes != new.size_bytes {
            "the volume has another size now"
        } else if !base.read_only || !new.read_only {
            "a snapshot that can be written to may not hold what was read from it"
        } else {
            return Ok(());
        };
        Err(HintError::NotComparable {
            what: format!("{}: {what}", self.name()),
        })
    }
}

/// Compares two thin snapshots, both of which exist. `marks` is a directory of root's alone that survives a reboot; it
/// is made if it does not exist. Ends soon, with some error, when `stop` becomes true.
pub fn unchanged(
    programs: &Programs,
    marks: &Path,
    pair: &ThinPair,
    block_size: BlockSize,
    stop: &dyn Fn() -> bool,
) -> Result<Unchanged, HintError> {
    pair.check()?;
    let pool = Pool {
        programs,
        name: pair.name(),
        device: pair.pool_device(),
    };
    let held = Held::reserve(&pool, marks, stop)?;
    let found = compare(programs, &pool, pair, block_size, stop);
    held.release()?;
    found
}

/// Suffix of the device of a pool itself.
const POOL_LAYER: &str = "tpool";

/// Releases the metadata snapshots that killed runs have left, as far as they are ours: in the pools of which there is
/// a mark that no run has locked. Returns the devices of those pools, and the errors of others. The mark of a pool that
/// is gone or not active stays until the pool is back.
pub fn clean(programs: &Programs, marks: &Path) -> (Vec<String>, Vec<HintError>) {
    let (mut released, mut failed) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(marks).into_iter().flatten().flatten() {
        let Ok(device) = entry.file_name().into_string() else {
            continue;
        };
        let is_mark = device.ends_with(&format!("-{POOL_LAYER}")) && lvm::is_name(&device);
        // Most are empty, and the pool need not be asked.
        if !is_mark || !entry.metadata().is_ok_and(|mark| mark.is_file() && mark.len() > 0) {
            continue;
        }
        let pool = Pool {
            programs,
            name: device.clone(),
            device: device.clone(),
        };
        // A program that another thread has just started has inherited the lock for a moment, which is waited for. A
        // run that holds it for longer is at work.
        let begun = Instant::now();
        match MetadataMark::lock(entry.path(), &pool, &|| begun.elapsed() > CLEAN_WAIT)
            .and_then(|mut mark| mark.release_left(&pool))
        {
            Ok(true) => released.push(device),
            Ok(false) | Err(HintError::Busy { .. }) => {}
            Err(_) if pool.is_away() => tracing::info!(
                "pool {device} does not exist or is not active; {} marks what a run may have left in it, and can be removed \
                 if the pool is gone for good",
                entry.path().display()
            ),
            Err(error) => failed.push(error),
        }
    }
    (released, failed)
}

fn compare(
    programs: &Programs,
    pool: &Pool<'_>,
    pair: &ThinPair,
    block_size: BlockSize,
    stop: &dyn Fn() -> bool,
) -> Result<Unchanged, HintError> {
    // The snapshots' numbers are those of LVM's metadata; the pool must be at least as far.
    let transaction = pool.status()?.transaction;
    if transaction < pair.new.transaction {
        return Err(HintError::NotComparable {
            what: format!(
                "pool {} is at transaction {transaction}, and the snapshot was made at {}",
                pool.name, pair.new.transaction
            ),
        });
    }
    let (left, right) = (u64::from(pair.base.thin_id), u64::from(pair.new.thin_id));
    let mut command = programs.command("thin_delta");
    // -m takes an optional number in some versions, so an option comes next.
    command.args(["-m", "--thin1", &left.to_string(), "--thin2", &right.to_string()]);
    command.arg(pair.metadata_device());
    let size_bytes = pair.new.size_bytes;
    let mut collector = Collector::new(size_bytes, block_size);
    program::stream(command, DELTA_LIMIT, stop, |output| {
        delta::read(output, left, right, size_bytes, &mut collector)
    })??;
    Ok(collector.finish())
}

struct Pool<'a> {
    programs: &'a Programs,
    /// As VG/LV.
    name: String,
    device: String,
}

struct Status {
    transaction: u64,
    /// The block of the metadata snapshot.
    held: Option<u64>,
}

impl Pool<'_> {
    /// `START LENGTH thin-pool TRANSACTION META/META DATA/DATA HELD ...` (admin-guide/device-mapper/thin-provisioning).
    fn status(&self) -> Result<Status, HintError> {
        let answer = self.programs.run("dmsetup", &["status", &self.device], DMSETUP_LIMIT)?;
        let words: Vec<&str> = answer.split_whitespace().collect();
        let status = match words[..] {
            [_, _, "thin-pool", transaction, _, _, held, ..] => {
                let held = match held {
                    "-" => Some(None),
                    number => number.parse().ok().map(Some),
                };
                transaction.parse().ok().zip(held)
            }
            _ => None,
        };
        let (transaction, held) = status.ok_or_else(|| ProgramError::Answer {
            command: format!("dmsetup status {}", self.device),
            what: answer.trim().chars().take(200).collect(),
        })?;
        Ok(Status { transaction, held })
    }

    /// Returns whether the kernel has no such device, from lines of `NAME (MAJOR:MINOR)`. False if it can't be asked.
    fn is_away(&self) -> bool {
        let devices = self.programs.run("dmsetup", &["ls"], DMSETUP_LIMIT);
        devices.is_ok_and(|text| {
            let mut names = text.lines().filter_map(|line| line.split_whitespace().next());
            names.all(|name| name != self.device)
        })
    }

    fn message(&self, message: &str) -> Result<(), HintError> {
        let args = ["message", &self.device, "0", message];
        self.programs.act("dmsetup", &args, DMSETUP_LIMIT)?;
        Ok(())
    }

    fn taken(&self) -> HintError {
        HintError::Held {
            pool: self.name.clone(),
            device: self.device.clone(),
        }
    }
}

/// The file with the number of the metadata snapshot that is ours, locked.
struct MetadataMark {
    path: PathBuf,
    file: File,
}

impl MetadataMark {
    fn lock(path: PathBuf, pool: &Pool<'_>, stop: &dyn Fn() -> bool) -> Result<Self, HintError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(HintError::file("open", &path))?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { path, file }),
                Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_LIMIT && !stop() => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(HintError::Busy {
                        pool: pool.name.clone(),
                    });
                }
                Err(TryLockError::Error(error)) => return Err(HintError::file("lock", path)(error)),
            }
        }
    }

    /// The number in it; none if it is empty or torn.
    fn read(&mut self) -> Result<Option<u64>, HintError> {
        let mut text = String::new();
        let read = self
            .file
            .seek(SeekFrom::Start(0))
            .and_then(|_| (&self.file).take(64).read_to_string(&mut text));
        match read {
            Ok(_) => Ok(text.strip_suffix('\n').and_then(|number| number.parse().ok())),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(HintError::file("read", &self.path)(error)),
        }
    }

    /// Writes in place and not by a draft, because the lock is on this file. `read` recognizes a torn number.
    fn write(&mut self, number: Option<u64>) -> Result<(), HintError> {
        let text = number.map(|number| format!("{number}\n")).unwrap_or_default();
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .and_then(|_| self.file.write_all(text.as_bytes()))
            .and_then(|()| self.file.sync_all())
            .map_err(HintError::file("write", &self.path))
    }

    /// Step 2. An error if the pool has one that is not ours.
    fn release_left(&mut self, pool: &Pool<'_>) -> Result<bool, HintError> {
        let (mark, held) = (self.read()?, pool.status()?.held);
        // Another process has released ours, and the next one of that number will be another's.
        if mark.is_some() && mark != held {
            self.write(None)?;
        }
        match held {
            None => Ok(false),
            Some(_) if mark == held => {
                self.write(None)?;
                pool.message("release_metadata_snap")?;
                Ok(true)
            }
            Some(_) => Err(pool.taken()),
        }
    }
}

/// A metadata snapshot of ours, released at the end.
struct Held<'a> {
    pool: &'a Pool<'a>,
    mark: MetadataMark,
    released: bool,
}

impl<'a> Held<'a> {
    /// Steps 1 to 4.
    fn reserve(pool: &'a Pool<'a>, marks: &Path, stop: &dyn Fn() -> bool) -> Result<Self, HintError> {
        fs::create_dir_all(marks).map_err(HintError::file("create", marks))?;
        let mut mark = MetadataMark::lock(marks.join(&pool.device), pool, stop)?;
        mark.release_left(pool)?;
        mark.write(None)?;
        pool.message("reserve_metadata_snap")?;
        let mut held = Self {
            pool,
            mark,
            released: false,
        };
        match pool.status()?.held {
            Some(number) => held.mark.write(Some(number)).or_else(|error| {
                // Without the mark no later run would know that it is ours.
                held.released = true;
                pool.message("release_metadata_snap").and(Err(error))
            })?,
            // Another process has released it, and may do so again while it is read.
            None => {
                held.released = true;
                return Err(pool.taken());
            }
        }
        Ok(held)
    }

    /// Step 6.
    fn release(mut self) -> Result<(), HintError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), HintError> {
        // Not tried again by the drop: what is released once may belong to another the next time.
        self.released = true;
        self.mark.write(None)?;
        self.pool.message("release_metadata_snap")
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        if let Err(error) = self.end() {
            tracing::warn!(
                "the metadata snapshot of pool {} is not released: {error}",
                self.pool.name
            );
        }
    }
}

#[cfg(test)]
mod tests;
