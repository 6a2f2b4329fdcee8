//! Boots backups in a real QEMU with a real BIOS; `scripts/lab-tests rehearsal` has one. The guest is a boot sector that prints to the serial port.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};

use crate::support::bytes::MIB;
use crate::support::kernel;
use crate::support::lab::{Lab, VBK, names_in, str_of, without_repository};
use crate::support::run::Running;
use crate::support::small::Tmpfs;
use crate::support::tools::wait_until;

/// What the guest does after it has printed.
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];
/// Resets by the keyboard controller: mov al,0xfe; out 0x64,al.
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];
/// Powers off by ACPI's PM1a control, which SeaBIOS puts at 0x604: mov dx,0x604; mov ax,0x2000; out dx,ax.
const POWER_OFF: &[u8] = &[0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd];
/// Writes the first sector's own code to the second sector (int 13h, ah=3), and goes on.
const WRITE: &[u8] = &[
    0x31, 0xdb, 0x8e, 0xc3, 0xbb, 0x00, 0x7c, // xor bx,bx; mov es,bx; mov bx,0x7c00
    0xb8, 0x01, 0x03, 0xb9, 0x02, 0x00, 0xb6, 0x00, 0xb2, 0x80, 0xcd, 0x13, // ax=0301 cx=0002 dh=0 dl=80
];

/// A disk whose boot sector prints a text to COM1.
fn bootable(path: &Path, text: &str, then: &[u8]) {
    bootable_after(path, &[], text, then);
}

/// A disk whose boot sector does something, and prints a text to COM1.
fn bootable_after(path: &Path, first: &[u8], text: &str, then: &[u8]) {
    let mut code = first.to_vec();
    // xor ax,ax; mov ds,ax; cld; mov si,TEXT
    code.extend([0x31, 0xc0, 0x8e, 0xd8, 0xfc, 0xbe, 0, 0]);
    let text_place = code.len() - 2;
    // next: lodsb; test al,al; jz end; mov ah,al; wait: mov dx,0x3fd; in al,dx; test al,0x20; jz wait; mov al,ah;
    // mov dx,0x3f8; out dx,al; jmp next; end:
    code.extend([
        0xac, 0x84, 0xc0, 0x74, 0x12, 0x88, 0xc4, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xf8,
    ]);
    code.extend([0x88, 0xe0, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xe9]);
    code.extend(then);
    let text_at = u16::try_from(0x7c00 + code.len()).expect("fits into a sector");
    code[text_place..text_place + 2].copy_from_slice(&text_at.to_le_bytes());
    code.extend(text.as_bytes());
    code.push(0);
    assert!(code.len() <= 510);
    code.resize(510, 0);
    code.extend([0x55, 0xaa]);
    code.resize(usize::try_from(MIB).expect("fits"), 0);
    fs::write(path, code).expect("writes");
}

fn lab_with(guests: &[(&str, &str, &[u8])]) -> Lab {
    let lab = Lab::new();
    for (guest, text, then) in guests {
        let disk = lab.path(guest);
        bootable(&disk, text, then);
        lab.backup(guest, &disk);
    }
    lab
}

/// The directories of runs of this process.
fn directories_of(pid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir("/run/vbk-boot").into_iter().flatten().flatten();
    let own = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{pid}-")));
    own.map(|entry| entry.path()).collect()
}

/// The QEMUs of a run, as directories of /proc.
fn qemus_in(directory: &Path) -> Vec<PathBuf> {
    let work = directory.join("work");
    let processes = fs::read_dir("/proc")
        .expect("lists")
        .flatten()
        .map(|process| process.path());
    let is_there = |process: &PathBuf| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == work);
    processes.filter(is_there).collect()
}

/// Ends a run by SIGKILL, and waits until QEMU and the mount have ended with it.
fn kill_with_all(running: Running) {
    let [directory] = directories_of(running.pid()).try_into().expect("one directory");
    running.signal(Signal::SIGKILL);
    drop(running);
    let is_gone = || qemus_in(&directory).is_empty() && kernel::mounts_of(&directory).is_empty();
    assert!(
        wait_until(Duration::from_secs(10), is_gone),
        "QEMU and the mount end with vbk"
    );
}

/// A run of vbk that finds this script in place of QEMU.
fn start_with_qemu(lab: &Lab, script: &str, args: Vec<OsString>) -> Running {
    let directory = lab.path("bin");
    fs::create_dir_all(&directory).expect("creates");
    let program = directory.join("qemu-system-x86_64");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("writes");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("sets");
    let mut command = Command::new(VBK);
    let path = std::env::var("PATH").expect("a path");
    command
        .env("PATH", format!("{}:{path}", directory.display()))
        .current_dir(lab.dir());
    let mut all = args!["--repo", lab.place()];
    all.extend(args);
    lab.start_command(command, all)
}

/// The disk of a guest that has written its first sector to its second one.
fn with_copied_sector(disk: &Path) -> Vec<u8> {
    let mut bytes = fs::read(disk).expect("reads");
    bytes.copy_within(..512, 512);
    bytes
}

#[test]
#[ignore = "needs QEMU: scripts/lab-tests rehearsal"]
fn a_backup_that_boots_is_proven_and_one_that_does_not_is_not() {
    let lab = lab_with(&[
        ("web1", "Debian 12 ttyS0\r\n\r\nweb1 login: ", HALT),
        ("bad1", "Kernel panic - not syncing: VFS\r\n", HALT),
    ]);
    let said = lab.run(args!["rehearse", "web1@latest", "--accel", "tcg"]).done();
    assert!(
        said.text()
            .contains("is proven bootable: its console shows a login prompt"),
        "{said}"
    );
    let failed = lab.run(args!["rehearse", "bad1@latest", "--accel", "tcg"]).code(4);
    for words in ["did not boot: the kernel panicked", "not syncing: VFS"] {
        assert!(failed.text().contains(words), "{failed}");
    }
    let kept = lab.state_dir().join("rehearsals");
    let console = fs::read_to_string(kept.join("web1.log")).expect("reads");
    assert!(console.contains("web1 login: "), "{console}");
    assert!(fs::read(kept.join("web1.png")).expect("reads").starts_with(b"\x89PNG"));

    let list = lab.ok(args!["list"]);
    assert!(
        list.contains("proven bootable 20") && list.contains("did not boot 20"),
        "{list}"
    );
    let show = lab.json(args!["show", "web1@latest"]);
    let rehearsed = &show["state"]["rehearsed"];
    assert_eq!(
        (rehearsed["proof"].as_str(), rehearsed["accelerator"].as_str()),
        (Some("login"), Some("tcg"))
    );
    let backups = lab.json(args!["list", "web1"]);
    assert_eq!(backups["backups"][0]["rehearsed"], *rehearsed);

    // It goes with the backup, and the next one has none.
    lab.backup("web1", &lab.path("web1"));
    lab.ok(args!["forget", str_of(&show, "backup")]);
    assert!(!lab.ok(args!["list", "web1"]).contains("bootable"));
}

#[test]
#[ignore = "needs QEMU: scripts/lab-tests rehearsal"]
fn a_guest_that_resets_or_has_nothing_to_boot_fails_early() {
    let lab = lab_with(&[("loop", "once more\r\n", RESET)]);
    let said = lab.run(args!["rehearse", "loop@latest", "--accel", "tcg"]).code(4);
    assert!(said.text().contains("resets again and again"), "{said}");
    let console = fs::read_to_string(lab.state_dir().join("rehearsals/loop.log")).expect("reads");
    assert!(console.matches("once more").count() >= 3, "{console}");
    let blank = lab.path("blank");
    fs::write(&blank, vec![0; 1 << 20]).expect("writes");
    lab.backup("blank", &blank);
    let said = lab.run(args!["rehearse", "blank@latest", "--accel", "tcg"]).code(4);
    assert!(said.text().contains("the firmware found no bootable disk"), "{said}");
}

#[test]
#[ignore = "needs QEMU: scripts/lab-tests rehearsal"]
fn only_a_given_pattern_is_proof_and_guests_take_turns() {
    let lab = lab_with(&[
        ("web1", "web1 login: nginx ready in 12 ms\r\n", HALT),
        ("web2", "web2 login: ", HALT),
    ]);
    lab.run(args!["rehearse", "web1@latest", "--expect", "(", "--accel", "tcg"])
        .code(2);
    lab.run(args!["rehearse"]).code(2);
    lab.run(args!["rehearse", "web1@latest/web1"]).code(2);
    let expect = "nginx ready in [0-9]+ ms";
    let report = lab.json(args!["rehearse", "web1@latest", "--expect", expect, "--accel", "tcg"]);
    assert_eq!(report["rehearsed"]["proof"].as_str(), Some("pattern"));
    let rotate = || lab.json(args!["rehearse", "--rotate", "30d", "--accel", "tcg"]);
    assert!(str_of(&rotate(), "backup").starts_with("web2@"));
    assert!(rotate()["backup"].is_null());
}

#[test]
#[ignore = "needs QEMU: scripts/lab-tests rehearsal"]
fn a_guest_runs_from_its_backup_and_its_writes_are_gone_or_kept() {
    let write_and_end = [WRITE, POWER_OFF].concat();
    let lab = lab_with(&[("web1", "hello from the guest\r\n", &write_and_end)]);
    let changes = lab.path("changes");
    let said = lab
        .run(args!["boot", "web1@latest", "--accel", "tcg", "--save", changes])
        .done();
    assert!(said.text().contains("hello from the guest"), "{said}");
    assert!(changes.exists());
    lab.ok(args!["restore", "web1@latest", lab.path("as-it-was")]);
    assert!(fs::read(lab.path("as-it-was")).expect("reads") == fs::read(lab.path("web1")).expect("reads"));
    let kept = fs::read(&changes).expect("reads");
    let sector = &fs::read(lab.path("web1")).expect("reads")[..512];
    assert!(
        kept.windows(512).any(|part| part == sector),
        "the guest wrote its first sector again"
    );
}

#[test]
#[ignore = "needs QEMU: scripts/lab-tests rehearsal"]
fn a_guest_ends_with_ctrl_c_and_with_a_killed_vbk() {
    let lab = lab_with(&[("web1", "web1 login: ", HALT)]);
    let boot = || lab.start(args!["--json", "boot", "web1@latest", "--accel", "tcg", "--grace", "1"]);
    let mut running = boot();
    running.wait_until_says("web1 login");
    let [directory] = directories_of(running.pid()).try_into().expect("one directory");
    assert_eq!(qemus_in(&directory).len(), 1, "QEMU works there");
    running.signal(Signal::SIGINT);
    // The boot sector knows no power button.
    running.wait().code(3);
    assert!(!directory.exists());
    assert!(qemus_in(&directory).is_empty());

    let mut running = lab.start(args!["--json", "boot", "web1@latest", "--accel", "tcg"]);
    running.wait_until_says("web1 login");
    running.signal(Signal::SIGINT);
    std::thread::sleep(Duration::from_secs(1));
    running.signal(Signal::SIGINT);
    running.wait().code(3);

    let mut running = boot();
    running.wait_until_says("web1 login");
    let [directory] = directories_of(running.pid()).try_into().expect("one directory");
    kill_with_all(running);
    lab.run(args!["rehearse", "web1@latest", "--accel", "tcg"]).done();
    assert!(!directory.exists(), "the next run removes what the killed one left");
}

#[test]
#[ignore = "needs QEMU: scripts/lab-tests rehearsal"]
fn qemu_runs_without_rights() {
    let lab = lab_with(&[("web1", "web1 login: ", HALT)]);
    let boot = || lab.start(args!["--json", "boot", "web1@latest", "--accel", "tcg", "--grace", "1"]);
    let status_of = |running: &mut Running| {
        running.wait_until_says("web1 login");
        let [directory] = directories_of(running.pid()).try_into().expect("one directory");
        let [qemu] = qemus_in(&directory).try_into().expect("one QEMU");
        (directory, fs::read_to_string(qemu.join("status")).expect("reads"))
    };
    let (mut running, mut other) = (boot(), boot());
    let (directory, status) = status_of(&mut running);
    let (_, status_of_other) = status_of(&mut other);
    let words_in = |status: &str, name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("is there");
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let words = |name: &str| words_in(&status, name);
    // A user of its own, that no account has.
    let user: u32 = words("Uid:")[0].parse().expect("a number");
    assert!(
        (61_184..65_520).contains(&user) && User::from_uid(Uid::from_raw(user)) == Ok(None),
        "{status}"
    );
    for name in ["Uid:", "Gid:"] {
        assert_eq!(words(name), vec![user.to_string(); 4], "{status}");
        assert_ne!(words(name), words_in(&status_of_other, name));
    }
    assert_eq!(words("Groups:"), Vec::<String>::new(), "{status}");
    for name in ["CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(words(name), ["0000000000000000"], "{status}");
    }
    assert_eq!(
        (words("NoNewPrivs:"), words("Seccomp:")),
        (vec!["1".to_owned()], vec!["2".to_owned()])
    );
    // Its user can't enter the mount, which would let it in.
    let private = fs::metadata(directory.join("private")).expect("exists");
    assert_eq!(private.permissions().mode() & 0o777, 0o700);
    for running in [running, other] {
        running.signal(Signal::SIGINT);
        running.wait().code(3);
    }
}

#[test]
#[ignore = "needs QEMU: scripts/lab-tests rehearsal"]
fn a_guest_that_reads_nothing_does_not_stop_vbk() {
    let lab = lab_with(&[("web1", "web1 login: ", HALT)]);
    let mut command = Command::new("sh");
    command
        .args(["-c", "yes | exec \"$@\"", "sh", VBK])
        .current_dir(lab.dir());
    let args = args![
        "--repo",
        lab.repo(),
        "--json",
        "boot",
        "web1@latest",
        "--accel",
        "tcg",
        "--grace",
        "1"
    ];
    let mut running = lab.start_command(command, args);
    running.wait_until_says("web1 login");
    let [vbk, ..] = *kernel::processes_of(lab.repo()) else {
        panic!("vbk runs");
    };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(vbk), Signal::SIGINT).expect("signals");
    running.wait().code(3);
}

#[test]
#[ignore = "needs QEMU: scripts/lab-tests rehearsal"]
fn a_guest_is_restored_while_it_runs_and_its_writes_follow() {
    let write_and_end = [WRITE, POWER_OFF].concat();
    let lab = lab_with(&[("ends", "hello\r\n", &write_and_end), ("web1", "web1 login: ", HALT)]);
    let boot =
        |backup: &str, target: &Path| args!["boot", backup, "--accel", "tcg", "--grace", "1", "--restore", target];
    let target = lab.path("target");
    let said = lab.run(boot("ends@latest", &target)).done();
    assert!(
        said.text().contains("with the guest's changes is restored to"),
        "{said}"
    );
    assert!(fs::read(&target).expect("reads") == with_copied_sector(&lab.path("ends")));
    let changes = lab.state_dir().join("changes");
    assert_eq!(names_in(&changes), Vec::<String>::new());

    // Refused before the guest starts.
    for (given, code, why) in [
        (vec![target.clone()], 1, "exists"),
        (vec![lab.path("a"), lab.path("b")], 2, "for the second time"),
        (vec![PathBuf::from("-")], 2, "name a device or a file"),
    ] {
        let mut args = args!["boot", "ends@latest", "--accel", "tcg"];
        args.extend(given.iter().flat_map(|target| args!["--restore", target]));
        let said = lab.run(args).code(code);
        assert!(said.stderr.contains(why), "{said}");
        assert!(!said.text().contains("hello"), "{said}");
    }
    assert_eq!(names_in(&changes), Vec::<String>::new());

    // One that knows no power button is killed, and its disk complete as well.
    let other = lab.path("other");
    let mut running = lab.start(boot("web1@latest", &other));
    running.wait_until_prints("the restore is complete; power the guest off");
    running.wait_until_prints("web1 login");
    running.signal(Signal::SIGINT);
    running.wait().code(3);
    assert!(fs::read(&other).expect("reads") == fs::read(lab.path("web1")).expect("reads"));
    assert_eq!(names_in(&changes), Vec::<String>::new());
}

#[test]
#[ignore = "needs QEMU: scripts/lab-tests rehearsal"]
fn what_a_guest_has_flushed_survives_a_killed_restore() {
    // Writes before it prints: SeaBIOS can't flush, so QEMU flushes each write.
    let lab = lab_with(&[("web1", "", HALT)]);
    let disk = lab.path("web1");
    bootable_after(&disk, WRITE, "written\r\n", HALT);
    lab.backup("web1", &disk);
    let target = lab.path("target");
    let mut running = lab.start(args!["boot", "web1@latest", "--accel", "tcg", "--restore", &target]);
    running.wait_until_prints("written");
    let changes = lab.state_dir().join("changes");
    let [name] = names_in(&changes).try_into().expect("one file");
    let changes = changes.join(name);
    let now = lab.path("as-after-a-power-cut");
    fs::copy(&changes, &now).expect("copies");
    kill_with_all(running);
    assert!(!target.exists());
    let expected = with_copied_sector(&disk);
    // The process with the disks, which is not killed, closes its file.
    for (file, code) in [(now, 3), (changes, 0)] {
        let target = lab.path(&format!("target-{code}"));
        lab.run(args!["restore", "web1@latest", &target, "--changes", file])
            .code(code);
        assert!(fs::read(target).expect("reads") == expected);
    }
    // The next run removes what the killed one left.
    lab.run(args![
        "rehearse",
        "web1@latest",
        "--accel",
        "tcg",
        "--expect",
        "written"
    ])
    .done();
}

#[test]
#[ignore = "needs QEMU: scripts/lab-tests rehearsal"]
fn a_guest_without_room_for_its_writes_waits_for_it() {
    let lab = Lab::new();
    let disk = lab.path("web1");
    bootable_after(&disk, WRITE, "written\r\n", POWER_OFF);
    lab.backup("web1", &disk);
    let small = Tmpfs::mount(&lab);
    let (target, kept) = (lab.path("target"), small.path().join("kept"));
    let args = args![
        "boot",
        "web1@latest",
        "--accel",
        "tcg",
        "--restore",
        &target,
        "--save",
        &kept
    ];
    let mut running = lab.start(args);
    // QEMU starts later than the process that has written the head of the file.
    let is_begun = || fs::metadata(&kept).is_ok_and(|kept| kept.len() > 0);
    assert!(wait_until(Duration::from_secs(30), is_begun));
    small.fill(0);
    running.wait_until_says("there is no room for a write to its disk");
    small.make_room();
    running.wait_until_prints("written");
    running.wait().code(0);
    assert!(fs::read(&target).expect("reads") == with_copied_sector(&disk));
}

#[test]
#[ignore = "needs QEMU: scripts/lab-tests rehearsal"]
fn a_restore_behind_a_guest_whose_qemu_dies_tells_how_to_finish_it() {
    let lab = lab_with(&[("web1", "web1 login: ", HALT)]);
    let target = lab.path("a target");
    let mut running = lab.start(args!["boot", "web1@latest", "--accel", "tcg", "--restore", &target]);
    running.wait_until_prints("the restore is complete");
    let [directory] = directories_of(running.pid()).try_into().expect("one directory");
    let [qemu] = qemus_in(&directory).try_into().expect("one QEMU");
    let pid = qemu
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a number")
        .parse()
        .expect("a number");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).expect("signals");
    let said = running.wait().code(1);
    assert!(!target.exists());
    let line = said
        .stderr
        .lines()
        .find_map(|line| Some(line.split_once("ERROR vbk ")?.1))
        .expect("a command");
    let done = Command::new("sh")
        .args(["-c", &format!("'{VBK}' {line}")])
        .env("VBK_STATE_DIR", lab.state_dir())
        .output();
    assert!(done.expect("runs").status.success(), "{said}");
    assert!(fs::read(&target).expect("reads") == fs::read(lab.path("web1")).expect("reads"));
}

#[test]
fn a_guest_that_can_not_be_started_lets_the_others_have_their_turn() {
    let lab = lab_with(&[("web1", "", HALT), ("web2", "", HALT)]);
    let rotate = || {
        let metrics = lab.path("vbk.prom");
        let args = args![
            "rehearse",
            "--rotate",
            "30d",
            "--accel",
            "tcg",
            "--qemu-user",
            "root",
            "--metrics",
            metrics
        ];
        start_with_qemu(&lab, "echo broken >&2; exit 1", args)
    };
    for guest in ["web1", "web2", "web1"] {
        let said = rotate().wait().code(1);
        for words in ["QEMU failed: broken", &format!("booting {guest}@")] {
            assert!(said.to_string().contains(words), "{said}");
        }
    }
    assert!(lab.ok(args!["list"]).contains("could not be rehearsed 20"));
    let metrics = without_repository(&fs::read_to_string(lab.path("vbk.prom")).expect("reads"));
    assert!(metrics.contains("vbk_rehearsal_success{guest=\"web2\"} 0"), "{metrics}");
    // None takes the directory of another one for a leftover.
    let together: Vec<_> = (0..6).map(|_| rotate()).collect();
    for running in together {
        let said = running.wait().code(1);
        assert!(said.stderr.contains("QEMU failed: broken"), "{said}");
    }
}

#[test]
fn a_start_that_takes_long_can_be_interrupted() {
    let lab = lab_with(&[("web1", "", HALT)]);
    let args = args![
        "boot",
        "web1@latest",
        "--accel",
        "tcg",
        "--qemu-user",
        "root",
        "--restore",
        lab.path("target")
    ];
    let running = start_with_qemu(&lab, "echo $$ >started; exec sleep 1000", args);
    let is_started = || {
        let directories = directories_of(running.pid());
        directories
            .iter()
            .any(|directory| directory.join("work/started").exists())
    };
    assert!(wait_until(Duration::from_secs(30), is_started));
    running.signal(Signal::SIGINT);
    running.wait().code(130);
    assert_eq!(names_in(&lab.state_dir().join("changes")), Vec::<String>::new());
    assert!(!lab.path("target").exists());
}
