//! `vbk serve`

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use vbk_remote::client::LocalHome;
use vbk_remote::server::{Allowed, serve_directory, serve_stdio};
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::home::Home;

use crate::args::{RightsArg, ServeArgs};
use crate::exit::{Error, Outcome, Result};
use crate::{place, signals};

/// Time that a process which was started for ssh clients stays without one.
const IDLE_EXIT: &str = "1min";

/// Serves one client, or all commands of this machine.
pub fn run(args: &ServeArgs) -> Result<Outcome> {
    let path = place::local(&args.path)?;
    match args.stdio {
        true => stdio(path, args),
        false => all(path, args),
    }
}

/// Serves a client until it hangs up.
fn stdio(path: &Path, args: &ServeArgs) -> Result<Outcome> {
    // The client shows the error: nobody may see the standard error of this process.
    let home = Directory::open(path)
        .map(|directory| Arc::new(LocalHome::new(Arc::new(directory)).starting(start)) as Arc<dyn Home>);
    let allowed = match args.rights {
        RightsArg::Restore => Allowed::Read,
        RightsArg::Backup => Allowed::Add,
        RightsArg::Manage => Allowed::Everything,
    };
    serve_stdio(home, allowed).map_err(Error::io("serve the client"))?;
    Ok(Outcome::Done)
}

/// Starts a process that has a repository open for the clients that come at the same time. It outlives this one.
fn start(path: &Path) -> io::Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["serve", "--idle-exit", IDLE_EXIT, "--"])
        .arg(path)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    // It ends at once if another was faster; nobody else waits for it.
    std::thread::Builder::new()
        .name("vbk-owner".into())
        .spawn(move || child.wait())?;
    Ok(())
}

/// Has a repository open for all commands of this machine, until a signal.
fn all(path: &Path, args: &ServeArgs) -> Result<Outcome> {
    let directory = Arc::new(Directory::open(path)?);
    let stop = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let name = directory.name().display().to_string();
    let ready = || {
        tracing::info!("{name} is open for all commands of this machine");
        // Without systemd nothing is told.
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    };
    match serve_directory(Arc::clone(&directory), args.idle_exit, &stop, ready) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(Error::Usage(format!("another `vbk serve` has {name} open already")))
        }
        served => served.map(|()| Outcome::Done).map_err(Error::io("serve")),
    }
}
