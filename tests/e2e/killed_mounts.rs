//! The process of a mount is killed: `vbk umount` still takes everything down, and the place can be used again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::apart::run_apart;
use crate::support::bytes::{MIB, assert_same, write_noise};
use crate::support::disk::Disk;
use crate::support::kernel;
use crate::support::lab::{Lab, names_in, str_of, u64_of};
use crate::support::tools::{try_tool, wait_until};

fn kill_process_of(mount: &Value) {
    let pid = i32::try_from(u64_of(mount, "pid")).expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the process of the mount is there");
    assert!(wait_until(Duration::from_secs(5), || !kernel::process_exists(pid)));
}

/// Whether `vbk mounts` says that this one is alive.
fn is_alive(lab: &Lab, dir: &Path) -> bool {
    let mounts = lab.json(args!["mounts"]);
    let ours = mounts["mounts"]
        .as_array()
        .expect("an array")
        .iter()
        .find(|mount| mount["mount_point"].as_str() == dir.to_str());
    ours.unwrap_or_else(|| panic!("{} is not in {mounts}", dir.display()))["alive"]
        .as_bool()
        .expect("yes or no")
}

fn lab_with_a_server() -> (Lab, Disk) {
    let lab = Lab::new();
    let disk = Disk::of_a_server(&lab, "server.img");
    for part in [1, 2] {
        disk.change(&lab, part, |root| {
            fs::write(root.join("name"), format!("part {part}")).expect("writes")
        });
    }
    lab.backup("web1", &disk.path);
    (lab, disk)
}

fn mount_files(lab: &Lab, dir: &Path) -> Value {
    let said = lab
        .run(args!["--json", "mount", "web1@latest", "--files", dir])
        .done()
        .json();
    lab.note_hidden(dir);
    said
}

#[test]
fn a_dead_image_mount_is_reported_and_unmounted() {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 2 * MIB);
    lab.backup("web1", &lab.path("disk.img"));
    let dir = lab.subdir("images");
    let mount = lab.json(args!["mount", dir]);
    assert_eq!(str_of(&mount, "mount_point"), dir.to_str().expect("UTF-8"));
    assert!(is_alive(&lab, &dir));
    kill_process_of(&mount);
    assert!(fs::read_dir(&dir).is_err(), "the kernel says that nobody is there");
    assert!(!is_alive(&lab, &dir));
    assert!(lab.ok(args!["mounts"]).contains("vbk umount"));
    // Mounting over it is refused with the way out.
    lab.run(args!["mount", dir]).code(1).says(&["vbk umount"]);
    lab.umount(&dir);
    lab.ok(args!["mount", dir]);
    assert_same(&dir.join("web1/latest/vda.img"), &lab.path("disk.img"));
    lab.umount(&dir);
    assert!(names_in(&dir).is_empty());
}

#[test]
fn a_dead_file_mount_is_unmounted_with_its_loop_devices() {
    let (lab, _) = lab_with_a_server();
    let dir = lab.subdir("files");
    let mount = mount_files(&lab, &dir);
    assert!(is_alive(&lab, &dir));
    kill_process_of(&mount);
    lab.umount(&dir);
    lab.assert_nothing_left();
    mount_files(&lab, &dir);
    assert_eq!(fs::read_to_string(dir.join("p2/name")).expect("reads"), "part 2");
    lab.umount(&dir);
}

#[test]
fn a_dead_writable_mount_with_unwritten_pages_is_cleaned() {
    let (lab, _) = lab_with_a_server();
    let dir = lab.subdir("files");
    let said = lab
        .run(args!["--json", "mount", "web1@latest", "--files", dir, "--writable"])
        .done();
    lab.note_hidden(&dir);
    // More than a loop device writes at once, and nobody syncs it.
    for part in ["p1", "p2"] {
        write_noise(&dir.join(part).join("unwritten"), 4, 24 * MIB);
    }
    kill_process_of(&said.json());
    // Requests that the process was working on end first.
    assert!(wait_until(Duration::from_secs(20), || !is_alive(&lab, &dir)));
    lab.umount(&dir);
    lab.assert_nothing_left();
    // The scratch file had no name: nothing of it is left, and the backup is as it was.
    mount_files(&lab, &dir);
    assert_eq!(fs::read_to_string(dir.join("p2/name")).expect("reads"), "part 2");
    assert!(!dir.join("p2/unwritten").exists());
    lab.umount(&dir);
}

#[test]
fn all_dead_mounts_are_cleaned_at_once() {
    let (lab, _) = lab_with_a_server();
    let dirs = ["files", "images"].map(|name| lab.subdir(name));
    let script = "
        mount() { \"$vbk\" --repo \"$repo\" --json mount \"$@\" | sed -n 's/.*\"pid\": \\([0-9]*\\).*/\\1/p'; }
        pids=\"$(mount web1@latest --files \"$1\") $(mount \"$2\")\"
        kill -KILL $pids
        for pid in $pids; do while kill -0 $pid 2>/dev/null; do sleep 0.02; done; done
        \"$vbk\" mounts --clean
        not grep -F -e \" $1 \" -e \" $2 \" /proc/self/mountinfo
        ls /run/vbk | not grep files-";
    let said = run_apart(&lab, script, args![dirs[0], dirs[1]]).done().text();
    for dir in &dirs {
        assert!(said.contains(&format!("{} is unmounted", dir.display())), "{said}");
    }
    lab.assert_nothing_left();
}

#[test]
fn a_mount_that_another_mount_namespace_does_not_see_is_not_cleaned_there() {
    let (lab, _) = lab_with_a_server();
    let (dir, pipe) = (lab.subdir("files"), lab.path("pipe"));
    let script = "
        mkfifo \"$2\"
        unshare -m --propagation private sh -c 'echo >\"$2\"; read -r mounted <\"$2\"; \"$vbk\" mounts --clean' sh \"$@\" &
        read -r separate <\"$2\"
        \"$vbk\" --repo \"$repo\" mount web1@latest --files \"$1\"
        echo >\"$2\"
        wait $!
        cat \"$1/p1/name\"
        \"$vbk\" mounts
        grep -F /run/vbk/files- /proc/self/mountinfo | grep -F fuse
        \"$vbk\" umount \"$1\"
        not grep -F \" $1\" /proc/self/mountinfo
        ls /run/vbk | not grep files-";
    let said = run_apart(&lab, script, args![dir, pipe]).done();
    said.tells(&["part 1", "good"]);
    lab.assert_nothing_left();
}

#[test]
fn a_dead_file_mount_in_use_is_unmounted_too() {
    let (lab, _) = lab_with_a_server();
    let dir = lab.subdir("files");
    let mount = mount_files(&lab, &dir);
    let opened = fs::File::open(dir.join("p1/name")).expect("opens");
    kill_process_of(&mount);
    // Either it is told who is in it, or it goes; with --lazy it must go.
    let said = lab.run(args!["umount", dir]);
    if said.status.code() != Some(0) {
        let said = said.says(&["in use", &std::process::id().to_string()]);
        assert!(matches!(said.status.code(), Some(1 | 75)), "{said}");
        lab.ok(args!["umount", dir, "--lazy"]);
    }
    assert!(kernel::mounts_at(&dir).is_empty());
    drop(opened);
    lab.assert_nothing_left();
}

#[test]
fn a_dead_mount_does_not_affect_the_others() {
    let (lab, disk) = lab_with_a_server();
    let dirs: Vec<PathBuf> = ["images", "other images", "files", "other files"]
        .map(|name| lab.subdir(name))
        .into();
    let dead_images = lab.json(args!["mount", dirs[0]]);
    lab.json(args!["mount", dirs[1]]);
    let dead_files = mount_files(&lab, &dirs[2]);
    mount_files(&lab, &dirs[3]);
    kill_process_of(&dead_images);
    kill_process_of(&dead_files);
    for dir in [&dirs[0], &dirs[2]] {
        lab.umount(dir);
    }
    assert_same(&dirs[1].join("web1/latest/vda.img"), &disk.path);
    for part in [1, 2] {
        let name = fs::read_to_string(dirs[3].join(format!("p{part}/name")));
        assert_eq!(name.expect("reads"), format!("part {part}"));
    }
    for dir in [&dirs[1], &dirs[3]] {
        assert!(is_alive(&lab, dir));
        lab.umount(dir);
    }
}

#[test]
fn a_terminated_mount_process_unmounts_its_mount() {
    let (lab, _) = lab_with_a_server();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let images = lab.subdir(&format!("images-{signal}"));
        let files = lab.subdir(&format!("files-{signal}"));
        for (dir, mount) in [
            (&images, lab.json(args!["mount", images])),
            (&files, mount_files(&lab, &files)),
        ] {
            let pid = i32::try_from(u64_of(&mount, "pid")).expect("a pid");
            kill(Pid::from_raw(pid), signal).expect("is there");
            assert!(
                wait_until(Duration::from_secs(10), || !kernel::process_exists(pid)),
                "{signal}"
            );
            let left = kernel::mounts_at(dir);
            assert!(left.is_empty(), "{signal} left {left:?}");
        }
        lab.assert_nothing_left();
    }
}

#[test]
fn umount_removes_everything_of_a_mount_command_killed_midway() {
    let (lab, _) = lab_with_a_server();
    let dir = lab.subdir("files");
    // The command and the process it puts into the background, at several moments of the work.
    for delay_ms in [5, 20, 40, 60, 90, 130, 200] {
        let running = lab.start(args!["mount", "web1@latest", "--files", dir]);
        std::thread::sleep(Duration::from_millis(delay_ms));
        lab.note_hidden(&dir);
        let pids = kernel::processes_of(lab.dir());
        for pid in &pids {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        drop(running);
        let gone = wait_until(Duration::from_secs(10), || {
            !pids.iter().any(|pid| kernel::process_exists(*pid))
        });
        if !gone {
            abort_mounts_of(&pids);
            panic!("killed after {delay_ms} ms, one of the processes {pids:?} does not end");
        }
        if kernel::mounts_at(&dir).is_empty() {
            continue;
        }
        lab.note_hidden(&dir);
        lab.umount(&dir);
        assert!(kernel::mounts_at(&dir).is_empty(), "killed after {delay_ms} ms");
    }
    mount_files(&lab, &dir);
    assert_eq!(fs::read_to_string(dir.join("p1/name")).expect("reads"), "part 1");
    lab.umount(&dir);
}

/// Lets go of processes that the kernel holds because they wait for an answer from themselves. Without this they would
/// hold up everything on this machine that looks at loop devices.
fn abort_mounts_of(pids: &[i32]) {
    let is_of = |mount: &kernel::Mounted| {
        let point = mount.point.to_string_lossy();
        mount.fs_type.starts_with("fuse") && pids.iter().any(|pid| point.contains(&format!("files-{pid}-")))
    };
    for mount in kernel::mounts().into_iter().filter(is_of) {
        try_tool("umount", args!["--force", "--lazy", mount.point]);
    }
}

#[test]
fn an_unresponsive_mount_does_not_delay_the_others() {
    let (lab, disk) = lab_with_a_server();
    let dirs = ["stopped", "images", "files"].map(|name| lab.subdir(name));
    let stopped = lab.json(args!["mount", dirs[0]]);
    let stopped = Pid::from_raw(i32::try_from(u64_of(&stopped, "pid")).expect("a pid"));
    kill(stopped, Signal::SIGSTOP).expect("is there");
    let commands = [
        args!["list"],
        args!["mount", dirs[1]],
        args!["mount", "web1@latest", "--files", dirs[2]],
        args!["umount", dirs[1]],
        args!["umount", dirs[2]],
    ];
    let mut held_up = Vec::new();
    for command in commands {
        let words = format!("{command:?}");
        let mut running = lab.start(command);
        if !wait_until(Duration::from_secs(10), || running.has_ended()) {
            held_up.push(words);
            kill(stopped, Signal::SIGCONT).expect("is there");
        }
        running.wait().done();
        lab.note_hidden(&dirs[2]);
        kill(stopped, Signal::SIGSTOP).expect("is there");
    }
    kill(stopped, Signal::SIGCONT).expect("is there");
    assert!(
        held_up.is_empty(),
        "held up by a mount of no concern to them: {held_up:?}"
    );
    assert_same(&dirs[0].join("web1/latest/vda.img"), &disk.path);
    lab.umount(&dirs[0]);
}
