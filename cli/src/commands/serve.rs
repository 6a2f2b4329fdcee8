//! `vbk serve`

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;
use vbk_remote::server::{Allowed, Served, Server, load_or_make_key, serve_stdio};
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::home::Home;

use crate::args::ServeArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::notify::Notifier;
use crate::place;
use crate::signals::cancel_flag;

/// Serves one client until it hangs up, or all that come until a signal.
pub fn run(context: &Context<'_>, args: &ServeArgs) -> Result<Outcome> {
    match (&args.path, &args.root) {
        (Some(path), _) if args.stdio => serve_one(place::local(path)?, args),
        (Some(path), _) => {
            let path = place::local(path)?;
            // A mistyped directory is noticed now, and not by the first client.
            let directory = open(path)?;
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

fn open(path: &Path) -> vbk_repo::Result<Arc<dyn Home>> {
    Directory::open(path).map(|directory| Arc::new(directory) as _)
}

fn serve_one(path: &Path, args: &ServeArgs) -> Result<Outcome> {
    let allowed = Allowed::from(args.rights);
    // The client shows the error: nobody may see the standard error of this process.
    serve_stdio(open(path), allowed, &args.guests).map_err(Error::io("serve the client"))?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct Report {
    addresses: Vec<String>,
    fingerprint: String,
}

fn serve_all(context: &Context<'_>, args: &ServeArgs, served: Served) -> Result<Outcome> {
    let cancel = cancel_flag().map_err(Error::io("catch signals"))?;
    let notifier = Notifier::from_environment();
    let (Served::One(directory) | Served::Below(directory)) = &served;
    let shown = directory.display().to_string();
    let key = load_or_make_key(directory)?;
    let server = Server::new(served, Box::new(open)).map_err(Error::io("start the server"))?;
    let mut addresses = Vec::new();
    for address in &args.listen {
        let bound = server.listen_tls(*address, &key);
        addresses.push(bound.map_err(Error::io(format!("listen on {address}")))?.to_string());
    }
    let fingerprint = key.public_key().fingerprint().to_string();
    context.say(format_args!(
        "serving {shown} on {}\nfingerprint {fingerprint}",
        addresses.join(", ")
    ));
    context.json_result(&Report { addresses, fingerprint })?;
    notifier.ready();
    server.run(&|| cancel.load(Ordering::SeqCst));
    notifier.stopping();
    Ok(Outcome::Done)
}
