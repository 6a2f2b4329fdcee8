//! New identities of the btrfs file systems in a writable tree: written at the start, taken back at the end.

use vbk_inside::btrfs::{self, Patch};
use vbk_inside::device::SharedDevice;
use vbk_repo::Result;

use super::open::from_io;
use super::{ImageFs, not_found};

impl ImageFs {
    /// Writes the new identities to the disks. To be called before the tree is mounted.
    pub fn write_fsids(&self) -> Result<()> {
        for new in self.options.fsids.iter().filter(|_| self.is_writable()) {
            let device = self.volume_file(&new.file)?;
            let failed = from_io("write the superblock of", &new.file);
            let old = btrfs::identity(&*device).map_err(&failed)?;
            let before = old.map(|old| (new.clone(), old, SharedDevice::clone(&device)));
            self.old_fsids.lock().extend(before);
            write(&device, &btrfs::patches(&*device, new.fsid).map_err(&failed)?).map_err(&failed)?;
        }
        Ok(())
    }

    /// Gives the file systems their own identities again, and makes all that was written durable, if the scratch file is
    /// kept. To be called after the tree was unmounted. If the process is killed before, the file systems keep the new
    /// identities in that file, and are whole.
    pub fn finish(&self) -> Result<()> {
        let Some(scratch) = &self.options.scratch else {
            return Ok(());
        };
        let mut restored = Ok(());
        for (new, old, device) in self.old_fsids.lock().drain(..) {
            let patches = btrfs::restore_identity(&*device, new.fsid, old);
            let written = patches.and_then(|patches| write(&device, &patches));
            restored = restored.and(written.map_err(from_io("write the superblock of", &new.file)));
        }
        // Also where an identity could not be given back: what programs wrote is worth more.
        let closed = match restored.is_ok() {
            true => scratch.close(),
            false => scratch.flush(),
        };
        restored.and(closed.map_err(from_io("write", "the file of --save")))
    }

    /// Returns the sum of what programs wrote, in whole pages.
    pub fn written_bytes(&self) -> u64 {
        let scratch = self.options.scratch.as_ref();
        scratch.map_or(0, |scratch| scratch.written_bytes())
    }

    /// Opens a file of the only backup.
    fn volume_file(&self, name: &str) -> Result<SharedDevice> {
        let state = self.state();
        let (guest, time) = state.only_backup().ok_or_else(|| not_found(name))?;
        let entry = state.backup(&guest, time)?;
        let file = self.file(&state, entry, name)?;
        self.device(&state, entry, &file)
    }
}

fn write(device: &SharedDevice, patches: &[Patch]) -> std::io::Result<()> {
    patches
        .iter()
        .try_for_each(|patch| device.write_at(patch.offset_bytes, &patch.bytes))
}
