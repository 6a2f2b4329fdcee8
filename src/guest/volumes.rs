//! Makes the logical volumes that a whole guest is restored to, and removes them again if it does not come to that. Tested
//! together with `restore/guest.rs`, which writes them.
//!
//! What is there when vbk ends in the middle, however it ends:
//! 1. Nothing is made before every name is known to be free and the room to be there.
//! 2. A volume is made with the run's tag, in one commit of lvm2's metadata: a volume of ours never is there without it.
//! 3. The tag goes when all disks are written and durable. A volume with a tag of this kind may therefore be torn; one
//!    that is in the way of a later run is named as such.
//! 4. What is removed is asked for by the run's tag, so that only volumes which this run made can be.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use vbk_repo::ErrorKind;

use crate::guest::discover::GUEST_TAG;
use crate::guest::files::{GuestFilesError, check_group_name, check_lvm_name, check_volume_name};
use crate::host::lvm::{self, report};
use crate::host::program::{ProgramError, Programs};
use crate::snapshot::TAG;
use crate::text::size;

/// How long lvm2 may take to answer or to change something: it waits for its own locks and for udev.
const LIMIT: Duration = Duration::from_secs(120);
/// What the tags of unfinished restores begin with.
pub const TAG_PREFIX: &str = "vbk_restore_";
/// What a mapping takes in a thin pool's metadata: the figure that lvmthin(7) tells to count with.
const MAPPING_BYTES: u64 = 64;

/// The volumes to make.
#[derive(Debug, Clone)]
pub struct VolumesPlan {
    /// The volume group.
    pub group: String,
    /// The thin pool in it, for thin volumes.
    pub pool: Option<String>,
    /// The volumes.
    pub volumes: Vec<NewVolume>,
    /// Tells this run from others: letters and digits.
    pub run: String,
    /// Where the group's directory is: `/dev`.
    pub devices: PathBuf,
}

/// A volume to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// What it must hold.
    pub size_bytes: u64,
    /// What of it is not zero, in whole blocks.
    pub data_bytes: u64,
    /// The size of these blocks.
    pub block_bytes: u64,
    /// Its tags when it is whole: see [`tags_of`].
    pub tags: Vec<String>,
}

/// Why there are no new volumes.
#[derive(Debug, thiserror::Error)]
pub enum VolumesError {
    /// lvm2 did not do it.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A name that lvm2 does not take.
    #[error(transparent)]
    Name(#[from] GuestFilesError),
    /// Two disks would get one volume.
    #[error("two disks would become volume {0}; restore them one by one: `vbk restore BACKUP/DISK TARGET`")]
    Twice(String),
    /// A volume of this name is there.
    #[error("{group}/{name} exists{}; nothing was made", left_by(*.left, .group, .name))]
    Exists {
        /// The group.
        group: String,
        /// The volume.
        name: String,
        /// A restore that did not end left it.
        left: bool,
    },
    /// The group is too full.
    #[error("volume group {group} has {} free, {} are needed; nothing was made", size(*.have_bytes), size(*.need_bytes))]
    NoRoom {
        /// The group.
        group: String,
        /// What is free.
        have_bytes: u64,
        /// What the volumes take, in whole extents.
        need_bytes: u64,
    },
    /// The pool is too full, or its metadata.
    #[error(
        "the {what} of thin pool {pool} has {} free, up to {} are needed; a pool that is over-filled harms all volumes in it, so \
         nothing was made: extend it with `lvextend{}`", size(*.have_bytes), size(*.need_bytes), option_of(.what)
    )]
    PoolRoom {
        /// The pool, with its group.
        pool: String,
        /// `data` or `metadata`.
        what: &'static str,
        /// What is free.
        have_bytes: u64,
        /// What the data takes at most.
        need_bytes: u64,
    },
    /// It is not there, or something else.
    #[error("{pool} is {what}, not a thin pool; `lvs -S segtype=thin-pool` lists them")]
    NotAPool {
        /// The name that was given, with its group.
        pool: String,
        /// What it is.
        what: String,
    },
}

fn left_by(left: bool, group: &str, name: &str) -> String {
    match left {
        true => format!(
            ", made by a restore that did not end (or still runs); if none runs, `lvremove {group}/{name}` removes it"
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
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Program(error) => error.kind(),
            Self::Name(error) => error.kind(),
            Self::Twice(_) | Self::Exists { .. } => ErrorKind::Invalid,
            Self::NoRoom { .. } | Self::PoolRoom { .. } => ErrorKind::NoSpace,
            Self::NotAPool { .. } => ErrorKind::NotFound,
        }
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, VolumesError>;

/// The name of a new volume: the old one's, for another guest with the guest's old name in it replaced by the new, or else
/// `GUEST-DISK`. In `web10-root` there is no `web1`.
pub fn volume_name(old_volume: Option<&str>, old_guest: &str, new_guest: &str, disk: &str) -> Result<String> {
    let replaced = old_volume.and_then(|volume| match old_guest == new_guest {
        true => Some(volume.to_owned()),
        false => replace_word(volume, old_guest, new_guest),
    });
    let name = replaced.unwrap_or_else(|| format!("{new_guest}-{disk}"));
    check_volume_name(&name)?;
    Ok(name)
}

/// The tags of a new volume. The one by which vbk finds a guest's disks is made for the new guest, so that what is restored is
/// backed up like what was lost. All others mean the old volume, and come back only with it. Tags of vbk's own are never
/// taken over, nor what lvm2 would not take.
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
    let mut places = text
        .match_indices(old)
        .map(|(at, _)| (&text[..at], &text[at + old.len()..]));
    let found =
        places.find(|(before, behind)| is_border(before.chars().next_back()) && is_border(behind.chars().next()));
    found.map(|(before, behind)| format!("{before}{new}{behind}"))
}

/// What was found out before anything is made.
#[derive(Debug)]
struct Ground {
    extent_bytes: u64,
    read_zero: bool,
}

impl VolumesPlan {
    /// Where a volume will be.
    pub fn path_of(&self, volume: &NewVolume) -> PathBuf {
        self.devices.join(&self.group).join(&volume.name)
    }

    /// Checks whether the volumes can be made; changes nothing.
    pub fn check(&self, programs: &Programs) -> Result<()> {
        self.survey(programs).map(drop)
    }

    fn tag(&self) -> String {
        format!("{TAG_PREFIX}{}", self.run)
    }

    fn survey(&self, programs: &Programs) -> Result<Ground> {
        check_group_name(&self.group)?;
        check_lvm_name("tag", &self.run)?;
        let mut names = HashSet::new();
        for volume in &self.volumes {
            check_volume_name(&volume.name)?;
            if !names.insert(volume.name.as_str()) {
                return Err(VolumesError::Twice(volume.name.clone()));
            }
        }
        let groups: Vec<GroupRow> = report(programs, "vgs", "vg_free,vg_extent_size", &["--", &self.group])?;
        let wrong = |what: String| ProgramError::Answer {
            command: format!("vgs {}", self.group),
            what,
        };
        let group = groups.first().ok_or_else(|| wrong("it names no group".into()))?;
        let (free_bytes, extent_bytes) = (number(&group.vg_free)?, number(&group.vg_extent_size)?);
        if extent_bytes == 0 {
            return Err(wrong("the extents have no size".into()).into());
        }
        let taken: Vec<VolumeRow> = report(programs, "lvs", VOLUME_FIELDS, &["-a", "--", &self.group])?;
        for row in &taken {
            // Those that lvm2 made for itself stand in brackets, and their names are taken too.
            let name = row.lv_name.trim_matches(['[', ']']);
            if names.contains(name) {
                return Err(VolumesError::Exists {
                    group: self.group.clone(),
                    name: name.to_owned(),
                    left: row.tags().any(|tag| tag.starts_with(TAG_PREFIX)),
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

    /// Whether new thin volumes in this pool read as zeros.
    fn survey_pool(&self, programs: &Programs, pool: &str) -> Result<bool> {
        check_lvm_name("thin pool", pool)?;
        let name = format!("{}/{pool}", self.group);
        let fields = "segtype,lv_size,data_percent,lv_metadata_size,metadata_percent,chunk_size,zero";
        let rows: Vec<PoolRow> = report(programs, "lvs", fields, &["--", &name])?;
        let not_a_pool = |what: &str| VolumesError::NotAPool {
            pool: name.clone(),
            what: what.to_owned(),
        };
        let row = rows.first().ok_or_else(|| not_a_pool("not there"))?;
        if row.segtype != "thin-pool" {
            return Err(not_a_pool(&row.segtype));
        }
        let chunk_bytes = number(&row.chunk_size)?.max(1);
        // New chunks read as zeros if the pool zeroes them. If not, what is around the first write to a chunk is what
        // another volume left there: then every byte has to be written, and takes room.
        let read_zero = matches!(row.zero.as_str(), "zero" | "1");
        let needs = self.volumes.iter().map(|volume| {
            let all = whole(volume.size_bytes, chunk_bytes);
            let blocks = volume.data_bytes.div_ceil(volume.block_bytes.max(1));
            // A block may lie across two chunks only if it is not a multiple of them; the larger of both covers that.
            let each = whole(volume.block_bytes, chunk_bytes);
            match read_zero {
                true => blocks.saturating_mul(each).min(all),
                false => all,
            }
        });
        let need_bytes = needs.fold(0, u64::saturating_add);
        let metadata_bytes = (need_bytes / chunk_bytes).saturating_mul(MAPPING_BYTES);
        for (what, size, percent, need_bytes) in [
            ("data", &row.lv_size, &row.data_percent, need_bytes),
            ("metadata", &row.lv_metadata_size, &row.metadata_percent, metadata_bytes),
        ] {
            let have_bytes = free_of(number(size)?, percent)?;
            if need_bytes > have_bytes {
                return Err(VolumesError::PoolRoom {
                    pool: name,
                    what,
                    have_bytes,
                    need_bytes,
                });
            }
        }
        Ok(read_zero)
    }

    /// Makes the volumes, all or none.
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
                // Also after a command that was killed: what it did is asked for by the tag.
                volumes.take_back();
                return Err(error);
            }
        }
        Ok(volumes)
    }

    fn create_one(&self, programs: &Programs, volume: &NewVolume, extent_bytes: u64) -> Result<()> {
        let size = format!("{}b", whole(volume.size_bytes, extent_bytes));
        let tag = self.tag();
        let mut args = vec!["--yes", "--name", &volume.name, "--addtag", &tag];
        match &self.pool {
            Some(pool) => args.extend(["--virtualsize", &size, "--thinpool", pool]),
            // An old signature in its place could be taken for a part of an array or group, and held open.
            None => args.extend(["--size", &size, "--wipesignatures", "y", "--zero", "y"]),
        }
        args.extend(["--", &self.group]);
        programs.change("lvcreate", &args, LIMIT)?;
        Ok(())
    }
}

/// Volumes that were made and may have to go again.
#[derive(Debug)]
pub struct Volumes<'a> {
    plan: &'a VolumesPlan,
    programs: &'a Programs,
    read_zero: bool,
    open: bool,
}

impl Volumes<'_> {
    /// What was planned.
    pub fn plan(&self) -> &VolumesPlan {
        self.plan
    }

    /// Whether every byte of them reads as zero, so that only data need be written. Otherwise they hold what others left.
    pub fn read_zero(&self) -> bool {
        self.read_zero
    }

    /// Keeps the volumes: they get their own tags instead of the run's. Gives what could not be tagged, which is of no harm
    /// to what is in them.
    pub fn keep(mut self) -> Result<()> {
        self.open = false;
        let run = [self.plan.tag()];
        for volume in &self.plan.volumes {
            lvm::change_tags(self.programs, &self.plan.group, &volume.name, &run, &volume.tags)?;
        }
        Ok(())
    }

    /// Removes the volumes that this run made, and no others.
    pub fn remove(mut self) -> Result<()> {
        self.open = false;
        self.remove_all()
    }

    fn remove_all(&self) -> Result<()> {
        let (tag, group) = (self.plan.tag(), &self.plan.group);
        let selection = format!("lv_tags={tag}");
        let rows: Vec<VolumeRow> = report(self.programs, "lvs", VOLUME_FIELDS, &["-S", &selection, "--", group])?;
        let mut failed = None;
        for row in rows {
            let is_ours = row.tags().any(|found| found == tag);
            let is_planned = self.plan.volumes.iter().any(|volume| volume.name == row.lv_name);
            if is_ours && is_planned {
                let name = format!("{group}/{}", row.lv_name);
                // lvm2 looks at the tag again, under its lock.
                let args = ["--yes", "-S", &selection, "--", &name];
                failed = self.programs.change("lvremove", &args, LIMIT).err().or(failed);
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

    /// What is to be said of volumes that could not be removed.
    pub fn left(&self) -> String {
        let names = self.plan.volumes.iter();
        let names: Vec<_> = names
            .map(|volume| format!("{}/{}", self.plan.group, volume.name))
            .collect();
        format!(
            "some of {} may be left, with the tag {}; `lvremove` them",
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

/// What is free of something that is `percent` full, as `12.34`; rounded down.
fn free_of(size_bytes: u64, percent: &str) -> Result<u64> {
    // A pool that is not active tells nothing, and takes none.
    let full: f64 = percent.parse().map_err(|_| not_a_number(percent))?;
    Ok((size_bytes as f64 * (1.0 - full.clamp(0.0, 100.0) / 100.0)) as u64)
}

fn number(text: &str) -> Result<u64> {
    text.parse().map_err(|_| not_a_number(text).into())
}

fn not_a_number(text: &str) -> ProgramError {
    ProgramError::Answer {
        command: "lvs or vgs".into(),
        what: format!("{text:?} is no number"),
    }
}

const VOLUME_FIELDS: &str = "lv_name,lv_tags";

#[derive(Deserialize)]
struct GroupRow {
    vg_free: String,
    vg_extent_size: String,
}

#[derive(Deserialize)]
struct VolumeRow {
    lv_name: String,
    lv_tags: String,
}

impl VolumeRow {
    fn tags(&self) -> impl Iterator<Item = &str> {
        self.lv_tags.split(',')
    }
}

#[derive(Deserialize)]
struct PoolRow {
    segtype: String,
    lv_size: String,
    data_percent: String,
    lv_metadata_size: String,
    metadata_percent: String,
    chunk_size: String,
    zero: String,
}
