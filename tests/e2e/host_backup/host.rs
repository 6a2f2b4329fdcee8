//! A host of one test: volumes of the lvm2 of tests/fake-lvm2, a virsh that answers as told, a configuration.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::bytes::{MIB, write_noise};
use crate::support::disk::LoopDevice;
use crate::support::lab::{Lab, VBK, str_of};
use crate::support::run::{Running, Said};

/// What the fake virsh does; HERE is the host's directory.
const VIRSH: &str = r#"#!/bin/sh
echo "virsh $*" >>HERE/log
case "$*" in
'list --all --name' | 'list --name') cat HERE/domains ;;
dumpxml*) for name; do :; done; cat "HERE/$name.xml" ;;
domfsfreeze*) [ ! -e "HERE/no-agent" ] || { cat HERE/no-agent >&2; exit 1; } ;;
domfsthaw*) [ ! -e "HERE/away" ] || exit 1 ;;
qemu-agent-command*) [ -e "HERE/no-agent" ] || echo '{"return":"thawed"}' ;;
*) exit 1 ;;
esac
"#;

pub struct Host {
    // Dropped before the files that they are of.
    devices: Vec<LoopDevice>,
    pub lab: Lab,
    /// Owned by root all the way up, as a configuration with commands must be.
    dir: tempfile::TempDir,
    path: String,
}

impl Host {
    /// With a repository, and a volume group vg0 of this size.
    pub fn new(group_size: &str) -> Self {
        let lab = Lab::new();
        let dir = tempfile::tempdir().expect("a directory");
        let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fake-lvm2");
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).expect("makes a directory");
        let host = Self {
            devices: Vec::new(),
            path: format!("{}:{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display(), fake.display()),
            lab,
            dir,
        };
        host.program("virsh", &VIRSH.replace("HERE", &host.dir.path().display().to_string()));
        host.write("domains", "");
        host.fake(&["vg", "vg0", group_size]);
        host
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).expect("writes");
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).expect("reads")
    }

    /// A program of the host, before those of the system.
    pub fn program(&self, name: &str, script: &str) {
        let path = self.file("bin").join(name);
        fs::write(&path, script).expect("writes");
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("sets the mode");
    }

    /// Takes the fake lvm2 away.
    pub fn without_lvm2(&mut self) {
        self.path = format!("{}:/usr/bin:/bin", self.file("bin").display());
        for name in ["lvs", "vgs", "lvcreate"] {
            let found = self.path.split(':').any(|dir| Path::new(dir).join(name).exists());
            assert!(!found, "{name} is installed where this test looks");
        }
    }

    /// Makes a thick volume vg0/NAME of noise; gives its device.
    pub fn volume(&mut self, name: &str, mib: u64, seed: u64) -> PathBuf {
        let node = self.device(name, mib, seed);
        self.fake(&[
            "lv",
            &format!("vg0/{name}"),
            &format!("{mib}M"),
            &node.display().to_string(),
        ]);
        node
    }

    /// Makes a device of noise that is no volume.
    pub fn device(&mut self, name: &str, mib: u64, seed: u64) -> PathBuf {
        write_noise(&self.image(name), seed, mib * MIB);
        let device = LoopDevice::of_file(&self.image(name));
        let node = device.node.clone();
        self.devices.push(device);
        node
    }

    /// The file behind a volume.
    pub fn image(&self, name: &str) -> PathBuf {
        self.lab.path(&format!("{name}.img"))
    }

    /// HERE in the text is the host's directory.
    pub fn configure(&self, text: &str) {
        let here = self.dir.path().display().to_string();
        self.write("config.toml", &text.replace("HERE", &here));
        fs::set_permissions(self.file("config.toml"), Permissions::from_mode(0o600)).expect("sets the mode");
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("PATH", &self.path).env("FAKE_LVM2", self.dir.path());
        command
    }

    #[track_caller]
    pub fn fake(&self, args: &[&str]) -> String {
        let output = self.command("fake-lv").args(args).output().expect("the fake starts");
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// From now on a command of lvm2 does this; with an empty text it works again.
    pub fn fault(&self, program: &str, text: &str) {
        let words = ["fault", program]
            .into_iter()
            .chain(text.split(' ').filter(|word| !word.is_empty()));
        self.fake(&words.collect::<Vec<_>>());
    }

    /// The snapshots that are there.
    pub fn snapshots(&self) -> Vec<String> {
        let state: Value = serde_json::from_str(&self.read("state.json")).expect("the fake's state");
        let volumes = state["lvs"].as_object().expect("volumes");
        volumes
            .keys()
            .filter(|name| name.starts_with("vg0/vbk-"))
            .cloned()
            .collect()
    }

    /// The commands that changed something, and what virsh was asked for, in their order: their first words.
    pub fn changes(&self) -> Vec<String> {
        let log = self.read("log");
        let words = log.lines().map(|line| {
            let mut words = line.split(' ');
            match words.next() {
                Some("virsh") => words.next().unwrap_or_default().to_owned(),
                first => first.unwrap_or_default().to_owned(),
            }
        });
        let looks = ["lvs", "vgs", "dmsetup", "list", "dumpxml"];
        words.filter(|word| !looks.contains(&word.as_str())).collect()
    }

    pub fn start(&self, args: Vec<OsString>) -> Running {
        let mut command = self.command(VBK);
        command.current_dir(self.lab.dir());
        let mut all = args!["--config-file", self.file("config.toml"), "--repo", self.lab.repo()];
        all.extend(args);
        self.lab.start_command(command, all)
    }

    #[track_caller]
    pub fn run(&self, args: Vec<OsString>) -> Said {
        self.start(args).wait()
    }

    /// Runs with --json what must end with this code.
    #[track_caller]
    pub fn json(&self, code: i32, args: Vec<OsString>) -> Value {
        let mut all = args!["--json"];
        all.extend(args);
        self.run(all).code(code).json()
    }

    /// The disks of the latest backup are these files.
    #[track_caller]
    pub fn assert_latest_is(&self, guest: &str, disks: &[(&str, &Path)]) {
        for (disk, wanted) in disks {
            let out = self.lab.path("restored.img");
            let _ = fs::remove_file(&out);
            self.lab.ok(args!["restore", format!("{guest}@latest/{disk}"), out]);
            crate::support::bytes::assert_same(&out, wanted);
        }
    }
}

/// What became of a guest, in the JSON of --all.
#[track_caller]
pub fn of<'a>(all: &'a Value, guest: &str) -> &'a Value {
    let mut guests = all["guests"].as_array().expect("guests").iter();
    let found = guests.find(|one| str_of(one, "guest") == guest);
    found.unwrap_or_else(|| panic!("no {guest} in {all}"))
}
