//! A copy of a raw file that shares its extents. It is made in an instant, and does not change when the file does.
//!
//! It lies beside the file, as `.vbk-<file>-<time>-<run>`, because only there it can share. What a kill leaves is found
//! in two ways: the run's directory lists its copies, noted before they are made, so that `vbk snapshots` sees them;
//! and after a reboot, when that list is gone, the next run that backs up the same file finds the name beside it. The
//! run that makes a copy holds flock(2) on it, so that another machine of a shared file system does not remove one in
//! use.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, FsType, XFS_SUPER_MAGIC, statfs};

use vbk_repo::backup::SnapshotKind;

use super::hold::{Base, Bases, Content, Disk, HeldDisk, Hold, HoldMethod, NewHold, PlannedDisk, ReadFrom, Tools};
use super::names::{BASE_DIGITS, stamp};
use super::options::SnapshotOptions;
use super::remains::{Directories, Leftover, Remains, Room, State};
use super::{SnapshotError, kept, notes};
use crate::host::program::Programs;
use crate::host::run::{self, Run};
use crate::observer::Observer;
use crate::sys;

const PREFIX: &str = ".vbk-";
/// Prefix of copies that are kept. No run's copy has it, since `base` is not cut from a file's name.
const BASE: &str = ".vbk-base-";
/// Longest part of the file's name in the copy's: a name may have 255 bytes.
const MAX_NAME_BYTES: usize = 180;
/// linux/magic.h and fs/bcachefs; ocfs2 is in statfs(2).
const BCACHEFS_SUPER_MAGIC: FsType = FsType(0xca45_1a4e);
const OCFS2_SUPER_MAGIC: FsType = FsType(0x7461_636f);

/// The method.
#[derive(Debug)]
pub(super) struct Reflink;

impl HoldMethod for Reflink {
    fn name(&self) -> &'static str {
        "reflink"
    }

    fn kind(&self) -> Option<SnapshotKind> {
        Some(SnapshotKind::Reflink)
    }

    fn suits(&self, disk: &Disk, _options: &SnapshotOptions) -> Result<bool, SnapshotError> {
        Ok(disk.is_file() && may_work(&disk.source))
    }

    fn hold(&self, planned: &PlannedDisk, new: &NewHold<'_>) -> Result<Box<dyn Hold>, SnapshotError> {
        Ok(Box::new(ReflinkHold {
            source: planned.disk.source.clone(),
            at: new.at,
            copy: None,
        }))
    }

    fn bases(&self, disk: &HeldDisk, _programs: &Programs, _host_id: &str) -> Result<Option<Bases>, SnapshotError> {
        let source = &disk.disk.source;
        let kept = bases(source).into_iter().map(|(path, mark)| Base {
            mark: Some(mark),
            content: Content::File(path.clone()),
            remains: Box::new(KeptCopy(path)),
        });
        Ok(Some(Bases {
            now: Content::File(disk.read.clone()),
            room: Room::FileSystem { beside: source.clone() },
            kept: kept.collect(),
        }))
    }

    /// The copies that runs since the last reboot noted, and those that are kept.
    fn leftovers(&self, _programs: &Programs, directories: Directories<'_>) -> Result<Vec<Leftover>, SnapshotError> {
        let Directories { runtime_dir, cache, .. } = directories;
        let mut all = Vec::new();
        for dir in run::all(runtime_dir) {
            let copies = notes::of(&dir);
            all.extend(copies.into_iter().filter_map(|path| of_copy(path, runtime_dir)));
        }
        let copies = kept::all(cache).into_iter().filter(|kept| is_base(&kept.copy));
        all.extend(copies.map(of_base));
        Ok(all)
    }
}

/// Returns whether a file's file system may be able to share extents. Making the copy shows whether it is.
fn may_work(file: &Path) -> bool {
    statfs(file).is_ok_and(|stat| {
        [
            BTRFS_SUPER_MAGIC,
            XFS_SUPER_MAGIC,
            BCACHEFS_SUPER_MAGIC,
            OCFS2_SUPER_MAGIC,
        ]
        .contains(&stat.filesystem_type())
    })
}

#[derive(Debug)]
struct ReflinkHold {
    source: PathBuf,
    at: Timestamp,
    copy: Option<Copy>,
}

impl Hold for ReflinkHold {
    fn make(&mut self, tools: &Tools, _observer: &dyn Observer) -> Result<Option<ReadFrom>, SnapshotError> {
        let Some(copy) = Copy::create(&tools.run, &self.source, self.at)? else {
            tracing::info!("{} can't share its extents with a copy", self.source.display());
            return Ok(None);
        };
        Ok(Some(ReadFrom::Path(self.copy.insert(copy).by_descriptor())))
    }

    /// The copy can't be lost as long as its file is open.
    fn check(&self, _tools: &Tools) -> Result<(), SnapshotError> {
        Ok(())
    }

    fn keep(&mut self, mark: &str, cache: &Path, _tools: &Tools) -> Result<(), SnapshotError> {
        match self.copy.take() {
            Some(copy) => copy.keep(mark, cache),
            None => Ok(()),
        }
    }

    fn release(&mut self, _tools: &Tools) -> Result<(), SnapshotError> {
        match self.copy.take() {
            Some(copy) => copy.remove(),
            None => Ok(()),
        }
    }
}

/// A copy. Removed when dropped.
#[derive(Debug)]
struct Copy {
    source: PathBuf,
    path: PathBuf,
    /// Holds the lock.
    _file: File,
    removed: bool,
}

impl Copy {
    /// Makes a copy, after removing what dead runs left of the same file; `None` where extents can't be shared, or
    /// nothing can be made beside the file.
    fn create(run: &Run, source: &Path, at: Timestamp) -> Result<Option<Self>, SnapshotError> {
        // The file itself, not a link to it: only in its own file system extents can be shared.
        let source = std::fs::canonicalize(source).map_err(SnapshotError::io("open", source))?;
        sweep(&source, run.runtime_dir());
        let file = File::open(&source).map_err(SnapshotError::io("open", &source))?;
        for number in 0.. {
            let path = copy_path(&source, number, at, run.id());
            // 1. Noted first: a kill from here on leaves at worst a note of a file that does not exist.
            notes::add(run, &path)?;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o600);
            let copy = match options.open(&path) {
                Ok(copy) => copy,
                // A disk of this run with the same name, cut.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < 100 => continue,
                Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                    // Nothing can be made beside it.
                    Errno::EROFS | Errno::EACCES | Errno::EPERM => return Ok(None),
                    _ => return Err(SnapshotError::io("make", path)(error)),
                },
            };
            // 2. Locked before it holds anything. A sweep that was faster finds our run alive and leaves it alone.
            let guard = Self {
                source: source.clone(),
                path: path.clone(),
                _file: copy,
                removed: false,
            };
            guard
                ._file
                .try_lock()
                .map_err(|error| SnapshotError::io("lock", &path)(error.into()))?;
            // 3. All of the file at one moment: the file system keeps writers out meanwhile (ioctl_ficlone(2)).
            return match sys::clone_file(&file, &guard._file) {
                Ok(()) => Ok(Some(guard)),
                Err(error) if is_refusal(&error) => guard.remove().map(|()| None),
                Err(error) => {
                    let _ = guard.remove();
                    Err(SnapshotError::io("make a reflink copy of", source)(error))
                }
            };
        }
        unreachable!("the loop returns");
    }

    /// A name by which this process opens the copy itself, whatever lies by then under the copy's name in its
    /// directory, which may be another user's. Good as long as the copy is held.
    fn by_descriptor(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self._file.as_raw_fd()).into()
    }

    /// Keeps it as the base of change hints, under a mark of [`BASE_DIGITS`]:
    /// `.vbk-base-<mark>-<file>`. It is noted in `cache`.
    fn keep(mut self, mark: &str, cache: &Path) -> Result<(), SnapshotError> {
        let name = [BASE, mark, "-"].concat().into_bytes();
        let base = self
            .source
            .with_file_name(OsString::from_vec([&name, cut_name(&self.source)].concat()));
        kept::note(cache, &self.source, &base)?;
        std::fs::rename(&self.path, &base).map_err(SnapshotError::io("keep", &self.path))?;
        self.removed = true;
        Ok(())
    }

    /// Removes it.
    fn remove(mut self) -> Result<(), SnapshotError> {
        self.removed = true;
        remove_file(&self.path)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if !self.removed
            && let Err(error) = remove_file(&self.path)
        {
            tracing::warn!("{error}");
        }
    }
}

/// The copies of a file that are kept as bases, and their marks. Only regular files that root or the caller owns, and
/// that no other user can write to.
fn bases(source: &Path) -> Vec<(PathBuf, String)> {
    let Ok(source) = std::fs::canonicalize(source) else {
        return Vec::new();
    };
    let entries = source.parent().and_then(|dir| std::fs::read_dir(dir).ok());
    let mut all = Vec::new();
    for entry in entries.into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if let Some((mark, file)) = mark_and_file(&name)
            && file == cut_name(&source)
            && is_base(&path)
        {
            all.push((path, mark.to_owned()));
        }
    }
    all
}

/// Returns whether a file is a copy that is kept as a base.
fn is_base(path: &Path) -> bool {
    path.is_absolute()
        && path.file_name().is_some_and(|name| mark_and_file(name).is_some())
        && path.symlink_metadata().is_ok_and(|data| sys::is_own_file(&data))
}

/// The mark in a base's name, and what it has of its file's.
fn mark_and_file(name: &OsStr) -> Option<(&str, &[u8])> {
    let rest = name.as_bytes().strip_prefix(BASE.as_bytes())?;
    let (mark, rest) = rest.split_at_checked(BASE_DIGITS)?;
    let mark = std::str::from_utf8(mark).ok()?;
    let is_mark = mark.bytes().all(|byte| byte.is_ascii_hexdigit());
    Some((mark, rest.strip_prefix(b"-").filter(|_| is_mark)?))
}

/// The part of a file's name that goes into its copies'.
fn cut_name(source: &Path) -> &[u8] {
    let whole = source.file_name().unwrap_or_default().as_bytes();
    whole.get(..MAX_NAME_BYTES).unwrap_or(whole)
}

/// Removes a file. One that does not exist counts as removed.
fn remove_file(path: &Path) -> Result<(), SnapshotError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(SnapshotError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn is_refusal(error: &std::io::Error) -> bool {
    let code = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    // Not this file system, not these options of it, not a swap file (ioctl_ficlone(2)).
    matches!(
        code,
        Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOTTY | Errno::EXDEV | Errno::ETXTBSY | Errno::EPERM
    )
}

fn copy_path(source: &Path, number: u32, at: Timestamp, run_id: &str) -> PathBuf {
    let mut name = PREFIX.as_bytes().to_vec();
    name.extend(cut_name(source));
    if number > 0 {
        name.extend(format!(".{number}").as_bytes());
    }
    name.extend(format!("-{}-{run_id}", stamp(at)).as_bytes());
    source.with_file_name(OsString::from_vec(name))
}

/// The run that made a copy, if the name is that of one.
fn run_of(name: &OsStr) -> Option<&str> {
    let rest = name.as_bytes().strip_prefix(PREFIX.as_bytes())?;
    let (rest, id) = rest.split_at_checked(rest.len().checked_sub(run::ID_DIGITS + 1)?)?;
    let id = std::str::from_utf8(id).ok()?.strip_prefix('-')?;
    // 20261121T173000Z
    let (rest, time) = rest.split_at_checked(rest.len().checked_sub(17)?)?;
    let shape = |(place, byte): (usize, &u8)| match place {
        0 => *byte == b'-',
        9 => *byte == b'T',
        16 => *byte == b'Z',
        _ => byte.is_ascii_digit(),
    };
    (run::is_id(id) && !rest.is_empty() && time.iter().enumerate().all(shape)).then_some(id)
}

/// Removes what dead runs left beside a file. What can't be removed only takes space.
fn sweep(source: &Path, runtime_dir: &Path) {
    let Some(dir) = source.parent() else {
        return;
    };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if is_of(&entry.file_name(), source)
            && is_left(&path, runtime_dir)
            && let Err(error) = remove_file(&path)
        {
            tracing::warn!("{error}");
        }
    }
}

fn is_of(name: &OsStr, source: &Path) -> bool {
    let part = cut_name(source);
    let rest = name.as_bytes().strip_prefix(PREFIX.as_bytes());
    rest.is_some_and(|rest| rest.starts_with(part)) && run_of(name).is_some()
}

/// Returns whether a file is a copy that no run uses any more.
fn is_left(path: &Path, runtime_dir: &Path) -> bool {
    let run = path.file_name().and_then(run_of);
    if run.is_none_or(|run| run::is_running(runtime_dir, run)) {
        return false;
    }
    sys::open_own(path).is_ok_and(|file| file.try_lock().is_ok())
}

/// A copy of a run.
#[derive(Debug)]
struct LeftCopy {
    path: PathBuf,
    runtime_dir: PathBuf,
}

impl Remains for LeftCopy {
    fn remove(&self, _programs: &Programs) -> Result<bool, SnapshotError> {
        // It was left a moment ago: if it is not any more, another cleaning is at it.
        match is_left(&self.path, &self.runtime_dir) {
            true => remove_file(&self.path).map(|()| true),
            false => Ok(false),
        }
    }
}

/// A copy that is kept as a base.
#[derive(Debug)]
struct KeptCopy(PathBuf);

impl Remains for KeptCopy {
    fn remove(&self, _programs: &Programs) -> Result<bool, SnapshotError> {
        remove_file(&self.0).map(|()| true)
    }

    fn room(&self) -> Option<Room> {
        let beside = self.0.clone();
        Some(Room::FileSystem { beside })
    }
}

/// Time at which a copy was made; it is not written to afterwards.
fn made(path: &Path) -> Option<Timestamp> {
    let modified = std::fs::symlink_metadata(path).and_then(|copy| copy.modified());
    Timestamp::try_from(modified.ok()?).ok()
}

fn of_base(kept: kept::Kept) -> Leftover {
    Leftover {
        name: kept.copy.display().to_string(),
        of: kept.source.display().to_string(),
        since: made(&kept.copy),
        fill: None,
        invalid: false,
        run: None,
        info: None,
        state: State::Kept,
        remains: Box::new(KeptCopy(kept.copy)),
    }
}

fn of_copy(path: PathBuf, runtime_dir: &Path) -> Option<Leftover> {
    let run = path.file_name().and_then(run_of)?.to_owned();
    path.symlink_metadata().ok()?;
    Some(Leftover {
        name: path.display().to_string(),
        of: String::new(),
        since: made(&path),
        fill: None,
        invalid: false,
        state: match run::is_running(runtime_dir, &run) {
            true => State::InUse,
            false => State::LeftBehind,
        },
        info: run::info(runtime_dir, &run),
        run: Some(run),
        remains: Box::new(LeftCopy {
            path,
            runtime_dir: runtime_dir.to_owned(),
        }),
    })
}
