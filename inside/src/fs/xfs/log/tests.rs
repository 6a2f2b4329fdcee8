//! Tests of the log on images of file systems that were shut down. They need root.

use std::sync::LazyLock;

use proptest::prelude::*;

use crate::fs::FileTree;

use super::super::superblock;
use super::super::tests::images::{Image, append_durably, compare, noise, populate_with, run, set};
use super::super::volume::Volume;
use super::transactions::Pending;
use super::*;

/// The records of a dirty log, and the image below.
struct Sample {
    image: Image,
    lsns: Vec<(u64, u32)>,
    data: Vec<Vec<u8>>,
}

static SAMPLE: LazyLock<Sample> = LazyLock::new(|| {
    let image = Image::new(&[]);
    {
        let mount = image.mount("noatime");
        let top = mount.path();
        for number in 0..50 {
            std::fs::write(top.join(format!("file {number}")), noise(3000, number)).unwrap();
        }
        std::fs::create_dir(top.join("dir")).unwrap();
        std::os::unix::fs::symlink("y/".repeat(300), top.join("dir/link")).unwrap();
        append_durably(&top.join("dir/file"), b"the end");
        std::fs::remove_file(top.join("file 7")).unwrap();
        run("xfs_io", &["-x", "-c", "shutdown -f", top.to_str().unwrap()]);
    }
    let volume = volume(&image);
    let log = Log::of(&volume).unwrap().unwrap();
    let dirty = log.dirty().unwrap().unwrap();
    let (mut lsns, mut data) = (Vec::new(), Vec::new());
    log.records(dirty, &mut |record| {
        lsns.push((record.lsn, record.operations));
        data.push(record.data);
        Ok(())
    })
    .unwrap();
    assert!(!data.is_empty());
    Sample { image, lsns, data }
});

fn volume(image: &Image) -> Volume {
    let device = image.device();
    let superblock = superblock::find(&*device).unwrap().superblock;
    Volume::new(device, superblock)
}

fn replay(sample: &Sample, data: &[Vec<u8>]) -> LogResult<usize> {
    let volume = volume(&sample.image);
    let mut replay = Replay::new(&volume.superblock, Overlay::new(volume.device.clone()));
    for is_first_pass in [true, false] {
        let mut pending = Pending::default();
        for ((lsn, operations), data) in sample.lsns.iter().zip(data) {
            let record = Record {
                lsn: *lsn,
                operations: *operations,
                data: data.clone(),
            };
            pending.add(&record, &mut |transaction| match is_first_pass {
                true => replay.note(&transaction),
                false => replay.apply(&transaction),
            })?;
        }
    }
    Ok(replay.overlay.len())
}

#[test]
fn unchanged_records_are_replayed() {
    assert!(replay(&SAMPLE, &SAMPLE.data).unwrap() > 20);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_records_do_no_harm(
        changes in prop::collection::vec(
            (any::<usize>(), any::<usize>(), prop_oneof![Just(0), Just(1), Just(0xff), any::<u8>()]), 1..8),
    ) {
        let mut data = SAMPLE.data.clone();
        for (record, at, value) in changes {
            let count = data.len();
            let record = &mut data[record % count];
            let at = at % record.len();
            record[at] = value;
        }
        let _ = replay(&SAMPLE, &data);
    }

    #[test]
    fn changed_headers_do_no_harm(at in 0usize..600, value in any::<u8>(), block in 0u64..400) {
        let volume = volume(&SAMPLE.image);
        let log = Log::of(&volume).unwrap().unwrap();
        let mut sector = log.read(block, 2).unwrap();
        sector[at] = value;
        let mut overlay = Overlay::new(volume.device.clone());
        overlay.replace(log.offset_bytes / 512 + block, &sector).unwrap();
        let xfs = super::super::open(std::sync::Arc::new(overlay)).unwrap();
        prop_assert!(xfs.stat(xfs.root()).is_ok());
    }
}

#[test]
fn the_log_of_an_image_that_is_still_mounted_is_replayed_around_its_end() {
    // The smallest log, and more changes than it holds.
    let image = Image::new(&["--unsupported", "-l", "size=8m"]);
    let mount = image.mount("noatime");
    let top = mount.path();
    populate_with(top, 500);
    for round in 0..4 {
        let dir = top.join(format!("round {round}"));
        std::fs::create_dir(&dir).unwrap();
        for number in 0..3000 {
            std::fs::write(dir.join(format!("{}{number}", "long name ".repeat(18))), "").unwrap();
        }
        if round > 0 {
            std::fs::remove_dir_all(top.join(format!("round {}", round - 1))).unwrap();
        }
    }
    append_durably(&top.join("end"), b"the end");
    let (ours, theirs) = (image.copy(), image.copy());
    drop(mount);
    let volume = volume(&ours);
    let log = Log::of(&volume).unwrap().unwrap();
    let dirty = log.dirty().unwrap().unwrap();
    assert!(log.cycle(0).unwrap() > 1, "the log went around: {dirty:?}");
    let xfs = ours.open();
    assert!(
        xfs.remarks()[0].starts_with("the log was replayed"),
        "{:?}",
        xfs.remarks()
    );
    let mount = theirs.mount("noatime");
    assert!(compare(&xfs, mount.path()) > 4_000);
}

/// Changes files at random until the file system is shut down, with the rest of the log written or lost.
fn random_history(top: &std::path::Path, seed: u64) {
    use rustix::fs::FallocateFlags;
    use std::os::unix::fs::FileExt;

    let choices = noise(4 * 1500, seed + 1);
    for step in choices.chunks(4) {
        let [action, one, other, size] = [step[0], step[1], step[2], step[3]];
        let (dir, to) = (
            top.join(format!("dir {}", one % 4)),
            top.join(format!("dir {}", other % 4)),
        );
        let _ = std::fs::create_dir(&dir);
        let path = dir.join(format!("{}{one}", "name ".repeat(usize::from(one % 30))));
        let file = std::fs::File::options().write(true).open(&path);
        let bytes = noise(usize::from(size) * 40, seed);
        // Many of these fail, for lack of the file or because of a file that is already there.
        let _ = match (action % 16, file) {
            (0..=3, _) => std::fs::write(&path, &bytes),
            (4, _) => std::fs::remove_file(&path),
            (5, _) => std::fs::rename(&path, to.join(format!("renamed {other}"))),
            (6, _) => std::fs::hard_link(&path, to.join(format!("linked {other}"))),
            (7, _) => std::os::unix::fs::symlink("y/".repeat(usize::from(size)), to.join(format!("link {other}"))),
            (8, Ok(file)) => file.set_len(u64::from(other) * 10_000),
            (9, Ok(file)) => file.write_all_at(&bytes, u64::from(other) * 8192),
            (10, Ok(file)) => {
                let range = u64::from(other) * 4096;
                rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, range, 100_000).map_err(Into::into)
            }
            (11, Ok(file)) => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&file, flags, 4096, 8192).map_err(Into::into)
            }
            (12, Ok(file)) => file.sync_all(),
            (13, Ok(_)) => {
                let name = format!("user.attribute {}", other % 16);
                set(&path, &name, &bytes);
                Ok(())
            }
            (14, Ok(file)) => match std::fs::File::open(to.join(format!("renamed {other}"))) {
                Ok(source) => rustix::fs::ioctl_ficlone(&file, &source).map_err(Into::into),
                Err(error) => Err(error),
            },
            (15, _) if size < 3 => Ok(run("sync", &["-f", top.to_str().unwrap()])).map(|_| ()),
            _ => Ok(()),
        };
    }
    let how = if seed.is_multiple_of(2) {
        "shutdown -f"
    } else {
        "shutdown"
    };
    run("xfs_io", &["-x", "-c", how, top.to_str().unwrap()]);
}

/// Number of histories.
const HISTORIES: u64 = 3;

#[test]
fn a_random_history_ends_as_the_kernel_sees_it() {
    for seed in 0..HISTORIES {
        let sizes: &[&str] = match seed % 3 {
            0 => &["-m", "rmapbt=1"],
            1 => &["-b", "size=1024", "-n", "size=8192"],
            _ => &["-i", "nrext64=1,size=1024", "-n", "size=65536"],
        };
        let image = Image::new(&[&["--unsupported", "-l", "size=13m"], sizes].concat());
        {
            let mount = image.mount("noatime");
            random_history(mount.path(), seed);
        }
        let xfs = image.open();
        let copy = image.copy();
        let mount = copy.mount("noatime");
        let count = compare(&xfs, mount.path());
        assert!(
            count > 50 || !seed.is_multiple_of(2),
            "{seed}: {count} {:?}",
            xfs.remarks()
        );
    }
}
