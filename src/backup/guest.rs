//! Backs up a whole guest: freezes it, takes snapshots of all its disks at one moment, reads them within the read
//! limits, and releases everything again, however the backup ends.
//!
//! | step | what a kill -9 there leaves | what repairs it |
//! |---|---|---|
//! | 1. freeze | a frozen guest | the helpers of [`crate::guest::freeze`], at once |
//! | 2. snapshots | some of them, with the run's tag | the next run, or `vbk snapshots --clean` |
//! | 3. thaw | a frozen guest, snapshots | both of these |
//! | 4. read, with guard and limits | snapshots; cgroups; stored blocks | the next run, which does not store them again |
//! | 5. commit | a complete backup, or none | no repair is needed |
//! | 6. the new base replaces the old | the new one with the run's tag; the old one, which is useless now | the next run |
//! | 7. snapshots removed | some of them | the next run |
//!
//! Only one guest of a host is frozen at a time: other guests would make its snapshots, and with them its freeze, wait
//! for LVM's locks. The turn also ensures that the free space found in a volume group is still free when it is used.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use parking_lot::Mutex;
use vbk_repo::ErrorKind;
use vbk_repo::backup::{Consistency, Entry};
use vbk_repo::catalogue::{CLOCK_SLACK, Catalogue};
use vbk_repo::codec::Compression;
use vbk_repo::name::{DiskName, GuestName};
use vbk_repo::repository::Writer;

use crate::backup::{BackupPlan, BackupSummary, DiskPlan, backup, losses};
use crate::disk::buffer::Buffers;
use crate::disk::source;
use crate::error::{Error, Result};
use crate::guest::files::{self, Disks};
use crate::guest::freeze::{FreezePlan, with_guest_at_rest};
use crate::hints::bases::{self, Wish};
use crate::hints::{HintOptions, thin};
use crate::host::holders::LastLook;
use crate::host::lvm::suspended;
use crate::host::program::Programs;
use crate::host::run::Run;
use crate::limit::{GuestDisk, LimitOptions, Limiter};
use crate::observer::{Event, Observer};
use crate::snapshot::{self, Directories, SnapshotError, SnapshotOptions, Snapshots};

/// Files that are stored with a backup.
type Files = Vec<(DiskName, Vec<u8>)>;

/// Number of recent backups from which the space for a thick snapshot is estimated.
const HISTORY: usize = 10;

/// Resources that all guests of a run share.
pub struct Host {
    programs: Programs,
    run: Run,
    /// Directory for state that should survive a reboot but may be lost.
    cache: PathBuf,
    last_look: LastLook,
    buffers: Buffers,
    turn: Mutex<()>,
}

impl Host {
    /// Returns the shared resources of a run. `cache` is a directory for state that should survive a reboot but may be
    /// lost, e.g. `/var/cache/vbk`.
    pub fn new(programs: Programs, run: Run, cache: &Path) -> Self {
        Self {
            programs,
            run,
            cache: cache.to_owned(),
            last_look: LastLook::default(),
            buffers: Buffers::default(),
            turn: Mutex::new(()),
        }
    }

    /// Returns the run.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Returns the programs of this host.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    fn directories(&self) -> Directories<'_> {
        Directories {
            runtime_dir: self.run.runtime_dir(),
            cache: &self.cache,
            host_id: self.run.host_id(),
        }
    }

    /// Plans the snapshots. If a pool is too full for them, the bases in it are removed first: nothing else in the pool
    /// is dispensable.
    fn plan(
        &self,
        disks: &[(DiskName, PathBuf)],
        options: &SnapshotOptions,
        observer: &dyn Observer,
    ) -> Result<snapshot::Plan> {
        loop {
            let full = match snapshot::plan(&self.programs, disks, options) {
                Err(error @ SnapshotError::PoolFull { .. }) => error,
                planned => return Ok(planned?),
            };
            let SnapshotError::PoolFull { pool, .. } = &full else {
                return Err(full.into());
            };
            let given_up = snapshot::give_up(&self.programs, self.directories(), options.stop_at, Some(pool))?;
            for name in &given_up.removed {
                observer.event(Event::Warning(&format!(
                    "removed {name}, a base of change hints, because thin pool {pool} is too full; the next backup of \
                     its disk reads the whole disk"
                )));
            }
            // Each iteration removes at least one base.
            if given_up.removed.is_empty() {
                let failed: Vec<SnapshotError> = given_up.failed.into_iter().map(|(_, error)| error).collect();
                return Err(match failed.is_empty() {
                    true => full,
                    false => SnapshotError::Several(std::iter::once(full).chain(failed).collect()),
                }
                .into());
            }
        }
    }

    /// Removes the snapshots that earlier runs of this machine left behind, and reports each. A failed removal is a
    /// warning.
    pub fn clean(&self, observer: &dyn Observer) {
        match snapshot::clean(&self.programs, self.directories(), false) {
            Ok(cleaned) => {
                if let Some(suspended) = cleaned.suspended {
                    observer.event(Event::Warning(&suspended));
                }
                for name in cleaned.removed {
                    observer.event(Event::Note(&format!(
                        "removed snapshot {name}, which a run had left behind"
                    )));
                }
                for (name, error) in cleaned.failed {
                    observer.event(Event::Warning(&format!(
                        "can't remove snapshot {name}, which a run had left behind: {error}"
                    )));
                }
            }
            Err(error) => observer.event(Event::Warning(&format!("can't look for old snapshots: {error}"))),
        }
        let (released, failed) = thin::clean(&self.programs, &self.cache);
        for pool in released {
            observer.event(Event::Note(&format!(
                "released the metadata snapshot of {pool}, which a run had left behind"
            )));
        }
        for error in failed {
            observer.event(Event::Warning(&error.to_string()));
        }
    }
}

/// Plan for the backup of one guest.
#[derive(Debug, Clone)]
pub struct GuestPlan {
    /// The guest.
    pub guest: GuestName,
    /// Time of the backup, if not that of its snapshots: for an image that was made earlier.
    pub time: Option<Timestamp>,
    /// Its disks.
    pub disks: Vec<GuestDisk>,
    /// The disks are raw, whatever format their first bytes suggest.
    pub raw: bool,
    /// Files that describe the guest; `disks.json` is added if logical volumes are among its disks.
    pub files: Vec<(DiskName, Vec<u8>)>,
    /// Freeze of the guest.
    pub freeze: FreezePlan,
    /// Options for the snapshots. The space that the last runs used is read from the repository.
    pub snapshots: SnapshotOptions,
    /// Limits for reading the disks.
    pub limits: LimitOptions,
    /// Options for the use of change hints.
    pub hints: HintOptions,
    /// Compression of new blocks.
    pub compression: Compression,
    /// The name of this machine, for the record.
    pub host: String,
    /// The version of the program, for the record.
    pub version: String,
    /// Number of threads that may compute at once.
    pub threads: usize,
}

/// Backs up a guest. When `cancel` is set, the backup ends soon with [`Error::Interrupted`]; snapshots are removed, and
/// the blocks stored by then are kept for the next run. May be called for several guests at once.
pub fn back_up_guest(
    writer: &Writer,
    host: &Host,
    plan: &GuestPlan,
    cancel: &AtomicBool,
    observer: &Arc<dyn Observer>,
) -> Result<BackupSummary> {
    let started = Timestamp::now();
    if !plan.raw {
        // These checks come before any snapshot exists.
        for disk in &plan.disks {
            if let Some(warning) = source::check_raw(&disk.path)? {
                observer.event(Event::Warning(&warning));
            }
        }
    }
    let catalogue = writer.catalogue()?;
    if let Some(warning) = clock_warning(&catalogue, &plan.guest, started) {
        observer.event(Event::Warning(&warning));
    }
    let entries: Vec<Entry> = catalogue.of(&plan.guest).cloned().collect();
    let (snapshots, at, consistency, mut files) = hold(host, plan, &entries, cancel, &**observer)?;
    files.extend(plan.files.iter().cloned());
    let wish = Wish {
        options: plan.hints,
        entries: &entries,
        states: &writer.states()?,
        block_size: writer.identity().block_size,
        now: started,
        marks: &host.cache,
        host_id: host.run.host_id(),
        keep_below: plan.snapshots.extend_at.unwrap_or(plan.snapshots.stop_at),
    };
    let mut reading = Reading {
        writer,
        host,
        plan,
        snapshots,
        cancel,
        observer,
    };
    let result = match cancel.load(Ordering::SeqCst) {
        true => Err(Error::Interrupted),
        false => reading.read(consistency, files, &wish, at),
    };
    let peaks = reading.snapshots.peaks();
    for peak in &peaks {
        let (name, fill) = (peak.disk.as_str(), peak.fill);
        observer.event(Event::Peak { name, fill });
    }
    if let Ok(made) = &result {
        for warning in losses::emptied(entries.last(), &made.entry.backup) {
            observer.event(Event::Warning(&warning));
        }
        bases::replace(&host.programs, &mut reading.snapshots, &wish, &made.entry, &**observer);
    }
    if let Err(error) = reading.snapshots.remove() {
        observer.event(Event::Warning(&error.to_string()));
    }
    result
}

/// Finds out how a backup of a guest would hold its disks still. Changes nothing. `entries` are the backups of the guest so far.
pub fn plan_snapshots(programs: &Programs, plan: &GuestPlan, entries: &[Entry]) -> Result<snapshot::Plan> {
    if !plan.raw {
        for disk in &plan.disks {
            source::check_raw(&disk.path)?;
        }
    }
    let disks = plan.disks.iter().map(|disk| (disk.name.clone(), disk.path.clone()));
    let options = SnapshotOptions {
        peak_bytes: peaks_of(entries),
        ..plan.snapshots.clone()
    };
    Ok(snapshot::plan(programs, &disks.collect::<Vec<_>>(), &options)?)
}

/// Returns a warning if the clock is behind the most recent backup of another guest. For a backup of this guest the
/// warning comes when the new backup gets its time.
fn clock_warning(catalogue: &Catalogue, guest: &GuestName, now: Timestamp) -> Option<String> {
    let newest = &catalogue.newest()?.backup;
    let is_ahead = newest.time.timestamp().duration_since(now) > CLOCK_SLACK;
    (is_ahead && newest.guest != *guest).then(|| {
        format!(
            "the clock, at {}, is behind the newest backup, {}: one of the two times is wrong",
            now.strftime("%Y-%m-%d %H:%M:%S"),
            newest.spec()
        )
    })
}

/// Runs steps 1 to 3. The result includes the time of the disks' frozen state.
fn hold(
    host: &Host,
    plan: &GuestPlan,
    entries: &[Entry],
    cancel: &AtomicBool,
    observer: &dyn Observer,
) -> Result<(Snapshots, Timestamp, Consistency, Files)> {
    let disks: Vec<(DiskName, PathBuf)> = plan
        .disks
        .iter()
        .map(|disk| (disk.name.clone(), disk.path.clone()))
        .collect();
    let options = SnapshotOptions {
        peak_bytes: peaks_of(entries),
        last_look: Some(host.last_look.clone()),
        ..plan.snapshots.clone()
    };
    let _turn = host.turn.lock();
    // Other guests may have taken their turn for minutes.
    if cancel.load(Ordering::SeqCst) {
        return Err(Error::Interrupted);
    }
    let planned = host.plan(&disks, &options, observer)?;
    let volumes = planned
        .disks()
        .iter()
        .filter_map(|planned| planned.disk.volume.as_ref());
    let volumes: Vec<(&str, &str)> = volumes
        .flat_map(|volume| [&volume.name, &volume.pool].map(|name| (volume.vg.as_str(), name.as_str())))
        .collect();
    if let Some(suspended) = suspended::report(&host.programs, &volumes) {
        observer.event(Event::Warning(&suspended));
    }
    let files = describe(plan, &planned).into_iter().collect();
    let names = plan.disks.iter().map(|disk| &disk.name);
    let mut lost = losses::missing(entries.last(), names);
    lost.extend(losses::shrunk(entries.last(), planned.disks()));
    for warning in &lost {
        observer.event(Event::Warning(warning));
    }
    let ((made, at), consistency) =
        with_guest_at_rest(&host.programs, &plan.freeze, host.run.runtime_dir(), observer, || {
            let at = Timestamp::now();
            Ok::<_, Error>((planned.make(&host.run, observer), at))
        })?;
    let snapshots = made.settle()?;
    let consistency = match snapshots.is_live() {
        true => Consistency::Live,
        false => consistency,
    };
    Ok((snapshots, at, consistency, files))
}

/// Describes the disks if one of them is a logical volume, so that a restore can create volumes of the same kind.
fn describe(plan: &GuestPlan, planned: &snapshot::Plan) -> Option<(DiskName, Vec<u8>)> {
    let given = plan.files.iter().any(|(name, _)| name.as_str() == files::DISKS_NAME);
    let has_volumes = planned.disks().iter().any(|planned| planned.disk.volume.is_some());
    (has_volumes && !given).then(|| Disks::of_plan(planned.disks()).to_file())
}

/// Returns the peak use of each disk's thick snapshot in the last backups.
fn peaks_of(entries: &[Entry]) -> BTreeMap<DiskName, u64> {
    let mut peaks = BTreeMap::new();
    for image in entries
        .iter()
        .rev()
        .take(HISTORY)
        .flat_map(|entry| &entry.backup.images)
    {
        if image.snapshot_used_bytes > 0 {
            let peak = peaks.entry(image.disk.clone()).or_insert(0);
            *peak = image.snapshot_used_bytes.max(*peak);
        }
    }
    peaks
}

/// Steps 4 and 5: reading and committing.
struct Reading<'a> {
    writer: &'a Writer,
    host: &'a Host,
    plan: &'a GuestPlan,
    snapshots: Snapshots,
    cancel: &'a AtomicBool,
    observer: &'a Arc<dyn Observer>,
}

impl Reading<'_> {
    fn read(
        &self,
        consistency: Consistency,
        files: Files,
        wish: &Wish<'_>,
        started: Timestamp,
    ) -> Result<BackupSummary> {
        let stop = Arc::new(AtomicBool::new(false));
        let watch = self.snapshots.watch(Arc::clone(&stop), Arc::clone(self.observer))?;
        let limiter = self.limiter(started)?;
        for line in limiter
            .describe()
            .iter()
            .filter(|line| !line.ends_with("no read limit"))
        {
            self.observer.event(Event::Note(line));
        }
        for line in limiter.details() {
            tracing::info!("{}: {line}", self.plan.guest);
        }
        let is_stopped = || self.cancel.load(Ordering::SeqCst) || stop.load(Ordering::SeqCst);
        let mut hints = bases::hints(
            &self.host.programs,
            &self.snapshots,
            wish,
            &is_stopped,
            &**self.observer,
        );
        let disks = self.snapshots.disks().iter().map(|held| DiskPlan {
            name: held.disk.name.clone(),
            source: held.disk.source.clone(),
            read: held.read.clone(),
            snapshot: held.kind(),
            pace: limiter.pace(&held.disk.name),
            hint: hints.remove(&held.disk.name),
        });
        let plan = BackupPlan {
            guest: self.plan.guest.clone(),
            disks: disks.collect(),
            files,
            consistency,
            compression: self.plan.compression,
            host: self.plan.host.clone(),
            version: self.plan.version.clone(),
            started: self.plan.time.unwrap_or(started),
            threads: self.plan.threads,
            buffers: self.host.buffers.clone(),
        };
        let still_good = || {
            self.snapshots.check()?;
            let used = self.snapshots.peaks().into_iter();
            Ok(used.filter_map(|peak| Some((peak.disk, peak.used_bytes?))).collect())
        };
        let listener = Listener {
            observer: &**self.observer,
            wrong: Mutex::default(),
        };
        let result = backup(self.writer, &plan, &still_good, &[self.cancel, &stop], &listener);
        let wrong = listener.wrong.into_inner();
        if result.is_err() && !wrong.is_empty() {
            bases::distrust(&self.host.programs, &self.snapshots, wish, &wrong, &**self.observer);
        }
        drop(limiter);
        match (result, watch.end()) {
            // The guard's reason is the cause of the interruption, or of the failed read.
            (Err(error), Err(reason)) if error.kind() == ErrorKind::Interrupted || is_read(&error) => {
                Err(reason.into())
            }
            // This error already says what has changed.
            (Err(error @ Error::SourceChanged { .. }), Ok(())) => Err(error),
            // The guard checks only at intervals, so a read may have met an invalid snapshot before the guard noticed.
            (Err(error), Ok(())) if is_read(&error) => Err(self.snapshots.check().err().map_or(error, Error::from)),
            (result, Ok(())) => result,
            (result, Err(reason)) => {
                self.observer.event(Event::Warning(&reason.to_string()));
                result
            }
        }
    }

    fn limiter(&self, started: Timestamp) -> Result<Limiter> {
        let limited = self.plan.disks.iter().zip(self.snapshots.disks());
        let limited = limited.map(|(disk, held)| (disk.clone(), held.read.clone()));
        Limiter::start(&self.plan.guest, limited.collect(), &self.plan.limits, started)
    }
}

/// Remembers the disks whose hints were wrong, because a run that fails after that records it nowhere.
struct Listener<'a> {
    observer: &'a dyn Observer,
    wrong: Mutex<Vec<String>>,
}

impl Observer for Listener<'_> {
    fn event(&self, event: Event<'_>) {
        if let Event::HintsWrong { name } = event {
            let mut wrong = self.wrong.lock();
            wrong.push(name.to_owned());
        }
        self.observer.event(event);
    }
}

/// Returns whether an error comes from reading a disk: an invalid snapshot answers reads with errors.
fn is_read(error: &Error) -> bool {
    matches!(
        error,
        Error::ReadSource { .. } | Error::SourceChanged { .. } | Error::Snapshot(_)
    )
}
