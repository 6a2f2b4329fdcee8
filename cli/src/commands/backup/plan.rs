//! Plans the backups of a run: the command line decides first, then the configuration, then libvirt and tags.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use vbk::backup::guest::GuestPlan;
use vbk::disk::source::{Source, check_raw};
use vbk::guest::discover::{FoundBy, FoundGuest, discover, resolve};
use vbk::guest::files::{CONFIG_NAME, NVRAM_NAME};
use vbk::guest::freeze::{AgentFreeze, FreezePlan};
use vbk::hints::HintOptions;
use vbk::host::program::Programs;
use vbk::limit::speed::{DeviceSpeed, SpeedSource};
use vbk::limit::{GuestDisk, LimitOptions, ReadLimit};
use vbk::snapshot::{Method, SnapshotOptions};
use vbk_repo::name::{BackupTime, DiskName, GuestName};

use super::attached;
use crate::args::{BackupArgs, DiskArg};
use crate::config::{GuestAgent, GuestSettings, ONLY_DISK};
use crate::context::{Context, threads};
use crate::exit::{Error, Result};
use crate::machine::host;

/// Returns the read limit of a disk for which none is set. `is_named`: the disk is named on the command line.
pub fn usual_limit(is_named: bool, disk: &Path) -> ReadLimit {
    match is_named && disk.is_file() {
        // The speed allocated to a file on the host's own file system is unknown and may be anything.
        true => ReadLimit::Unlimited,
        false => ReadLimit::DEFAULT,
    }
}

/// One guest to back up.
pub struct Job {
    /// The guest.
    pub guest: GuestName,
    /// The plan, or the reason why there is none.
    pub plan: Result<GuestPlan>,
    /// Total size of its disks, as far as known.
    pub size_bytes: u64,
    /// Warnings about the guest.
    pub notes: Vec<String>,
}

impl Job {
    /// Returns whether any of its disks is a block device.
    pub fn has_devices(&self) -> bool {
        let is_device = |path: &Path| std::fs::metadata(path).is_ok_and(|data| data.file_type().is_block_device());
        self.plan
            .iter()
            .any(|plan| plan.disks.iter().any(|disk| is_device(&disk.path)))
    }
}

/// The guests to back up.
pub struct Planned {
    /// The guests.
    pub jobs: Vec<Job>,
    /// All guests that were found, including those that are left out.
    pub found: Vec<GuestName>,
    /// Reasons why there may be more guests, a sentence each.
    pub notes: Vec<String>,
}

impl From<Job> for Planned {
    fn from(job: Job) -> Self {
        Self {
            found: vec![job.guest.clone()],
            jobs: vec![job],
            notes: Vec::new(),
        }
    }
}

/// Input that all plans share.
pub struct Common<'a> {
    pub context: &'a Context<'a>,
    pub args: &'a BackupArgs,
    pub programs: &'a Programs,
    /// Settings that no option changes.
    pub limits: LimitOptions,
    /// Number of guests at a time.
    pub jobs: usize,
}

impl Common<'_> {
    /// Plans the guests that the command line asks for.
    pub fn all(&self) -> Result<Planned> {
        match (&self.args.guest, &self.args.disks[..]) {
            (Some(guest), []) => self.known(guest).map(Planned::from),
            (Some(guest), disks) => self.named(guest, disks).map(Planned::from),
            (None, _) => self.every(),
        }
    }

    /// Plans a guest whose disks are named on the command line.
    fn named(&self, guest: &GuestName, disks: &[DiskArg]) -> Result<Job> {
        let mut named = name_disks(disks)?;
        let mut sizes = Vec::new();
        for (_, path) in &mut named {
            // The path is recorded for people who look for it in a year. Links stay: their names say more.
            *path = std::path::absolute(&path)
                .map_err(Error::io(format!("find the absolute path of {}", path.display())))?;
            // Before the wait for another writer, so that a wrong path is reported at once.
            sizes.push(Source::open(path)?.size_bytes());
        }
        let settings = self.context.config()?.guest(guest);
        if !(self.args.raw || settings.raw) {
            for (_, path) in &named {
                // A disk that only deserves a warning gets it when it is read.
                check_raw(path)?;
            }
        }
        let sized = named.iter().zip(&sizes);
        let notes = doubts(sized.map(|((name, path), bytes)| (name, &**path, Some(*bytes))));
        let speed = settings.device_bytes_per_sec.map(|speed| (speed, FoundBy::Configured));
        let limit = |path: &Path| settings.read_limit.unwrap_or_else(|| usual_limit(true, path));
        let disks = named
            .into_iter()
            .map(|(name, path)| self.disk(name, limit(&path), path, speed));
        let plan = self.plan(guest, disks.collect(), &settings, settings.domain.clone(), Vec::new())?;
        Ok(Job {
            guest: guest.clone(),
            plan: Ok(plan),
            size_bytes: sizes.iter().sum(),
            notes,
        })
    }

    /// Plans a guest that the configuration, libvirt or tags know.
    fn known(&self, guest: &GuestName) -> Result<Job> {
        let config = self.context.config()?;
        let found = resolve(self.programs, &config.known_guests(), guest).map_err(vbk::Error::from)?;
        Ok(self.job(found))
    }

    fn every(&self) -> Result<Planned> {
        let config = self.context.config()?;
        let found = discover(self.programs, &config.known_guests());
        let names = found.guests.iter().map(|guest| guest.name.clone()).collect();
        let wanted = found.guests.into_iter().filter(|guest| !config.excludes(&guest.name));
        Ok(Planned {
            jobs: wanted.map(|guest| self.job(guest)).collect(),
            found: names,
            notes: found.notes,
        })
    }

    fn job(&self, found: FoundGuest) -> Job {
        let mut notes = found.notes.clone();
        // The backup will fail, and say the same.
        notes.retain(|note| found.disks.iter().all(|disk| disk.unreadable.as_ref() != Some(note)));
        let missing = found.left_out.iter().filter(|disk| !disk.is_meant);
        notes.extend(missing.map(|disk| format!("disk {} is not backed up: it {}", disk.name, disk.why)));
        let disks = found.disks.iter();
        notes.extend(doubts(disks.map(|disk| (&disk.name, &*disk.path, disk.size_bytes))));
        Job {
            size_bytes: found.disks.iter().filter_map(|disk| disk.size_bytes).sum(),
            plan: self.plan_of(&found, &mut notes),
            guest: found.name,
            notes,
        }
    }

    fn plan_of(&self, found: &FoundGuest, notes: &mut Vec<String>) -> Result<GuestPlan> {
        if found.disks.is_empty() {
            return Err(Error::Usage(format!(
                "guest {} has no disk that can be backed up",
                found.name
            )));
        }
        let settings = self.context.config()?.guest(&found.name);
        let limit = settings.read_limit.unwrap_or_default();
        let disks = found
            .disks
            .iter()
            .map(|disk| self.disk(disk.name.clone(), limit, disk.path.clone(), disk.speed));
        let mut files = Vec::new();
        if let Some(domain) = &found.domain {
            files.push((name_of(CONFIG_NAME)?, domain.xml.clone().into_bytes()));
            match domain.nvram.as_deref().map(attached::read_file) {
                Some(Ok(bytes)) => files.push((name_of(NVRAM_NAME)?, bytes)),
                // libvirt creates it when the guest is first started.
                Some(Err(why)) if found.running == Some(true) => {
                    notes.push(format!("its UEFI variables (NVRAM) are not kept: {why}"))
                }
                Some(Err(_)) | None => {}
            }
        }
        let domain = found.domain.as_ref().map(|domain| domain.name.clone());
        let domain = domain.or_else(|| settings.domain.clone());
        self.plan(&found.name, disks.collect(), &settings, domain, files)
    }

    fn disk(&self, name: DiskName, limit: ReadLimit, path: PathBuf, speed: Option<(u64, FoundBy)>) -> GuestDisk {
        let polite = &self.args.politeness;
        let option = polite.device_speed.map(|speed| (speed, SpeedSource::Option));
        let found = speed.map(|(speed, from)| match from {
            FoundBy::Libvirt => (speed, SpeedSource::Libvirt),
            _ => (speed, SpeedSource::Config),
        });
        GuestDisk {
            name,
            path,
            limit: polite.read_limit.unwrap_or(limit),
            speed: option
                .or(found)
                .map(|(bytes_per_sec, source)| DeviceSpeed { bytes_per_sec, source }),
        }
    }

    fn plan(
        &self,
        guest: &GuestName,
        disks: Vec<GuestDisk>,
        settings: &GuestSettings,
        domain: Option<String>,
        mut files: Vec<(DiskName, Vec<u8>)>,
    ) -> Result<GuestPlan> {
        let args = self.args;
        // A named file replaces a found one.
        let attached = attached::read(&args.attach)?;
        files.retain(|(name, _)| attached.iter().all(|(other, _)| other != name));
        files.extend(attached);
        Ok(GuestPlan {
            guest: guest.clone(),
            time: args.time.map(BackupTime::timestamp),
            disks,
            raw: args.raw || settings.raw,
            files,
            freeze: freeze_plan(guest, settings, domain),
            snapshots: self.snapshot_options(settings),
            limits: self.limit_options(settings),
            hints: HintOptions {
                hints: args.hints.change_hints.unwrap_or(settings.change_hints),
                full_read_every: signed(settings.full_read_every),
                trust: args.hints.trust_hints,
            },
            compression: args.compression.unwrap_or(settings.compression),
            host: host(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            threads: (threads() / self.jobs).max(1),
        })
    }

    fn snapshot_options(&self, settings: &GuestSettings) -> SnapshotOptions {
        let args = &self.args.snapshots;
        SnapshotOptions {
            size: args.snapshot_size.or(settings.snapshot_size),
            extend_at: match args.no_extend {
                true => None,
                false => args.extend.or(settings.extend),
            },
            live: args.live || settings.live,
            method: match args.no_snapshot {
                true => Method::None,
                false => Method::Auto,
            },
            ..SnapshotOptions::default()
        }
    }

    fn limit_options(&self, settings: &GuestSettings) -> LimitOptions {
        let polite = self.args.politeness.options();
        LimitOptions {
            kernel: polite.kernel && settings.kernel_limit,
            idle: polite.idle && settings.idle,
            backoff: match settings.backoff {
                true => polite.backoff,
                false => vbk::limit::pressure::Backoff::Off,
            },
            ..self.limits.clone()
        }
    }
}

/// Describes disks that are probably not those that were meant: one that is given twice, and empty ones.
fn doubts<'a>(disks: impl Iterator<Item = (&'a DiskName, &'a Path, Option<u64>)>) -> Vec<String> {
    let mut notes = Vec::new();
    let mut known = Vec::<(Identity, &DiskName)>::new();
    for (name, path, size_bytes) in disks {
        if size_bytes == Some(0) {
            notes.push(format!(
                "disk {name} is empty (0 bytes): is {} the right file?",
                path.display()
            ));
        }
        let Some(identity) = std::fs::metadata(path).ok().map(|data| Identity::of(&data)) else {
            continue;
        };
        match known.iter().find(|(one, _)| *one == identity) {
            Some((_, other)) => notes.push(format!("disks {other} and {name} are the same: {}", path.display())),
            None => known.push((identity, name)),
        }
    }
    notes
}

/// Identity of a disk, whatever its path: of a device or of a file.
#[derive(PartialEq, Eq)]
enum Identity {
    Device(u64),
    File { device: u64, inode: u64 },
}

impl Identity {
    fn of(data: &Metadata) -> Self {
        match data.file_type().is_block_device() {
            true => Self::Device(data.rdev()),
            false => Self::File {
                device: data.dev(),
                inode: data.ino(),
            },
        }
    }
}

fn freeze_plan(guest: &GuestName, settings: &GuestSettings, domain: Option<String>) -> FreezePlan {
    FreezePlan {
        domain,
        agent: match settings.guest_agent {
            GuestAgent::Auto => AgentFreeze::Auto,
            GuestAgent::Always => AgentFreeze::On,
            GuestAgent::Never => AgentFreeze::Off,
        },
        pre_freeze: settings.pre_freeze.clone(),
        pre_freeze_limit: settings.freeze_timeout,
        post_thaw: settings.post_thaw.clone(),
        ..FreezePlan::none(guest.as_str())
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

fn name_of(file: &str) -> Result<DiskName> {
    Ok(file.parse::<DiskName>()?)
}

fn name_disks(disks: &[DiskArg]) -> Result<Vec<(DiskName, PathBuf)>> {
    let name = |disk: &DiskArg| match &disk.name {
        Some(name) => Ok((name.clone(), disk.path.clone())),
        None if disks.len() == 1 => Ok((ONLY_DISK.parse::<DiskName>()?, disk.path.clone())),
        None => Err(Error::Usage(format!(
            "{} has no name; with several disks each needs one, e.g. vda={0}",
            disk.path.display()
        ))),
    };
    let named: Vec<_> = disks.iter().map(name).collect::<Result<_>>()?;
    for (at, (name, _)) in named.iter().enumerate() {
        if named[..at].iter().any(|(earlier, _)| earlier == name) {
            return Err(vbk::Error::DiskTwice(name.to_string()).into());
        }
    }
    Ok(named)
}
