//! `vbk init`

use serde::Serialize;
use vbk_repo::keys::Keys;
use vbk_repo::repository::{CreateOptions, Repository};

use crate::args::InitArgs;
use crate::commands::key;
use crate::context::Context;
use crate::exit::{Outcome, Result};
use crate::units;

#[derive(Serialize)]
struct Report {
    repository: String,
    id: String,
    block_size: u64,
    encrypted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_key: Option<String>,
}

/// Makes a repository.
pub fn run(context: &Context<'_>, args: &InitArgs) -> Result<Outcome> {
    let path = match &args.path {
        Some(path) => path.as_path(),
        None => context.repository_path()?,
    };
    let mut options = CreateOptions::plain(args.block_size);
    let mut recovery_key = None;
    if args.encrypt {
        // Before anybody is asked for a passphrase.
        Repository::check_place(path)?;
        let (ways, text) = key::ways_of_new(context, !args.no_recovery_key)?;
        recovery_key = text;
        options.encryption = Some((Keys::generate()?, ways));
    }
    let repository = Repository::create(path, &options)?;
    let view = repository.view()?;
    let identity = view.identity();
    let path = repository.path().display();
    let encrypted = if args.encrypt { "encrypted " } else { "" };
    context.say(format_args!(
        "made {encrypted}repository {path} with blocks of {}; `vbk --repo {path} backup GUEST DISK` makes the first backup",
        units::size(identity.block_size.into())
    ));
    if let Some(text) = &recovery_key {
        key::show_recovery_key(context, text);
    }
    context.json_result(&Report {
        repository: path.to_string(),
        id: identity.id.clone(),
        block_size: identity.block_size.into(),
        encrypted: args.encrypt,
        recovery_key,
    })?;
    Ok(Outcome::Done)
}
