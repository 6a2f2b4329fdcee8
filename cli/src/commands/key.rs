//! `vbk key`

use std::path::Path;

use serde::Serialize;
use vbk_repo::files::{self, Mode, Synced};
use vbk_repo::keys::{self, Keys, PassphraseCost, RecoveryKey, SlotInfo, SlotKind, Unlock};
use vbk_repo::repository::Repository;

use crate::args::{KeyAddArgs, KeyCommand, KeyPasswdArgs};
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
            let (key, repository) = context.with_key(&repository)?;
            repository.remove_key(name, &key)?;
            context.say(format_args!(
                "key {name} is removed; anyone who has it and a copy of its slot can still read"
            ));
            // It is removed, whatever becomes of this question.
            if let Ok(slots) = repository.key_slots()
                && let [Ok(last)] = &slots[..]
            {
                context.say(format_args!(
                    "one key is left, {} ({}): without it nothing can be read. `vbk key add --recovery` adds another",
                    last.name, last.kind
                ));
            }
            Ok(Outcome::Done)
        }
        KeyCommand::Passwd(args) => passwd(context, args),
        KeyCommand::Export { file } => export(context, file),
    }
}

#[derive(Serialize)]
struct Report {
    keys: Vec<SlotJson>,
}

#[derive(Serialize)]
struct SlotJson {
    /// Null, like the next two, if the slot is damaged.
    name: Option<String>,
    kind: Option<SlotKind>,
    created: Option<jiff::Timestamp>,
    /// Description of the damage.
    damaged: Option<String>,
}

fn list(context: &Context<'_>) -> Result<Outcome> {
    let repository = encrypted(context.locked_repository()?)?;
    let slots: Vec<_> = repository
        .key_slots()?
        .into_iter()
        .map(|slot| match slot {
            Ok(slot) => SlotJson {
                name: Some(slot.name),
                kind: Some(slot.kind),
                created: Some(slot.created),
                damaged: None,
            },
            Err(error) => SlotJson {
                name: None,
                kind: None,
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
    for slot in &slots {
        if let (Some(name), Some(kind), Some(created)) = (&slot.name, slot.kind, slot.created) {
            table.row(vec![name.clone(), kind.to_string(), units::time(created)]);
        }
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
    context.json_result(&Report { keys: slots })?;
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
    kind: SlotKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_key: Option<String>,
}

fn add(context: &Context<'_>, args: &KeyAddArgs) -> Result<Outcome> {
    let repository = context.repository_to_write()?;
    keys_of(&repository)?;
    let (way, recovery_key) = new_key(args)?;
    let name = args.name.clone().unwrap_or_else(|| name_of(way.kind()).to_owned());
    repository.add_key(&name, &way, PassphraseCost::default())?;
    context.say(format_args!("added key {name} ({})", way.kind()));
    let shows_key = recovery_key.is_some();
    if let Some(key) = &recovery_key {
        show_recovery_key(context, key);
    }
    context.json_result(&Added {
        name: name.clone(),
        kind: way.kind(),
        recovery_key,
    })?;
    Ok(match shows_key {
        true => after_recovery_key(&name),
        false => Outcome::Done,
    })
}

/// Returns the new key that the arguments name, or asks for a passphrase; and the text of a new recovery key.
fn new_key(args: &KeyAddArgs) -> Result<(Unlock, Option<String>)> {
    if args.recovery {
        let key = RecoveryKey::generate()?;
        let text = key.text().to_string();
        return Ok((Unlock::Recovery(key), Some(text)));
    }
    let way = if let Some(path) = &args.new_key_file {
        key_file(path)?
    } else if let Some(path) = &args.new_passphrase_file {
        unlock::passphrase_file(path)?
    } else {
        unlock::ask_new("--new-passphrase-file FILE, --new-key-file FILE or --recovery")?
    };
    Ok((way, None))
}

#[derive(Serialize)]
struct Changed {
    name: String,
    kind: SlotKind,
    replaces: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_key: Option<String>,
}

/// Changes a key: adds the new one, and removes the old one with the new one as the proof that the repository still opens. A crash
/// in between leaves both. Slots have different names, so the new one has another.
fn passwd(context: &Context<'_>, args: &KeyPasswdArgs) -> Result<Outcome> {
    let repository = encrypted(context.locked_repository_to_write()?)?;
    // Asked for once.
    let (given, repository) = context.with_key(&repository)?;
    let slots = named_slots(&repository)?;
    let old = old_key(&repository, &slots, &given, args.old.as_deref())?;
    let (way, recovery_key) = new_key(&args.new)?;
    let name = match &args.new.name {
        Some(name) => name.clone(),
        None => free_name(&old, way.kind(), &slots),
    };
    repository.add_key(&name, &way, PassphraseCost::default())?;
    let report = Changed {
        name,
        kind: way.kind(),
        replaces: old,
        recovery_key,
    };
    let Changed {
        name, replaces: old, ..
    } = &report;
    // Before the old one goes: a recovery key that was not shown opens nothing.
    if let Some(key) = &report.recovery_key {
        show_recovery_key(context, key);
        context.json_result(&report)?;
        if after_recovery_key(name) == Outcome::Failed {
            return Ok(Outcome::Failed);
        }
    }
    if let Err(error) = repository.remove_key(old, &way) {
        tracing::error!(
            "key {name} was added, but key {old} could not be removed: both open the repository; `vbk key remove {old}` removes it"
        );
        return Err(error.into());
    }
    context.say(format_args!(
        "key {name} ({}) replaces key {old}; anyone who has the old one and a copy of its slot can still read",
        report.kind
    ));
    if report.recovery_key.is_none() {
        context.json_result(&report)?;
    }
    Ok(Outcome::Done)
}

/// Returns the name of the key to change: the one that is named, or else the one that opens the repository.
fn old_key(repository: &Repository, slots: &[NamedSlot], given: &Unlock, named: Option<&str>) -> Result<String> {
    let known = || {
        let names = slots.iter().map(|(name, _)| name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    if let Some(named) = named {
        return match slots.iter().any(|(name, _)| name == named) {
            true => Ok(named.to_owned()),
            false => Err(vbk_repo::Error::NoSuchKey {
                name: named.to_owned(),
                known: known(),
            }
            .into()),
        };
    }
    // The only one for a passphrase is the one that opened it, and need not be tried again for a second.
    let for_passphrase = slots.iter().filter(|(_, kind)| *kind == Some(SlotKind::Passphrase));
    let found = match (given.kind(), for_passphrase.collect::<Vec<_>>().as_slice()) {
        (SlotKind::Passphrase, [(name, _)]) => Some(name.clone()),
        _ => repository.slot_of(given)?,
    };
    match found {
        Some(name) if given.kind() != SlotKind::Recovery => Ok(name),
        found => {
            let what = match found {
                Some(_) => "a recovery key",
                None => "an exported key, which has no key slot",
            };
            Err(Error::Usage(format!(
                "the repository was opened with {what}; name the key to change: `vbk key passwd NAME`, with one of: {}",
                known()
            )))
        }
    }
}

/// Name of a slot, and its kind if it is not damaged.
type NamedSlot = (String, Option<SlotKind>);

/// Returns the names and kinds of all slots.
fn named_slots(repository: &Repository) -> Result<Vec<NamedSlot>> {
    let named = |slot| match slot {
        Ok(SlotInfo { name, kind, .. }) => Some((name, Some(kind))),
        Err(vbk_repo::Error::KeySlotDamaged { path, .. }) => {
            Some((path.file_stem()?.to_string_lossy().into_owned(), None))
        }
        Err(_) => None,
    };
    Ok(repository.key_slots()?.into_iter().filter_map(named).collect())
}

/// Returns a name that no slot has: `passphrase-2` after `passphrase`, and `passphrase` after that. A key of another kind is not
/// called like the old one.
fn free_name(old: &str, kind: SlotKind, slots: &[NamedSlot]) -> String {
    let is_of_kind = |(name, its): &NamedSlot| name == old && its.is_none_or(|its| its == kind);
    let base = match old.rsplit_once('-') {
        _ if !slots.iter().any(is_of_kind) => name_of(kind),
        Some((base, number)) if !base.is_empty() && number.parse::<u32>().is_ok() => base,
        _ => old,
    };
    let is_free = |name: &String| slots.iter().all(|(known, _)| known != name);
    let numbered = (2..).map(|number: u32| format!("{base}-{number}"));
    let mut all = std::iter::once(base.to_owned()).chain(numbered);
    all.find(is_free).expect("there are fewer slots than numbers")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_replaces_another_has_a_free_name() {
        let [phrase, file] = [SlotKind::Passphrase, SlotKind::KeyFile];
        for (old, kind, slots, expected) in [
            (
                "passphrase",
                phrase,
                &[("passphrase", Some(phrase))][..],
                "passphrase-2",
            ),
            ("passphrase-2", phrase, &[("passphrase-2", Some(phrase))], "passphrase"),
            (
                "passphrase",
                phrase,
                &[("passphrase", Some(phrase)), ("passphrase-2", None)],
                "passphrase-3",
            ),
            ("anna", phrase, &[("anna", None)], "anna-2"),
            ("host2", file, &[("host2", Some(phrase))], "key-file"),
            (
                "host2",
                file,
                &[("host2", Some(phrase)), ("key-file", Some(file))],
                "key-file-2",
            ),
        ] {
            let slots: Vec<_> = slots.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
            assert_eq!(free_name(old, kind, &slots), expected);
        }
    }
}
