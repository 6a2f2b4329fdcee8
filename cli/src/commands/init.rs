//! `vbk init`

use serde::Serialize;
use vbk_repo::repository::Repository;

use crate::args::InitArgs;
use crate::context::Context;
use crate::exit::{Outcome, Result};
use crate::units;

#[derive(Serialize)]
struct Report {
    repository: String,
    id: String,
    block_size: u64,
}

/// Makes a repository.
pub fn run(context: &Context<'_>, args: &InitArgs) -> Result<Outcome> {
    let path = match &args.path {
        Some(path) => path.as_path(),
        None => context.repository_path()?,
    };
    let repository = Repository::create(path, args.block_size)?;
    let view = repository.view()?;
    let identity = view.identity();
    let path = repository.path().display();
    context.say(format_args!(
        "made repository {path} with blocks of {}; `vbk --repo {path} backup GUEST DISK` makes the first backup",
        units::size(identity.block_size.into())
    ));
    context.json_result(&Report {
        repository: path.to_string(),
        id: identity.id.clone(),
        block_size: identity.block_size.into(),
    })?;
    Ok(Outcome::Done)
}
