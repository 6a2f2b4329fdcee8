//! A directory of one test with a repository in it. What a test leaves behind is cleaned up and is a failure.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::kernel;
use super::run::{Running, Said};
use super::tools::{require_rights, tool, try_tool, wait_until};

pub const VBK: &str = env!("CARGO_BIN_EXE_vbk");

/// A test that takes so long hangs, perhaps in a read from a mount: what it reads from is then taken away.
const WATCHDOG: Duration = Duration::from_secs(240);

/// How long what a command took down may take to be gone: a process that was started for ssh clients stays 10 s longer.
const GONE: Duration = Duration::from_secs(20);

/// Commands that work on the files of a repository and refuse an address: they are run on its own host.
const THERE: [&str; 3] = ["policy", "repair", "token"];

pub struct Lab {
    dir: TempDir,
    /// What the machine has once, and each test for itself: runs and what is cached. Elsewhere than the rest, whose file
    /// system may be full.
    machine: TempDir,
    repo: PathBuf,
    /// Commands name the repository by this address instead, and go to it in this way.
    remote: Option<Remote>,
    /// Where the images of mounts of files are mounted.
    hidden: Mutex<Vec<PathBuf>>,
    _watchdog: mpsc::Sender<()>,
}

/// A way to the repository of a lab through ssh or TLS.
#[derive(Clone)]
pub struct Remote {
    /// The repository.
    pub address: String,
    /// The ssh program with its options.
    pub rsh: String,
    /// The file with the token.
    pub token: Option<PathBuf>,
}

impl Lab {
    /// A directory with a new repository of default block size in it.
    pub fn new() -> Self {
        let lab = Self::without_repo();
        lab.ok(args!["init"]);
        lab
    }

    /// A directory without a repository. Commands name one all the same.
    pub fn without_repo() -> Self {
        Self::below(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    pub fn below(parent: &Path) -> Self {
        require_rights();
        let mut name = tempfile::Builder::new();
        // Where only root gets to the file system of a disk without partitions is mounted right at the directory that is asked for.
        name.permissions(fs::Permissions::from_mode(0o700));
        let dir = name.prefix("vbk-e2e-").tempdir_in(parent).expect("makes a directory");
        let machine = name.prefix("vbk-e2e-machine-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let path = dir.path().to_owned();
        let (watchdog, ended) = mpsc::channel();
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        std::thread::spawn(move || {
            if ended.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{name} hangs; its processes are killed");
                take_down(&[path]);
            }
        });
        Self {
            remote: None,
            repo: dir.path().join("repo"),
            dir,
            machine: machine.expect("makes a directory"),
            hidden: Mutex::default(),
            _watchdog: watchdog,
        }
    }

    /// Makes commands go to the repository in another way.
    pub fn use_remote(&mut self, remote: Remote) {
        self.remote = Some(remote);
    }

    /// The way to the repository, if it is not its path.
    fn remote(&self) -> Option<Remote> {
        self.remote.clone().or_else(|| {
            self.is_through_ssh().then(|| Remote {
                address: format!("ssh://here{}", self.repo.display()),
                rsh: "sh -c 'exec sh -c \"$2\"' rsh".into(),
                token: None,
            })
        })
    }

    /// `VBK_TEST_THROUGH=ssh` takes every test through the protocol of ssh, with a program in the place of ssh that runs the
    /// command here: see `scripts/test --through-ssh`.
    pub fn is_through_ssh(&self) -> bool {
        self.remote.is_none() && std::env::var_os("VBK_TEST_THROUGH").is_some_and(|way| way == "ssh")
    }

    /// Waits until nothing goes on in the repository any more on behalf of a command that was killed: through ssh the process at
    /// the other end still does what it was asked before.
    pub fn wait_for_what_was_killed(&self) {
        if self.is_through_ssh() {
            self.end_server();
            let gone = wait_until(GONE, || !kernel::is_named_by_a_process(&self.repo));
            assert!(gone, "a process works on in {}", self.repo.display());
        }
    }

    /// Ends the process that was started for ssh clients and stays for the next ones, as an administrator does who can't wait.
    pub fn end_server(&self) {
        if !self.is_through_ssh() {
            return;
        }
        for pid in kernel::servers_for_ssh(&self.repo) {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let gone = wait_until(GONE, || kernel::servers_for_ssh(&self.repo).is_empty());
        assert!(gone, "the server of {} does not end", self.repo.display());
    }

    /// Makes commands name another repository.
    pub fn use_repo(&mut self, repo: &Path) {
        self.repo = repo.to_owned();
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The path of the repository. Its files may be open in a server: see [`Lab::files`].
    pub fn repo(&self) -> &Path {
        &self.repo
    }

    /// The directory of the repository, for a test that looks at its files or changes them: no server has it open any more.
    pub fn files(&self) -> &Path {
        self.end_server();
        &self.repo
    }

    /// The name that commands give the repository: its path, or the address of the way to it.
    pub fn place(&self) -> OsString {
        match self.remote() {
            Some(remote) => remote.address.into(),
            None => self.repo.clone().into(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where runs of vbk find each other, which no other test's do.
    pub fn runtime_dir(&self) -> PathBuf {
        self.machine.path().join("run")
    }

    fn cache_dir(&self) -> PathBuf {
        self.machine.path().join("cache")
    }

    /// Where vbk remembers repositories, which no other test's does.
    pub fn state_dir(&self) -> PathBuf {
        self.machine.path().join("state")
    }

    /// Makes the next command take whatever is at the repository's place for what it always was, and not read copies of what was
    /// there: a test puts an older state or another repository there, and is not about noticing that.
    pub fn forget_known_repositories(&self) {
        for directory in [self.state_dir(), self.cache_dir()] {
            match fs::remove_dir_all(directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("can't forget: {error}"),
                _ => {}
            }
        }
    }

    /// A new empty directory.
    pub fn subdir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).expect("makes a directory");
        path
    }

    /// Starts the program without a word about the repository.
    pub fn start_bare(&self, args: Vec<OsString>) -> Running {
        let mut command = Command::new(VBK);
        command.current_dir(self.dir());
        self.start_command(command, args)
    }

    /// Starts a prepared command, cleared of what the caller's environment could change.
    pub fn start_command(&self, mut command: Command, args: Vec<OsString>) -> Running {
        for name in ["VBK_REPO", "VBK_CONFIG", "VBK_TOKEN_FILE", "RUST_LOG", "VBK_LOG"] {
            command.env_remove(name);
        }
        // Another user has places of his own.
        if command.get_program() != "setpriv" {
            let places = [
                ("VBK_RUNTIME_DIR", self.runtime_dir()),
                ("VBK_CACHE_DIR", self.cache_dir()),
                ("VBK_STATE_DIR", self.state_dir()),
            ];
            for (name, place) in places {
                let is_given = command.get_envs().any(|(given, _)| given == name);
                if !is_given {
                    command.env(name, place);
                }
            }
        }
        if let Some(remote) = self.remote() {
            command.env("VBK_RSH", remote.rsh).env("VBK_REMOTE_PATH", VBK);
            if let Some(token) = remote.token {
                command.env("VBK_TOKEN_FILE", token);
            }
        }
        command.env("LC_ALL", "C");
        Running::start(command, &args, self.dir())
    }

    pub fn start(&self, args: Vec<OsString>) -> Running {
        let is_there = args.iter().any(|arg| THERE.iter().any(|command| arg == command));
        let repo = match self.is_through_ssh() && is_there {
            true => self.files().into(),
            false => self.place(),
        };
        let mut all = args!["--repo", repo];
        all.extend(args);
        self.start_bare(all)
    }

    #[track_caller]
    pub fn run(&self, args: Vec<OsString>) -> Said {
        self.start(args).wait()
    }

    /// Runs what must succeed; gives its stdout.
    #[track_caller]
    pub fn ok(&self, args: Vec<OsString>) -> String {
        self.run(args).done().text()
    }

    /// Runs what must succeed, with --json.
    #[track_caller]
    pub fn json(&self, args: Vec<OsString>) -> Value {
        let mut all = args!["--json"];
        all.extend(args);
        self.run(all).done().json()
    }

    /// Backs up; gives the JSON.
    #[track_caller]
    pub fn backup(&self, guest: &str, disk: &Path) -> Value {
        self.json(args!["backup", guest, disk])
    }

    /// The names of all backups, as `GUEST@TIME`.
    #[track_caller]
    pub fn listed(&self) -> Vec<String> {
        let list = self.json(args!["list"]);
        let list = list["backups"].as_array().expect("backups");
        list.iter().map(|entry| str_of(entry, "backup")).collect()
    }

    /// Mounts all images at a new directory.
    #[track_caller]
    pub fn mount(&self, name: &str) -> PathBuf {
        let dir = self.subdir(name);
        self.ok(args!["mount", dir]);
        assert_eq!(kernel::mounts_at(&dir).len(), 1, "one mount at {}", dir.display());
        dir
    }

    /// Mounts the files of a backup at a new directory; gives that and the answer.
    #[track_caller]
    pub fn mount_files(&self, backup: &str, name: &str) -> (PathBuf, Said) {
        let dir = self.subdir(name);
        let said = self.run(args!["--json", "mount", backup, "--files", dir]);
        self.note_hidden(&dir);
        (dir, said)
    }

    /// Remembers where the images of a mount of files are, so that they are looked for at the end.
    pub fn note_hidden(&self, dir: &Path) {
        let mounts = kernel::mounts_at(dir).into_iter();
        let hidden = mounts.filter_map(|mount| mount.source.strip_prefix("vbk-files:").map(PathBuf::from));
        self.hidden
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(hidden);
    }

    #[track_caller]
    pub fn umount(&self, dir: &Path) {
        self.ok(args!["umount", dir]);
        let left = kernel::mounts_of(dir);
        assert!(left.is_empty(), "after umount: {left:?}");
    }

    /// Fails unless nothing of this test is mounted, attached or running.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let places = self.places();
        let gone = wait_until(GONE, || left_behind(&places).is_empty());
        assert!(gone, "left behind: {}", left_behind(&places).join("; "));
    }

    fn places(&self) -> Vec<PathBuf> {
        let mut places = vec![self.dir.path().to_owned()];
        places.extend(
            self.hidden
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .cloned(),
        );
        places
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let places = self.places();
        if std::thread::panicking() {
            take_down(&places);
            return;
        }
        self.end_server();
        wait_until(GONE, || left_behind(&places).is_empty());
        let left = left_behind(&places);
        take_down(&places);
        assert!(left.is_empty(), "left behind: {}", left.join("; "));
    }
}

fn left_behind(places: &[PathBuf]) -> Vec<String> {
    let mut left = Vec::new();
    for (number, place) in places.iter().enumerate() {
        let mounts = kernel::mounts_of(place);
        left.extend(
            mounts
                .iter()
                .map(|mount| format!("a {} mount at {}", mount.fs_type, mount.point.display())),
        );
        let loops = kernel::loops_of(place);
        left.extend(
            loops
                .iter()
                .map(|device| format!("loop device {} of {}", device.display(), place.display())),
        );
        let processes = kernel::processes_of(place);
        left.extend(
            processes
                .iter()
                .map(|pid| format!("process {pid} of {}", place.display())),
        );
        // The first is the test's own.
        if number > 0 && place.exists() {
            left.push(format!("directory {}", place.display()));
        }
    }
    left
}

/// Without asking the program, which may be what is wrong.
fn take_down(places: &[PathBuf]) {
    for place in places {
        for pid in kernel::processes_of(place) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    for place in places {
        for mount in kernel::mounts_of(place).iter().rev() {
            // --force ends what waits for an answer of a FUSE mount.
            try_tool("umount", args!["--force", "--lazy", mount.point]);
        }
        for device in kernel::loops_of(place) {
            try_tool("losetup", args!["--detach", device]);
        }
    }
}

/// A field of a JSON object that must be text.
#[track_caller]
pub fn str_of(value: &Value, field: &str) -> String {
    let found = value[field].as_str();
    found
        .unwrap_or_else(|| panic!("no text {field:?} in {value}"))
        .to_owned()
}

/// A field of a JSON object that must be a whole number.
#[track_caller]
pub fn u64_of(value: &Value, field: &str) -> u64 {
    value[field]
        .as_u64()
        .unwrap_or_else(|| panic!("no number {field:?} in {value}"))
}

/// The names in a directory, in order.
#[track_caller]
pub fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("can't list {}: {error}", dir.display()));
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Runs sync(1) on the file system that a path is in.
pub fn sync(path: &Path) {
    tool("sync", args!["--file-system", path]);
}

/// Metrics as they would be without the label of their repository: `vbk_run_guests 2`.
pub fn without_repository(metrics: &str) -> String {
    let without = |line: &str| match line.split_once("repository=\"") {
        Some((before, after)) if !line.starts_with('#') => {
            let (_, after) = after.split_once("\"} ").expect("the last label");
            match before.strip_suffix('{') {
                Some(name) => format!("{name} {after}\n"),
                None => format!("{}}} {after}\n", before.trim_end_matches(',')),
            }
        }
        _ => format!("{line}\n"),
    };
    metrics.lines().map(without).collect()
}
