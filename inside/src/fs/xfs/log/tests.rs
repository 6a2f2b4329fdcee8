//! Tests of the log on images of file systems that were shut down. They need root.

use std::sync::LazyLock;

use proptest::prelude::*;

use crate::fs::FileTree;

use super::super::superblock;
use super::super::tests::images::{Image, append_durably, noise, populate, run};
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
    let image = Image::new(&["--unsupported", "-l", "size=16m"]);
    let mount = image.mount("noatime");
    let top = mount.path();
    populate(top);
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
    assert!(super::super::tests::images::compare(&xfs, mount.path()) > 8_500);
}
