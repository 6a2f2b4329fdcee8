//! A file system that is soon full.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::lab::Lab;
use super::tools::{tool, try_tool};

/// A small file system in memory, for files that must not find room.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    pub fn mount(lab: &Lab) -> Self {
        let point = lab.subdir("small");
        tool("mount", args!["-t", "tmpfs", "-o", "size=4m", "tmpfs", point]);
        Self(point)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Takes all room but so much.
    pub fn fill(&self, left_bytes: u64) {
        let mut filler = File::create(self.0.join("filler")).expect("creates");
        while filler.write_all(&[1; 4096]).is_ok() {}
        let full = filler.metadata().expect("is open").len();
        filler.set_len(full - left_bytes).expect("cuts");
    }

    pub fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).expect("removes");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        try_tool("umount", args!["--lazy", self.0]);
    }
}
