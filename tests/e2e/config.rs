//! The configuration, and the guests of a host whose `virsh` and `lvs` answer as told.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::bytes::{MIB, write_noise};
use crate::support::lab::{Lab, VBK, str_of, without_repository};
use crate::support::run::Said;

const DOMAIN: &str = "<domain type='kvm'><name>web1</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid><devices>
  <disk type='block' device='disk'><driver type='raw'/><source dev='/no/such/volume'/><target dev='vda'/></disk>
  <disk type='file' device='disk'><driver type='raw'/><source file='DATA'/><target dev='vdb'/>
    <iotune><read_bytes_sec>100000000</read_bytes_sec></iotune></disk>
  <disk type='file' device='disk'><driver type='qcow2'/><source file='/x.qcow2'/><target dev='vdc'/></disk>
  <disk type='file' device='cdrom'><target dev='sda'/></disk>
</devices></domain>";

/// A host with a domain, a tagged volume and a configuration.
struct Host {
    lab: Lab,
    /// For what runs as root: who owns the directories above a checkout is not known, and matters.
    etc: tempfile::TempDir,
    config: PathBuf,
}

impl Host {
    fn new(config: &str) -> Self {
        let lab = Lab::without_repo();
        let etc = tempfile::tempdir().expect("a directory");
        fs::create_dir(etc.path().join("bin")).expect("makes a directory");
        let host = Self {
            config: etc.path().join("config.toml"),
            etc,
            lab,
        };
        for name in ["data", "own", "tagged"] {
            write_noise(&host.path(name), 1, 2 * MIB);
        }
        host.write(
            "web1.xml",
            &DOMAIN.replace("DATA", &host.path("data").display().to_string()),
        );
        let volume = json!({
            "lv_full_name": "vg0/files", "lv_path": host.path("tagged"), "lv_tags": "vbk_guest=files/vda", "lv_size": "2097152",
        });
        host.write("volumes", &json!({"report": [{"lv": [volume]}]}).to_string());
        host.program("lvs", &format!("cat {}", host.path("volumes").display()));
        let answers = "case \"$*\" in 'list --all --name'|'list --name') printf 'web1\\n\\n' ;;";
        let xml = host.path("web1.xml");
        host.program(
            "virsh",
            &format!("{answers}\ndumpxml*) cat {} ;;\n*) exit 1 ;;\nesac", xml.display()),
        );
        host.configure(config);
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lab.path(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("writes");
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o644)).expect("sets the mode");
    }

    /// HERE in the text is the test's directory, ETC that of the configuration.
    fn configure(&self, text: &str) {
        let text = text.replace("HERE", &self.lab.dir().display().to_string());
        let text = text.replace("ETC", &self.etc.path().display().to_string());
        fs::write(&self.config, text).expect("writes");
        fs::set_permissions(&self.config, fs::Permissions::from_mode(0o644)).expect("sets the mode");
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.etc.path().join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("sets the mode");
    }

    /// Runs vbk with this configuration, and these programs before those of the system; no repository is named.
    fn run(&self, args: Vec<OsString>) -> Said {
        let mut command = Command::new(VBK);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.etc.path().join("bin").display()));
        command.current_dir(self.lab.dir());
        let mut all = args!["--config-file", self.config];
        all.extend(args);
        self.lab.start_command(command, all).wait()
    }
}

#[test]
fn the_configuration_names_the_repository_its_key_and_what_is_kept() {
    let host = Host::new(
        "repository = 'HERE/backups'\nkey-file = 'HERE/key'\n[defaults]\nkeep = { last = 1 }\n[guest.web1]\nkeep = { last = 2 }\n",
    );
    host.run(args!["list"]).code(1).says(&["backups"]);
    host.run(args!["init", "--encrypt", "--no-recovery-key"]).code(0);
    assert!(host.path("key").exists(), "the key file is made");
    let disk = host.path("data");
    for day in 0..3 {
        write_noise(&disk, day, MIB);
        for guest in ["web1", "db"] {
            host.run(args!["backup", guest, disk]).done();
        }
    }
    let all = host.run(args!["--json", "list"]).done().json();
    assert_eq!(all["backups_total"], 6);
    // Options go before the configuration.
    let kept = |said: Said| said.text().lines().filter(|line| line.starts_with("keep")).count();
    assert_eq!(kept(host.run(args!["forget", "web1", "-n"]).done()), 2);
    assert_eq!(
        kept(host.run(args!["forget", "web1", "-n", "--keep-last", "3"]).done()),
        3
    );
    host.run(args!["forget", "--all"]).done();
    let left = host.run(args!["--json", "list"]).done().json();
    let count = |guest: &str| {
        let entries = left["backups"].as_array().expect("a list").iter();
        entries.filter(|entry| str_of(entry, "guest") == guest).count()
    };
    assert_eq!((count("web1"), count("db")), (2, 1));
    // The key is that of this repository; another one is asked for its own.
    let other = host.path("other");
    let said = host.run(args!["init", other, "--encrypt", "--no-recovery-key"]).code(2);
    said.says(&["can't ask for a passphrase"]);
    // Somebody put a plain repository into the place of the encrypted one.
    fs::rename(host.path("backups"), host.path("away")).expect("moves");
    host.run(args!["init"])
        .code(2)
        .says(&["key-file in the configuration", "--encrypt"]);
    host.lab.ok(args!["init", host.path("plain")]);
    fs::rename(host.path("plain"), host.path("backups")).expect("moves");
    for args in [args!["backup", "web1", disk], args!["list"]] {
        host.run(args)
            .code(2)
            .says(&["not encrypted", "key-file in the configuration"]);
    }
}

#[test]
fn required_encryption_refuses_a_plain_repository_at_first_use() {
    let host = Host::new("repository = 'HERE/repo'\nencrypted = true\n");
    host.lab.ok(args!["init"]);
    for args in [args!["list"], args!["backup", "db", host.path("data")], args!["trust"]] {
        host.run(args).code(2).says(&["not encrypted", "encrypted = true"]);
    }
    assert!(host.lab.listed().is_empty());
    fs::remove_dir_all(host.path("repo")).expect("removes");
    host.run(args!["init"]).code(2).says(&["encrypted = true", "--encrypt"]);
    // Of another repository it says nothing.
    host.run(args!["init", host.path("other")]).done();
    host.run(args!["--repo", host.path("other"), "list"]).done();
    let text = host.run(args!["config", "check"]).text();
    assert!(text.contains("required"), "{text}");
}

#[test]
fn guests_without_a_policy_are_skipped_with_a_warning() {
    let host = Host::new("repository = 'HERE/repo'\n[guest.web1]\nkeep = { last = 1 }\n[guest.old]\nkeep = 'all'\n");
    host.run(args!["init"]).code(0);
    let disk = host.path("data");
    for (seed, guest) in ["web1", "web1", "db", "db", "old", "old"].iter().enumerate() {
        write_noise(&disk, seed as u64, MIB);
        host.run(args!["backup", guest, disk]).done();
    }
    let left = |guest: &str| {
        let all = host.run(args!["--json", "list"]).done().json();
        let entries = all["backups"].as_array().expect("a list").iter();
        entries.filter(|entry| str_of(entry, "guest") == guest).count()
    };
    // One that is named has to have rules.
    host.run(args!["forget", "web1", "db"])
        .code(2)
        .says(&["of db to keep", "configuration"]);
    assert_eq!((left("web1"), left("db"), left("old")), (2, 2, 2));
    for args in [args!["forget", "--all", "-n"], args!["forget", "--all", "--prune"]] {
        let said = host.run(args).code(3).says(&["keep is not set for db,", "\"all\""]);
        said.tells(&["web1@"]);
    }
    assert_eq!((left("web1"), left("db"), left("old")), (1, 2, 2));
    let pruned = host
        .run(args!["--json", "prune", "-n", "--max-unused", "0"])
        .done()
        .json();
    assert_eq!(pruned["unused_blocks"], 0, "the weekly run pruned: {pruned}");
    // Nobody has to be told of what is kept on purpose.
    host.run(args!["forget", "old"]).done();
    host.configure("repository = 'HERE/repo'\n[defaults]\nkeep = 'all'\n");
    host.run(args!["forget", "--all", "--prune"]).done();
    assert_eq!(left("db"), 2);
}

#[test]
fn the_figures_of_a_forget_go_to_the_named_file_alone() {
    let host = Host::new("repository = 'HERE/repo'\nmetrics = 'HERE/vbk.prom'\n");
    host.run(args!["init"]).code(0);
    for guest in ["web1", "db"] {
        let disk = host.path(guest);
        write_noise(&disk, guest.len() as u64, MIB);
        host.run(args!["backup", guest, disk]).done();
    }
    let (own, named) = (host.path("vbk.prom"), host.path("named.prom"));
    let before = fs::read(&own).expect("was written");
    host.run(args![
        "forget",
        "--guest",
        "web1",
        "--all",
        "--prune",
        "--metrics",
        named
    ])
    .done();
    assert!(fs::read(&own).expect("is there") == before);
    let text = without_repository(&fs::read_to_string(&named).expect("was written"));
    let has = |start: &str| text.lines().any(|line| line.starts_with(start));
    assert!(has("vbk_prune_last_run_timestamp_seconds "), "{text}");
    assert!(
        has("vbk_repository_unreferenced_bytes 0") && has("vbk_repository_backups 1"),
        "{text}"
    );
    // Without a name the figures go to the file of the configuration.
    host.run(args!["forget", "--guest", "db", "--all", "--prune"]).done();
    let text = without_repository(&fs::read_to_string(&own).expect("is there"));
    assert!(
        text.contains("vbk_prune_last_run_timestamp_seconds ") && !text.contains("guest=\"db\""),
        "{text}"
    );
}

#[test]
fn config_check_warns_of_missing_keep_and_repository() {
    let host = Host::new("repository = 'HERE/repo'\n[guest.db]\ndisks = { vda = 'HERE/own' }\n");
    host.run(args!["init"]).code(0);
    let check = || host.run(args!["config", "check"]);
    check()
        .code(3)
        .says(&["keep is not set for db, guests without a section", "keep = \"all\""]);
    host.configure("repository = 'HERE/repo'\n[guest.db]\ndisks = { vda = 'HERE/own' }\nkeep = 'all'\n");
    let said = check().code(3).says(&["keep is not set for guests without a section"]);
    assert!(!said.stderr.contains("db"), "{said}");
    host.configure("repository = 'HERE/repo'\n[defaults]\nkeep = 'all'\n[guest.db]\ndisks = { vda = 'HERE/own' }\n");
    let said = check().done();
    let line = |name: &str| {
        said.text()
            .lines()
            .find(|line| line.starts_with(name))
            .map(str::to_owned)
    };
    assert!(line("db ").is_some_and(|line| line.contains(" all")), "{said}");
    // A shell's VBK_REPO is not that of a timer.
    host.configure("[defaults]\nkeep = 'all'\n");
    check()
        .code(3)
        .says(&["no repository is set"])
        .tells(&["Repository:   none\n"]);
    host.run(args!["--repo", host.path("repo"), "config", "check"])
        .code(3)
        .says(&["no repository is set"]);
}

#[test]
fn a_configuration_is_checked_and_shown() {
    let host = Host::new(
        "repository = 'HERE/repo'\n[defaults]\nkeep = { daily = 7, weekly = 4 }\n[guest.db]\ndisks = { vda = 'HERE/own' }\n\
         device-speed = '200MB/s'\npre-freeze = 'ETC/bin/stop db'\npost-thaw = 'true'\n",
    );
    host.program("stop", "exit 0");
    host.run(args!["init"]).code(0);
    let said = host.run(args!["config", "check"]).done();
    let text = said.text();
    let line = text.lines().find(|line| line.starts_with("db ")).expect("a line");
    for word in [
        "vda=",
        "60% of 200 MB/s",
        "7 daily, 4 weekly",
        "pre-freeze (60 s), post-thaw",
    ] {
        assert!(line.contains(word), "{word} in {text}");
    }
    assert!(text.contains("(others)"), "{text}");
    let checked = host.run(args!["--json", "config", "check"]).done().json();
    assert_eq!(
        checked["guests"]["db"]["pre_freeze"],
        json!(format!("{} db", host.etc.path().join("bin/stop").display()))
    );
    assert_eq!(checked["warnings"], json!([]));
    let db = &checked["guests"]["db"];
    assert_eq!(
        db["keep"],
        json!({"last": 0, "hourly": 0, "daily": 7, "weekly": 4, "monthly": 0, "yearly": 0, "within": null})
    );
    assert_eq!(
        (&db["read_limit_bytes_per_sec"], &db["read_limit_percent"]),
        (&json!(120_000_000), &json!(60.0))
    );
    assert_eq!(str_of(&checked, "repository"), host.path("repo").display().to_string());
    // What would fail at night.
    let broken = "repository = 'HERE/gone'\nkey-file = 'HERE/data'\nmetrics = 'HERE/no/dir/vbk.prom'\n\
         [guest.web1]\npre-freeze = 'ETC/bin/nothing x'\n[guest.db]\ndisks = { vda = 'HERE/none' }\n\
         pre-freeze = 'no-such-program'\npost-thaw = 'HERE/data'\ndomain = 'unknown'\n";
    host.configure(broken);
    host.run(args!["config", "check"]).code(3).says(&[
        "gone does not exist; is its file system mounted?",
        "keep is not set for db, web1, guests without a section",
        "can be read by other users (mode 644)",
        "metrics: directory ",
        "web1: pre-freeze: ",
        "nothing does not exist",
        "/no/such/volume does not exist",
        "vdc is a qcow2 image",
        "only one of pre-freeze and post-thaw is set",
        "none does not exist",
        "program no-such-program is not in PATH",
        "data is not executable",
        "libvirt has no domain unknown",
    ]);
    host.configure("jobs = 0\n[guest.web1]\ndisk = 1\n");
    host.run(args!["config", "check"]).code(2).says(&[
        "config.toml:1: jobs: write a number",
        "config.toml:3: unknown key disk in [guest.web1]",
    ]);
    host.configure("on-failure = 'true'\n");
    fs::set_permissions(&host.config, fs::Permissions::from_mode(0o666)).expect("sets the mode");
    host.run(args!["config", "check"])
        .code(2)
        .says(&["other users than you and root can change it", "nothing was run"]);
    // What names its repository in full does not need the file.
    host.run(args!["--repo", host.path("repo"), "list"]).done();
    fs::remove_file(&host.config).expect("removes");
    host.run(args!["config", "check"])
        .code(2)
        .says(&["can't read the configuration"]);
}

#[test]
fn all_guests_of_a_host_are_listed() {
    let host = Host::new(
        "[defaults]\nexclude = ['files*']\n[guest.db]\ndisks = { vda = 'HERE/data' }\ndevice-speed = '200MB/s'\n",
    );
    let of = |found: &serde_json::Value, name: &str| {
        let guests = found["guests"].as_array().expect("guests").iter();
        guests
            .clone()
            .find(|guest| guest["guest"] == name)
            .expect("is listed")
            .clone()
    };
    let found = host.run(args!["--json", "guests"]).done().json();
    let names: Vec<_> = found["guests"]
        .as_array()
        .expect("guests")
        .iter()
        .map(|guest| str_of(guest, "guest"))
        .collect();
    assert_eq!(names, ["db", "files", "web1"]);
    let data = host.path("data").display().to_string();
    assert_eq!(
        of(&found, "db"),
        json!({
            "guest": "db", "from": "configuration", "left_out": [], "domain": null, "running": null, "excluded": false,
            "disks": [{"disk": "vda", "path": data, "size_bytes": 2 * MIB, "speed_bytes_per_sec": 200_000_000_u64,
                       "speed_from": "configuration"}],
            "last_backup": null, "notes": [],
        })
    );
    let files = of(&found, "files");
    assert_eq!((&files["from"], &files["excluded"]), (&json!("tags"), &json!(true)));
    let web1 = of(&found, "web1");
    assert_eq!((&web1["from"], &web1["running"]), (&json!("libvirt"), &json!(true)));
    assert_eq!(web1["disks"][1]["speed_from"], "libvirt");
    assert_eq!(
        web1["left_out"][0],
        json!({"name": "vdc", "why": "is a qcow2 image; only raw ones can be backed up", "is_meant": false})
    );
    let table = host.run(args!["guests"]).done().text();
    let line = |name: &str, table: &str| {
        table
            .lines()
            .find(|line| line.starts_with(name))
            .expect("a line")
            .to_owned()
    };
    let words = |name: &str| line(name, &table).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words("db"), "db configuration vda 2 MiB 200 MB/s -");
    assert!(line("web1", &table).contains("vdc is a qcow2 image"), "{table}");

    // With a repository, when each was backed up.
    let repo = host.path("repo");
    host.run(args!["--repo", repo, "init"]).code(0);
    host.run(args!["--repo", repo, "backup", "db", host.path("data")])
        .done();
    let table = host.run(args!["--repo", repo, "guests"]).done().text();
    assert!(line("db", &table).ends_with("(just now)"), "{table}");
    assert!(line("files", &table).contains("never"), "{table}");
    let found = host.run(args!["--repo", repo, "--json", "guests"]).done().json();
    assert!(str_of(&of(&found, "db")["last_backup"], "backup").starts_with("db@"));

    // What does not answer is told and hides nothing else.
    host.program("virsh", "echo 'error: failed to connect to the hypervisor' >&2; exit 1");
    let said = host.run(args!["--repo", Path::new("/no/such/repo"), "guests"]).code(3);
    let said = said.says(&["failed to connect", "last backups are unknown"]);
    assert!(line("files", &said.text()).contains("tags"), "{said}");
}
