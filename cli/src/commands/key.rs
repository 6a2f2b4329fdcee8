//! `vbk key`

use std::path::Path;

use serde::Serialize;
use vbk_repo::files::{self, Mode, Synced};
use vbk_repo::keys::{self, Keys, PassphraseCost, RecoveryKey, Unlock};
use vbk_repo::repository::Repository;

use crate::args::{KeyAddArgs, KeyCommand};
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::new_keys::{after_recovery_key, key_file, name_of, show_recovery_key};
use crate::terminal::output;
use crate::terminal::table::{Align, Table};
use crate::terminal::units;
use crate::unlock;

/// Lists, adds, removes or exports keys of an encrypted repository.
pub fn run(context: &Context<'_>, command: &KeyCommand) -> Result<Outcome> {
    match command {
        KeyCommand::List => list(context),
        KeyCommand::Add(args) => add(context, args),
        KeyCommand::Remove { name } => {
            let repository = encrypted(context.locked_repository_to_write()?)?;
            repository.remove_key(name, &context.key_of(&repository)?)?;
            context.say(format_args!(
                "key {name} is removed; anyone who has it and a copy of its slot can still read"
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
    let slots: Vec<_> = repository
        .key_slots()?
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
    keys_of(&repository)?;
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
        unlock::ask_new("--new-passphrase-file FILE, --new-key-file FILE or --recovery")?
    };
    let name = args.name.clone().unwrap_or_else(|| name_of(way.kind()).to_owned());
    repository.add_key(&name, &way, PassphraseCost::default())?;
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

fn export(context: &Context<'_>, path: &Path) -> Result<Outcome> {
    let repository = context.repository()?;
    let keys = keys_of(&repository)?;
    let text = keys::export(keys, &repository.view()?.identity().id);
    if path == Path::new("-") {
        output::write_bytes(text.as_bytes());
        return Ok(Outcome::Done);
    }
    let failed = |error: std::io::Error| Error::io(format!("write {}", path.display()))(error);
    files::create(path, text.as_bytes(), Mode::Private, Synced::FileAndDirectory).map_err(failed)?;
    context.say(format_args!(
        "the master key is in {}: --key-file opens the repository with it, even when all key slots are lost. Anyone who has \
         it can read everything, for ever",
        path.display()
    ));
    Ok(Outcome::Done)
}
