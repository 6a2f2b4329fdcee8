//! `vbk serve`

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;
use vbk_remote::client::local_home_starting;
use vbk_remote::server::{Admission, Allowed, Quota, Served, Server, Who, load_or_make_key, serve_stdio};
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::home::Home;
use vbk_repo::repository::{Repository, SealedOptions};

use crate::args::ServeArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::notify::Notifier;
use crate::place;
use crate::signals::cancel_flag;
use crate::terminal::units;

/// Time that a process which was started for clients stays without one.
const IDLE_EXIT: &str = "10s";

/// Serves one client until it hangs up, or all that come until a signal.
pub fn run(context: &Context<'_>, args: &ServeArgs) -> Result<Outcome> {
    match (&args.path, &args.root) {
        (Some(path), _) if args.stdio => serve_one(place::local(path)?, args),
        (Some(path), _) => {
            let path = place::local(path)?;
            // A mistyped directory is noticed now, and not by the first client.
            let directory = Directory::open(path)?;
            serve_all(context, args, Served::One(directory.name().to_owned()))
        }
        (None, Some(root)) => {
            let root = place::local(root)?;
            let real = root.canonicalize();
            let real = real.map_err(Error::io(format!("open {}", root.display())))?;
            serve_all(context, args, Served::Below(real))
        }
        (None, None) => Err(Error::Bug("neither DIR nor --root".into())),
    }
}

/// Opens a repository for one client of many: its writers go through the process that has the repository open for all, which is
/// started where there is none.
fn open(path: &Path) -> vbk_repo::Result<Arc<dyn Home>> {
    let directory = Arc::new(Directory::open(path)?);
    Ok(local_home_starting(directory, start))
}

/// Starts a process that has a repository open for all. It outlives this one.
fn start(path: &Path) -> io::Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["serve", "--quiet", "--idle-exit", IDLE_EXIT, "--"])
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

fn serve_one(path: &Path, args: &ServeArgs) -> Result<Outcome> {
    let admission = Admission {
        who: Who {
            name: args.client.clone().unwrap_or_else(|| "ssh".to_owned()),
            address: ssh_client(),
        },
        rights: args.rights.map_or(Allowed::Everything, Allowed::from),
        guests: args.guests.clone(),
        // Without a forced command whoever comes by ssh can do all that this user can.
        is_administrator: args.rights.is_none()
            && args.guests.is_empty()
            && args.client.is_none()
            && Quota::from(args.quota).is_none(),
        quota: args.quota.into(),
    };
    // The client shows the error: nobody may see the standard error of this process.
    let place = path.to_owned();
    let make = move |options: &SealedOptions| Repository::create_sealed(&place, options).map(drop);
    serve_stdio(open(path), &admission, Arc::new(make)).map_err(Error::io("serve the client"))?;
    Ok(Outcome::Done)
}

/// Returns the address of the ssh client that this process serves: the first word of SSH_CONNECTION (ssh(1)).
fn ssh_client() -> Option<String> {
    let connection = std::env::var("SSH_CONNECTION").ok()?;
    connection.split_whitespace().next().map(str::to_owned)
}

#[derive(Serialize)]
struct Report {
    addresses: Vec<String>,
    fingerprint: Option<String>,
}

fn serve_all(context: &Context<'_>, args: &ServeArgs, served: Served) -> Result<Outcome> {
    let cancel = cancel_flag().map_err(Error::io("catch signals"))?;
    let notifier = Notifier::from_environment();
    let (Served::One(directory) | Served::Below(directory)) = &served;
    let directory = directory.clone();
    let shown = directory.display().to_string();
    let is_one = matches!(served, Served::One(_));
    let server = Server::new(served, Box::new(open)).map_err(Error::io("start the server"))?;
    if is_one {
        match server.share(&directory, args.idle_exit)? {
            true => context.say(format_args!("{shown} is open for all commands on this machine")),
            // One that an ssh client started lives as long as it has clients.
            false if !args.listen.is_empty() && args.idle_exit.is_none() => {
                server.share_later(&directory);
                context.say(format_args!(
                    "another process has {shown} open: clients go through it until it ends"
                ));
            }
            false => return Err(Error::Usage(format!("another `vbk serve` has {shown} open already"))),
        }
    }
    let (mut addresses, mut fingerprint) = (Vec::new(), None);
    if !args.listen.is_empty() {
        let key = load_or_make_key(&directory)?;
        for address in &args.listen {
            let bound = server.listen_tls(*address, &key);
            addresses.push(bound.map_err(Error::io(format!("listen on {address}")))?.to_string());
        }
        let own = key.public_key().fingerprint().to_string();
        context.say(format_args!(
            "serving {shown} on {}\nfingerprint {own}",
            addresses.join(", ")
        ));
        fingerprint = Some(own);
    }
    context.json_result(&Report { addresses, fingerprint })?;
    notifier.ready();
    let clients = server.run(&|| cancel.load(Ordering::SeqCst));
    notifier.stopping();
    if clients > 0 && !context.json() {
        context.say(format_args!(
            "ended with {}; a command that is at work goes on with the next server",
            units::count(clients as u64, "client")
        ));
    }
    Ok(Outcome::Done)
}
