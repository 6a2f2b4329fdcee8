//! Completion in bash: the script is loaded, given a command line as bash would split it, and asked for its answer.

use std::fs;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::bytes::{MIB, write_noise};
use crate::support::lab::{Lab, VBK, str_of};

/// Loads the script, calls its function with the words in $2 ..., and prints what it offers, a line each.
const ASK: &str = r#"
source <("$0" generate completion bash) || exit 1
COMP_LINE=$1 COMP_POINT=${#1}
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_vbk "$0" "${COMP_WORDS[-1]}"
((${#COMPREPLY[@]} == 0)) || printf '%s\n' "${COMPREPLY[@]}"
"#;

/// Splits a line as bash does for completion: at blanks, and at @, : and =, which are words of their own.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::<String>::new();
    for typed in line.split(' ') {
        let mut is_new = true;
        for c in typed.chars() {
            let is_break = "@:=".contains(c);
            match words.last_mut() {
                Some(word) if !is_new && is_break == word.ends_with(['@', ':', '=']) => word.push(c),
                _ => words.push(c.to_string()),
            }
            is_new = false;
        }
        if is_new {
            words.push(String::new());
        }
    }
    words
}

/// What bash is offered for the end of `vbk ARGUMENTS`, with the variables that are set.
#[track_caller]
fn offered(lab: &Lab, variables: &[(&str, &str)], arguments: &str) -> Vec<String> {
    let line = format!("{VBK} {arguments}");
    let mut command = Command::new("bash");
    command.current_dir(lab.dir());
    let mut all = args!["-c", ASK, VBK, line];
    all.extend(words(&line).into_iter().map(Into::into));
    // The harness removes what the caller's environment names.
    let mut env = Command::new("env");
    env.current_dir(lab.dir());
    let mut given: Vec<std::ffi::OsString> = variables
        .iter()
        .map(|(name, value)| format!("{name}={value}").into())
        .collect();
    given.push("bash".into());
    given.extend(all);
    let said = lab.start_command(env, given).wait().done();
    said.text().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_guests_times_disks_and_mount_points() {
    let lab = Lab::new();
    write_noise(&lab.path("disk"), 1, MIB);
    write_noise(&lab.path("other"), 2, MIB);
    let mut names = Vec::new();
    for _ in 0..2 {
        let made = lab.json(args![
            "backup",
            "web1",
            format!("vda={}", lab.path("disk").display()),
            format!("vdb={}", lab.path("other").display())
        ]);
        names.push(str_of(&made, "backup"));
    }
    lab.backup("db", &lab.path("disk"));
    let repo = lab.files().display().to_string();
    let of = |arguments: &str| offered(&lab, &[("VBK_REPO", &repo)], arguments);

    // Of what follows the @, which bash takes for the start of a word.
    let times: Vec<_> = names
        .iter()
        .rev()
        .map(|name| format!("{} ", name.split_once('@').expect("a name").1))
        .collect();
    let latest = ["latest ".to_owned()];
    assert_eq!(of("show "), ["db@", "web1@"]);
    assert_eq!(of("show w"), ["web1@"]);
    let whole = |names: &[String]| names.iter().map(|name| format!("@{name}")).collect::<Vec<_>>();
    assert_eq!(of("show web1@"), [whole(&latest), whole(&times)].concat());
    assert_eq!(of("show web1@l"), latest);
    assert_eq!(of("restore web1@latest/"), ["latest/vda ", "latest/vdb "]);
    assert_eq!(
        of(&format!("restore {}/vdb", names[0])),
        [format!("{}/vdb ", times[1].trim_end())]
    );
    assert_eq!(of("ls web1@l"), ["latest:"]);
    assert_eq!(of("list d"), ["db "]);
    assert_eq!(of("forget w"), ["web1 ", "web1@"]);
    assert_eq!(of("verify db@latest w"), ["web1 ", "web1@"]);
    assert_eq!(of("show nobody@"), [""; 0]);
    // The bin, and not what is listed.
    assert_eq!(of("unforget "), [""; 0]);
    lab.ok(args!["forget", names[0]]);
    assert_eq!(of("unforget "), ["web1 "]);
    assert_eq!(of("unforget web1@"), [format!("@{}", times[1])]);
    lab.ok(args!["unforget", names[0]]);

    // The repository that is typed comes before the variable, and that of the configuration after it.
    let other = |option: &str| offered(&lab, &[("VBK_REPO", "/nonexistent")], &format!("{option} show w"));
    assert_eq!(other(&format!("--repo {repo}")), ["web1@"]);
    assert_eq!(other(&format!("--repo={repo}")), ["web1@"]);
    assert_eq!(other(&format!("-r \"{repo}\"")), ["web1@"]);
    assert_eq!(other(""), [""; 0]);
    let config = lab.path("config.toml");
    fs::write(
        &config,
        format!("repository = {repo:?}\n[guest.mail]\ndisks = {{ vda = \"/dev/x\" }}\n"),
    )
    .expect("writes");
    let variables = [("VBK_CONFIG", config.to_str().expect("a name"))];
    assert_eq!(offered(&lab, &variables, "show w"), ["web1@"]);
    assert_eq!(offered(&lab, &variables, "backup "), ["db ", "mail ", "web1 "]);

    let dir = lab.mount("mnt");
    let shown = dir.display().to_string();
    assert_eq!(of(&format!("umount {shown}")), [format!("{shown} ")]);
    // A file system whose process does not answer: nothing is completed, after a while.
    let mounts = lab.json(args!["mounts"]);
    let mounts = mounts["mounts"].as_array().expect("a list");
    let own = mounts.iter().find(|mount| mount["mount_point"] == shown.as_str());
    let pid = own.and_then(|mount| mount["pid"].as_i64()).expect("a process");
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    kill(pid, Signal::SIGSTOP).expect("stops");
    let hung = offered(&lab, &[("VBK_REPO", &format!("{shown}/web1"))], "show w");
    kill(pid, Signal::SIGCONT).expect("continues");
    assert_eq!(hung, [""; 0]);
    lab.umount(&dir);
}

#[test]
fn an_encrypted_repository_is_completed_from_only_with_a_key_at_hand() {
    let lab = Lab::without_repo();
    write_noise(&lab.path("disk"), 1, MIB);
    let key = lab.path("key");
    lab.ok(args!["--key-file", key, "init", "--encrypt", "--no-recovery-key"]);
    lab.ok(args!["--key-file", key, "backup", "web1", lab.path("disk")]);
    let repo = lab.files().display().to_string();
    let key = key.display().to_string();
    assert_eq!(offered(&lab, &[("VBK_REPO", &repo)], "show "), [""; 0]);
    let variables = [("VBK_REPO", repo.as_str()), ("VBK_KEY_FILE", &key)];
    assert_eq!(offered(&lab, &variables, "show "), ["web1@"]);
    let wrong = [("VBK_REPO", repo.as_str()), ("VBK_KEY_FILE", "/nonexistent")];
    assert_eq!(offered(&lab, &wrong, "show "), [""; 0]);
}

#[test]
fn bash_completes_commands_options_and_files_with_blanks() {
    let lab = Lab::without_repo();
    fs::write(lab.path("a disk.img"), "").expect("writes");
    let of = |arguments: &str| offered(&lab, &[], arguments);
    assert_eq!(of("unf"), ["unforget "]);
    assert_eq!(of("forget --keep-w"), ["--keep-weekly ", "--keep-within "]);
    assert_eq!(of("token add x --rights ba"), ["backup "]);
    assert_eq!(of("token add x --rights=ba"), ["backup "]);
    assert_eq!(of("--key-file a"), ["a\\ disk.img "]);
    for shell in ["zsh", "fish"] {
        let script = lab.start_bare(args!["generate", "completion", shell]).wait().done();
        assert!(script.text().contains("__complete"), "{script}");
    }
}
