//! Names of lvm2: of volume groups, logical volumes and thin pools (lvm(8), "Valid names").

/// Length of a name: `NAME_LEN` of lvm2 (lib/metadata/metadata-exported.h) without the final zero.
const MAX_BYTES: usize = 127;
/// Names that lvm2 reserves for itself.
const RESERVED: [&str; 4] = [".", "..", "snapshot", "pvmove"];
/// Parts of names that lvm2 reserves for its hidden volumes.
const RESERVED_PARTS: [&str; 14] = [
    "_cdata", "_cmeta", "_corig", "_iorig", "_mimage", "_mlog", "_pmspare", "_rimage", "_rmeta", "_tdata", "_tmeta",
    "_vdata", "_vorigin", "_wcorig",
];

/// A name that lvm2 would refuse, or take for something else.
#[derive(Debug, thiserror::Error)]
#[error("{what} name {name:?} {reason}")]
pub struct NameError {
    /// `volume group`, `logical volume` or `thin pool`.
    what: &'static str,
    name: String,
    /// The flaw, as the rest of a sentence.
    reason: &'static str,
}

/// Refuses names of volume groups that lvm2 would not take, or take for an option.
pub(crate) fn check_group(name: &str) -> Result<(), NameError> {
    check("volume group", name)
}

/// Refuses names of new logical volumes that lvm2 would not take, or take for an option.
pub(crate) fn check_volume(name: &str) -> Result<(), NameError> {
    check("logical volume", name)?;
    let is_reserved = RESERVED.contains(&name) || RESERVED_PARTS.iter().any(|part| name.contains(part));
    match is_reserved {
        true => Err(NameError {
            what: "logical volume",
            name: name.to_owned(),
            reason: "is reserved by lvm2",
        }),
        false => Ok(()),
    }
}

/// Refuses a name that lvm2 would not take, or take for an option. `what` says in the message what the name is of.
pub(crate) fn check(what: &'static str, name: &str) -> Result<(), NameError> {
    match flaw(name) {
        None => Ok(()),
        Some(reason) => Err(NameError {
            what,
            name: name.to_owned(),
            reason,
        }),
    }
}

/// Tests that text may be the name of a group or of any volume, a hidden one included, so that it is safe in a selection.
pub(crate) fn is_name(text: &str) -> bool {
    flaw(text).is_none()
}

fn flaw(name: &str) -> Option<&'static str> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte);
    match name {
        "" => Some("is empty"),
        "." | ".." => Some("is a directory's"),
        _ if name.starts_with('-') => Some("begins with a dash"),
        _ if !name.bytes().all(is_allowed) => Some("has other characters than a-z A-Z 0-9 + _ . - in it"),
        _ if name.len() > MAX_BYTES => Some("is longer than 127 bytes"),
        _ => None,
    }
}
