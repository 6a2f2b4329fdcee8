//! Repositories on another host: everything through a real sshd.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::bytes::{MIB, assert_same, noise_bytes, write_at};
use crate::support::lab::{Lab, Remote, VBK, str_of, u64_of};
use crate::support::remote::{disk, main_job};
use crate::support::tools::{tool, wait_until};

/// An sshd of this test.
pub struct Sshd {
    child: Child,
    dir: PathBuf,
    port: u16,
}

impl Sshd {
    pub fn start(lab: &Lab) -> Self {
        let dir = lab.subdir("ssh");
        // It refuses to start without the directory that it gives up its rights in.
        fs::create_dir_all("/run/sshd").expect("makes a directory");
        for key in ["host", "all", "backup"] {
            tool(
                "ssh-keygen",
                args!["-q", "-t", "ed25519", "-N", "", "-f", dir.join(key)],
            );
        }
        let public = |key: &str| fs::read_to_string(dir.join(format!("{key}.pub"))).expect("reads");
        let forced = format!(
            "restrict,command=\"{VBK} serve --stdio --rights backup --as web --backups-per-day 2 {}\" ",
            lab.repo().display()
        );
        fs::write(dir.join("authorized_keys"), public("all") + &forced + &public("backup")).expect("writes");
        // Free a moment ago; the test fails if another process was faster.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .expect("a port")
            .port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized_keys\nStrictModes no\nUsePAM no\n\
             PidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n",
            dir.display()
        );
        fs::write(dir.join("sshd_config"), config).expect("writes");
        let log = fs::File::create(dir.join("sshd.log")).expect("makes a file");
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(dir.join("sshd_config"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("starts");
        let started = wait_until(Duration::from_secs(20), || {
            fs::read_to_string(dir.join("sshd.log")).is_ok_and(|log| log.contains("Server listening"))
        });
        assert!(
            started,
            "sshd: {}",
            fs::read_to_string(dir.join("sshd.log")).unwrap_or_default()
        );
        Self { child, dir, port }
    }

    /// The way to a directory with one of the keys.
    pub fn way(&self, key: &str, path: &Path) -> Remote {
        let dir = self.dir.display();
        Remote {
            address: format!("ssh://root@127.0.0.1:{}{}", self.port, path.display()),
            rsh: format!(
                "ssh -F none -i {dir}/{key} -o IdentitiesOnly=yes -o BatchMode=yes -o LogLevel=ERROR -o UserKnownHostsFile={dir}/known \
                 -o StrictHostKeyChecking=accept-new"
            ),
            token: None,
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_command_works_with_a_repository_behind_ssh() {
    let mut lab = Lab::new();
    let sshd = Sshd::start(&lab);
    lab.use_remote(sshd.way("all", lab.repo()));
    let disk = main_job(&lab);
    assert_same(&disk, &{
        let again = lab.path("again.img");
        lab.ok(args!["restore", "web1@latest", again]);
        again
    });
    // They need the files of the repository.
    let there = format!(
        "run it there: `ssh -t -p {} root@127.0.0.1 vbk repair {}`",
        sshd.port,
        lab.repo().display()
    );
    lab.run(args!["repair"]).code(2).says(&["ssh://root@127.0.0.1", &there]);
    let checked = lab.json(args!["verify", "--without-key"]);
    assert!(u64_of(&checked, "bytes") > MIB, "{checked}");
    assert_eq!(checked["damage"], serde_json::json!([]), "{checked}");
    lab.run(args!["init"]).code(1).says(&["already", "repository"]);
    let status = lab.json(args!["status"]);
    let own = &status["clients"][0];
    assert_eq!(
        (str_of(own, "way"), str_of(own, "address")),
        ("ssh".into(), "127.0.0.1".into()),
        "{status}"
    );
    assert!(
        status["disk"].is_object() && u64_of(&status, "free_bytes") > 0,
        "{status}"
    );
    lab.run(args!["status", "-v"]).done().tells(&["VIEW", "ssh 127.0.0.1"]);
}

#[test]
fn an_encrypted_repository_is_pruned_by_a_server_without_its_key() {
    let mut lab = Lab::without_repo();
    let key = lab.path("key");
    lab.ok(args!["init", "--encrypt", "--key-file", key, "--no-recovery-key"]);
    let sshd = Sshd::start(&lab);
    lab.use_remote(sshd.way("all", lab.repo()));
    let disk = disk(&lab);
    let keyed = |more: Vec<std::ffi::OsString>| {
        let mut all = args!["--key-file", key];
        all.extend(more);
        all
    };
    lab.ok(keyed(args!["backup", "web1", disk]));
    write_at(&disk, 5 * MIB, &noise_bytes(2, MIB));
    lab.ok(keyed(args!["backup", "web1", disk]));
    lab.ok(keyed(args!["forget", "web1", "--keep-last", "1"]));
    let pruned = lab.json(keyed(args!["prune", "--max-unused", "0%"]));
    assert!(u64_of(&pruned, "removed_blocks") >= 1, "{pruned}");
    lab.ok(keyed(args!["verify"]));
    lab.ok(args!["verify", "--without-key"]);
    let restored = lab.path("restored.img");
    lab.ok(keyed(args!["restore", "web1@latest", restored]));
    assert_same(&disk, &restored);
    lab.run(args!["list"]).code(1).says(&["encrypted"]);
}

#[test]
fn a_repository_is_made_on_another_host_and_its_key_here() {
    for is_encrypted in [false, true] {
        let mut lab = Lab::without_repo();
        let sshd = Sshd::start(&lab);
        let key = lab.path("key");
        let with_key = |more: Vec<std::ffi::OsString>| match is_encrypted {
            true => [args!["--key-file", key], more].concat(),
            false => more,
        };
        let init = |more: Vec<std::ffi::OsString>| match is_encrypted {
            true => [with_key(args!["init", "--encrypt", "--no-recovery-key"]), more].concat(),
            false => [args!["init"], more].concat(),
        };
        // A forced command makes none, whatever the address says.
        lab.use_remote(sshd.way("backup", lab.repo()));
        lab.run(init(args![])).code(1).says(&["is not a vbk repository"]);
        assert!(!lab.repo().exists());
        lab.use_remote(sshd.way("all", lab.repo()));
        lab.ok(init(args!["--block-size", "128K"]));
        let disk = disk(&lab);
        lab.ok(with_key(args!["backup", "web1", disk]));
        let again = lab.path("again.img");
        lab.ok(with_key(args!["restore", "web1@latest", again]));
        assert_same(&disk, &again);
        lab.ok(with_key(args!["verify"]));
        lab.run(init(args![])).code(1).says(&["already"]);
        lab.use_remote(sshd.way("backup", Path::new("/elsewhere")));
        lab.run(init(args![]))
            .code(1)
            .says(&["does not let this client make a repository"]);
        lab.use_remote(sshd.way("all", &lab.path("no/such/parent")));
        lab.run(init(args![])).code(1).says(&["parent"]);
        lab.ok(init(args!["--parents"]));
        // Nothing that opens it is there.
        let local = lab
            .start_bare(args!["--repo", lab.repo(), "verify", "--without-key"])
            .wait();
        local.done();
        let listed = lab.start_bare(args!["--repo", lab.repo(), "list"]).wait();
        assert_eq!(listed.status.code(), Some(i32::from(is_encrypted)), "{listed}");
    }
}

#[test]
fn keys_of_a_repository_on_another_host_are_changed_from_here() {
    let mut lab = Lab::without_repo();
    let (one, two) = (lab.path("one"), lab.path("two"));
    lab.ok(args!["init", "--encrypt", "--key-file", one, "--no-recovery-key"]);
    let sshd = Sshd::start(&lab);
    lab.use_remote(sshd.way("all", lab.repo()));
    let names = |lab: &Lab| -> Vec<String> {
        let slots = lab.json(args!["key", "list"]);
        let slots = slots["keys"].as_array().expect("an array").iter();
        slots.map(|slot| str_of(slot, "name")).collect()
    };
    let add = || args!["--key-file", one, "key", "add", "--new-key-file", two, "--name", "two"];
    lab.ok(add());
    assert_eq!(names(&lab), ["key-file", "two"]);
    lab.run(add()).code(1).says(&["two"]);
    lab.ok(args!["--key-file", two, "list"]);
    // The key at hand has to open another one than that.
    lab.run(args!["--key-file", one, "key", "remove", "key-file"])
        .code(1)
        .says(&["key-file"]);
    lab.ok(args!["--key-file", one, "key", "remove", "two"]);
    assert_eq!(names(&lab), ["key-file"]);
    lab.run(args!["--key-file", two, "list"]).code(1).says(&["no key slot"]);
    lab.run(args!["--key-file", one, "key", "remove", "key-file"]).code(1);
    lab.use_remote(sshd.way("backup", lab.repo()));
    lab.run(add()).code(1).says(&["does not let this client add keys"]);
    assert_eq!(names(&lab), ["key-file"]);
}

#[test]
fn a_key_with_a_forced_command_can_add_and_not_remove() {
    let mut lab = Lab::new();
    let sshd = Sshd::start(&lab);
    // The path of the address does not count: the forced command names the repository.
    lab.use_remote(sshd.way("backup", Path::new("/elsewhere")));
    let disk = disk(&lab);
    let backup = lab.backup("web1", &disk);
    assert_eq!(lab.listed(), [str_of(&backup, "backup")]);
    lab.run(args!["restore", "web1@latest", lab.path("restored.img")])
        .code(1)
        .says(&["lets this client add backups and not read"]);
    for command in [
        args!["forget", "web1@latest"],
        args!["prune"],
        args!["protect", "web1@latest"],
    ] {
        lab.run(command).code(1).says(&["does not let this client"]);
    }
    assert_eq!(lab.listed().len(), 1);
    let refused = fs::read_to_string(lab.repo().join("serve/refused.log")).expect("is there");
    for part in [
        "\"client\":\"web\"",
        "\"address\":\"127.0.0.1\"",
        "change or remove backups",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
    assert!(!lab.repo().join("serve/audit.log").exists());
    // The line's quota: the second backup is the last one of the day.
    lab.backup("web1", &disk);
    lab.run(args!["backup", "web1", disk])
        .code(1)
        .says(&["web may add 2 backups a day"]);
}

#[test]
fn what_is_wrong_on_the_other_host_is_said_here() {
    let mut lab = Lab::without_repo();
    let sshd = Sshd::start(&lab);
    let nowhere = lab.path("nowhere");
    lab.use_remote(sshd.way("all", &nowhere));
    lab.run(args!["list"]).code(1).says(&[
        &format!("ssh://root@127.0.0.1:{}{}", sshd.port, nowhere.display()),
        "is not a vbk repository on that host",
        "`vbk init ssh://root@127.0.0.1",
    ]);
    let gone = Remote {
        rsh: "ssh -F none -o BatchMode=yes -o LogLevel=ERROR -o ConnectTimeout=5 -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -p 1".into(),
        ..sshd.way("all", &nowhere)
    };
    lab.use_remote(gone);
    lab.run(args!["list"]).code(1).says(&[
        "ssh://root@127.0.0.1",
        "see ssh's line above; try `ssh -F none",
        &format!("-p {} root@127.0.0.1 ", sshd.port),
        " --version`",
    ]);
    let script = lab.path("noisy");
    fs::write(&script, "#!/bin/sh\necho 'This account is not available.'\n").expect("writes");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("makes it a program");
    lab.use_remote(Remote {
        rsh: script.display().to_string(),
        ..sshd.way("all", &nowhere)
    });
    lab.run(args!["list"]).code(1).says(&["This account is not available."]);
}

#[test]
fn a_backup_goes_on_after_a_lost_connection() {
    let mut lab = Lab::new();
    let sshd = Sshd::start(&lab);
    let way = sshd.way("all", lab.repo());
    // The first connection of a run that gets so far ends in the middle of a block.
    let (script, lost) = (lab.path("cutting-ssh"), lab.path("lost"));
    let text = format!(
        "#!/bin/sh\ntest -e {lost} && exec {ssh} \"$@\"\n{{ dd bs=1k count=3000 2>&-; touch {lost}; }} | {ssh} \"$@\"\n",
        lost = lost.display(),
        ssh = way.rsh
    );
    fs::write(&script, text).expect("writes");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("makes it a program");
    lab.use_remote(Remote {
        rsh: script.display().to_string(),
        ..way
    });
    let disk = disk(&lab);
    let one = args!["--connections", "1", "backup", "web1", disk];
    let never = lab.run([args!["--reconnect-for", "0"], one.clone()].concat());
    never
        .code(1)
        .says(&["the connection to ssh://root@127.0.0.1", "is lost"]);
    fs::remove_file(&lost).expect("was lost");
    let again = lab.run(one);
    again
        .code(0)
        .says(&["is lost", "trying again for up to 1 h", "is back"]);
    assert!(lost.exists());
    let restored = lab.path("restored.img");
    lab.ok(args!["restore", "web1@latest", restored]);
    assert_same(&disk, &restored);
    lab.ok(args!["verify"]);
}

#[test]
fn the_way_that_was_typed_is_that_of_the_process_behind_a_mount_too() {
    let mut lab = Lab::new();
    let sshd = Sshd::start(&lab);
    let disk = lab.path("disk.img");
    fs::write(&disk, vec![0; 8 << 20]).expect("writes");
    tool("mkfs.ext4", args!["-q", disk]);
    lab.backup("web1", &disk);
    let way = sshd.way("all", lab.repo());
    let rsh = format!("--rsh={}", way.rsh);
    // The environment does not say how to get there.
    lab.use_remote(Remote {
        rsh: "/bin/false".into(),
        ..way
    });
    let (dir, images) = (lab.subdir("files"), lab.subdir("images"));
    let typed = args![rsh, "--bandwidth=30MB/s", "--connections=1", "--reconnect-for=5m"];
    for mount in [
        args!["--json", "mount", "web1@latest", "--files", dir],
        args!["--json", "mount", images],
    ] {
        let report = lab.run([typed.clone(), mount].concat()).code(0).json();
        let words = fs::read(format!("/proc/{}/cmdline", report["pid"])).expect("runs");
        let words: Vec<_> = words.split(|byte| *byte == 0).collect();
        for option in &typed {
            assert!(words.contains(&option.as_encoded_bytes()), "{option:?}: {report}");
        }
    }
    assert!(dir.join("lost+found").exists());
    lab.umount(&dir);
    lab.umount(&images);
}
