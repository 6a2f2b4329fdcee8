//! How the engine tells what it does. It never prints.

/// Plain bytes of a disk, sorted by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Read from the source; holes are not.
    pub read_bytes: u64,
    /// Zero blocks and holes.
    pub zero_bytes: u64,
    /// In blocks that the repository had.
    pub unchanged_bytes: u64,
    /// In blocks that it did not have.
    pub new_bytes: u64,
    /// What the new blocks take in the store.
    pub stored_bytes: u64,
    /// Not read, because change hints said that they are as in the backup before: zero or unchanged.
    pub skipped_bytes: u64,
}

impl Counts {
    /// Bytes of the disk that are done.
    pub fn done_bytes(&self) -> u64 {
        self.zero_bytes + self.unchanged_bytes + self.new_bytes
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

/// Something happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// A disk is begun.
    Disk {
        /// Its name.
        name: &'a str,
        /// Its size.
        size_bytes: u64,
    },
    /// More of the disk is done; to be added up.
    Done(Counts),
    /// Worth a line: what was chosen, what was done besides.
    Note(&'a str),
    /// The change hints for a disk are wrong, and it is read in full. Told at once, and not only by the backup's record:
    /// should the run end early, the base must not be compared with again. A warning follows.
    HintsWrong {
        /// The disk's name.
        name: &'a str,
    },
    /// How full the snapshot of a disk, or its thin pool, was at most. Told once, also of a backup that failed.
    Peak {
        /// The disk's name.
        name: &'a str,
        /// 1 is full.
        fill: f64,
    },
    /// The result is good, but somebody should know this.
    Warning(&'a str),
}

/// Hears what the engine does. Called from many threads; must not block for long.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: Event<'_>);
}

/// Hears nothing.
impl Observer for () {
    fn event(&self, _: Event<'_>) {}
}
