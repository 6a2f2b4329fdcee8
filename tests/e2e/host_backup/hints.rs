//! Change hints of raw files on file systems that share extents.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use super::host::Host;
use crate::support::bytes::{MIB, noise_bytes, write_at, write_noise};
use crate::support::disk::{Disk, Mount, XFS_MIB};
use crate::support::lab::{names_in, sync, u64_of};

const SIZE: u64 = 64 * MIB;
/// Skipped blocks that are read all the same.
const SAMPLE: u64 = 31 * MIB;

/// A guest whose disk is a raw file on a file system of its own.
struct Guest {
    host: Host,
    mount: Option<Mount>,
    disk: PathBuf,
}

impl Guest {
    fn new(mkfs: &str) -> Self {
        let host = Host::new("64M");
        let disk = Disk::plain(host.lab.path("fs.img"), XFS_MIB + 200);
        disk.format(0, mkfs);
        let mount = disk.mount(&host.lab, 0);
        let guest = Self {
            disk: mount.point.join("web1.img"),
            mount: Some(mount),
            host,
        };
        write_noise(&guest.disk, 1, SIZE);
        guest.configure("change-hints = 'auto'\nread-limit = 'none'\n");
        guest
    }

    fn configure(&self, more: &str) {
        let text = format!("[guest.web1]\ndisks = {{ vda = '{}' }}\n{more}", self.disk.display());
        self.host.configure(&text);
    }

    /// The guest writes.
    fn write(&self, offset: u64, seed: u64, len: u64) {
        write_at(&self.disk, offset, &noise_bytes(seed, len));
        sync(&self.disk);
    }

    /// Backs up; gives what was read, after the backup was compared with the disk.
    #[track_caller]
    fn back_up(&self, code: i32) -> u64 {
        let made = self.host.json(code, args!["backup", "web1"]);
        assert_eq!(made["disks"][0]["snapshot"], "reflink", "{made}");
        self.host.assert_latest_is("web1", &[("vda", &self.disk)]);
        u64_of(&made, "read_bytes")
    }

    /// The files beside the disk.
    fn beside(&self) -> Vec<String> {
        let mut names = names_in(self.disk.parent().expect("is in a directory"));
        names.retain(|name| name.starts_with(".vbk"));
        names
    }

    fn end(mut self) {
        self.mount.take().expect("is mounted").unmount();
    }
}

fn check_only_changes_are_read(mkfs: &str) {
    let guest = Guest::new(mkfs);
    let first = guest.host.run(args!["backup", "web1"]).code(0);
    first.tells(&["web1: disk vda is read in full: there is no base"]);
    let base = guest.beside();
    assert!(base.len() == 1 && base[0].starts_with(".vbk-base-"), "{base:?}");
    guest.write(10 * MIB + 5, 2, 2 * MIB);
    let read = guest.back_up(0);
    // The change, with the blocks at its ends.
    assert!((2 * MIB..=3 * MIB + SAMPLE).contains(&read), "{read}");
    let next = guest.beside();
    assert!(next.len() == 1 && next != base, "{next:?}");
    assert!(guest.back_up(0) <= SAMPLE, "nothing has changed");

    // Killed in between: the base is still that of the latest backup.
    guest.configure("change-hints = 'auto'\nread-limit = '500K'\n");
    guest.write(30 * MIB, 3, 16 * MIB);
    let mut running = guest.host.start(args!["backup", "web1"]);
    assert!(running.wait_until_read(4 * MIB));
    running.signal(Signal::SIGKILL);
    running.wait();
    assert_eq!(guest.beside().len(), 2, "{:?}", guest.beside());
    guest.configure("change-hints = 'auto'\nread-limit = 'none'\n");
    guest.write(50 * MIB, 4, MIB);
    let read = guest.back_up(0);
    assert!((17 * MIB..=17 * MIB + SAMPLE).contains(&read), "{read}");
    assert_eq!(guest.beside().len(), 1, "{:?}", guest.beside());

    // Another file in its place has nothing in common with the base.
    let new = guest.disk.with_extension("new");
    write_noise(&new, 5, SIZE);
    fs::rename(&new, &guest.disk).expect("replaces");
    assert_eq!(guest.back_up(0), SIZE);
    // One that somebody else could have put there is no base.
    let base = guest.disk.with_file_name(&guest.beside()[0]);
    std::os::unix::fs::chown(&base, Some(65534), None).expect("root may");
    assert_eq!(guest.back_up(0), SIZE);
    fs::remove_file(&base).expect("removes");
    assert!(guest.back_up(0) <= SAMPLE);
    guest.configure("read-limit = 'none'\n");
    assert_eq!(guest.back_up(0), SIZE);
    assert_eq!(guest.beside(), [] as [&str; 0], "without hints no base is kept");
    guest.end();
}

#[test]
fn only_changed_blocks_of_a_file_on_xfs_are_read() {
    check_only_changes_are_read("mkfs.xfs");
}

#[test]
fn only_changed_blocks_of_a_file_on_btrfs_are_read() {
    check_only_changes_are_read("mkfs.btrfs");
}

#[test]
fn swapped_disks_are_not_mistaken_for_each_other() {
    let guest = Guest::new("mkfs.xfs");
    let other = guest.disk.with_file_name("data.img");
    write_noise(&other, 7, SIZE);
    let configure = |one: &PathBuf, two: &PathBuf| {
        guest.host.configure(&format!(
            "[guest.web1]\nchange-hints = 'auto'\nread-limit = 'none'\ndisks = {{ vda = '{}', vdb = '{}' }}\n",
            one.display(),
            two.display()
        ));
    };
    configure(&guest.disk, &other);
    guest.host.json(0, args!["backup", "web1"]);
    configure(&other, &guest.disk);
    let made = guest.host.json(0, args!["backup", "web1"]);
    assert_eq!(u64_of(&made, "read_bytes"), 2 * SIZE);
    guest
        .host
        .assert_latest_is("web1", &[("vda", &other), ("vdb", &guest.disk)]);
    let made = guest.host.json(0, args!["backup", "web1"]);
    assert!(u64_of(&made, "read_bytes") <= 2 * SAMPLE, "{made}");
    guest.end();
}

#[test]
fn no_base_is_kept_for_a_disk_without_hints() {
    let mut host = Host::new("1G");
    let volume = host.volume("root", 8, 1);
    host.configure(&format!(
        "[guest.web1]\nchange-hints = 'auto'\nread-limit = 'none'\ndisks = {{ vda = '{}' }}\n",
        volume.display()
    ));
    for _ in 0..2 {
        let said = host.run(args!["backup", "web1"]).code(0);
        said.tells(&["web1: disk vda is read in full: there are change hints only for thin volumes"]);
        assert_eq!(host.snapshots(), [] as [&str; 0]);
    }
}
