//! Users who are not root: told which right is missing, and never something else.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::apart::run_apart;
use crate::support::bytes::{MIB, assert_is_noise, write_noise};
use crate::support::disk::Disk;
use crate::support::kernel;
use crate::support::lab::{Lab, VBK, names_in};
use crate::support::run::Said;
use crate::support::tools::{copy_program, tool, try_tool};

const NOBODY: u32 = 65534;

/// A directory that nobody may enter, with a copy of the program that nobody may run.
struct NobodysLab {
    lab: Lab,
    program: PathBuf,
}

impl NobodysLab {
    fn new() -> Self {
        // The checkout may lie in a home directory that others may not enter.
        let lab = Lab::below(Path::new("/var/tmp"));
        tool("chmod", args!["755", lab.dir()]);
        let bin = lab.subdir("bin");
        let program = bin.join("vbk");
        copy_program(&program);
        let own = lab.subdir("nobody's");
        chown(&own, Some(NOBODY), Some(NOBODY)).expect("root may");
        Self { lab, program }
    }

    /// A path in nobody's own directory.
    fn own(&self, name: &str) -> PathBuf {
        self.lab.path("nobody's").join(name)
    }

    #[track_caller]
    fn run(&self, repo: &Path, args: Vec<OsString>) -> Said {
        let mut all = args!["--reuid=65534", "--regid=65534", "--clear-groups"];
        all.extend(args![self.program, "--repo", repo]);
        all.extend(args);
        let mut command = Command::new("setpriv");
        command
            .current_dir(self.lab.path("nobody's"))
            .env("HOME", "/nonexistent")
            .env("XDG_STATE_HOME", self.own("state"))
            .env_remove("XDG_RUNTIME_DIR");
        self.lab.start_command(command, all).wait()
    }

    /// A repository of nobody's with a disk in it.
    fn repo(&self) -> PathBuf {
        let (repo, image) = (self.own("repo"), self.own("disk.img"));
        write_noise(&image, 1, 2 * MIB);
        self.run(&repo, args!["init"]).done();
        self.run(&repo, args!["backup", "web1", image]).done();
        repo
    }
}

#[test]
fn backup_list_verify_and_restore_need_no_root() {
    let nobody = NobodysLab::new();
    let repo = nobody.repo();
    assert!(nobody.run(&repo, args!["list"]).done().text().contains("web1"));
    nobody.run(&repo, args!["verify"]).done();
    let out = nobody.own("out.img");
    nobody.run(&repo, args!["restore", "web1@latest", out]).done();
    assert_is_noise(&out, 1, 2 * MIB);
    assert_eq!(fs::metadata(&out).expect("is there").uid(), NOBODY);
    assert_eq!(
        fs::metadata(&repo).expect("is there").mode() & 0o077,
        0,
        "other people's disks are in it"
    );
    nobody.run(&repo, args!["mounts"]).done();
}

#[test]
fn mounting_files_without_root_is_refused() {
    let nobody = NobodysLab::new();
    let repo = nobody.repo();
    let dir = nobody.own("files");
    fs::create_dir(&dir).expect("makes a directory");
    chown(&dir, Some(NOBODY), Some(NOBODY)).expect("root may");
    let said = nobody.run(&repo, args!["mount", "web1@latest", "--files", dir]).code(1);
    said.says(&["root", "CAP_SYS_ADMIN"]);
    assert!(kernel::mounts_at(&dir).is_empty());
}

#[test]
fn an_encrypted_repository_needs_no_root() {
    let nobody = NobodysLab::new();
    let (repo, key, image) = (nobody.own("repo"), nobody.own("key"), nobody.own("disk.img"));
    write_noise(&image, 1, 2 * MIB);
    let with_key = |args: Vec<OsString>| {
        let mut all = args!["--key-file", key];
        all.extend(args);
        nobody.run(&repo, all)
    };
    with_key(args!["init", "--encrypt", "--no-recovery-key"]).done();
    // A command before the snapshot and one after it are carried out by helpers that open files of vbk's in /proc.
    let config = nobody.own("config.toml");
    let text = "[defaults]\npre-freeze = 'true'\npost-thaw = 'true'\n";
    fs::write(&config, text).expect("writes");
    let said = with_key(args!["--config-file", config, "backup", "web1", image]);
    assert!(matches!(said.status.code(), Some(0 | 3)), "{said}");
    assert!(!said.stderr.to_lowercase().contains("denied"), "{said}");
    for command in [args!["list"], args!["status"], args!["verify"], args!["stats"]] {
        with_key(command).done();
    }
    let out = nobody.own("out.img");
    with_key(args!["restore", "web1@latest", out]).done();
    assert_is_noise(&out, 1, 2 * MIB);
}

#[test]
fn mounting_images_needs_only_the_right_to_use_fuse() {
    let nobody = NobodysLab::new();
    let repo = nobody.repo();
    let dir = nobody.own("images");
    fs::create_dir(&dir).expect("makes a directory");
    chown(&dir, Some(NOBODY), Some(NOBODY)).expect("root may");
    let for_all = fs::metadata("/dev/fuse").expect("is there").mode() & 0o006 == 0o006;
    let said = nobody.run(&repo, args!["mount", dir]);
    if for_all {
        said.done();
        nobody.run(&repo, args!["umount", dir]).done();
    } else {
        said.code(1).says(&["/dev/fuse", "read and write access"]);
    }
    assert!(kernel::mounts_at(&dir).is_empty());
}

#[test]
fn root_sees_the_mounts_of_users_and_cleans_those_that_are_dead() {
    let nobody = NobodysLab::new();
    let repo = nobody.repo();
    let dir = nobody.own("images");
    fs::create_dir(&dir).expect("makes a directory");
    chown(&dir, Some(NOBODY), Some(NOBODY)).expect("root may");
    let script = "
        user=\"env -u XDG_RUNTIME_DIR -u VBK_RUNTIME_DIR -u VBK_CACHE_DIR -u VBK_STATE_DIR HOME=/nonexistent\"
        user=\"$user setpriv --reuid=65534 --regid=65534 --clear-groups\"
        pid=$($user env XDG_STATE_HOME=\"$2.state\" \"$3\" --repo \"$2\" --json mount \"$1\" | sed -n 's/.*\"pid\": \\([0-9]*\\).*/\\1/p')
        \"$vbk\" --json mounts | grep -F \"\\\"pid\\\": $pid,\"
        \"$vbk\" mounts
        kill -KILL $pid
        while kill -0 $pid 2>/dev/null; do sleep 0.02; done
        \"$vbk\" mounts --clean
        not grep -F \" $1 \" /proc/self/mountinfo";
    let said = run_apart(&nobody.lab, script, args![dir, repo, nobody.program]).done();
    let repo = format!("all in {}", repo.display());
    said.tells(&[&repo, "good", "is unmounted: its process was gone"]);
}

#[test]
fn an_unreadable_repository_is_reported_as_denied_and_not_missing() {
    let nobody = NobodysLab::new();
    nobody.lab.ok(args!["init"]);
    write_noise(&nobody.own("disk.img"), 1, MIB);
    tool("chmod", args!["644", nobody.own("disk.img")]);
    let dir = nobody.own("images");
    fs::create_dir(&dir).expect("makes a directory");
    for command in [
        args!["list"],
        args!["verify"],
        args!["show", "web1@latest"],
        args!["backup", "web1", nobody.own("disk.img")],
    ] {
        let said = nobody.run(nobody.lab.repo(), command).code(1);
        assert!(!said.stderr.contains("not a vbk repository"), "{said}");
        said.says(&["permission denied", nobody.lab.repo().to_str().expect("UTF-8")]);
    }
}

#[test]
fn a_denied_file_is_named() {
    let nobody = NobodysLab::new();
    let repo = nobody.repo();
    let secret = nobody.lab.path("secret.img");
    write_noise(&secret, 2, MIB);
    tool("chmod", args!["600", secret]);
    let said = nobody.run(&repo, args!["backup", "secret", secret]).code(1);
    said.says(&["secret.img", "permission denied"]);
    let said = nobody
        .run(&repo, args!["restore", "web1@latest", nobody.lab.path("bin/out.img")])
        .code(1);
    said.says(&["bin", "permission denied"]);
    assert_eq!(names_in(&nobody.lab.path("bin")), ["vbk"]);
    let said = nobody.run(&nobody.lab.path("new"), args!["init"]).code(1);
    said.says(&["new", "permission denied"]);
    // Another user's mount is not for nobody to take down.
    let root_repo = nobody.lab.path("root's");
    nobody.lab.start_bare(args!["--repo", root_repo, "init"]).wait().done();
    let dir = nobody.lab.subdir("images");
    nobody
        .lab
        .start_bare(args!["--repo", root_repo, "mount", dir])
        .wait()
        .done();
    nobody.run(&repo, args!["umount", dir]).code(1);
    assert_eq!(kernel::mounts_at(&dir).len(), 1);
    nobody.lab.umount(&dir);
}

#[test]
fn a_group_that_an_acl_denies_reads_nothing_in_a_mount_for_all() {
    let nobody = NobodysLab::new();
    let lab = &nobody.lab;
    let disk = Disk::plain(lab.path("disk.img"), 16);
    disk.format(0, "mkfs.ext4");
    disk.change(lab, 0, |root| {
        let file = root.join("report");
        fs::write(&file, "secret").expect("writes");
        chown(&file, Some(0), Some(12_345)).expect("root may");
        tool("chmod", args!["755", root]);
        // linux/posix_acl_xattr.h: the owner, user 33, the group with no right, the mask r--, others. The mask is what the
        // mode shows as the group's right.
        let acl = "0x02000000\
            01000600ffffffff 0200040021000000 04000000ffffffff 10000400ffffffff 20000000ffffffff";
        let acl = acl.replace(' ', "");
        tool("setfattr", args!["-n", "system.posix_acl_access", "-v", acl, file]);
    });
    lab.ok(args!["init"]);
    lab.backup("web1", &disk.path);
    let dir = lab.subdir("files");
    lab.ok(args!["mount", "web1@latest", "--files", dir, "--user", "--allow-other"]);
    let shown = [dir.join("report"), dir.join("vda/report")];
    let file = shown.iter().find(|path| path.exists()).expect("is shown");
    assert_eq!(fs::metadata(file).expect("is there").mode() & 0o777, 0o640);
    let read = |user: &str, group: &str| {
        let (user, group) = (format!("--reuid={user}"), format!("--regid={group}"));
        let output = try_tool("setpriv", args![user, group, "--clear-groups", "cat", file]);
        output.status.success()
    };
    assert!(!read("65534", "12345"), "the group has no right");
    assert!(read("33", "33"), "the named user has one");
    assert!(!read("65534", "65534"));
    lab.umount(&dir);
}

#[test]
fn a_group_member_can_read_a_repository_without_writing() {
    let nobody = NobodysLab::new();
    let repo = nobody.lab.repo().to_owned();
    write_noise(&nobody.lab.path("disk.img"), 1, 2 * MIB);
    nobody.lab.ok(args!["init"]);
    nobody.lab.backup("web1", &nobody.lab.path("disk.img"));
    // The owner's choice, against the default.
    tool("chmod", args!["-R", "a+rX", repo]);
    assert!(nobody.run(&repo, args!["list"]).done().text().contains("web1"));
    let out = nobody.own("out.img");
    nobody.run(&repo, args!["restore", "web1@latest", out]).done();
    assert_is_noise(&out, 1, 2 * MIB);
    let said = nobody.run(&repo, args!["backup", "web1", out]).code(1);
    said.says(&["permission denied"]);
}

#[test]
fn a_read_only_file_system_is_not_reported_as_missing_permission() {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 2 * MIB);
    lab.backup("web1", &lab.path("disk.img"));
    let bound = lab.subdir("bound");
    tool("mount", args!["--bind", lab.files(), bound]);
    tool("mount", args!["-o", "remount,ro,bind", bound]);
    let said = lab
        .start_bare(args!["--repo", bound, "backup", "web1", lab.path("disk.img")])
        .wait();
    tool("umount", args![bound]);
    let said = said.code(1).says(&["read-only", "remount,rw"]);
    assert!(!said.stderr.contains("run as root"), "{said}");
}

#[test]
fn a_file_size_limit_is_not_reported_as_a_full_disk() {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 4 * MIB);
    lab.backup("web1", &lab.path("disk.img"));
    let out = lab.path("out.img");
    // SIGXFSZ would come before the error.
    let script = "trap '' XFSZ; ulimit -f 2048; exec \"$@\"";
    let said = lab
        .start_command(
            Command::new("bash"),
            args![
                "-c",
                script,
                "bash",
                VBK,
                "--repo",
                lab.place(),
                "restore",
                "web1@latest",
                out
            ],
        )
        .wait()
        .code(1)
        .says(&["file too large", "ulimit -f"]);
    assert!(!said.stderr.contains("make room"), "{said}");
    assert!(!out.exists());
}

#[test]
fn an_address_space_limit_is_reported_without_an_abort() {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 2 * MIB);
    lab.backup("web1", &lab.path("disk.img"));
    for command in [
        args!["verify"],
        args!["list"],
        args!["backup", "web1", lab.path("disk.img")],
        args!["restore", "web1@latest", lab.path("out.img")],
    ] {
        let mut args = args!["--as=400000000", VBK, "--repo", lab.place()];
        args.extend(command);
        lab.start_command(Command::new("prlimit"), args).wait().code(1).says(&[
            "address space",
            "ulimit -v",
            "LimitAS=",
        ]);
    }
}
