//! `vbk serve`

use std::sync::Arc;

use vbk_remote::server::{Allowed, serve_stdio};
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::home::Home;

use crate::args::{RightsArg, ServeArgs};
use crate::exit::{Error, Outcome, Result};
use crate::place;

/// Serves a client until it hangs up.
pub fn run(args: &ServeArgs) -> Result<Outcome> {
    let path = place::local(&args.path)?;
    // The client shows the error: nobody may see the standard error of this process.
    let home = Directory::open(path).map(|directory| Arc::new(directory) as Arc<dyn Home>);
    let allowed = match args.rights {
        RightsArg::Restore => Allowed::Read,
        RightsArg::Backup => Allowed::Add,
        RightsArg::Manage => Allowed::Everything,
    };
    serve_stdio(home, allowed).map_err(Error::io("serve the client"))?;
    Ok(Outcome::Done)
}
