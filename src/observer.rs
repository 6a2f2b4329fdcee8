//! Events that the engine reports to its caller. The engine itself never prints.

/// Plain bytes of a disk, counted by their outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Read from the source; holes are never read.
    pub read_bytes: u64,
    /// In zero blocks and holes.
    pub zero_bytes: u64,
    /// In blocks that the repository had already.
    pub unchanged_bytes: u64,
    /// In blocks that the repository did not have.
    pub new_bytes: u64,
    /// Size of the new blocks in the store.
    pub stored_bytes: u64,
    /// Not read, because the change hints report them unchanged since the previous backup, or zero.
    pub skipped_bytes: u64,
}

impl Counts {
    /// Bytes of the disk that are finished.
    pub fn done_bytes(&self) -> u64 {
        self.zero_bytes + self.unchanged_bytes + self.new_bytes
    }
}

impl Counts {
    /// Counts of a backup whose disks are read again, after a first reading that made `self`: what was stored then stays.
    pub(crate) fn to_read_again(self) -> Self {
        Self {
            read_bytes: self.read_bytes,
            new_bytes: self.new_bytes,
            stored_bytes: self.stored_bytes,
            ..Self::default()
        }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.read_bytes += other.read_bytes;
        self.zero_bytes += other.zero_bytes;
        self.unchanged_bytes += other.unchanged_bytes;
        self.new_bytes += other.new_bytes;
        self.stored_bytes += other.stored_bytes;
        self.skipped_bytes += other.skipped_bytes;
    }
}

/// An event of a backup or a restore.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// Work on a disk starts.
    Disk {
        /// Its name.
        name: &'a str,
        /// Its size.
        size_bytes: u64,
    },
    /// Progress on the disk since the last event; the caller adds it up.
    Done(Counts),
    /// All disks were read. What is left, to make the backup durable, hardly needs the disks or a processor.
    DisksRead,
    /// Some blocks are read again, because the repository lost them before they were durable. May wait for other guests.
    DisksNeeded,
    /// Information worth a line: a choice that was made, or extra work.
    Note(&'a str),
    /// The change hints for a disk are wrong, so the disk is read in full. Sent at once and not only noted in the
    /// backup's record: if the run ends early, no later backup may compare with the same base again. A warning follows.
    HintsWrong {
        /// The disk's name.
        name: &'a str,
    },
    /// Highest fill level of a disk's snapshot or of its thin pool. Sent once, also for a backup that failed.
    Peak {
        /// The disk's name.
        name: &'a str,
        /// Fill level; 1 is full.
        fill: f64,
    },
    /// The result is good, but the administrator should know this.
    Warning(&'a str),
}

/// Receives the engine's events. Called from many threads; must not block for long.
pub trait Observer: Send + Sync {
    /// Receives one event.
    fn event(&self, event: Event<'_>);
}

/// Ignores all events.
impl Observer for () {
    fn event(&self, _: Event<'_>) {}
}
