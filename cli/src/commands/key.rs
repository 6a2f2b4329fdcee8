//! `vbk key`

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use vbk_repo::keys::{self, Keys, PassphraseCost, RecoveryKey, SlotKind, Unlock};
use vbk_repo::repository::Repository;

use crate::args::{KeyAddArgs, KeyCommand};
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::terminal::output;
use crate::terminal::table::{Align, Table};
use crate::terminal::units;
use crate::unlock;

/// Manages what opens an encrypted repository.
pub fn run(context: &Context<'_>, command: &KeyCommand) -> Result<Outcome> {
    match command {
        KeyCommand::List => list(context),
        KeyCommand::Add(args) => add(context, args),
        KeyCommand::Remove { name } => {
            let repository = encrypted(context.locked_repository_to_write()?)?;
            repository.remove_key(name, &context.key_of(&repository)?)?;
            context.say(format_args!(
                "key {name} is removed; who has it and a copy of its slot can still read"
            ));
            Ok(Outcome::Done)
        }
        KeyCommand::Export { file } => export(context, file),
    }
}

#[derive(Serialize)]
struct SlotJson {
    name: String,
    kind: String,
    created: Option<jiff::Timestamp>,
    damaged: Option<String>,
}

fn list(context: &Context<'_>) -> Result<Outcome> {
    let repository = encrypted(context.locked_repository()?)?;
    let slots: Vec<_> = keys::slots(repository.path())?
        .into_iter()
        .map(|slot| match slot {
            Ok(slot) => SlotJson {
                name: slot.name,
                kind: slot.kind.to_string(),
                created: Some(slot.created),
                damaged: None,
            },
            Err(error) => SlotJson {
                name: String::new(),
                kind: String::new(),
                created: None,
                damaged: Some(error.to_string()),
            },
        })
        .collect();
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("OPENS WITH", Align::Left),
        ("CREATED", Align::Left),
    ]);
    for slot in slots.iter().filter(|slot| slot.damaged.is_none()) {
        let created = slot.created.map(units::time).unwrap_or_default();
        table.row(vec![slot.name.clone(), slot.kind.clone(), created]);
    }
    context.print(table);
    let damaged: Vec<_> = slots.iter().filter_map(|slot| slot.damaged.as_ref()).collect();
    for what in &damaged {
        tracing::warn!("{what}");
    }
    let outcome = if damaged.is_empty() {
        Outcome::Done
    } else {
        Outcome::Damage
    };
    context.json_result(&slots)?;
    Ok(outcome)
}

fn encrypted(repository: Repository) -> Result<Repository> {
    match repository.is_encrypted() {
        true => Ok(repository),
        false => Err(vbk_repo::Error::NotEncrypted {
            path: repository.path().to_owned(),
        }
        .into()),
    }
}

fn keys_of(repository: &Repository) -> Result<&Keys> {
    repository.keys().ok_or_else(|| {
        let path = repository.path().to_owned();
        vbk_repo::Error::NotEncrypted { path }.into()
    })
}

#[derive(Serialize)]
struct Added {
    name: String,
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_key: Option<String>,
}

fn add(context: &Context<'_>, args: &KeyAddArgs) -> Result<Outcome> {
    let repository = context.repository_to_write()?;
    let keys = keys_of(&repository)?;
    let mut recovery_key = None;
    let way = if args.recovery {
        let key = RecoveryKey::generate()?;
        recovery_key = Some(key.text().to_string());
        Unlock::Recovery(key)
    } else if let Some(path) = &args.new_key_file {
        key_file(path)?
    } else if let Some(path) = &args.new_passphrase_file {
        unlock::passphrase_file(path)?
    } else {
        unlock::ask_new()?
    };
    let name = args.name.clone().unwrap_or_else(|| name_of(way.kind()).to_owned());
    keys::add(repository.path(), &name, keys, &way, PassphraseCost::default())?;
    context.say(format_args!("added key {name} ({})", way.kind()));
    let shows_key = recovery_key.is_some();
    if let Some(key) = &recovery_key {
        show_recovery_key(context, key);
    }
    context.json_result(&Added {
        name: name.clone(),
        kind: way.kind().to_string(),
        recovery_key,
    })?;
    Ok(match shows_key {
        true => after_recovery_key(&name),
        false => Outcome::Done,
    })
}

/// What a slot is called unless it is given a name.
fn name_of(kind: SlotKind) -> &'static str {
    match kind {
        SlotKind::Passphrase => "passphrase",
        SlotKind::KeyFile => "key-file",
        SlotKind::Recovery => "recovery",
    }
}

/// A key file, made if it is not there.
pub fn key_file(path: &Path) -> Result<Unlock> {
    match path.exists() {
        true => unlock::key_file(path),
        false => Ok(keys::create_key_file(path)?),
    }
}

/// Also when quiet: it is shown this once.
pub fn show_recovery_key(context: &Context<'_>, key: &str) {
    context.print(format_args!(
        "Recovery key, shown only this once; write it down and keep it away from this machine:\n\n    {key}\n\n"
    ));
}

/// How a run ends that showed a recovery key: a slot that opens with what nobody has read is said to be there.
pub fn after_recovery_key(name: &str) -> Outcome {
    if !output::is_closed() {
        return Outcome::Done;
    }
    tracing::error!(
        "the recovery key could not be shown, and nothing else opens its slot: `vbk key remove {name}` removes that, and \
         `vbk key add --recovery` makes another"
    );
    Outcome::Failed
}

fn export(context: &Context<'_>, path: &Path) -> Result<Outcome> {
    let repository = context.repository()?;
    let keys = keys_of(&repository)?;
    let text = keys::export(keys, &repository.view()?.identity().id);
    if path == Path::new("-") {
        output::write_bytes(text.as_bytes());
        return Ok(Outcome::Done);
    }
    let failed = |error: std::io::Error| Error::io(format!("write {}", path.display()))(error);
    let mut options = File::options();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(failed)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    context.say(format_args!(
        "the master key is in {}: --key-file opens the repository with it, also when all key slots are lost. Whoever has it \
         reads everything, for ever",
        path.display()
    ));
    Ok(Outcome::Done)
}

/// What the slot of a new repository's recovery key is called.
pub fn recovery_name() -> &'static str {
    name_of(SlotKind::Recovery)
}

/// What a new repository opens with.
pub struct NewWays {
    /// The name and the way of each slot.
    pub slots: Vec<(String, Unlock)>,
    /// The text of the recovery key.
    pub recovery_key: Option<String>,
}

/// Asks for, or makes, what a new repository opens with.
pub fn ways_of_new(context: &Context<'_>, repository: &Path, recovery: bool) -> Result<NewWays> {
    unlock::keep_out_of_core_files();
    let way = match context.new_key_file(repository)? {
        Some(path) => key_file(path)?,
        None => match context.given_key(repository)? {
            Some(way) => way,
            None => unlock::ask_new()?,
        },
    };
    if way.kind() == SlotKind::Recovery {
        return Err(Error::Usage(
            "that is a recovery key; choose a passphrase of your own".into(),
        ));
    }
    let mut ways = vec![(name_of(way.kind()).to_owned(), way)];
    let mut text = None;
    if recovery {
        let key = RecoveryKey::generate()?;
        text = Some(key.text().to_string());
        ways.push((name_of(SlotKind::Recovery).to_owned(), Unlock::Recovery(key)));
    }
    Ok(NewWays {
        slots: ways,
        recovery_key: text,
    })
}
