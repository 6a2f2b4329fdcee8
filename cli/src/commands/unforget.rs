//! `vbk unforget`

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::args::UnforgetArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::forgotten::{Binned, BinnedJson, decoded};
use crate::period::Period;
use crate::signals;
use crate::terminal::units;

#[derive(Serialize)]
struct Report<'a> {
    backups: Vec<BinnedJson<'a>>,
}

/// Brings forgotten backups back.
pub fn run(context: &Context<'_>, args: &UnforgetArgs) -> Result<Outcome> {
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let writer = context.manager("unforget", args.no_wait, &cancel)?;
    let mut bin = decoded(writer.store().hashing(), writer.forgotten()?, &writer.states()?);
    let period = Period::new(args.since.as_ref(), None, Timestamp::now(), TimeZone::UTC)?;
    let is_empty = bin.is_empty();
    bin.retain(|binned| period.contains(binned.forgotten.removed));
    let chosen = choose(&bin, args)?;
    if chosen.is_empty() {
        context.say(match is_empty {
            true => "the bin is empty; nothing was brought back",
            false => "nothing was forgotten in that time; `vbk list --forgotten` lists what can be brought back",
        });
    }
    let mut back: Vec<&Binned> = Vec::new();
    for binned in &chosen {
        let spec = binned.entry.backup.spec();
        let of_name = |other: &&&Binned| other.entry.backup.spec() == spec;
        let why = if chosen.iter().filter(of_name).count() > 1 {
            // Whoever forgot the one may have made and forgotten the other to stand in its way.
            format!(
                "{spec} is the name of more than one forgotten backup, and none of them was brought back; choose by the id: {}",
                binned.entry.id.short()
            )
        } else {
            match writer.unforget(std::slice::from_ref(&binned.forgotten)) {
                Err(vbk_repo::Error::Missing { .. }) => {
                    format!("{spec} can't be brought back: a prune has removed blocks of it")
                }
                Err(vbk_repo::Error::BackupExists(_)) => {
                    format!("another backup has the name {spec} now; forget that one first, by its id")
                }
                brought => {
                    brought?;
                    context.say(format_args!("{spec} is back"));
                    back.push(binned);
                    continue;
                }
            }
        };
        match chosen.len() {
            1 => return Err(Error::Usage(why)),
            _ => tracing::warn!("{why}"),
        }
    }
    if chosen.len() > 1 {
        context.say(units::count(back.len() as u64, "backup"));
    }
    let is_whole = back.len() == chosen.len();
    context.json_result(&Report {
        backups: back.into_iter().map(BinnedJson::from).collect(),
    })?;
    Ok(match is_whole {
        true => Outcome::Done,
        false => Outcome::Failed,
    })
}

/// The error for a name that no backup in the bin has: it may be a part of one.
fn unknown(bin: &[Binned], what: &str) -> Error {
    let names: BTreeSet<_> = bin.iter().map(|one| one.entry.backup.spec()).collect();
    let matching = |name: &String| what.contains('@') && name.starts_with(what);
    let candidates: Vec<_> = names.into_iter().filter(matching).collect();
    match &candidates[..] {
        [] => Error::NotThere(format!(
            "{what} is not in the bin; `vbk list --forgotten` lists what can be brought back"
        )),
        [name] => Error::Usage(format!(
            "{what} is only a part of a backup's name; `vbk unforget` needs the whole name: {name}. Nothing was brought back"
        )),
        _ => Error::Repository(vbk_repo::Error::Ambiguous {
            spec: what.to_owned(),
            candidates,
        }),
    }
}

/// Chooses from the bin. The oldest backups come first, so that each has its base before it.
fn choose<'a>(bin: &'a [Binned], args: &UnforgetArgs) -> Result<Vec<&'a Binned>> {
    let mut chosen: Vec<&Binned> = Vec::new();
    if args.all {
        chosen.extend(bin);
    }
    for what in &args.what {
        let is_id = what.len() >= 4 && what.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_guest = |one: &&Binned| one.entry.backup.guest.as_str() == what;
        if bin.iter().any(|one| is_guest(&one)) {
            chosen.extend(bin.iter().filter(is_guest));
            continue;
        }
        let named = bin
            .iter()
            .filter(|one| one.entry.backup.spec() == *what || (is_id && one.entry.id.to_string().starts_with(what)));
        let named: Vec<_> = named.collect();
        let ids: BTreeSet<_> = named.iter().map(|one| one.entry.id.to_string()).collect();
        match ids.len() {
            0 => return Err(unknown(bin, what)),
            1 => chosen.extend(named.first()),
            _ => {
                return Err(Error::Usage(format!(
                    "{what} is the name of more than one forgotten backup; name it by its id: {}",
                    ids.into_iter().collect::<Vec<_>>().join(", ")
                )));
            }
        }
    }
    chosen.sort_by_key(|one| (one.entry.backup.sequence, one.entry.id.to_string()));
    chosen.dedup_by_key(|one| one.entry.id.to_string());
    Ok(chosen)
}
