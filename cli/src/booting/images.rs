//! The process that serves the disks of a backup: `vbk mount BACKUP DIR --writable`, as a child. It ends with this process.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vbk::boot::process::die_with_parent;
use vbk_repo::backup::Entry;
use vbk_repo::files;
use vbk_repo::keys;
use vbk_repo::repository::Repository;

use crate::exit::{Error, Result};
use crate::handover::{Handover, SECRETS_ON_STDIN};
use crate::machine::BACKGROUND_LOG;
use crate::token_file;

/// Time that the mount has to appear.
const START: Duration = Duration::from_secs(120);
/// Time that it has to end.
const END: Duration = Duration::from_secs(120);
/// The same, if it closes a file of `--save`: gigabytes may have to reach a slow disk, and are lost if it is killed.
const CLOSE: Duration = Duration::from_secs(20 * 60);
const INTERVAL: Duration = Duration::from_millis(10);

/// Options of the mount.
pub struct ServerOptions<'a> {
    /// File for the writes.
    pub save: Option<&'a Path>,
    /// Limit of the scratch file.
    pub scratch_bytes: Option<u64>,
    /// QEMU runs as another user.
    pub allow_other: bool,
    /// Typed options for the way to the repository.
    pub way: &'a [OsString],
}

/// The process. Dropped, it unmounts and ends.
pub struct ImageServer {
    child: Child,
    is_serving: bool,
    saves: bool,
}

impl ImageServer {
    /// Starts it, and waits until the disks are there, or `cancelled` returns true. A file for the writes has a durable name
    /// then.
    pub fn start(
        repository: &Repository,
        entry: &Entry,
        at: &Path,
        options: &ServerOptions<'_>,
        cancelled: &mut dyn FnMut() -> bool,
    ) -> Result<Self> {
        let failed = || Error::io("start the process that serves the disks");
        let id = entry.id.to_string();
        let arguments = [
            OsStr::new("--quiet"),
            OsStr::new("--repo"),
            repository.path().as_os_str(),
            OsStr::new("mount"),
            OsStr::new(&id),
            at.as_os_str(),
            OsStr::new("--writable"),
            OsStr::new("--foreground"),
        ];
        let mut arguments: Vec<OsString> = arguments.map(OsStr::to_owned).into();
        arguments.extend_from_slice(options.way);
        let limit = options.scratch_bytes.map(|size| format!("--scratch-size={size}B"));
        arguments.extend(limit.map(OsString::from));
        let save = options.save.map(std::path::absolute).transpose().map_err(failed())?;
        if let Some(path) = &save {
            arguments.extend(["--save".into(), path.clone().into_os_string()]);
        }
        if options.allow_other {
            arguments.push("--allow-other".into());
        }
        let mut command = Command::new(std::env::current_exe().map_err(failed())?);
        command
            .args(arguments)
            // Even if it is empty: a process with a handover asks for no passphrase.
            .env(SECRETS_ON_STDIN, "1")
            .env_remove(BACKGROUND_LOG)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Ctrl-C must not take the disks from a running guest.
            .process_group(0);
        die_with_parent(&mut command, Signal::SIGTERM);
        let mut server = Self {
            child: command.spawn().map_err(failed())?,
            is_serving: false,
            saves: save.is_some(),
        };
        let handover = Handover {
            key: match repository.keys() {
                Some(keys) => Some(keys::export(keys, &repository.view()?.identity().id)),
                None => None,
            },
            token: token_file::used(),
            passphrases: Vec::new(),
        };
        if let Some(mut pipe) = server.child.stdin.take() {
            // A process that has ended reports the reason itself.
            let _ = pipe.write_all(&handover.text());
        }
        server.wait_for(entry, at, cancelled)?;
        server.is_serving = true;
        if let Some(directory) = save.as_deref().and_then(Path::parent) {
            let synced = files::sync_directory_where_possible(directory);
            synced.map_err(Error::io(format!("sync {}", directory.display())))?;
        }
        Ok(server)
    }

    fn wait_for(&mut self, entry: &Entry, at: &Path, cancelled: &mut dyn FnMut() -> bool) -> Result<()> {
        let first = entry.backup.images.first().map(|image| format!("{}.img", image.disk));
        let first = at.join(first.ok_or_else(|| Error::Usage(format!("{} has no disks", entry.backup.spec())))?);
        let failed = || Error::io("wait for the process that serves the disks");
        let deadline = Instant::now() + START;
        while !first.exists() {
            let ended = self.child.try_wait().map_err(failed())?;
            if ended.is_some() || Instant::now() > deadline {
                return Err(failed()(std::io::Error::other("it did not serve them")));
            }
            if cancelled() {
                return Err(vbk_repo::Error::Interrupted.into());
            }
            std::thread::sleep(INTERVAL);
        }
        Ok(())
    }
}

impl Drop for ImageServer {
    fn drop(&mut self) {
        if !self.is_serving {
            // It may take long to open the repository, and has nothing to write. The directory's end detaches its mount.
            let _ = self.child.kill();
        }
        let process = i32::try_from(self.child.id()).map(Pid::from_raw);
        if let (Ok(process), Ok(None)) = (process, self.child.try_wait()) {
            // It is not reaped yet, so the id is its own.
            let _ = kill(process, Signal::SIGTERM);
        }
        let limit = if self.is_serving && self.saves { CLOSE } else { END };
        let deadline = Instant::now() + limit;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                tracing::warn!("the process that serves the disks did not end, and was killed");
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            std::thread::sleep(INTERVAL);
        }
    }
}
