//! Creates the logical volumes for restoring a whole guest, and removes them if the restore fails. Tested together with
//! `restore/guest.rs`, which writes them.
//!
//! State when vbk ends in the middle, however it ends:
//! 1. No volume is created before all names are known to be free and there is enough space.
//! 2. A volume is created with the run's tag, in one commit of lvm2's metadata: a new volume never exists without it.
//! 3. The tag is removed when all disks are written and durable. A volume with such a tag may therefore be incomplete;
//!    the message says so if it is in the way of a later run.
//! 4. Volumes to remove are selected by the run's tag, so that only volumes of this run can be removed.

use std::collections::HashSet;
use std::path::PathBuf;

use vbk_repo::ErrorKind;

use crate::guest::discover::GUEST_TAG;
use crate::host::lvm::create::FoundPool;
use crate::host::lvm::names::{self, NameError};
use crate::host::lvm::{self, create};
use crate::host::program::{ProgramError, Programs};
use crate::snapshot::TAG;
use crate::text::size;

/// Prefix of the tags of unfinished restores.
pub(crate) const TAG_PREFIX: &str = "vbk_restore_";
/// Size of a mapping in a thin pool's metadata: the number that lvmthin(7) recommends for estimates.
const MAPPING_BYTES: u64 = 64;

/// The volumes to create.
#[derive(Debug, Clone)]
pub struct VolumesPlan {
    /// Volume group.
    pub group: String,
    /// Thin pool in it, for thin volumes.
    pub pool: Option<String>,
    /// Volumes.
    pub volumes: Vec<NewVolume>,
    /// Unique part of the tag of this run: letters and digits.
    pub tag_id: String,
    /// Directory that holds the group's directory: `/dev`.
    pub devices: PathBuf,
}

/// A volume to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// Name.
    pub name: String,
    /// Size of the disk that it must hold.
    pub size_bytes: u64,
    /// Bytes of it that are not zero, in whole blocks.
    pub data_bytes: u64,
    /// Size of these blocks.
    pub block_bytes: u64,
    /// Tags of the finished volume: see [`tags_of`].
    pub tags: Vec<String>,
}

/// The volumes could not be created.
#[derive(Debug, thiserror::Error)]
pub enum VolumesError {
    /// An lvm2 command failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// lvm2 does not allow a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Two disks would get one volume.
    #[error("two disks would have the same volume {0}; restore them one by one: `vbk restore BACKUP/DISK TARGET`")]
    Twice(String),
    /// A volume of this name exists.
    #[error("{group}/{name} exists{}; nothing was made", left_by(*.left, .group, .name))]
    Exists {
        /// Volume group.
        group: String,
        /// Name of the volume.
        name: String,
        /// True if an unfinished restore left it.
        left: bool,
    },
    /// The group has too little free space.
    #[error(
        "volume group {group} has {} free, {} are needed; nothing was made", size(*.have_bytes), size(*.need_bytes)
    )]
    NoRoom {
        /// Volume group.
        group: String,
        /// Free space.
        have_bytes: u64,
        /// Size of the volumes, in whole extents.
        need_bytes: u64,
    },
    /// The pool's data or metadata has too little free space.
    #[error(
        "the {what} of thin pool {pool} has {} free, up to {} are needed; a pool that runs full damages all volumes in \
         it, so nothing was made: extend it with \
         `lvextend{}`", size(*.have_bytes), size(*.need_bytes), option_of(.what)
    )]
    PoolRoom {
        /// Name of the pool, with its group.
        pool: String,
        /// `data` or `metadata`.
        what: &'static str,
        /// Free space.
        have_bytes: u64,
        /// Space that the data takes at most.
        need_bytes: u64,
    },
    /// The pool does not exist, or is another kind of volume.
    #[error("{pool} {what}; `lvs -S segtype=thin-pool` lists the thin pools")]
    NotAPool {
        /// Given name, with its group.
        pool: String,
        /// The finding, as the rest of a sentence.
        what: String,
    },
}

fn left_by(left: bool, group: &str, name: &str) -> String {
    match left {
        true => format!(
            ", left by a restore that did not end or still runs; if none runs, remove it with `lvremove \
             {group}/{name}`"
        ),
        false => String::new(),
    }
}

fn option_of(what: &str) -> &'static str {
    match what {
        "metadata" => " --poolmetadatasize +1G",
        _ => " -L +SIZE",
    }
}

impl VolumesError {
    /// Returns the kind of the error, by which a caller decides what to do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Program(error) => error.kind(),
            Self::Name(_) | Self::Twice(_) | Self::Exists { .. } => ErrorKind::Invalid,
            Self::NoRoom { .. } | Self::PoolRoom { .. } => ErrorKind::NoSpace,
            Self::NotAPool { .. } => ErrorKind::NotFound,
        }
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, VolumesError>;

/// Returns the name of a new volume: the old volume's name, for another guest with the old guest's name in it replaced
/// by the new one, or else `GUEST-DISK`. The name `web1` does not occur in `web10-root`.
pub fn volume_name(old_volume: Option<&str>, old_guest: &str, new_guest: &str, disk: &str) -> Result<String> {
    let replaced = old_volume.and_then(|volume| match old_guest == new_guest {
        true => Some(volume.to_owned()),
        false => replace_word(volume, old_guest, new_guest),
    });
    let name = replaced.unwrap_or_else(|| format!("{new_guest}-{disk}"));
    names::check_volume(&name)?;
    Ok(name)
}

/// Returns the tags of a new volume. The tag by which vbk finds a guest's disks is rewritten for the new guest, so that
/// the restored disks are backed up like the lost ones. All other tags belong to the old volume, and are kept only if
/// the guest keeps its name. vbk's own tags are never taken over, nor tags that lvm2 would refuse.
pub fn tags_of(old_tags: &[String], old_guest: &str, new_guest: &str) -> Vec<String> {
    let tags = old_tags.iter().filter_map(|tag| match tag.strip_prefix(GUEST_TAG) {
        Some(value) => {
            let (guest, disk) = value.split_once('/')?;
            (guest == old_guest).then(|| format!("{GUEST_TAG}{new_guest}/{disk}"))
        }
        None if tag == TAG || tag.starts_with("vbk_") || old_guest != new_guest => None,
        None => Some(tag.clone()),
    });
    tags.filter(|tag| !tag.is_empty() && !tag.starts_with('-') && lvm::as_tag(tag) == *tag)
        .collect()
}

fn replace_word(text: &str, old: &str, new: &str) -> Option<String> {
    let is_border = |c: Option<char>| !c.is_some_and(char::is_alphanumeric);
    let mut matches = text
        .match_indices(old)
        .map(|(at, _)| (&text[..at], &text[at + old.len()..]));
    let found =
        matches.find(|(before, after)| is_border(before.chars().next_back()) && is_border(after.chars().next()));
    found.map(|(before, after)| format!("{before}{new}{after}"))
}

/// Result of the checks before anything is created.
#[derive(Debug)]
struct Ground {
    extent_bytes: u64,
    read_zero: bool,
}

impl VolumesPlan {
    /// Returns the path that a volume will have.
    pub fn path_of(&self, volume: &NewVolume) -> PathBuf {
        self.devices.join(&self.group).join(&volume.name)
    }

    /// Checks that the volumes can be created; changes nothing.
    pub fn check(&self, programs: &Programs) -> Result<()> {
        self.survey(programs).map(drop)
    }

    fn tag(&self) -> String {
        format!("{TAG_PREFIX}{}", self.tag_id)
    }

    fn survey(&self, programs: &Programs) -> Result<Ground> {
        names::check_group(&self.group)?;
        names::check("tag", &self.tag_id)?;
        let mut wanted = HashSet::new();
        for volume in &self.volumes {
            names::check_volume(&volume.name)?;
            if !wanted.insert(volume.name.as_str()) {
                return Err(VolumesError::Twice(volume.name.clone()));
            }
        }
        let (free_bytes, extent_bytes) = lvm::free_space(programs, &self.group)?;
        for taken in create::all_in(programs, &self.group)? {
            if wanted.contains(taken.name.as_str()) {
                return Err(VolumesError::Exists {
                    group: self.group.clone(),
                    left: taken.tags.iter().any(|tag| tag.starts_with(TAG_PREFIX)),
                    name: taken.name,
                });
            }
        }
        let read_zero = match &self.pool {
            Some(pool) => self.survey_pool(programs, pool)?,
            None => {
                let sizes = self.volumes.iter().map(|volume| whole(volume.size_bytes, extent_bytes));
                let need_bytes = sizes.fold(0, u64::saturating_add);
                if need_bytes > free_bytes {
                    return Err(VolumesError::NoRoom {
                        group: self.group.clone(),
                        have_bytes: free_bytes,
                        need_bytes,
                    });
                }
                false
            }
        };
        Ok(Ground {
            extent_bytes,
            read_zero,
        })
    }

    /// Tests that new thin volumes in this pool read as zeros.
    fn survey_pool(&self, programs: &Programs, pool: &str) -> Result<bool> {
        names::check("thin pool", pool)?;
        let name = format!("{}/{pool}", self.group);
        let not_a_pool = |what: &str| VolumesError::NotAPool {
            pool: name.clone(),
            what: what.to_owned(),
        };
        let found = match create::pool(programs, &self.group, pool)? {
            FoundPool::Pool(pool) => pool,
            FoundPool::Absent => return Err(not_a_pool("does not exist")),
            FoundPool::Other(segtype) => return Err(not_a_pool(&format!("is {segtype}, not a thin pool"))),
        };
        let chunk_bytes = found.chunk_bytes;
        // New chunks read as zeros if the pool zeroes them. If not, the bytes around the first write to a chunk are old
        // data of another volume: then every byte has to be written, and takes space.
        let needs = self.volumes.iter().map(|volume| {
            let all = whole(volume.size_bytes, chunk_bytes);
            let blocks = volume.data_bytes.div_ceil(volume.block_bytes.max(1));
            // A block may lie across two chunks only if it is not a multiple of them; the larger of the two covers
            // that.
            let each = whole(volume.block_bytes, chunk_bytes);
            match found.zeroes {
                true => blocks.saturating_mul(each).min(all),
                false => all,
            }
        });
        let need_bytes = needs.fold(0, u64::saturating_add);
        let metadata_bytes = (need_bytes / chunk_bytes).saturating_mul(MAPPING_BYTES);
        for (what, have_bytes, need_bytes) in [
            ("data", found.data_free_bytes, need_bytes),
            ("metadata", found.metadata_free_bytes, metadata_bytes),
        ] {
            if need_bytes > have_bytes {
                return Err(VolumesError::PoolRoom {
                    pool: name,
                    what,
                    have_bytes,
                    need_bytes,
                });
            }
        }
        Ok(found.zeroes)
    }

    /// Creates the volumes, all or none.
    pub fn create<'a>(&'a self, programs: &'a Programs) -> Result<Volumes<'a>> {
        let ground = self.survey(programs)?;
        let mut volumes = Volumes {
            plan: self,
            programs,
            read_zero: ground.read_zero,
            open: true,
        };
        for volume in &self.volumes {
            let made = self.create_one(programs, volume, ground.extent_bytes);
            if let Err(error) = made {
                // Also after a command that was killed: its effects are found by the tag.
                volumes.take_back();
                return Err(error);
            }
        }
        Ok(volumes)
    }

    fn create_one(&self, programs: &Programs, volume: &NewVolume, extent_bytes: u64) -> Result<()> {
        let size_bytes = whole(volume.size_bytes, extent_bytes);
        let place = (self.group.as_str(), self.pool.as_deref());
        create::create_tagged(programs, place, &volume.name, size_bytes, &self.tag())?;
        Ok(())
    }
}

/// Volumes that were created and may have to be removed.
#[derive(Debug)]
pub struct Volumes<'a> {
    plan: &'a VolumesPlan,
    programs: &'a Programs,
    read_zero: bool,
    open: bool,
}

impl Volumes<'_> {
    /// Returns the plan.
    pub fn plan(&self) -> &VolumesPlan {
        self.plan
    }

    /// Tests that every byte of them reads as zero, so that only data must be written. Otherwise they hold old data of
    /// other volumes.
    pub fn read_zero(&self) -> bool {
        self.read_zero
    }

    /// Keeps the volumes and replaces the run's tag by their own tags. An error means that a volume could not be
    /// tagged; its content is not affected.
    pub fn keep(mut self) -> Result<()> {
        self.open = false;
        let run_tag = [self.plan.tag()];
        for volume in &self.plan.volumes {
            lvm::change_tags(self.programs, &self.plan.group, &volume.name, &run_tag, &volume.tags)?;
        }
        Ok(())
    }

    /// Removes the volumes that this run created, and no others.
    pub fn remove(mut self) -> Result<()> {
        self.open = false;
        self.remove_all()
    }

    fn remove_all(&self) -> Result<()> {
        let (tag, group) = (self.plan.tag(), &self.plan.group);
        let mut failed = None;
        for found in create::tagged(self.programs, group, &tag)? {
            if self.plan.volumes.iter().any(|volume| volume.name == found.name) {
                // lvm2 checks the tag again under its lock.
                let removed = create::remove_tagged(self.programs, group, &found.name, &tag);
                failed = removed.err().or(failed);
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    fn take_back(&mut self) {
        self.open = false;
        if let Err(error) = self.remove_all() {
            tracing::warn!("{}: {error}", self.left());
        }
    }

    /// Returns the message about volumes that could not be removed.
    pub fn left(&self) -> String {
        let names = self.plan.volumes.iter();
        let names: Vec<_> = names
            .map(|volume| format!("{}/{}", self.plan.group, volume.name))
            .collect();
        format!(
            "some of {} may be left, with the tag {}; remove them with `lvremove`",
            names.join(", "),
            self.plan.tag()
        )
    }
}

impl Drop for Volumes<'_> {
    fn drop(&mut self) {
        if self.open {
            tracing::warn!("{}", self.left());
        }
    }
}

/// Rounds up to whole extents or chunks.
fn whole(bytes: u64, unit: u64) -> u64 {
    bytes.div_ceil(unit).max(1).saturating_mul(unit)
}
