//! New passphrases, key files and recovery keys, for `vbk init` and `vbk key add`.

use std::path::Path;

use vbk_repo::keys::{self, RecoveryKey, SlotKind, Unlock};

use crate::context::Context;
use crate::core_files::keep_out_of_core_files;
use crate::exit::{Error, Outcome, Result};
use crate::terminal::output;
use crate::unlock;

/// Returns the default name of a slot.
pub fn name_of(kind: SlotKind) -> &'static str {
    match kind {
        SlotKind::Passphrase => "passphrase",
        SlotKind::KeyFile => "key-file",
        SlotKind::Recovery => "recovery",
    }
}

/// Reads a key file, or creates it.
pub fn key_file(path: &Path) -> Result<Unlock> {
    match path.exists() {
        true => unlock::key_file(path),
        false => Ok(keys::create_key_file(path)?),
    }
}

/// Prints a recovery key, even with --quiet: it is shown only once.
pub fn show_recovery_key(context: &Context<'_>, key: &str) {
    context.print(format_args!(
        "Recovery key, shown only this once; write it down and keep it away from this machine:\n\n    {key}\n\n"
    ));
}

/// Returns the outcome of a run that showed a recovery key. Fails if the key could not be shown, because its slot exists.
pub fn after_recovery_key(name: &str) -> Outcome {
    if !output::is_closed() {
        return Outcome::Done;
    }
    tracing::error!(
        "the recovery key could not be shown, and nothing else opens its slot; `vbk key remove {name}` removes the slot, and \
         `vbk key add --recovery` adds another"
    );
    Outcome::Failed
}

/// Returns the name of the slot for a new repository's recovery key.
pub fn recovery_name() -> &'static str {
    name_of(SlotKind::Recovery)
}

/// Keys of a new repository.
pub struct NewWays {
    /// Name and key of each slot.
    pub slots: Vec<(String, Unlock)>,
    /// Text of the recovery key.
    pub recovery_key: Option<String>,
}

/// Asks for the keys of a new repository, or generates them.
pub fn ways_of_new(context: &Context<'_>, repository: &Path, recovery: bool) -> Result<NewWays> {
    keep_out_of_core_files();
    let way = match context.new_key_file(repository)? {
        Some(path) => key_file(path)?,
        None => match context.given_key(repository)? {
            Some(way) => way,
            None => unlock::ask_new("--passphrase-file FILE or --key-file FILE")?,
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
