//! `vbk init`

use std::path::Path;

use serde::Serialize;
use vbk_repo::keys::Keys;
use vbk_repo::repository::{CreateOptions, Repository};

use crate::args::InitArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::new_keys::{after_recovery_key, recovery_name, show_recovery_key, ways_of_new};
use crate::place;
use crate::terminal::units;

#[derive(Serialize)]
struct Report {
    repository: String,
    /// Missing if the new repository can't be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    block_size: u64,
    encrypted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_key: Option<String>,
}

/// Creates a repository.
pub fn run(context: &Context<'_>, args: &InitArgs) -> Result<Outcome> {
    let path = match &args.path {
        Some(path) => path,
        None => context.repository_path()?,
    };
    let elsewhere = place::new_elsewhere(path)?;
    if args.like.like.is_none() {
        check_expected(context, path, args.encrypt)?;
    }
    if elsewhere.is_none() {
        // Reports an existing repository or other files first.
        Repository::check_place(path)?;
    }
    let known = context.memory().and_then(|memory| memory.get(path).ok()?);
    if elsewhere.is_some() && known.is_some() && context.open_at(path).is_ok() {
        let path = path.to_owned();
        return Err(vbk_repo::Error::AlreadyARepository { path }.into());
    }
    if let Some(known) = known {
        return Err(Error::Usage(format!(
            "this host used a repository at {path} ({known}), which does not exist any more; nothing was created. Is its file \
             system mounted? To create a new repository there, first make this host forget the old one: `vbk --repo {path} \
             trust --forget`",
            path = path.display()
        )));
    }
    let like = match &args.like.like {
        Some(like) => Some(context.other(like, &args.like.keys())?),
        None => None,
    };
    let (block_size, keys) = match &like {
        Some(like) => (like.view.identity().block_size, like.repository.keys().cloned()),
        None => (args.block_size, None),
    };
    let encrypts = args.encrypt || keys.is_some();
    check_expected(context, path, encrypts)?;
    if args.no_recovery_key && !encrypts {
        return Err(Error::Usage(
            "--no-recovery-key is for an encrypted repository; nothing was created".into(),
        ));
    }
    let mut options = CreateOptions::plain(block_size);
    options.parents = args.parents;
    let mut recovery_key = None;
    if encrypts {
        // Before asking for a passphrase.
        if elsewhere.is_none() {
            check_parent(path, args.parents)?;
        }
        let ways = ways_of_new(context, path, !args.no_recovery_key)?;
        recovery_key = ways.recovery_key;
        let keys = match keys {
            Some(keys) => keys,
            None => Keys::generate()?,
        };
        options.encryption = Some((keys, ways.slots));
    }
    let repository = match &elsewhere {
        Some(address) => context.create_at(address, &options)?,
        None => Repository::create(path, &options).map_err(|error| match error {
            vbk_repo::Error::NoParent { parent } => no_parent(&parent),
            error => error.into(),
        })?,
    };
    context.remember_new(&repository);
    // The recovery key is shown before anything that may fail.
    let path = repository.path().display();
    let encrypted = if encrypts { "encrypted " } else { "" };
    context.say(format_args!(
        "created {encrypted}repository {path} with blocks of {}; `vbk --repo {path} backup GUEST DISK` makes the first backup",
        units::size(block_size.into())
    ));
    if let Some(text) = &recovery_key {
        show_recovery_key(context, text);
    }
    let shows_key = recovery_key.is_some();
    let view = repository.view();
    context.json_result(&Report {
        repository: path.to_string(),
        id: view.as_ref().ok().map(|view| view.identity().id.clone()),
        block_size: block_size.into(),
        encrypted: encrypts,
        recovery_key,
    })?;
    view?;
    Ok(match shows_key {
        true => after_recovery_key(recovery_name()),
        false => Outcome::Done,
    })
}

/// Fails if a repository that will not be encrypted should be.
fn check_expected(context: &Context<'_>, path: &Path, encrypts: bool) -> Result<()> {
    match context.expects_encryption(path)?.filter(|_| !encrypts) {
        Some(what) => Err(Error::Usage(format!(
            "{what}, which requires --encrypt; anyone with access to its disk can read a repository that is not encrypted"
        ))),
        None => Ok(()),
    }
}

/// Fails with the error of creating the repository, if the parent directory does not exist.
fn check_parent(path: &Path, parents: bool) -> Result<()> {
    let path = std::path::absolute(path).map_err(Error::io(format!("find the absolute path of {}", path.display())))?;
    match path.parent() {
        Some(parent) if !parents && !parent.exists() => Err(no_parent(parent)),
        _ => Ok(()),
    }
}

fn no_parent(parent: &Path) -> Error {
    Error::NotThere(format!(
        "the parent directory {} does not exist; is its file system mounted? --parents creates it",
        parent.display()
    ))
}
