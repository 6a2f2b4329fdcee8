//! Who hears what: results on stdout, trouble on stderr, a bar only on a terminal, nothing held open in the background.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::support::bytes::{MIB, write_noise};
use crate::support::inside::record_again;
use crate::support::lab::{Lab, VBK, u64_of};
use crate::support::tools::{tool, try_tool, wait_until};

fn lab_with_a_disk() -> Lab {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 12 * MIB);
    lab
}

#[test]
fn the_last_line_of_a_backup_sums_it_up() {
    let lab = lab_with_a_disk();
    let text = lab.ok(args!["backup", "web1", lab.path("disk.img")]);
    let last = text.lines().last().expect("a line");
    assert!(
        last.starts_with("web1@20") && last.contains("Z: 12 MiB read, 12 MiB new (12 MiB stored) in "),
        "{last}"
    );
    write_noise(&lab.path("other.img"), 2, MIB);
    fs::OpenOptions::new()
        .write(true)
        .open(lab.path("disk.img"))
        .and_then(|file| std::os::unix::fs::FileExt::write_all_at(&file, b"changed", 5 * MIB))
        .expect("writes");
    let text = lab.ok(args!["backup", "web1", lab.path("disk.img")]);
    let last = text.lines().last().expect("a line");
    // As its difference from the block before.
    assert!(
        last.contains("Z: 12 MiB read, 1 MiB new (") && last.contains(" B stored) in "),
        "{last}"
    );
}

#[test]
fn quiet_is_quiet_and_verbose_logs_to_stderr() {
    let lab = lab_with_a_disk();
    let dir = lab.subdir("images");
    for command in [
        args!["-q", "backup", "web1", lab.path("disk.img")],
        args!["-q", "verify"],
        args!["-q", "restore", "web1@latest", lab.path("out.img")],
        args!["-q", "mount", dir],
        args!["-q", "umount", dir],
    ] {
        assert_eq!(lab.ok(command), "");
    }
    let quiet_json = lab.run(args!["-q", "--json", "list"]).done().json();
    assert_eq!(quiet_json["backups_total"], 1);
    lab.run(args!["-q", "show", "nobody@latest"]).code(1).says(&["nobody"]);
    let said = lab.run(args!["-vv", "list"]).code(0);
    assert!(said.text().contains("web1"), "{said}");
}

#[test]
fn json_is_all_that_is_on_stdout() {
    let lab = lab_with_a_disk();
    let dir = lab.subdir("images");
    for command in [
        args!["--json", "backup", "web1", lab.path("disk.img")],
        args!["list", "--json"],
        args!["show", "web1@latest", "--json"],
        args!["verify", "--json"],
        args!["restore", "web1@latest", lab.path("out.img"), "--json"],
        args!["mount", dir, "--json"],
        args!["mounts", "--json"],
        args!["umount", dir, "--json"],
    ] {
        lab.run(command).done().json();
    }
    let said = lab.run(args!["list", "nobody", "--json"]).code(1);
    assert!(said.stdout.is_empty() || said.json().is_object(), "{said}");
    let made = lab.path("made");
    lab.run(args!["init", made, "--json"]).done();
    let empty = lab
        .start_bare(args!["--repo", made, "list", "--json"])
        .wait()
        .done()
        .json();
    let nothing = serde_json::json!({"backups": [], "backups_total": 0, "guests_total": 0, "stored_bytes": 0});
    assert_eq!(empty, nothing);
}

#[test]
fn a_terminal_gets_a_bar_and_the_last_line() {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 400 * MIB);
    // script(1) gives the program a terminal. At this rate it takes long enough for an estimate, however fast the disk is.
    let words = format!(
        "{VBK} --repo {} backup web1 {} --read-limit 80MB/s",
        lab.repo().display(),
        lab.path("disk.img").display()
    );
    let mut script = Command::new("script");
    let script = script.args(["--quiet", "--return", "--command", &words, "/dev/null"]);
    let output = script
        .env("TERM", "xterm")
        .env("VBK_STATE_DIR", lab.state_dir())
        .stdin(Stdio::null())
        .output()
        .expect("runs script(1)");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    for word in ["of 400 MiB", "MB/s", "left", "new", "Z: 400 MiB read, 400 MiB new"] {
        assert!(text.contains(word), "no {word:?} in\n{text}");
    }
}

#[test]
fn a_background_mount_closes_the_pipe_of_its_caller() {
    let lab = lab_with_a_disk();
    lab.backup("web1", &lab.path("disk.img"));
    let dir = lab.subdir("images");
    let child = Command::new(VBK)
        .env("VBK_STATE_DIR", lab.state_dir())
        .args(args!["--repo", lab.repo(), "mount", dir])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.expect("starts");
    let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let (sender, read) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut out, mut err) = (String::new(), String::new());
        let _ = stdout
            .read_to_string(&mut out)
            .and_then(|_| stderr.read_to_string(&mut err));
        let _ = sender.send((out, err));
    });
    let said = read.recv_timeout(Duration::from_secs(20));
    assert!(child.wait().expect("ends").success());
    let (out, err) = said.expect("`vbk mount DIR | cat` would hang");
    assert!(out.contains("vbk umount") && err.is_empty(), "{out}{err}");
    lab.umount(&dir);
}

#[test]
fn a_background_mount_does_not_pin_its_start_directory() {
    let lab = lab_with_a_disk();
    lab.backup("web1", &lab.path("disk.img"));
    let (dir, elsewhere) = (lab.subdir("images"), lab.subdir("elsewhere"));
    tool("mount", args!["-t", "tmpfs", "elsewhere", elsewhere]);
    let mut command = Command::new(VBK);
    command.current_dir(&elsewhere);
    let said = lab
        .start_command(command, args!["--repo", lab.place(), "--json", "mount", dir])
        .wait()
        .done();
    assert!(u64_of(&said.json(), "pid") > 1);
    // Through ssh, the connection of the command itself ends a moment after it.
    let unmounted = wait_until(Duration::from_secs(20), || {
        try_tool("umount", args![elsewhere]).status.success()
    });
    assert!(unmounted, "something still is in {}", elsewhere.display());
    assert!(dir.join("web1/latest/vda.img").exists());
    lab.umount(&dir);
}

#[test]
fn a_background_mount_of_a_relative_repository_path_works() {
    let lab = lab_with_a_disk();
    lab.backup("web1", &lab.path("disk.img"));
    let dir = lab.subdir("images");
    lab.start_bare(args!["--repo", "repo", "mount", "images"]).wait().done();
    lab.backup("web2", &lab.path("disk.img"));
    let there = wait_until(Duration::from_secs(3), || dir.join("web2/latest/vda.img").exists());
    assert!(there);
    crate::support::bytes::assert_same(&dir.join("web2/latest/vda.img"), &lab.path("disk.img"));
    lab.umount(&dir);
}

#[test]
fn an_unprintable_result_is_a_failure() {
    let lab = lab_with_a_disk();
    lab.backup("web1", &lab.path("disk.img"));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("opens");
    let output = Command::new(VBK)
        .env("VBK_STATE_DIR", lab.state_dir())
        .args(args!["--repo", lab.repo(), "list"])
        .stdout(full)
        .output();
    let output = output.expect("runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn a_hostile_record_is_escaped_and_overflows_nothing() {
    let lab = lab_with_a_disk();
    lab.ok(args!["backup", "web1", lab.path("disk.img")]);
    let order = "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}";
    for number in [1 << 63, u64::MAX] {
        record_again(lab.files(), "web1@latest", |record| {
            record.time = record.time.next();
            record.host = format!("host{order}\nState: proven");
            record.vbk_version = order.into();
            record.duration_ms = number;
            for image in &mut record.images {
                image.source = format!("/dev/{order}\nvdb  all is good");
                (image.new_bytes, image.data_bytes, image.size_bytes) = (number, number, number);
                (image.stored_bytes, image.snapshot_used_bytes, image.skipped_bytes) = (number, number, number);
            }
        });
    }
    let dir = lab.subdir("images");
    for (args, code) in [
        (args!["list"], 0),
        (args!["show", "web1@latest"], 0),
        (args!["show", "web1@latest", "--config"], 0),
        (args!["stats"], 0),
        (args!["verify"], 0),
        (args!["repair"], 0),
        (args!["status"], 0),
        (args!["guests"], 0),
        (args!["diff", "web1@latest", "web1@latest"], 0),
        (args!["forget", "web1", "--keep-last", "3", "--dry-run"], 0),
        (args!["prune", "--dry-run"], 0),
        // No disk has room for what it says.
        (args!["restore", "web1@latest", lab.path("out.img")], 1),
        (args!["mount", dir], 0),
        (args!["umount", dir], 0),
        // Smaller than the record says, and the second time as large as before.
        (args!["backup", "web1", lab.path("disk.img")], 3),
    ] {
        for json in [false, true] {
            let is_twice = matches!(args[0].to_str(), Some("restore" | "mount" | "umount"));
            if json && is_twice {
                continue;
            }
            let mut all = if json { args!["--json"] } else { args!["-v"] };
            all.extend(args.clone());
            let code = if json && args[0] == "backup" { 0 } else { code };
            let said = lab.run(all).code(code);
            let is_order = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(
                !said.text().contains(is_order) && !said.stderr.contains(is_order),
                "{said}"
            );
            if json {
                said.json();
            } else {
                assert!(
                    !said
                        .text()
                        .lines()
                        .any(|line| line.starts_with("State: proven") || line.starts_with("vdb")),
                    "{said}"
                );
            }
        }
    }
}

#[test]
fn a_mount_in_the_foreground_tells_systemd_when_it_is_ready() {
    let lab = lab_with_a_disk();
    lab.backup("web1", &lab.path("disk.img"));
    let (dir, socket) = (lab.subdir("images"), lab.path("notify"));
    let ear = UnixDatagram::bind(&socket).expect("binds");
    ear.set_read_timeout(Some(Duration::from_secs(60))).expect("is ours");
    let mut command = Command::new(VBK);
    command.env("NOTIFY_SOCKET", &socket);
    let running = lab.start_command(command, args!["--repo", lab.place(), "mount", "--foreground", dir]);
    let mut buffer = [0; 200];
    let len = ear.recv(&mut buffer).expect("it tells");
    assert_eq!(String::from_utf8_lossy(&buffer[..len]), "READY=1\n");
    assert_eq!(crate::support::lab::names_in(&dir), ["web1"]);
    lab.umount(&dir);
    running.wait().code(0);
}
