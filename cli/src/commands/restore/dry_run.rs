//! `vbk restore --dry-run`: describes what would be written, and whether it would be refused.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vbk::restore::RestoreOptions;
use vbk::restore::preview::{Preview, preview};

use super::Disk;
use crate::context::Context;
use crate::exit::{Outcome, Result};
use crate::terminal::units;

/// The target of a disk or file, as a restore would find it.
#[derive(Serialize)]
pub(super) struct DryRunJson {
    backup: String,
    disk: String,
    target: PathBuf,
    dry_run: bool,
    size_bytes: u64,
    data_bytes: u64,
    #[serde(flatten)]
    found: FoundJson,
}

/// Findings about a target.
#[derive(Serialize, Default)]
pub(super) struct FoundJson {
    /// `device`, `file`, `new-file` or `stdout`.
    kind: &'static str,
    /// Size of an existing device or file.
    target_bytes: Option<u64>,
    /// Free bytes of the file system of a file.
    free_bytes: Option<u64>,
    /// User of the target.
    in_use: Option<String>,
    /// Identities of the disk on a device.
    holds: Vec<String>,
    /// Message of the error of a restore.
    refused: Option<String>,
}

impl FoundJson {
    /// Takes the findings of a preview.
    pub(super) fn new(found: &Preview) -> Self {
        Self {
            kind: match (found.is_device, found.target_bytes) {
                (true, _) => "device",
                (false, Some(_)) => "file",
                (false, None) => "new-file",
            },
            target_bytes: found.target_bytes,
            free_bytes: found.free_bytes,
            in_use: found.user.clone(),
            holds: found.holds.clone(),
            refused: found.refusal.as_ref().map(ToString::to_string),
        }
    }

    /// Makes the findings about a file in a directory that would be made.
    pub(super) fn in_new_directory(free_bytes: Option<u64>) -> Self {
        Self {
            kind: "new-file",
            free_bytes,
            ..Self::default()
        }
    }

    /// Returns the message of the error of a restore.
    pub(super) fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Returns the outcome of a dry run that found this.
    pub(super) fn outcome(&self) -> Outcome {
        match self.refused {
            Some(_) => Outcome::Failed,
            None => Outcome::Done,
        }
    }
}

impl DryRunJson {
    /// Describes a disk for this target.
    pub(super) fn new(disk: &Disk<'_>, target: &Path, found: FoundJson) -> Self {
        Self {
            backup: disk.backup.spec(),
            disk: disk.image.disk.to_string(),
            target: target.to_owned(),
            dry_run: true,
            size_bytes: disk.image.size_bytes,
            data_bytes: disk.image.data_bytes,
            found,
        }
    }

    /// Returns the outcome of the dry run of this disk.
    pub(super) fn outcome(&self) -> Outcome {
        self.found.outcome()
    }

    /// Returns a sentence for people.
    fn sentence(&self) -> String {
        let size = |bytes: Option<u64>| units::size(bytes.unwrap_or(0));
        let found = &self.found;
        format!(
            "{}/{}: {} ({} of data) would be restored to {}, {}; nothing was written",
            self.backup,
            self.disk,
            units::size(self.size_bytes),
            units::size(self.data_bytes),
            self.target.display(),
            match found.kind {
                "device" => format!("a device of {}", size(found.target_bytes)),
                "file" => format!(
                    "in place of a file of {}, with {} free there",
                    size(found.target_bytes),
                    size(found.free_bytes)
                ),
                _ => format!("a new file, with {} free there", size(found.free_bytes)),
            }
        )
    }

    /// Prints the findings for people.
    pub(super) fn say(&self, context: &Context<'_>) {
        context.say(self.sentence());
        say_found(context, &self.target, &self.found);
    }
}

/// Prints what is at a target, and whether a restore would be refused.
pub(super) fn say_found(context: &Context<'_>, target: &Path, found: &FoundJson) {
    let target = target.display();
    if !found.holds.is_empty() {
        context.say(format_args!("{target} holds {}", found.holds.join(", ")));
    }
    if let Some(user) = &found.in_use {
        context.say(format_args!("{target} is in use: {user}"));
    }
    if let Some(why) = &found.refused {
        context.say(format_args!("this restore would be refused: {why}"));
    }
}

/// Describes the restore of a disk to a device or file.
pub(super) fn disk(context: &Context<'_>, disk: &Disk<'_>, target: &Path, options: &RestoreOptions) -> Result<Outcome> {
    let found = preview(&disk.reader, disk.image.data_bytes, target, options, false)?;
    let planned = DryRunJson::new(disk, target, FoundJson::new(&found));
    planned.say(context);
    context.json_result(&planned)?;
    Ok(planned.outcome())
}

/// Describes the restore of a disk to standard output.
pub(super) fn to_stdout(context: &Context<'_>, disk: &Disk<'_>) -> Result<Outcome> {
    context.say(format_args!(
        "{}: {} ({} of data) would be written to standard output; nothing was written",
        disk.label(),
        units::size(disk.image.size_bytes),
        units::size(disk.image.data_bytes)
    ));
    Ok(Outcome::Done)
}
