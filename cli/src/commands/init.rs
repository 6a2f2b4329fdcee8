//! `vbk init`

use serde::Serialize;
use vbk_repo::keys::Keys;
use vbk_repo::repository::{CreateOptions, Repository};

use crate::args::InitArgs;
use crate::commands::key;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::units;

#[derive(Serialize)]
struct Report {
    repository: String,
    /// Missing if what was made can't be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
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
    if let Some(option) = context.key_option().filter(|_| !args.encrypt) {
        return Err(Error::Usage(format!(
            "{option} goes with --encrypt; without it a repository is made that everybody with the disk can read"
        )));
    }
    let mut options = CreateOptions::plain(args.block_size);
    let mut recovery_key = None;
    if args.encrypt {
        // Before anybody is asked for a passphrase.
        Repository::check_place(path)?;
        let ways = key::ways_of_new(context, path, !args.no_recovery_key)?;
        recovery_key = ways.recovery_key;
        options.encryption = Some((Keys::generate()?, ways.slots));
    }
    let repository = Repository::create(path, &options)?;
    // The recovery key is shown before anything that may fail.
    let path = repository.path().display();
    let encrypted = if args.encrypt { "encrypted " } else { "" };
    context.say(format_args!(
        "made {encrypted}repository {path} with blocks of {}; `vbk --repo {path} backup GUEST DISK` makes the first backup",
        units::size(args.block_size.into())
    ));
    if let Some(text) = &recovery_key {
        key::show_recovery_key(context, text);
    }
    let shows_key = recovery_key.is_some();
    let view = repository.view();
    context.json_result(&Report {
        repository: path.to_string(),
        id: view.as_ref().ok().map(|view| view.identity().id.clone()),
        block_size: args.block_size.into(),
        encrypted: args.encrypt,
        recovery_key,
    })?;
    view?;
    Ok(match shows_key {
        true => key::after_recovery_key(key::recovery_name()),
        false => Outcome::Done,
    })
}
