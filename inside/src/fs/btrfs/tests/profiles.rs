//! Several devices, and devices that are missing.

use std::fs;
use std::sync::Arc;

use super::super::open;
use super::images::{Image, compare, random, run, text};
use crate::device::SharedDevice;
use crate::fs::FileTree;

#[test]
fn every_profile_is_read_with_all_devices_and_without_one() {
    let cases: [(&str, usize, bool); 9] = [
        ("single", 2, false),
        ("dup", 1, false),
        ("raid0", 2, false),
        ("raid1", 2, true),
        ("raid10", 4, true),
        ("raid5", 3, true),
        ("raid6", 4, true),
        ("raid1c3", 3, true),
        ("raid1c4", 4, true),
    ];
    for (profile, count, may_lose_one) in cases {
        let image = Image::new(count, 300 << 20, &["-d", profile, "-m", profile]);
        {
            let mount = image.mount("noatime");
            let top = mount.path();
            fs::write(top.join("random"), random(2 << 20, 1)).unwrap();
            fs::write(top.join("text"), text(300_000, 2)).unwrap();
            fs::create_dir(top.join("dir")).unwrap();
            for number in 0..300 {
                fs::write(top.join(format!("dir/{number}")), text(number * 5, 3)).unwrap();
            }
        }
        let mut devices = image.devices();
        devices.reverse();
        let fs = Arc::new(open(devices).unwrap());
        assert_eq!(fs.remarks(), Vec::<String>::new(), "{profile}");
        let mount = image.mount("ro,noatime");
        assert!(compare(&fs, mount.path()) == 303, "{profile}");
        if !may_lose_one {
            continue;
        }
        for missing in [0, count - 1] {
            let mut devices = image.devices();
            devices.remove(missing);
            let fs = Arc::new(open(devices).unwrap());
            assert_eq!(
                fs.remarks(),
                [format!("device {} is missing", missing + 1)],
                "{profile}"
            );
            assert!(compare(&fs, mount.path()) == 303, "{profile} without {missing}");
        }
    }
}

#[test]
fn a_device_of_another_file_system_is_refused() {
    let (one, other) = (Image::new(1, 128 << 20, &[]), Image::new(1, 128 << 20, &[]));
    let devices = [one.devices(), other.devices()].concat();
    let error = open(devices).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "damaged: the devices are of different file systems");
    let twice = [one.devices(), one.devices()].concat();
    assert!(open(twice).is_err());
}

#[test]
fn a_seed_is_read_and_what_is_built_on_it_is_refused() {
    let image = Image::new(1, 128 << 20, &[]);
    fs::write(image.mount("noatime").path().join("file"), text(100_000, 1)).unwrap();
    run("btrfstune", &["-f", "-S", "1", image.paths[0].to_str().unwrap()]);
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let added = dir.path().join("added");
    fs::File::create(&added).unwrap().set_len(300 << 20).unwrap();
    let seed = image.open();
    {
        let mut mount = image.mount("noatime");
        assert_eq!(compare(&seed, mount.path()), 1);
        let device = mount.attach(&added);
        run(
            "btrfs",
            &["device", "add", "-f", &device, mount.path().to_str().unwrap()],
        );
    }
    let added: SharedDevice = Arc::new(fs::File::open(&added).unwrap());
    let error = open(vec![added]).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "not supported: btrfs that is built on a seed device");
}

#[test]
fn a_device_that_missed_transactions_is_read_last() {
    let image = Image::new(2, 300 << 20, &["-d", "raid1", "-m", "raid1"]);
    {
        let mount = image.mount("noatime,nodatacow");
        fs::write(mount.path().join("file"), vec![1; 100_000]).unwrap();
    }
    let old = image.copy();
    {
        let mount = image.mount("noatime,nodatacow");
        std::os::unix::fs::FileExt::write_all_at(
            &fs::File::options().write(true).open(mount.path().join("file")).unwrap(),
            &[2; 100_000],
            0,
        )
        .unwrap();
    }
    for stale in 0..2 {
        let mut devices = image.devices();
        devices[stale] = old.devices().swap_remove(stale);
        let fs = Arc::new(open(devices).unwrap());
        assert!(
            fs.remarks()[0].starts_with(&format!("device {} is older", stale + 1)),
            "{:?}",
            fs.remarks()
        );
        let mount = image.mount("ro,noatime");
        assert_eq!(compare(&fs, mount.path()), 1);
    }
}
