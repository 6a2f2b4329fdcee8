//! What a backup leaves in the page cache: nothing that was not there, and all that was.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::support::bytes::{MIB, noise_bytes};
use crate::support::lab::{Lab, sync};
use crate::support::tools::{tool, try_tool};

const SIZE_BYTES: u64 = 2048 * MIB;
/// Read by somebody before the backup.
const CACHED: std::ops::Range<u64> = 512 * MIB..640 * MIB;

/// 2 GiB in which every page is data and every block another, and that are small when they are compressed.
fn write_disk(path: &Path) {
    let mut block = noise_bytes(1, 4096).repeat(256);
    let mut file = File::create(path).expect("creates an image");
    for number in 0..SIZE_BYTES / MIB {
        block[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&block).expect("writes an image");
    }
    file.sync_all().expect("writes an image");
}

/// Takes all of it out of the page cache, which needs it to be clean.
fn forget(file: &File) {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("advises");
}

/// How much of a file or device is in the page cache, by cachestat(2), which Linux has from 6.5 on. perl, which is
/// essential in Debian, can make any system call; fincore knows only files.
fn cached_bytes(path: &Path) -> u64 {
    const CACHESTAT: &str = r#"
        open(my $file, "<", $ARGV[0]) or die "open: $!\n";
        my ($range, $stat) = (pack("QQ", 0, 0), "\0" x 40);
        syscall(451, fileno($file), $range, $stat, 0) == 0 or die "cachestat: $!\n";
        print((unpack("Q5", $stat))[0] * 4096);
    "#;
    let text = tool("perl", args!["-e", CACHESTAT, path]);
    text.parse()
        .unwrap_or_else(|_| panic!("cachestat of {}: {text:?}", path.display()))
}

/// Reads as somebody who is no backup does, without readahead beyond the range.
fn read_through_the_cache(file: &File) {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).expect("advises");
    let mut buffer = vec![0; MIB as usize];
    // Twice: what was read once is the first to go when somebody else needs memory.
    for at in CACHED.step_by(MIB as usize).chain(CACHED.step_by(MIB as usize)) {
        file.read_exact_at(&mut buffer, at).expect("reads");
    }
}

#[test]
fn a_backup_of_a_file_leaves_the_page_cache_as_it_was() {
    let lab = Lab::new();
    let image = lab.path("disk.img");
    write_disk(&image);
    let file = File::open(&image).expect("opens");
    forget(&file);
    assert_eq!(cached_bytes(&image), 0);
    lab.backup("web1", &image);
    assert_eq!(cached_bytes(&image), 0, "nothing was cached before");
    read_through_the_cache(&file);
    let before = cached_bytes(&image);
    assert!(before >= (CACHED.end - CACHED.start) / 4 * 3);
    lab.backup("web1", &image);
    let after = cached_bytes(&image);
    if can_read_past_the_cache(&image) {
        assert_kept(after, before);
    } else {
        assert!(after <= before, "{after} bytes are cached, {before} were before");
    }
}

/// What was cached before still is, and nothing else. A machine that needs memory meanwhile may take a little of it; a
/// backup that drops pages takes all.
#[track_caller]
fn assert_kept(after: u64, before: u64) {
    assert!(
        after <= before && after >= before / 4 * 3,
        "{after} bytes are cached, {before} were before"
    );
}

/// Whether this file system knows O_DIRECT. Where it does not, and the kernel has no RWF_DONTCACHE either, what others had
/// cached can't be spared.
fn can_read_past_the_cache(image: &Path) -> bool {
    let copy = format!("if={}", image.display());
    try_tool("dd", args!["of=/dev/null", "bs=1M", "count=1", "iflag=direct", copy])
        .status
        .success()
}

#[test]
fn a_backup_of_a_block_device_leaves_the_page_cache_as_it_was() {
    let lab = Lab::new();
    let image = lab.path("disk.img");
    write_disk(&image);
    sync(&image);
    // With direct I/O the loop device itself does not read through the cache of its file.
    let node = PathBuf::from(tool("losetup", args!["--find", "--show", "--direct-io=on", image]));
    let result = std::panic::catch_unwind(|| {
        // Held open: the kernel drops the pages of a device that nobody has open.
        let device = File::open(&node).expect("opens");
        let file = File::open(&image).expect("opens");
        forget(&device);
        forget(&file);
        assert_eq!((cached_bytes(&node), cached_bytes(&image)), (0, 0));
        lab.json(args!["backup", "web1", node, "--read-limit", "none"]);
        assert_eq!(
            (cached_bytes(&node), cached_bytes(&image)),
            (0, 0),
            "nothing was cached before"
        );
        read_through_the_cache(&device);
        let before = cached_bytes(&node);
        assert!(before >= (CACHED.end - CACHED.start) / 4 * 3);
        lab.json(args!["backup", "web1", node, "--read-limit", "none"]);
        assert_kept(cached_bytes(&node), before);
    });
    tool("losetup", args!["--detach", node]);
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}
