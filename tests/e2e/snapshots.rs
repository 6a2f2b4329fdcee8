//! `vbk snapshots`, with the lvm2 of tests/fake-lvm2. The real one: tests/lab/lvm.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::lab::{Lab, VBK};
use crate::support::run::Said;

/// Where the fake commands are, and the state of theirs.
fn with_fake(mut command: Command, state: &Path) -> Command {
    let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fake-lvm2");
    command
        .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", fake.display()))
        .env("FAKE_LVM2", state)
        .env("VBK_RUNTIME_DIR", state.join("run"));
    command
}

fn fake(state: &Path, program: &str, args: &str) -> bool {
    let mut command = with_fake(Command::new(program), state);
    command.args(args.split(' ')).stdout(Stdio::null());
    command.status().expect("the fake starts").success()
}

fn vbk(lab: &Lab, state: &Path, args: Vec<std::ffi::OsString>) -> Said {
    lab.start_command(with_fake(Command::new(VBK), state), args).wait()
}

#[test]
fn only_leftover_snapshots_are_listed_and_removed() {
    let lab = Lab::without_repo();
    let dir = tempfile::tempdir().expect("a directory");
    let state: PathBuf = dir.path().into();
    let said = vbk(&lab, &state, args!["snapshots"]).done();
    assert!(said.text().contains("no snapshots of disks are left"), "{said}");

    let node = state.join("node");
    let made = Command::new("mknod").arg(&node).args(["b", "240", "7"]).status();
    assert!(
        made.expect("mknod starts").success(),
        "only root can make a device node"
    );
    assert!(fake(&state, "fake-lv", "vg vg0 1G"));
    assert!(fake(&state, "fake-lv", &format!("lv vg0/web1 40M {}", node.display())));
    // Which machine this is shows in no output, so the tag is taken from where vbk takes it.
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let host = match id.trim() {
        id if id.len() == 32 => id[..16].to_owned(),
        _ => nix::unistd::gethostname()
            .expect("a name")
            .to_string_lossy()
            .into_owned(),
    };
    let snapshot = |name: &str, tags: &str| {
        let tags = tags
            .split(' ')
            .map(|tag| format!("--addtag {tag} "))
            .collect::<String>();
        assert!(fake(
            &state,
            "lvcreate",
            &format!("-y -s -l 2 {tags}-n {name} vg0/web1")
        ));
    };
    snapshot("vbk-left", &format!("vbk vbk_host_{host} vbk_run_0123456789ab"));
    snapshot("vbk-kept", &format!("vbk vbk_host_{host} vbk_base"));
    snapshot("vbk-other", "vbk vbk_host_other vbk_run_0123456789ab");
    snapshot("somebodys", "precious");

    let said = vbk(&lab, &state, args!["snapshots"]).done().text();
    let line = |name: &str| {
        said.lines()
            .find(|line| line.starts_with(&format!("vg0/{name} ")))
            .unwrap_or("none")
    };
    assert!(
        line("vbk-left").contains("left behind; `vbk snapshots --clean` removes it"),
        "{said}"
    );
    assert!(
        line("vbk-left").contains(" vg0/web1 ") && line("vbk-left").contains(" 0 % "),
        "{said}"
    );
    assert!(line("vbk-kept").contains("kept for change hints"), "{said}");
    assert!(line("vbk-other").contains("another machine's"), "{said}");
    assert_eq!(said.lines().count(), 4, "{said}");
    let json = vbk(&lab, &state, args!["snapshots", "--json"]).done().json();
    let states: Vec<_> = json["snapshots"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| one["state"].clone())
        .collect();
    assert_eq!(states, ["kept", "left-behind", "other-host"]);

    assert!(fake(&state, "fake-lv", "fault lvremove fail it is in use"));
    let said = vbk(&lab, &state, args!["snapshots", "--clean"]).code(1);
    said.says(&["type: lvremove vg0/vbk-left", "it is in use"]);
    assert!(fake(&state, "fake-lv", "fault lvremove"));
    let said = vbk(&lab, &state, args!["snapshots", "--clean"]).done();
    assert_eq!(said.text(), "removed vg0/vbk-left\n");
    let said = vbk(&lab, &state, args!["snapshots", "--clean"]).done();
    assert_eq!(said.text(), "nothing was left behind\n");
    for name in ["vbk-kept", "vbk-other", "somebodys", "web1"] {
        assert!(fake(&state, "fake-lv", &format!("get vg0/{name}")), "{name}");
    }
}
