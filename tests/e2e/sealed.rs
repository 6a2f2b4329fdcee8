//! What an encrypted repository keeps from whoever has it without the key, and what it notices.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::bytes::{MIB, assert_is_noise, write_noise};
use crate::support::inside::{Row, delete_without_key};
use crate::support::lab::{Lab, str_of};
use crate::support::run::Said;
use crate::support::tools::wait_until;

const GUEST: &str = "zebraguest";
const DISK: &str = "okapidisk";

/// A lab with an encrypted repository.
struct Sealed {
    lab: Lab,
    key: PathBuf,
}

impl Sealed {
    fn new() -> Self {
        let lab = Lab::without_repo();
        let key = lab.path("key");
        lab.ok(args!["--key-file", key, "init", "--encrypt", "--no-recovery-key"]);
        write_noise(&lab.path("quaggafile.img"), 1, 4 * MIB);
        Self { lab, key }
    }

    fn args(&self, args: Vec<OsString>) -> Vec<OsString> {
        let mut all = args!["--key-file", self.key];
        all.extend(args);
        all
    }

    #[track_caller]
    fn run(&self, args: Vec<OsString>) -> Said {
        self.lab.run(self.args(args))
    }

    #[track_caller]
    fn backup(&self) -> String {
        let disk = format!("{DISK}={}", self.lab.path("quaggafile.img").display());
        let made = self.lab.json(self.args(args!["backup", GUEST, disk]));
        str_of(&made, "backup")
    }
}

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("lists") {
        let entry = entry.expect("an entry");
        match entry.file_type().expect("a type").is_dir() {
            true => files_below(&entry.path(), found),
            false => found.push(entry.path()),
        }
    }
}

/// Fails if a file of the repository has one of the words in its name or its bytes.
#[track_caller]
fn assert_says_nothing(repo: &Path, words: &[String], when: &str) {
    let mut files = Vec::new();
    files_below(repo, &mut files);
    assert!(files.len() > 10, "a repository has more files than {files:?}");
    for file in files {
        let name = file.strip_prefix(repo).expect("is in it").display().to_string();
        // A link has only a name, and so has the socket of a server, which also removes files meanwhile.
        let is_file = fs::symlink_metadata(&file).is_ok_and(|data| data.is_file());
        let bytes = match is_file.then(|| fs::read(&file)) {
            Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => panic!("{name}: {error}"),
            Some(Ok(bytes)) => bytes,
            _ => Vec::new(),
        };
        for word in words {
            let is_in = bytes.windows(word.len()).any(|window| window == word.as_bytes());
            assert!(!is_in && !name.contains(word), "{word} is in {name} {when}");
        }
    }
}

#[test]
fn no_file_of_an_encrypted_repository_reveals_guest_names() {
    let sealed = Sealed::new();
    let (lab, repo) = (&sealed.lab, sealed.lab.repo());
    let mut words: Vec<String> = [GUEST, DISK, "quaggafile"].map(str::to_owned).into();
    let host = nix::unistd::gethostname().expect("a host name");
    let host = host.to_string_lossy().into_owned();
    // A shorter one is in files by chance.
    if host.len() > 3 {
        words.push(host);
    }
    let first = sealed.backup();
    assert_says_nothing(repo, &words, "after a backup");
    sealed.backup();
    sealed.run(args!["protect", first]).done();
    sealed.run(args!["verify"]).done();
    sealed.run(args!["unprotect", first]).done();
    sealed.run(args!["forget", first, "--prune"]).done();
    assert_says_nothing(repo, &words, "after forget and verify");
    assert_eq!(fs::read(lab.files().join("lock")).expect("reads"), b"");

    write_noise(&lab.path("quaggalarge.img"), 2, 256 * MIB);
    let args = args![
        "backup",
        GUEST,
        lab.path("quaggalarge.img"),
        "--compression",
        "none",
        "--read-limit",
        "64MB/s"
    ];
    let mut writer = lab.start(sealed.args(args));
    // A server of an encrypted repository is not told the guest.
    let shown = match lab.is_through_ssh() {
        true => " backup ".to_owned(),
        false => format!("backup {GUEST}"),
    };
    let told = || lab.run(args!["status"]).text().contains(&shown);
    assert!(wait_until(Duration::from_secs(100), told), "the backup is not shown");
    assert!(writer.wait_until_read(48 * MIB), "the backup ended early");
    writer.signal(Signal::SIGSTOP);
    assert_says_nothing(repo, &words, "while a backup runs");
    writer.signal(Signal::SIGKILL);
    drop(writer);
    assert_says_nothing(repo, &words, "after a backup was killed");
    sealed.run(args!["verify"]).done();
}

#[test]
fn a_second_writer_of_an_encrypted_repository_names_the_first() {
    let sealed = Sealed::new();
    let lab = &sealed.lab;
    write_noise(&lab.path("quaggalarge.img"), 2, 256 * MIB);
    let args = args!["backup", GUEST, lab.path("quaggalarge.img"), "--compression", "none"];
    let mut writer = lab.start(sealed.args(args));
    assert!(writer.wait_until_read(48 * MIB), "the backup ended early");
    writer.signal(Signal::SIGSTOP);
    let disk = lab.path("quaggafile.img");
    let refused = sealed.run(args!["backup", "other", disk, "--no-wait"]).code(75);
    refused.says(&[&format!("backup {GUEST}"), &writer.pid().to_string()]);
    writer.signal(Signal::SIGKILL);
}

#[test]
fn a_backup_deleted_without_the_key_is_reported_until_repair_accepts_it() {
    for (row, said) in [
        (Row::Record, "1 of 2 records of backups are missing"),
        (Row::Notes, "the note that lists them"),
    ] {
        let sealed = Sealed::new();
        let first = sealed.backup();
        sealed.backup();
        sealed.run(args!["protect", first]).done();
        delete_without_key(sealed.lab.files(), row);
        // A writer goes on, and says so; readers see what it found.
        let disk = sealed.lab.path("quaggafile.img");
        let said_by_backup = sealed.run(args!["backup", "other", disk]);
        assert!(said_by_backup.stderr.contains(said), "{said_by_backup}");
        let said = match row {
            Row::Record => "1 of 3 records of backups are missing",
            Row::Notes => "changed without the key",
        };
        for (command, code) in [
            (args!["list"], 4),
            (args!["prune"], 4),
            (args!["forget", "other@latest", "--last-too"], 4),
        ] {
            sealed.run(command).code(code).says(&[said]);
        }
        let verified = sealed.run(args!["verify"]).code(4);
        assert!(verified.text().contains(said), "{verified}");
        let out = sealed.lab.path("out.img");
        let restored = sealed.run(args!["restore", "other@latest", out]);
        assert!(restored.stderr.contains(said), "{restored}");
        assert_is_noise(&out, 1, 4 * MIB);

        sealed.run(args!["repair"]).code(3).tells(&["accepted", said]);
        for command in [
            args!["verify"],
            args!["list"],
            args!["forget", "other@latest", "--last-too", "--prune"],
        ] {
            sealed.run(command).code(0);
        }
        sealed.run(args!["repair"]).done();
    }
}
