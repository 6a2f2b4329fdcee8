//! Whole guests: files that are kept with a backup, and a guest that is restored to new volumes under another name.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::bytes::{MIB, noise_bytes, write_noise};
use crate::support::lab::{Lab, VBK, names_in, str_of};
use crate::support::run::{Running, Said};
use crate::support::tools::try_tool;

const XML: &str = "<domain type='kvm'>
  <name>web1</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  <os><nvram>NVRAM/web1_VARS.fd</nvram></os>
  <devices>
    <disk type='file' device='disk'><source file='ROOT'/><target dev='vda'/></disk>
    <disk type='file' device='disk'><source file='DATA'/><target dev='vdb'/></disk>
    <interface type='bridge'><mac address='52:54:00:aa:bb:cc'/></interface>
  </devices>
</domain>
";

/// lvm2 whose volumes are loop devices full of noise, in a directory below /dev; and virsh.
const FAKES: [(&str, &str); 6] = [
    (
        "vgs",
        r#"echo '{"report":[{"vg":[{"vg_free":"1073741824","vg_extent_size":"4194304"}]}]}'"#,
    ),
    (
        "lvs",
        r#"rows=
for tags in "$dir"/tags/*; do
    [ ! -e "$tags" ] || rows="$rows,{\"lv_name\":\"${tags##*/}\",\"lv_tags\":\"$(cat "$tags")\"}"
done
echo "{\"report\":[{\"lv\":[${rows#,}]}]}""#,
    ),
    (
        "lvcreate",
        r#"head -c "${size%b}" /dev/urandom >"$dir/volumes/$name"
ln -s "$(losetup -f --show "$dir/volumes/$name")" "/dev/$last/$name"
echo "$addtag" >"$dir/tags/$name""#,
    ),
    (
        "lvremove",
        r#"losetup -d "/dev/$last" && rm "/dev/$last" "$dir/volumes/${last#*/}" "$dir/tags/${last#*/}""#,
    ),
    ("lvchange", r#": >"$dir/tags/${last#*/}""#),
    (
        "virsh",
        r#"case $first in list) echo other ;; define) cp "$last" "$dir/defined" ;; esac"#,
    ),
];

const OPTIONS: &str = r#"first=$1
while [ $# -gt 0 ]; do
    last=$1
    case $1 in
    --name) [ $# = 1 ] || { name=$2; shift; } ;;
    --addtag) addtag=$2; shift ;;
    --size) size=$2; shift ;;
    esac
    shift
done
"#;

/// A host with a volume group of its own. What is left of it goes when it is dropped.
struct Host {
    dir: PathBuf,
    group: String,
}

impl Host {
    fn new(lab: &Lab) -> Self {
        let dir = lab.subdir("host");
        for name in ["bin", "tags", "volumes", "nvram"] {
            fs::create_dir(dir.join(name)).expect("makes");
        }
        for (name, script) in FAKES {
            let path = dir.join("bin").join(name);
            let text = format!("#!/bin/sh\nset -e\ndir={}\n{OPTIONS}\n{script}\n", dir.display());
            fs::write(&path, text).expect("writes");
            fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("sets");
        }
        let name = lab.dir().file_name().expect("a name").to_str().expect("UTF-8");
        let group = name.trim_start_matches('.').to_owned();
        fs::create_dir(Path::new("/dev").join(&group)).expect("makes, as root");
        Self { dir, group }
    }

    fn run(&self, lab: &Lab, args: Vec<OsString>) -> Said {
        self.start(lab, args).wait()
    }

    fn start(&self, lab: &Lab, args: Vec<OsString>) -> Running {
        let mut command = Command::new(VBK);
        command.current_dir(lab.dir());
        let path = std::env::var("PATH").expect("a path");
        command.env("PATH", format!("{}:{path}", self.dir.join("bin").display()));
        let mut all = args!["--repo", lab.place()];
        all.extend(args);
        lab.start_command(command, all)
    }

    fn volume(&self, name: &str) -> PathBuf {
        Path::new("/dev").join(&self.group).join(name)
    }

    fn volumes(&self) -> Vec<String> {
        names_in(&Path::new("/dev").join(&self.group))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for name in self.volumes() {
            try_tool("losetup", args!["-d", self.volume(&name)]);
            let _ = fs::remove_file(self.volume(&name));
        }
        let _ = fs::remove_dir(Path::new("/dev").join(&self.group));
    }
}

/// A backup of a guest with two disks, its domain and NVRAM. Gives the disks.
fn back_up(lab: &Lab, nvram: &Path) -> [PathBuf; 2] {
    let disks = [lab.path("root.img"), lab.path("data.img")];
    write_noise(&disks[0], 1, 5 * MIB + 512);
    write_noise(&disks[1], 2, 3 * MIB);
    fs::OpenOptions::new()
        .write(true)
        .open(&disks[1])
        .and_then(|file| file.set_len(9 * MIB))
        .expect("grows");
    let xml = XML
        .replace("NVRAM", nvram.to_str().expect("UTF-8"))
        .replace("ROOT", disks[0].to_str().expect("UTF-8"))
        .replace("DATA", disks[1].to_str().expect("UTF-8"));
    fs::write(lab.path("web1.xml"), xml).expect("writes");
    fs::write(lab.path("vars"), noise_bytes(3, 100_000)).expect("writes");
    lab.ok(args![
        "backup",
        "web1",
        format!("vda={}", disks[0].display()),
        format!("vdb={}", disks[1].display()),
        "--attach",
        "config.xml=web1.xml",
        "--attach",
        "nvram.fd=vars"
    ]);
    disks
}

/// The volume holds the disk, and zeros to its end.
fn assert_holds(volume: &Path, disk: &Path) {
    let (found, mut wanted) = (fs::read(volume).expect("reads"), fs::read(disk).expect("reads"));
    assert_eq!(found.len() as u64 % (4 * MIB), 0);
    wanted.resize(found.len(), 0);
    assert!(found == wanted, "{}", volume.display());
}

#[test]
fn kept_files_are_shown_and_mounted() {
    let lab = Lab::new();
    back_up(&lab, Path::new("/nvram"));
    let xml = fs::read_to_string(lab.path("web1.xml")).expect("reads");
    let shown = lab.ok(args!["show", "web1@latest"]);
    assert!(shown.contains("config.xml, nvram.fd"), "{shown}");
    let config = lab.ok(args!["show", "web1@latest", "--config"]);
    assert!(
        config.contains(&xml) && config.contains("--file nvram.fd") && config.contains("partitions of vdb"),
        "{config}"
    );
    assert_eq!(lab.ok(args!["show", "web1@latest", "--file", "config.xml"]), xml);
    let json = lab.json(args!["show", "web1@latest", "--config"]);
    assert_eq!(str_of(&json["files"][0], "text"), xml);

    let images = lab.subdir("images");
    lab.ok(args!["mount", images]);
    let day = images.join("web1/latest");
    assert_eq!(
        names_in(&day),
        ["backup.json", "config.xml", "nvram.fd", "vda.img", "vdb.img"]
    );
    assert_eq!(fs::read_to_string(day.join("config.xml")).expect("reads"), xml);
    assert!(fs::read(day.join("nvram.fd")).expect("reads") == noise_bytes(3, 100_000));
    lab.umount(&images);

    fs::write(lab.path("vars"), noise_bytes(4, 100_000)).expect("writes");
    let one = format!("vda={}", lab.path("root.img").display());
    lab.run(args![
        "backup",
        "web1",
        one,
        "--attach",
        "config.xml=web1.xml",
        "--attach",
        "vars=vars"
    ])
    .code(3);
    let first = lab.json(args!["list"]);
    let diff = lab.json(args!["diff", str_of(&first["backups"][0], "backup"), "web1@latest"]);
    let files = diff["files"].as_array().expect("a list").iter();
    let said: Vec<_> = files
        .map(|one| format!("{} {}", str_of(one, "file"), str_of(one, "what")))
        .collect();
    assert_eq!(said, ["vars new", "nvram.fd gone"]);

    lab.run(args!["show", "web1@latest", "--file", "disks.json"])
        .code(1)
        .says(&["config.xml, vars"]);
    let large = lab.path("large");
    write_noise(&large, 1, 16 * MIB + 512);
    lab.run(args!["backup", "web1", large, "--attach", "config.xml=large"])
        .code(2)
        .says(&["16 MiB"]);
}

#[test]
fn a_guest_is_restored_to_new_volumes_under_another_name() {
    let lab = Lab::new();
    let host = Host::new(&lab);
    let nvram = host.dir.join("nvram");
    let [root, data] = back_up(&lab, &nvram);
    let restore = args!["restore", "web1@latest", "--as", "web2", "--create-in", host.group];
    let said = host.run(&lab, restore.clone()).done().text();
    assert_holds(&host.volume("web2-vda"), &root);
    assert_holds(&host.volume("web2-vdb"), &data);
    let xml = &said[said.find("<domain").expect("a domain")..];
    for part in [
        "<name>web2</name>",
        &format!(
            "<disk type='block' device='disk'><source dev='/dev/{}/web2-vda'/>",
            host.group
        ),
        &format!("{}/web2_VARS.fd", nvram.display()),
        "<mac address='52:54:00:",
    ] {
        assert!(xml.contains(part), "no {part} in {xml}");
    }
    for part in ["11111111", "aa:bb:cc", "root.img"] {
        assert!(!xml.contains(part), "{part} in {xml}");
    }
    let tags = |name: &str| fs::read_to_string(host.dir.join("tags").join(name)).expect("reads");
    assert_eq!(tags("web2-vda"), "", "the tag of the run is gone");

    host.run(&lab, restore)
        .code(1)
        .says(&["web2-vda exists", "nothing was made"]);
    assert_eq!(host.volumes(), ["web2-vda", "web2-vdb"]);

    let mut define = args![
        "restore",
        "web1@latest",
        "--as",
        "web3",
        "--create-in",
        host.group,
        "--define"
    ];
    host.run(&lab, define.clone()).done();
    let defined = fs::read_to_string(host.dir.join("defined")).expect("reads");
    assert!(defined.contains("<name>web3</name>"), "{defined}");
    assert!(fs::read(nvram.join("web3_VARS.fd")).expect("reads") == noise_bytes(3, 100_000));
    define[3] = "other".into();
    host.run(&lab, define).code(2).says(&["has a domain other"]);
    assert_eq!(host.volumes().len(), 4, "nothing was made for it");
}

#[test]
fn a_restore_that_fails_removes_its_volumes() {
    let lab = Lab::new();
    let host = Host::new(&lab);
    back_up(&lab, &host.dir.join("nvram"));
    // The second volume turns out to be too small.
    let script = host.dir.join("bin/lvcreate");
    let text = fs::read_to_string(&script).expect("reads");
    let smaller = text.replace(
        "head -c \"${size%b}\"",
        "[ \"$name\" = web2-vda ] || size=4096\nhead -c \"${size%b}\"",
    );
    assert_ne!(text, smaller);
    fs::write(&script, smaller).expect("writes");
    let restore = args!["restore", "web1@latest", "--as", "web2", "--create-in", host.group];
    host.run(&lab, restore.clone()).code(1).says(&["4096 bytes"]);
    assert_eq!(host.volumes(), [] as [&str; 0]);

    // The connection is lost while the volumes are made.
    fs::write(&script, text.replace("ln -s", "sleep 5; ln -s")).expect("writes");
    let running = host.start(&lab, restore);
    let begun = Instant::now();
    while host.volumes().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "no volume is made");
        std::thread::sleep(Duration::from_millis(10));
    }
    running.signal(Signal::SIGHUP);
    running.wait().code(130);
    assert_eq!(host.volumes(), [] as [&str; 0]);
}

#[test]
fn a_restored_disk_missing_from_the_domain_is_reported_and_not_defined() {
    let lab = Lab::new();
    let host = Host::new(&lab);
    back_up(&lab, &host.dir.join("nvram"));
    let xml = fs::read_to_string(lab.path("web1.xml")).expect("reads");
    let other = xml.replace("data.img'/><target dev='vdb'", "old.img'/><target dev='vdz'");
    assert_ne!(xml, other);
    fs::write(lab.path("web1.xml"), other).expect("writes");
    let disk = |name: &str, file: &str| format!("{name}={}", lab.path(file).display());
    let backup = |disks: Vec<String>| {
        let mut args = args!["backup", "web1", "--attach", "config.xml=web1.xml"];
        args.extend(disks.into_iter().map(OsString::from));
        // A disk of the latest backup may be gone.
        let said = lab.run(args);
        assert!(matches!(said.status.code(), Some(0 | 3)), "{said}");
    };
    backup(vec![disk("vda", "root.img"), disk("vdb", "data.img")]);
    let restore = args!["restore", "web1@latest", "--create-in", host.group];
    let mut define = restore.clone();
    define.push("--define".into());
    host.run(&lab, define.clone())
        .code(2)
        .says(&["disk vdb of the backup", "none of the disks", "vdz"]);
    assert_eq!(host.volumes(), [] as [&str; 0]);
    let stays = format!(
        "disk vdz of the domain is not restored, and stays {}",
        lab.path("old.img").display()
    );
    host.run(&lab, restore)
        .code(3)
        .says(&["disk vdb of the backup", &stays]);
    assert_eq!(host.volumes().len(), 2);

    // Not in the backup, and nobody but its owner knows whether it is good.
    backup(vec![disk("vda", "root.img")]);
    for name in host.volumes() {
        try_tool("losetup", args!["-d", host.volume(&name)]);
        fs::remove_file(host.volume(&name)).expect("removes");
        fs::remove_file(host.dir.join("tags").join(&name)).expect("removes");
    }
    host.run(&lab, define).code(3).says(&[&stays]);
    let defined = fs::read_to_string(host.dir.join("defined")).expect("reads");
    assert!(
        defined.contains("old.img") && !defined.contains("root.img"),
        "{defined}"
    );
}
