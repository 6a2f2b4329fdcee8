//! The restore of a guest's disks behind the guest, which runs from the backup meanwhile.
//!
//! Its writes go to a file that is kept ([`vbk_inside::overlay`]). Once it is off they are written over the restored disks. The
//! disk is not copied twice, and the guest never reads from a target.
//!
//! Crash, i.e. vbk, QEMU or the process with the images is killed, the power fails, or a target does:
//!
//! 1. Before the guest starts, the targets are claimed, and the file has a durable name.
//! 2. While it runs, a target holds a part of the backup and nothing of the guest. A flush of the guest is an fdatasync of
//!    QEMU on the image, which FUSE hands to [`vbk_inside::overlay::Scratch::flush`]; that returns when pages and index are
//!    synced, or with an error that the guest gets. A guest whose driver can't flush has each write flushed by QEMU. So the file
//!    holds all that the guest has flushed, and of the rest any part, as a disk after a power cut. If only vbk is killed, the
//!    process with the images still closes the file, with everything that was written.
//! 3. When the guest is off, the file is closed. Without the mark of that it is not used here.
//! 4. Its pages are written over the disks, and the targets are synced. A crash leaves a mixture there; the file is only read.
//! 5. A file that vbk named itself is removed after that.
//!
//! From 2 to 4 `vbk restore BACKUP TARGET --changes FILE` does all of it again from the beginning, for each disk. A file gets its
//! name only when its part of 4 is done.
//!
//! Without room for what it writes the guest is paused, and continues when there is some: a flush that failed for that reason
//! may succeed later. An image that is gone, because its process was killed, is a disk that fails, for the guest; the file then
//! has no mark.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use std::os::unix::fs::{DirBuilderExt, MetadataExt};

use vbk::observer::{Event, Observer};
use vbk::restore::{Damaged, DiskChanges, Effort, Fill, Format, Restore, RestoreOptions, Restored};
use vbk_repo::backup::{Backup, Entry, Image};
use vbk_repo::reader::{ImageReader, ReadResources};
use vbk_repo::repository::{Repository, View};

use crate::context::threads;
use crate::exit::{Error, Result};
use crate::machine::changes_dir;
use crate::restoring::open_changes;
use crate::terminal::units;

/// Least time between two reports of progress: they go to the terminal that shows the guest's console.
const BETWEEN_REPORTS: Duration = Duration::from_secs(10);
/// Interval of looking for other users of the targets while the guest runs.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// A disk and the file or device that it is restored to.
#[derive(Debug, Clone)]
pub struct DiskTarget {
    /// The disk.
    pub image: Image,
    /// The file or device.
    pub path: PathBuf,
}

/// Reads the values of `--restore`: a target, or `DISK=TARGET` for each disk of a guest with several.
pub fn targets(given: &[String], backup: &Backup) -> Result<Vec<DiskTarget>> {
    let mut targets: Vec<DiskTarget> = Vec::new();
    for text in given {
        let named = text.split_once('=').and_then(|(name, path)| {
            let image = backup.images.iter().find(|image| image.disk.as_str() == name)?;
            Some((image, path))
        });
        let (image, path) = match (named, &backup.images[..]) {
            (Some(named), _) => named,
            (None, [only]) => (only, text.as_str()),
            (None, _) => {
                return Err(Error::Usage(format!(
                    "--restore {text} names no disk of {}; write DISK=TARGET",
                    backup.spec()
                )));
            }
        };
        let path = PathBuf::from(path);
        if targets
            .iter()
            .any(|other| other.image.disk == image.disk || other.path == path)
        {
            return Err(Error::Usage(format!(
                "--restore {text} names a disk or a target for the second time"
            )));
        }
        if path.as_os_str().is_empty() || path == Path::new("-") {
            return Err(Error::Usage(format!("--restore {text}: name a device or a file")));
        }
        let image = image.clone();
        targets.push(DiskTarget { image, path });
    }
    let is_left_out = |image: &&Image| !targets.iter().any(|target| target.image.disk == image.disk);
    match backup.images.iter().find(is_left_out) {
        // Its writes belong together: a database may have its log on another disk.
        Some(image) if !targets.is_empty() => Err(Error::Usage(format!(
            "--restore names no target for {}; a guest's disks are restored together",
            image.disk
        ))),
        _ => Ok(targets),
    }
}

/// File for the guest's writes.
#[derive(Debug)]
pub struct KeptFile {
    /// Its path.
    pub path: PathBuf,
    /// vbk chose the name, so it is removed when it is no longer needed.
    is_own: bool,
}

impl KeptFile {
    /// Takes the file that the user named, or chooses a name in a directory that only this user can enter.
    pub fn new(given: Option<&Path>, backup: &Backup) -> Result<Self> {
        if let Some(path) = given {
            let path = std::path::absolute(path).map_err(Error::io(format!("find {}", path.display())))?;
            return Ok(Self { path, is_own: false });
        }
        let directory =
            changes_dir().ok_or_else(|| Error::Usage("--save must name a file for the guest's writes".into()))?;
        make_durably(&directory).map_err(Error::io(format!("create {}", directory.display())))?;
        let stamp = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ");
        let name = format!("{}-{stamp}-{}", backup.guest, std::process::id());
        let path = directory.join(name);
        Ok(Self { path, is_own: true })
    }

    /// Removes a file that vbk named.
    fn discard(&self) {
        if self.is_own
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("can't remove {}: {error}", self.path.display());
        }
    }

    fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |file| file.blocks() * 512)
    }
}

/// Progress of the thread that restores.
#[derive(Default)]
struct Progress {
    done_bytes: AtomicU64,
    is_written: AtomicBool,
    /// Disks that are restored with the guest's changes, and durable.
    finished: AtomicUsize,
    cancel: AtomicBool,
}

impl Observer for Progress {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Done(counts) => drop(self.done_bytes.fetch_add(counts.done_bytes(), Ordering::Relaxed)),
            Event::Warning(text) => tracing::warn!("{text}"),
            _ => {}
        }
    }
}

/// One disk: its image and its claimed target.
struct Part {
    image: ImageReader,
    disk: DiskTarget,
    restore: Restore,
}

/// A restore behind a guest: its targets are claimed. Dropped, it is cancelled.
pub struct BehindRestore {
    file: Arc<KeptFile>,
    repository: PathBuf,
    backup: String,
    id: String,
    disks: Vec<DiskTarget>,
    is_forced: bool,
    total_bytes: u64,
    progress: Arc<Progress>,
    /// Until the thread starts.
    parts: Vec<Part>,
    thread: Option<JoinHandle<Result<Vec<Restored>>>>,
    /// Tells the thread that the guest is off.
    guest_ended: Option<Sender<()>>,
    shown_tenths: u64,
    shown_at: Option<Instant>,
    is_written_shown: bool,
    failure: Option<Error>,
}

impl BehindRestore {
    /// Checks and claims the targets. Nothing is written yet.
    pub fn claim(
        repository: &Repository,
        view: &View,
        entry: &Entry,
        disks: Vec<DiskTarget>,
        file: KeptFile,
        (force, overwrite): (bool, bool),
    ) -> Result<Self> {
        let resources = ReadResources::new(1);
        let claim = |disk: &DiskTarget| {
            let options = RestoreOptions {
                label: format!("{}/{}", entry.backup.spec(), disk.image.disk),
                format: Format::Raw,
                changes: None,
                force,
                overwrite,
                fill: Fill::Image,
                damaged: Damaged::Refuse,
                threads: threads(),
            };
            let image = &disk.image;
            let reader = ImageReader::open(view.store(), Arc::clone(&resources), image)?;
            Ok(Part {
                restore: Restore::open(&reader, image.data_bytes, &disk.path, &options)?,
                image: reader,
                disk: disk.clone(),
            })
        };
        let parts = disks.iter().map(claim).collect::<Result<_>>()?;
        Ok(Self {
            file: Arc::new(file),
            repository: repository.path().to_owned(),
            backup: entry.backup.spec(),
            id: entry.id.to_string(),
            total_bytes: disks.iter().map(|disk| disk.image.size_bytes).sum(),
            disks,
            is_forced: force,
            progress: Arc::default(),
            parts,
            thread: None,
            guest_ended: None,
            shown_tenths: 0,
            shown_at: None,
            is_written_shown: false,
            failure: None,
        })
    }

    /// Starts to write. The file must exist.
    pub fn start(&mut self) -> Result<()> {
        let (sender, guest_ended) = channel();
        let (progress, file, id) = (Arc::clone(&self.progress), Arc::clone(&self.file), self.id.clone());
        let parts = std::mem::take(&mut self.parts);
        let work = move || run(parts, &progress, &file.path, &id, &guest_ended);
        let thread = Builder::new().name("vbk-restore-behind".into()).spawn(work);
        self.thread = Some(thread.map_err(Error::io("start a thread"))?);
        self.guest_ended = Some(sender);
        Ok(())
    }

    /// Removes the file of a guest that did not start.
    pub fn discard(self) {
        self.file.discard();
    }

    /// Describes it for the user.
    pub fn describe(&self) -> String {
        let disks = self
            .disks
            .iter()
            .map(|disk| format!("{} to {}", disk.image.disk, disk.path.display()));
        format!(
            "restoring {} behind it; until that is complete, its writes are in {}",
            disks.collect::<Vec<_>>().join(", "),
            self.file.path.display()
        )
    }

    /// Returns what is new and worth a line. An error is printed at once.
    pub fn news(&mut self) -> Option<String> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) && self.guest_ended.is_some() {
            let ended = self.join();
            self.guest_ended = None;
            if let Err(error) = ended {
                tracing::error!("the restore failed, and the guest runs on: {}", error.text());
                self.failure = Some(error);
                self.explain();
            }
        }
        if self.failure.is_some() {
            return None;
        }
        let size = || units::size(self.file.bytes());
        if self.progress.is_written.load(Ordering::SeqCst) {
            let is_news = !std::mem::replace(&mut self.is_written_shown, true);
            return match (is_news, self.guest_ended.is_some()) {
                (false, _) => None,
                (true, true) => Some(format!(
                    "the restore is complete; power the guest off to write its {} of changes",
                    size()
                )),
                (true, false) => Some(format!("the restore is complete; writing {} of changes", size())),
            };
        }
        let tenths = self.progress.done_bytes.load(Ordering::Relaxed) * 10 / self.total_bytes.max(1);
        let is_due = self.shown_at.is_none_or(|at| at.elapsed() >= BETWEEN_REPORTS);
        if tenths <= self.shown_tenths || tenths >= 10 || !is_due {
            return None;
        }
        (self.shown_tenths, self.shown_at) = (tenths, Some(Instant::now()));
        Some(format!("{tenths}0 % of {} restored", units::size(self.total_bytes)))
    }

    /// Completes the restore. The guest is off, and the file is closed. Calls `each` until it is done; it returns true to
    /// cancel.
    pub fn complete(mut self, each: &mut dyn FnMut(Option<String>) -> bool) -> Result<Vec<(DiskTarget, Restored)>> {
        // A thread that has failed is gone.
        let _ = self.guest_ended.take().map(|ended| ended.send(()));
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            let news = self.news();
            if each(news) {
                self.progress.cancel.store(true, Ordering::SeqCst);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let restored = match self.failure.take() {
            Some(error) => Err(error),
            None => self.join(),
        };
        match restored {
            Ok(restored) => {
                self.file.discard();
                Ok(std::mem::take(&mut self.disks).into_iter().zip(restored).collect())
            }
            Err(error) => {
                self.explain();
                Err(error)
            }
        }
    }

    /// Tells how to finish what did not come to its end.
    pub fn explain(&self) {
        let word = |path: &Path| shell_word(&path.display().to_string());
        let (repository, file) = (word(&self.repository), word(&self.file.path));
        tracing::error!("the guest's writes are kept in {file}; once it is off, this finishes the restore:");
        // A file that is complete has its name, and would be refused as one that exists.
        let finished = self.progress.finished.load(Ordering::SeqCst);
        for disk in self.disks.iter().skip(finished) {
            let (name, target) = (&disk.image.disk, word(&disk.path));
            let force = if self.is_forced { " --force" } else { "" };
            tracing::error!(
                "vbk --repo {repository} restore {}/{name} {target} --changes {file}{force}",
                self.backup
            );
        }
    }

    fn join(&mut self) -> Result<Vec<Restored>> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Err(vbk_repo::Error::Interrupted.into()),
        }
    }
}

impl Drop for BehindRestore {
    fn drop(&mut self) {
        self.progress.cancel.store(true, Ordering::SeqCst);
        self.guest_ended = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Restores all disks, one after the other, waits for the guest's end, and writes its changes.
fn run(
    mut parts: Vec<Part>,
    progress: &Progress,
    file: &Path,
    id: &str,
    guest_ended: &Receiver<()>,
) -> Result<Vec<Restored>> {
    for part in &mut parts {
        part.restore
            .write(&part.image, Effort::Low, &progress.cancel, progress)?;
    }
    progress.is_written.store(true, Ordering::SeqCst);
    loop {
        match guest_ended.recv_timeout(BETWEEN_LOOKS) {
            Ok(()) => break,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(vbk_repo::Error::Interrupted.into()),
        }
        parts.iter().try_for_each(|part| part.restore.check_alone())?;
    }
    let images: Vec<_> = parts.iter().map(|part| &part.disk.image).collect();
    let changes = open_changes(file, id, &images)?;
    if !changes.is_closed() {
        return Err(Error::io(format!("use {}", file.display()))(std::io::Error::other(
            "the process that served the disks did not close it, so the last writes may be missing",
        )));
    }
    let changes = Arc::new(changes);
    let finish = |part: Part| {
        part.restore.check_alone()?;
        let changes = DiskChanges::new(Arc::clone(&changes), part.disk.image.disk.as_str());
        let restored = part.restore.finish(Some(&changes), &progress.cancel)?;
        progress.finished.fetch_add(1, Ordering::SeqCst);
        Ok(restored)
    };
    parts.into_iter().map(finish).collect()
}

/// Makes a directory that only this user can enter, and the names of all that were missing on the way durable. The file itself
/// gets a durable name only below one that has.
fn make_durably(directory: &Path) -> std::io::Result<()> {
    let missing = directory.ancestors().take_while(|above| !above.exists()).count();
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700).recursive(true).create(directory)?;
    let mut above = directory.ancestors().skip(1).take(missing);
    above.try_for_each(vbk_repo::files::sync_directory_where_possible)
}

/// Quotes a word for a shell, if it needs that.
fn shell_word(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:,@".contains(&byte);
    match !text.is_empty() && text.bytes().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::shell_word;

    #[test]
    fn a_word_with_special_characters_is_quoted() {
        assert_eq!(shell_word("/dev/vg0/web1-root"), "/dev/vg0/web1-root");
        assert_eq!(shell_word("it's; x"), "'it'\\''s; x'");
        assert_eq!(shell_word(""), "''");
    }
}
