//! Boots backups in a real QEMU with a real BIOS; `scripts/lab-tests rehearsal` has one. The guest is a boot sector that prints to the serial port.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::bytes::MIB;
use crate::support::kernel;
use crate::support::lab::{Lab, str_of};
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
    // xor ax,ax; mov ds,ax; cld; mov si,TEXT
    let mut code = vec![0x31, 0xc0, 0x8e, 0xd8, 0xfc, 0xbe, 0, 0];
    // next: lodsb; test al,al; jz end; mov ah,al; wait: mov dx,0x3fd; in al,dx; test al,0x20; jz wait; mov al,ah;
    // mov dx,0x3f8; out dx,al; jmp next; end:
    code.extend([
        0xac, 0x84, 0xc0, 0x74, 0x12, 0x88, 0xc4, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xf8,
    ]);
    code.extend([0x88, 0xe0, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xe9]);
    code.extend(then);
    let text_at = u16::try_from(0x7c00 + code.len()).expect("fits into a sector");
    code[6..8].copy_from_slice(&text_at.to_le_bytes());
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

/// The processes that work in a directory.
fn processes_in(directory: &Path) -> usize {
    let processes = fs::read_dir("/proc").expect("lists").flatten();
    let is_there = |process: &fs::DirEntry| fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == directory);
    processes.filter(is_there).count()
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
    assert_eq!(backups[0]["rehearsed"], *rehearsed);

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
    assert_eq!(processes_in(&directory), 1, "QEMU works there");
    running.signal(Signal::SIGINT);
    // The boot sector knows no power button.
    running.wait().code(3);
    assert!(!directory.exists());
    assert_eq!(processes_in(&directory), 0);

    let mut running = lab.start(args!["--json", "boot", "web1@latest", "--accel", "tcg"]);
    running.wait_until_says("web1 login");
    running.signal(Signal::SIGINT);
    std::thread::sleep(Duration::from_secs(1));
    running.signal(Signal::SIGINT);
    running.wait().code(3);

    let mut running = boot();
    running.wait_until_says("web1 login");
    let [directory] = directories_of(running.pid()).try_into().expect("one directory");
    running.signal(Signal::SIGKILL);
    drop(running);
    let is_gone = || processes_in(&directory) == 0 && kernel::mounts_of(&directory).is_empty();
    assert!(
        wait_until(Duration::from_secs(10), is_gone),
        "QEMU and the mount end with vbk"
    );
    lab.run(args!["rehearse", "web1@latest", "--accel", "tcg"]).done();
    assert!(!directory.exists(), "the next run removes what the killed one left");
}
