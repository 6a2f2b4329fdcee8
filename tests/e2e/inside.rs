//! What lies between a guest's disks and its files: volume groups over several disks, encryption, a file system that lost its
//! start, and the file systems of other systems. Each is compared with what was put into it, through the kernel and without.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::bytes::{noise_bytes, read_at, write_at};
use crate::support::disk::{Disk, LoopDevice};
use crate::support::kernel;
use crate::support::lab::{Lab, names_in, str_of};
use crate::support::tools::tool;

const MIB: u64 = 1 << 20;
/// Extent of the groups that `lvm` makes here.
const EXTENT_BYTES: u64 = 4 * MIB;
const GPT: &str = "label: gpt\nsize=16MiB\nsize=+\n";

/// A directory as a guest might have it.
fn tree(lab: &Lab) -> PathBuf {
    let root = lab.subdir("original");
    for dir in ["etc", "srv/app", "data"] {
        fs::create_dir_all(root.join(dir)).expect("creates");
    }
    fs::write(
        root.join("etc/fstab"),
        "/dev/mapper/vg0-root / ext4 defaults 0 1\n/dev/vg0/data /data ext4 ro 0 2\n",
    )
    .expect("writes");
    for number in 0..200_u64 {
        fs::write(
            root.join(format!("srv/app/file {number}")),
            noise_bytes(number, number * 300),
        )
        .expect("writes");
    }
    fs::write(root.join("srv/app/large"), noise_bytes(7, 9 * MIB)).expect("writes");
    symlink("app/large", root.join("srv/link")).expect("links");
    fs::hard_link(root.join("srv/app/file 9"), root.join("srv/same")).expect("links");
    root
}

/// Makes an ext4 with these files.
fn ext4_of(image: &Path, size_mib: u64, files: &Path) {
    fs::File::create(image)
        .and_then(|file| file.set_len(size_mib * MIB))
        .expect("creates");
    tool("mkfs.ext4", args!["-q", "-d", files, image]);
}

/// Fails unless both directories hold the same names, contents, modes, owners, times and links.
#[track_caller]
fn assert_same_files(shown: &Path, original: &Path) {
    let mut names = names_in(shown);
    names.retain(|name| name != "lost+found");
    assert_eq!(names, names_in(original), "{}", shown.display());
    for name in names {
        let (shown, original) = (shown.join(&name), original.join(&name));
        let (left, right) = (
            shown.symlink_metadata().expect("is there"),
            original.symlink_metadata().expect("is there"),
        );
        let of = |it: &fs::Metadata| (it.mode(), it.uid(), it.gid(), it.mtime(), it.nlink());
        assert_eq!(of(&left), of(&right), "{}", shown.display());
        if left.is_dir() {
            assert_same_files(&shown, &original);
        } else if left.is_symlink() {
            assert_eq!(
                fs::read_link(&shown).expect("reads"),
                fs::read_link(&original).expect("reads")
            );
        } else {
            assert!(
                fs::read(&shown).expect("reads") == fs::read(&original).expect("reads"),
                "{}",
                shown.display()
            );
        }
    }
}

/// Mounts the files of a backup, once by the kernel and once without it, and passes each mount point to `check`.
fn in_both_ways(lab: &Lab, backup: &str, more: &[OsString], check: impl Fn(&Path)) {
    for way in ["--no-replay", "--user"] {
        let dir = lab.subdir(way);
        let mut arguments = args!["mount", backup, "--files", dir, way];
        arguments.extend_from_slice(more);
        let said = lab.run(arguments);
        assert!(matches!(said.status.code(), Some(0 | 3)), "{said}");
        lab.note_hidden(&dir);
        check(&dir);
        lab.umount(&dir);
    }
}

/// Runs lvm on these devices alone, without device mapper.
fn lvm(devices: &[&LoopDevice], command: &str, args: Vec<OsString>) -> String {
    let accepted: Vec<_> = devices
        .iter()
        .map(|device| format!("\"a|^{}$|\"", device.node.display()))
        .collect();
    let config = format!(
        "devices{{filter=[{},\"r|.*|\"] use_devicesfile=0}} activation{{udev_sync=0 udev_rules=0}} backup{{backup=0 archive=0}}",
        accepted.join(",")
    );
    let mut all = args![command, "--driverloaded", "n", "--config", config];
    all.extend(args);
    tool("lvm", all)
}

/// Makes the group vg0 with the linear volume root, in two pieces, and the striped volume data.
fn make_group(devices: &[&LoopDevice]) {
    let nodes: Vec<OsString> = devices
        .iter()
        .map(|device| device.node.clone().into_os_string())
        .collect();
    lvm(devices, "pvcreate", nodes.clone());
    let mut group = args!["vg0"];
    group.extend(nodes);
    lvm(devices, "vgcreate", group);
    let create = |size: &str, more: &[&str], name: &str| {
        let mut arguments = args!["-an", "-Zn", "-Wn", "-L", size, "-n", name];
        arguments.extend(more.iter().map(OsString::from));
        arguments.push("vg0".into());
        lvm(devices, "lvcreate", arguments);
    };
    create("24M", &[], "root");
    let stripes = devices.len().to_string();
    create("24M", &["-i", &stripes, "-I", "64k"], "data");
    lvm(devices, "lvextend", args!["-L", "48M", "vg0/root"]);
}

/// Writes the content of a volume where lvm says that its extents are. `base` gives the image and offset of a device.
fn fill_volume(devices: &[&LoopDevice], base: &dyn Fn(&str) -> (PathBuf, u64), volume: &str, content: &Path) {
    let fields = "seg_start_pe,stripes,stripesize,seg_pe_ranges";
    let options = ["--noheadings", "--units", "b", "--nosuffix", "--segments", "-o", fields];
    let mut arguments: Vec<OsString> = options.iter().map(OsString::from).collect();
    arguments.push(format!("vg0/{volume}").into());
    let listed = lvm(devices, "lvs", arguments);
    let bytes = fs::read(content).expect("reads");
    for line in listed.lines().filter(|line| line.contains("/dev/")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let start = words[0].parse::<u64>().expect("a number") * EXTENT_BYTES;
        let stripe_bytes = words[2].parse::<u64>().expect("a number");
        let ranges: Vec<(PathBuf, u64, u64)> = words[3..]
            .iter()
            .map(|range| {
                let (node, extents) = range.rsplit_once(':').expect("a range");
                let (first, last) = extents.split_once('-').expect("a range");
                let (first, last): (u64, u64) = (first.parse().expect("a number"), last.parse().expect("a number"));
                let (image, offset_bytes) = base(node);
                // The data of a physical volume starts at 1 MiB unless one asks for another place.
                (
                    image,
                    offset_bytes + MIB + first * EXTENT_BYTES,
                    (last - first + 1) * EXTENT_BYTES,
                )
            })
            .collect();
        let size: u64 = ranges.iter().map(|(_, _, size)| size).sum();
        let part = &bytes[start as usize..(start + size) as usize];
        if let [(image, at, _)] = ranges.as_slice() {
            write_at(image, *at, part);
            continue;
        }
        for (number, stripe) in part.chunks(stripe_bytes as usize).enumerate() {
            let (image, at, _) = &ranges[number % ranges.len()];
            write_at(image, at + (number / ranges.len()) as u64 * stripe_bytes, stripe);
        }
    }
}

#[test]
fn logical_volumes_over_two_disks_are_mounted_and_read() {
    let lab = Lab::new();
    let original = tree(&lab);
    let (root, data) = (lab.path("root.img"), lab.path("data.img"));
    ext4_of(&root, 48, &original);
    ext4_of(&data, 24, &original.join("srv"));
    let disks = ["a.img", "b.img"].map(|name| Disk::partitioned(lab.path(name), 96, GPT));
    let devices = disks.each_ref().map(|disk| disk.attach(2));
    let all = devices.each_ref();
    make_group(&all);
    let base = |node: &str| {
        let number = devices
            .iter()
            .position(|device| device.node == Path::new(node))
            .expect("one of them");
        (disks[number].path.clone(), disks[number].part(2).start_bytes)
    };
    fill_volume(&all, &base, "root", &root);
    fill_volume(&all, &base, "data", &data);
    devices.into_iter().for_each(LoopDevice::detach);
    let [a, b] = disks.each_ref().map(|disk| format!("={}", disk.path.display()));
    lab.ok(args!["backup", "web1", format!("vda{a}"), format!("vdb{b}")]);

    in_both_ways(&lab, "web1@latest", &[], |dir| {
        assert_same_files(&dir.join("vg0-root"), &original);
        assert_same_files(&dir.join("vg0-data"), &original.join("srv"));
    });
    // The kernel saw the volumes alone, never a physical volume.
    let (dir, said) = lab.mount_files("web1@latest", "files");
    let said = said.done();
    let own = kernel::loops_of(lab.dir());
    assert!(own.is_empty(), "an image of the test itself is attached: {own:?}");
    assert_eq!(said.json()["volumes"].as_array().map(Vec::len), Some(4), "{said}");
    lab.umount(&dir);
    // Writes to a volume go through to the disks of the same view.
    let dir = lab.subdir("images");
    lab.ok(args!["mount", "web1@latest", dir, "--writable"]);
    assert!(fs::read(dir.join("vg0-root.img")).expect("reads") == fs::read(&root).expect("reads"));
    write_at(&dir.join("vg0-root.img"), 40 * MIB + 5, b"changed through the volume");
    let found = find_bytes(&dir.join("vda.img"), b"changed through the volume")
        + find_bytes(&dir.join("vdb.img"), b"changed through the volume");
    assert_eq!(found, 1);
    lab.umount(&dir);
}

/// Counts the occurrences of some bytes in a file.
fn find_bytes(file: &Path, wanted: &[u8]) -> usize {
    let bytes = fs::read(file).expect("reads");
    bytes.windows(wanted.len()).filter(|window| *window == wanted).count()
}

#[test]
fn a_volume_group_in_an_encrypted_partition_opens_with_its_key() {
    let lab = Lab::new();
    let original = tree(&lab);
    let root = lab.path("root.img");
    ext4_of(&root, 48, &original);
    let plain = Disk::plain(lab.path("plain.img"), 96);
    let device = plain.attach(0);
    make_group(&[&device]);
    fill_volume(&[&device], &|_| (plain.path.clone(), 0), "root", &root);
    device.detach();
    // cryptsetup encrypts a file in user space. The header takes the space that is added at the end.
    let key = lab.path("key");
    fs::write(&key, "secret\n").expect("writes");
    let file = fs::File::options().write(true).open(&plain.path).expect("opens");
    file.set_len(128 * MIB).expect("grows");
    drop(file);
    tool(
        "cryptsetup",
        args![
            "reencrypt",
            "--encrypt",
            "--type",
            "luks2",
            "-q",
            "--reduce-device-size",
            "32M",
            "--key-file",
            key,
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
            plain.path
        ],
    );
    let disk = Disk::partitioned(lab.path("disk.img"), 150, GPT);
    let encrypted = read_at(&plain.path, 0, 128 * MIB).expect("reads");
    write_at(&disk.path, disk.part(2).start_bytes, &encrypted);
    lab.backup("web1", &disk.path);

    in_both_ways(
        &lab,
        "web1@latest",
        &["--luks-key-file".into(), key.clone().into()],
        |dir| {
            assert_same_files(&dir.join("vg0-root"), &original);
        },
    );
    // Without the key, or with another one, the volume is named and nothing else is lost.
    let dir = lab.subdir("closed");
    let other = lab.path("other");
    fs::write(&other, "secret").expect("writes");
    for keys in [None, Some(&other)] {
        let mut arguments = args!["--json", "mount", "web1@latest", "--files", dir];
        if let Some(key) = keys {
            arguments.extend(args!["--luks-key-file", key]);
        }
        let said = lab.run(arguments).code(1);
        let volumes = said.json()["volumes"].clone();
        let closed = volumes
            .as_array()
            .and_then(|all| all.iter().find(|it| it["name"] == "p2"))
            .cloned();
        assert!(
            str_of(&closed.expect("is listed"), "reason").contains("--luks-key-file"),
            "{said}"
        );
    }
}

#[test]
fn an_ext4_without_its_first_superblock_is_opened_by_a_copy() {
    let lab = Lab::new();
    let original = tree(&lab);
    let image = lab.path("disk.img");
    // Blocks of 1 KiB: the first copy is at 8 MiB. With 4 KiB blocks it is at 128 MiB.
    fs::File::create(&image)
        .and_then(|file| file.set_len(64 * MIB))
        .expect("creates");
    tool("mkfs.ext4", args!["-q", "-b", "1024", "-d", original, image]);
    write_at(&image, 0, &[0; 4096]);
    lab.backup("web1", &image);
    in_both_ways(&lab, "web1@latest", &[], |dir| {
        let own = dir.join("vda");
        assert_same_files(if own.exists() { &own } else { dir }, &original)
    });
    let (dir, said) = lab.mount_files("web1@latest", "files");
    let said = said.code(3);
    assert!(
        str_of(&said.json()["volumes"][0], "warning").contains("by the copy at block 8193"),
        "{said}"
    );
    lab.umount(&dir);
}

#[test]
fn disks_of_other_systems_are_read_without_the_kernel() {
    let lab = Lab::new();
    let original = lab.subdir("original");
    fs::write(original.join("read me.txt"), noise_bytes(1, 70_000)).expect("writes");
    fs::write(original.join("large"), noise_bytes(2, 3 * MIB)).expect("writes");
    let disk = Disk::partitioned(
        lab.path("disk.img"),
        96,
        "label: dos\nsize=24M,type=c\ntype=5\nsize=24M,type=7\nsize=24M,type=83\n",
    );
    disk.format(1, "mkfs.vfat");
    disk.format(5, "mkfs.ntfs");
    let fat = format!("{}@@{}", disk.path.display(), disk.part(1).start_bytes);
    tool(
        "mcopy",
        args!["-i", fat, original.join("read me.txt"), original.join("large"), "::"],
    );
    let ntfs = disk.attach(5);
    for name in ["read me.txt", "large"] {
        tool("ntfscp", args!["-q", ntfs.node, original.join(name), name]);
    }
    ntfs.detach();
    let iso = lab.path("disc.iso");
    tool("genisoimage", args!["-quiet", "-R", "-o", iso, original]);
    write_at(&disk.path, disk.part(6).start_bytes, &fs::read(&iso).expect("reads"));
    lab.backup("pc1", &disk.path);
    let dir = lab.subdir("files");
    let config = lab.path("safe.toml");
    fs::write(&config, "safe-mounts = true\n").expect("writes");
    lab.run(args![
        "--config-file",
        config,
        "mount",
        "pc1@latest",
        "--files",
        dir,
        "--writable"
    ])
    .code(2)
    .says(&["safe-mounts"]);
    lab.ok(args!["--config-file", config, "mount", "pc1@latest", "--files", dir]);
    assert_eq!(names_in(&dir), ["p1", "p5", "p6"]);
    assert_eq!(
        kernel::mounts_of(&dir).len(),
        1,
        "one FUSE mount, and no file system of the kernel"
    );
    for part in names_in(&dir) {
        assert_eq!(names_in(&dir.join(&part)), ["large", "read me.txt"], "{part}");
        for name in ["read me.txt", "large"] {
            let (shown, original) = (fs::read(dir.join(&part).join(name)), fs::read(original.join(name)));
            assert!(shown.expect("reads") == original.expect("reads"), "{part}/{name}");
        }
    }
    lab.umount(&dir);
}
