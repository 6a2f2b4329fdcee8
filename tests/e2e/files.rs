//! Single files out of a backup, read in user space: listed, printed, copied, found and compared.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::support::bytes::{MIB, make_hole, noise_bytes, write_at};
use crate::support::disk::{Disk, XFS_MIB};
use crate::support::lab::{Lab, names_in, str_of, u64_of};
use crate::support::run::Said;
use crate::support::tools::{command, copy_program, tool};

const NOBODY: u32 = 65534;

/// A disk with a root of ext4 and an XFS at /srv, by the root's own fstab.
fn server(lab: &Lab) -> Disk {
    let script = format!("label: gpt\nsize=64MiB\nsize={XFS_MIB}MiB\nsize=8MiB, type=swap\n");
    let disk = Disk::partitioned(lab.path("server.img"), XFS_MIB + 64 + 8 + 4, &script);
    disk.format(1, "mkfs.ext4");
    disk.format(2, "mkfs.xfs");
    disk.format(3, "mkswap");
    let uuid = |number| {
        let device = disk.attach(number);
        let uuid = tool("blkid", args!["-p", "-o", "value", "-s", "UUID", device.node]);
        device.detach();
        uuid
    };
    let fstab = format!(
        "UUID={} / ext4 rw 0 1\nUUID={} /srv xfs defaults 0 2\nUUID={} none swap sw\n/dev/sr0 /media udf noauto\n",
        uuid(1),
        uuid(2),
        uuid(3)
    );
    disk.change(lab, 1, |root| {
        for name in ["etc", "etc/nginx", "srv", "bin"] {
            fs::create_dir(root.join(name)).expect("makes");
        }
        fs::write(root.join("etc/fstab"), &fstab).expect("writes");
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:1234:4321::/:/bin/sh\n",
        )
        .expect("writes");
        fs::write(root.join("etc/group"), "root:x:0:\nwebs:x:4321:\n").expect("writes");
        fs::write(root.join("etc/nginx/nginx.conf"), "worker_processes 1;\n").expect("writes");
        fs::write(root.join("etc/.hidden"), "").expect("writes");
        symlink("/etc/nginx/nginx.conf", root.join("etc/conf")).expect("links");
    });
    disk.change(lab, 2, |srv| app(&srv.join("app")));
    disk
}

/// A directory with all kinds of objects.
fn app(dir: &Path) {
    fs::create_dir_all(dir.join("deep/er")).expect("makes");
    fs::write(dir.join("big"), noise_bytes(7, 3 * MIB + 17)).expect("writes");
    make_hole(&dir.join("sparse"), 50 * MIB);
    write_at(&dir.join("sparse"), 20 * MIB + 5, b"in the middle");
    fs::write(dir.join("suid"), "#!/bin/sh\n").expect("writes");
    chown(dir.join("suid"), Some(1234), Some(4321)).expect("root may");
    fs::set_permissions(dir.join("suid"), Permissions::from_mode(0o4755)).expect("sets");
    fs::hard_link(dir.join("suid"), dir.join("deep/same")).expect("links");
    symlink("../../../outside", dir.join("deep/link")).expect("links");
    fs::write(dir.join("deep/er/n\u{1b}[2Jame\n"), "x").expect("writes");
    fs::write(dir.join(std::ffi::OsStr::from_bytes(b"bytes\xff")), "x").expect("writes");
    tool("mknod", args![dir.join("null"), "c", "1", "3"]);
    tool("mkfifo", args![dir.join("fifo")]);
    tool(
        "setfattr",
        args!["-n", "user.comment", "-v", "a value", dir.join("big")],
    );
    tool("setfattr", args!["-n", "trusted.x", "-v", "y", dir.join("big")]);
    tool(
        "touch",
        args![
            "-d",
            "2001-02-03T04:05:06.123456789Z",
            dir.join("suid"),
            dir.join("deep/er")
        ],
    );
}

/// All objects below a directory: path, kind and mode, owner, time, size, links, target, attributes.
fn described(dir: &Path, as_root: bool) -> Vec<String> {
    let format = if as_root {
        "%P|%M|%U|%G|%T@|%y|%n|%l\\n"
    } else {
        "%P|%m|%T@|%y|%l\\n"
    };
    let found = tool(
        "find",
        args![dir, "-mindepth", "1", "!", "-type", "d", "-printf", format],
    );
    let directories = tool("find", args![dir, "-type", "d", "-printf", "%P|%m|%T@\\n"]);
    let sums = command("sh", args!["-c", "find . -type f -exec sha256sum {} +"])
        .current_dir(dir)
        .output();
    let sums = String::from_utf8_lossy(&sums.expect("runs").stdout).into_owned();
    let pattern = if as_root { "-" } else { "^user\\." };
    let attributes = command("getfattr", args!["-R", "-h", "-d", "-m", pattern, "."])
        .current_dir(dir)
        .output();
    let attributes = String::from_utf8_lossy(&attributes.expect("runs").stdout).into_owned();
    let all = [found, directories, sums, attributes];
    let mut lines: Vec<_> = all.iter().flat_map(|text| text.lines().map(str::to_owned)).collect();
    lines.sort();
    lines
}

#[test]
fn files_are_listed_and_printed_without_a_mount() {
    let lab = Lab::new();
    let disk = server(&lab);
    lab.backup("web1", &disk.path);
    assert_eq!(
        lab.ok(args!["ls", "web1@latest:/etc"]),
        "conf\nfstab\ngroup\nnginx\npasswd\n"
    );
    let all = lab.ok(args!["ls", "-a", "web1@latest:/srv/app"]);
    assert_eq!(all, "big\nbytes\\xff\ndeep\nfifo\nnull\nsparse\nsuid\n");
    let long = lab.ok(args!["ls", "-l", "web1@latest:/srv/app", "web1@latest:/etc/conf"]);
    for line in [
        "-rwsr-xr-x 2 web  webs       10 2001-02-03 04:05 suid",
        "/etc/conf -> /etc/nginx/nginx.conf",
        "1, 3",
    ] {
        assert!(long.contains(line), "no {line:?} in\n{long}");
    }
    let below = lab.ok(args!["ls", "-R", "web1@latest:p2/app"]);
    for line in ["p2/app/deep/er:\n", "n\\u{1b}[2Jame\\u{a}\n"] {
        assert!(below.contains(line), "no {line:?} in\n{below}");
    }
    let listed = lab.json(args!["ls", "-R", "web1@latest:/srv/app"]);
    let listed = listed["files"].as_array().expect("a list");
    assert_eq!(listed.len(), 11);
    let link = listed
        .iter()
        .find(|it| it["path"] == "/srv/app/deep/link")
        .expect("listed");
    assert_eq!(str_of(link, "target"), "../../../outside");

    let volumes = lab.json(args!["ls", "web1@latest:"]);
    let paths: Vec<_> = volumes["volumes"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| it["mounted_at"].to_string())
        .collect();
    assert_eq!(paths, [r#"["/"]"#, r#"["/srv"]"#, "[]"]);
    lab.run(args!["ls", "web1@latest:"])
        .done()
        .tells(&["p1", "ext4", "p3", "swap"]);

    assert_eq!(lab.ok(args!["cat", "web1@latest:/etc/conf"]), "worker_processes 1;\n");
    let big = lab.run(args!["cat", "web1@latest/vda:/srv/app/big"]).done().stdout;
    assert!(big == noise_bytes(7, 3 * MIB + 17));
    lab.run(args!["cat", "web1@latest:/srv/app"])
        .code(2)
        .says(&["is a directory"]);
    lab.run(args!["cat", "web1@latest:/nothing"])
        .code(1)
        .says(&["/nothing", "not found"]);
    lab.run(args!["cat", "web1@latest:p9/x"])
        .code(1)
        .says(&["p9", "p1, p2"]);
    lab.run(args!["cat", "web1@latest"]).code(2).says(&["no path"]);
}

/// Runs vbk as a user who is not root.
fn as_nobody(lab: &Lab, program: &Path, args: Vec<OsString>) -> Said {
    let mut all = args!["--reuid=65534", "--regid=65534", "--clear-groups"];
    all.extend(args![program, "--repo", lab.repo()]);
    all.extend(args);
    let mut command = Command::new("setpriv");
    command
        .env("HOME", "/nonexistent")
        .env("XDG_STATE_HOME", lab.path("nobody"))
        .env_remove("XDG_RUNTIME_DIR");
    command.current_dir(lab.path("nobody"));
    lab.start_command(command, all).wait()
}

#[test]
fn a_copy_is_like_the_original_as_root_and_as_another_user() {
    let lab = Lab::below(Path::new("/var/tmp"));
    tool("chmod", args!["755", lab.dir()]);
    lab.ok(args!["init"]);
    let disk = server(&lab);
    lab.backup("web1", &disk.path);
    lab.ok(args!["cp", "-r", "web1@latest:/srv/app", lab.path("copy")]);
    let program = lab.subdir("bin").join("vbk");
    copy_program(&program);
    let own = lab.subdir("nobody");
    chown(&own, Some(NOBODY), Some(NOBODY)).expect("root may");
    tool("chown", args!["-R", "65534:65534", lab.repo()]);
    let said = as_nobody(&lab, &program, args!["cp", "-r", "web1@latest:/srv/app", "."]).code(3);
    let said = said.says(&["only root can copy devices"]);
    assert!(!said.stderr.contains("can't be kept"), "{said}");

    let mount = disk.mount(&lab, 2);
    let original = mount.point.join("app");
    assert_eq!(described(&lab.path("copy"), true), described(&original, true));
    let without = |lines: Vec<String>| -> Vec<String> {
        let is_kept = |line: &String| !line.contains("|c|") && !line.contains("|p|");
        // The set-user-ID bit goes with the owner.
        lines
            .into_iter()
            .filter(is_kept)
            .map(|line| line.replace("|4755|", "|755|"))
            .collect()
    };
    let copy = own.join("app");
    assert_eq!(without(described(&copy, false)), without(described(&original, false)));
    mount.unmount();
    let stat = |path: PathBuf| fs::symlink_metadata(path).expect("exists");
    assert_eq!(stat(copy.join("suid")).uid(), NOBODY);
    assert_eq!(stat(copy.join("suid")).ino(), stat(copy.join("deep/same")).ino());
    for sparse in [lab.path("copy/sparse"), copy.join("sparse")] {
        assert!(stat(sparse.clone()).blocks() < 1000, "{} blocks", stat(sparse).blocks());
    }

    // As cp(1) does: a second copy is merged, and nothing is replaced unless that is wanted.
    fs::write(lab.path("copy/big"), "mine").expect("writes");
    fs::remove_file(lab.path("copy/suid")).expect("removes");
    let said = lab
        .run(args!["cp", "-r", "web1@latest:/srv/app/.", lab.path("copy")])
        .code(1);
    let _ = said.says(&["copy/big", "exists already", "--force"]);
    assert_eq!(fs::read(lab.path("copy/big")).expect("reads"), b"mine");
    assert!(lab.path("copy/suid").exists());
    lab.ok(args![
        "cp",
        "-f",
        "web1@latest:/srv/app/big",
        "web1@latest:/etc/conf",
        lab.path("copy")
    ]);
    assert!(fs::read(lab.path("copy/big")).expect("reads") == noise_bytes(7, 3 * MIB + 17));
    assert_eq!(
        fs::read(lab.path("copy/conf")).expect("a file, not a link"),
        b"worker_processes 1;\n"
    );
    lab.run(args!["cp", "web1@latest:/srv/app", lab.path("other")])
        .code(1)
        .says(&["-r"]);
    assert!(!lab.path("other").exists());
    let left = tool("find", args![lab.dir(), "-name", ".vbk-*"]);
    assert_eq!(left, "");
}

#[test]
fn a_malicious_disk_writes_nothing_outside_the_target() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("disk.img"), 16);
    // Checksums would tell that names were changed.
    tool("mkfs.ext4", args!["-q", "-F", "-O", "^metadata_csum", disk.path]);
    let victims = lab.subdir("victims");
    disk.change(&lab, 0, |root| {
        let evil = root.join("evil");
        fs::create_dir(&evil).expect("makes");
        for (link, directory) in [("link-first", "DIR-second"), ("2nd-link", "1st-DIRE")] {
            let make_link = || symlink(&victims, evil.join(link)).expect("links");
            let make_directory = || {
                fs::create_dir(evil.join(directory)).expect("makes");
                fs::write(evil.join(directory).join("victim"), "x").expect("writes");
            };
            match link {
                "link-first" => (make_link(), make_directory()),
                _ => (make_directory(), make_link()),
            };
        }
        fs::write(evil.join("aaaaaaaaa"), "x").expect("writes");
    });
    // Entries of directories: the name after its length and the kind (`struct ext4_dir_entry_2`).
    let image = fs::read(&disk.path).expect("reads");
    let rename = |kind: u8, from: &[u8], to: &[u8]| {
        let entry = |name: &[u8]| [&[name.len() as u8, kind], name].concat();
        let from = entry(from);
        let found = image
            .windows(from.len())
            .enumerate()
            .filter(|(_, window)| *window == from);
        let found: Vec<_> = found.map(|(at, _)| at as u64).collect();
        assert!(!found.is_empty(), "{to:?}");
        for at in found {
            write_at(&disk.path, at, &entry(to));
        }
    };
    rename(1, b"aaaaaaaaa", b"../escape");
    rename(2, b"DIR-second", b"link-first");
    rename(2, b"1st-DIRE", b"2nd-link");
    lab.backup("web1", &disk.path);
    let said = lab.run(args!["cp", "-r", "web1@latest:/evil", lab.path("copy")]);
    assert!(matches!(said.status.code(), Some(0 | 1 | 4)), "{said}");
    assert!(names_in(&victims).is_empty(), "{said}");
    assert!(!lab.path("escape").exists(), "{said}");
    assert_eq!(names_in(&lab.path("copy")), ["2nd-link", "link-first"]);
    assert!(lab.path("copy/link-first").is_symlink());
    assert_eq!(names_in(&lab.path("copy/2nd-link")), ["victim"]);
    // The link of the first copy is where a directory would be, and that is not followed.
    fs::remove_dir_all(lab.path("copy/2nd-link")).expect("removes");
    symlink(&victims, lab.path("copy/2nd-link")).expect("links");
    let said = lab.run(args!["cp", "-rf", "web1@latest:/evil/.", lab.path("copy")]);
    assert!(said.stderr.contains("exists and is not a directory"), "{said}");
    assert!(names_in(&victims).is_empty(), "{said}");
    let listed = lab.run(args!["ls", "-lR", "web1@latest:/"]);
    assert!(matches!(listed.status.code(), Some(0 | 1 | 4)), "{listed}");
}

#[test]
fn versions_of_a_file_are_found_in_the_backups_that_have_them() {
    let lab = Lab::new();
    let disk = server(&lab);
    lab.backup("web1", &disk.path);
    lab.backup("web1", &disk.path);
    disk.change(&lab, 1, |root| {
        fs::write(root.join("etc/nginx/nginx.conf"), "worker_processes 2;\n").expect("writes");
        fs::write(root.join("etc/nginx/new.conf"), "new\n").expect("writes");
        fs::remove_file(root.join("etc/group")).expect("removes");
        fs::set_permissions(root.join("etc/passwd"), Permissions::from_mode(0o600)).expect("sets");
    });
    lab.backup("web1", &disk.path);
    let days = lab.listed();
    let found = lab.json(args!["find", "web1", "nginx/*.conf"]);
    let found = found["files"].as_array().expect("a list");
    let summary: Vec<(String, Vec<Value>)> = found
        .iter()
        .map(|it| {
            let versions = it["versions"].as_array().expect("versions").iter();
            (
                str_of(it, "path"),
                versions.map(|version| version["backups"].clone()).collect(),
            )
        })
        .collect();
    let names = |numbers: &[usize]| Value::from(numbers.iter().map(|number| days[*number].clone()).collect::<Vec<_>>());
    let expected = [
        ("/etc/nginx/new.conf".to_owned(), vec![names(&[2])]),
        ("/etc/nginx/nginx.conf".to_owned(), vec![names(&[2]), names(&[1, 0])]),
    ];
    assert_eq!(summary, expected);
    let said = lab.ok(args!["find", "web1", "/srv/**/big", "--content", "--since", "1d"]);
    assert!(
        said.contains(&format!("3 backups: {} to {}", days[0], days[2])),
        "{said}"
    );
    assert!(
        lab.ok(args!["find", "--all-guests", "nginx.conf"])
            .contains("/etc/nginx/nginx.conf\n")
    );
    lab.run(args!["find", "web1", "nothing"]).code(1);
    lab.run(args!["find", "web1", "*", "--until", "2001-01-01"]).code(1);
    lab.run(args!["find", "web1", "["]).code(2);
    lab.run(args!["find", "nobody", "x"]).code(1).says(&["web1"]);

    let changes = lab.json(args!["diff", "--files", days[0], days[2]]);
    let what: Vec<_> = changes["changes"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| (str_of(it, "what"), str_of(it, "path")))
        .collect();
    let expected = [
        ("removed", "/etc/group"),
        ("added", "/etc/nginx/new.conf"),
        ("changed", "/etc/nginx/nginx.conf"),
        ("attributes", "/etc/passwd"),
    ];
    assert_eq!(what, expected.map(|(what, path)| (what.to_owned(), path.to_owned())));
    assert_eq!(u64_of(&changes, "changed"), 1);
    let said = lab.run(args!["diff", "--files", days[0], days[2]]).done();
    let _ = said.tells(&[
        "mode 0644 -> 0600",
        "1 added, 1 removed, 1 changed, 1 with other attributes",
    ]);
    let below = format!("{}:/etc/nginx", days[0]);
    let said = lab.ok(args!["diff", "--files", "--content", below, days[2]]);
    assert!(said.contains("1 added, 0 removed, 1 changed, 0"), "{said}");
    let said = lab.ok(args!["diff", "--files", days[0], days[1]]);
    assert!(said.contains("the disks are the same"), "{said}");
    lab.run(args!["diff", below, days[2]]).code(2).says(&["--files"]);
}

#[test]
fn the_root_of_a_guest_may_be_a_subvolume_of_a_btrfs() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("disk.img"), 128);
    disk.format(0, "mkfs.btrfs");
    disk.change(&lab, 0, |top| {
        for name in ["@", "@home"] {
            tool("btrfs", args!["subvolume", "create", top.join(name)]);
        }
        let uuid = tool("findmnt", args!["-n", "-o", "UUID", top]);
        for name in ["etc", "home", "top"] {
            fs::create_dir(top.join("@").join(name)).expect("makes");
        }
        let fstab = format!(
            "UUID={uuid} / btrfs compress=zstd,subvol=/@ 0 0\nUUID={uuid} /home btrfs subvol=@home\n\
             UUID={uuid} /top btrfs subvolid=5,noauto\n"
        );
        fs::write(top.join("@/etc/fstab"), fstab).expect("writes");
        fs::write(top.join("@home/mine"), noise_bytes(5, MIB)).expect("writes");
        tool(
            "btrfs",
            args!["subvolume", "snapshot", top.join("@"), top.join("@snapshot")],
        );
    });
    lab.backup("web1", &disk.path);
    let said = lab.run(args!["cat", "web1@latest:/home/mine"]).done();
    assert!(said.stdout == noise_bytes(5, MIB));
    assert_eq!(lab.ok(args!["ls", "web1@latest:/top"]), "@\n@home\n@snapshot\n");
    // Below the mount of the top, the subvolumes have no mounts of their own.
    assert_eq!(lab.ok(args!["ls", "web1@latest:/top/@/top"]), "");
    let found = lab.ok(args!["find", "web1", "mine"]);
    let paths: Vec<_> = found.lines().filter(|line| line.starts_with('/')).collect();
    assert_eq!(paths, ["/home/mine", "/top/@home/mine"]);
    lab.ok(args!["cp", "-r", "web1@latest:/", lab.subdir("all")]);
    assert!(fs::read(lab.path("all/home/mine")).expect("reads") == noise_bytes(5, MIB));
}

#[test]
fn a_damaged_file_is_named_and_the_rest_is_copied() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("disk.img"), 32);
    disk.format(0, "mkfs.ext4");
    disk.change(&lab, 0, |root| {
        fs::create_dir(root.join("dir")).expect("makes");
        for name in ["a", "b", "c"] {
            fs::write(root.join("dir").join(name), noise_bytes(1, MIB)).expect("writes");
        }
    });
    // The magic of the extent tree in the inode of b.
    let inode = tool("debugfs", args!["-R", "imap dir/b", disk.path]);
    tool(
        "debugfs",
        args!["-w", "-R", "set_inode_field dir/b block[0] 0", disk.path],
    );
    lab.backup("web1", &disk.path);
    let said = lab
        .run(args!["--json", "cp", "-r", "web1@latest:/dir", lab.path("copy")])
        .code(4);
    assert_eq!(said.json()["failed"], 1, "{inode}");
    assert_eq!(said.json()["failures"][0]["path"], "copy/b");
    assert_eq!(names_in(&lab.path("copy")), ["a", "c"]);
    lab.run(args!["cat", "web1@latest:/dir/b"])
        .code(4)
        .says(&["/dir/b", "damaged"]);
}

#[test]
fn damage_of_the_repository_is_told_from_damage_of_the_guest() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("disk.img"), 32);
    disk.format(0, "mkfs.ext4");
    disk.change(&lab, 0, |root| {
        fs::create_dir(root.join("dir")).expect("makes");
        fs::write(root.join("dir/bad"), noise_bytes(3, 2 * MIB)).expect("writes");
        fs::write(root.join("dir/good"), noise_bytes(4, MIB)).expect("writes");
    });
    lab.ok(args!["backup", "web1", disk.path, "--compression", "none"]);
    let content = noise_bytes(3, 2 * MIB);
    let needle = &content[MIB as usize..MIB as usize + 32];
    let store = fs::read_dir(lab.repo().join("store")).expect("lists");
    let flipped = store.filter_map(|entry| {
        let path = entry.expect("an entry").path();
        let bytes = fs::read(&path).ok()?;
        let at = bytes.windows(needle.len()).position(|window| window == needle)?;
        write_at(&path, at as u64, &[!needle[0]]);
        Some(path)
    });
    assert!(flipped.count() > 0, "the content is in no file of the store");
    let said = lab.run(args!["cp", "-r", "web1@latest:/dir", lab.path("copy")]).code(4);
    let _ = said.says(&["copy/bad", "damaged"]);
    assert_eq!(names_in(&lab.path("copy")), ["good"]);
    lab.run(args!["cat", "web1@latest:/dir/bad"])
        .code(4)
        .says(&["/dir/bad", "`vbk verify` lists the damage"]);
    lab.run(args![
        "diff",
        "--files",
        "--content",
        "web1@latest:/dir",
        "web1@latest:/dir"
    ])
    .code(4);
}

#[test]
fn a_full_target_ends_a_copy_and_keeps_no_part_of_a_file() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("disk.img"), 32);
    disk.format(0, "mkfs.ext4");
    disk.change(&lab, 0, |root| {
        fs::write(root.join("a"), "x").expect("writes");
        fs::write(root.join("big"), noise_bytes(1, 3 * MIB)).expect("writes");
    });
    lab.backup("web1", &disk.path);
    let full = lab.subdir("full");
    tool("mount", args!["-t", "tmpfs", "-o", "size=1M", "none", full]);
    let said = lab.run(args!["cp", "web1@latest:/a", "web1@latest:/big", full]);
    let left = names_in(&full);
    tool("umount", args![full]);
    let said = said.code(1).says(&["full/big", "no space left", "make room there"]);
    assert_eq!(left, ["a"], "{said}");
    // One of several that is not there does not keep the others.
    let said = lab
        .run(args!["cp", "web1@latest:/nothing", "web1@latest:/big", full])
        .code(1);
    assert_eq!(names_in(&full), ["big"], "{said}");
}

#[test]
fn a_file_of_a_large_disk_comes_at_once() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("disk.img"), 200 << 10);
    disk.format(0, "mkfs.ext4");
    disk.change(&lab, 0, |root| {
        fs::write(root.join("file"), noise_bytes(1, MIB)).expect("writes")
    });
    lab.backup("web1", &disk.path);
    let clock = Instant::now();
    let said = lab.run(args!["cat", "web1@latest:/file"]).done();
    assert!(said.stdout == noise_bytes(1, MIB));
    let took = clock.elapsed();
    eprintln!("1 MiB of 200 GiB: {took:?}");
    assert!(took.as_secs() < 5, "{took:?}");
}
