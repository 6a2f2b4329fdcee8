//! The fields of a group's text that volumes are built from.

use std::collections::HashMap;

use super::text::Section;
use crate::error::{Error, Result};

/// Longest name of a group or volume (`NAME_LEN` of LVM).
const MAX_NAME_BYTES: usize = 127;
/// Length of a UUID with its dashes.
const UUID_BYTES: usize = 38;

/// Identity and age of a group's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) name: String,
    pub(super) uuid: String,
    /// Number of the change that the text describes.
    pub(super) seqno: u64,
}

impl Summary {
    pub(super) fn parse(text: &[u8]) -> Result<Self> {
        let root = Section::parse(text)?;
        let (name, section) = group_section(&root)?;
        Self::of(name, section)
    }

    fn of(name: &str, section: &Section) -> Result<Self> {
        let uuid = section.text("id").filter(|uuid| is_uuid(uuid));
        let (Some(uuid), Some(seqno)) = (uuid, section.number("seqno")) else {
            return Err(Error::damaged(format!("metadata text: UUID or seqno of group {name}")));
        };
        Ok(Self {
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            seqno,
        })
    }
}

/// Returns the section of the group: `_vsn1_check_version`, lib/format_text/import_vsn1.c.
fn group_section(root: &Section) -> Result<(&str, &Section)> {
    if root.text("contents") != Some("Text Format Volume Group") {
        return Err(Error::damaged("metadata text without a group"));
    }
    match root.number("version") {
        Some(1) => {}
        _ => return Err(Error::unsupported("metadata text of another version")),
    }
    match root.sections().first() {
        Some((name, section)) if is_name(name) => Ok((name, section)),
        _ => Err(Error::damaged("metadata text without a group")),
    }
}

/// Tests that a name has only the characters that LVM allows (lvm(8)). It is then harmless in paths and on terminals.
pub(super) fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && name != "."
        && name != ".."
}

fn is_uuid(uuid: &str) -> bool {
    // `#` and `!` are in LVM's alphabet too (lib/uuid/uuid.c).
    uuid.len() == UUID_BYTES
        && uuid
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-#!".contains(&byte))
}

/// A physical volume, as the group's text has it.
pub(super) struct Member {
    pub(super) uuid: String,
    /// Offset of the first extent.
    pub(super) start_bytes: u64,
    pub(super) extents: u64,
    /// LVM found it absent, and has not used it since.
    pub(super) missing: bool,
}

/// A parsed text.
pub(super) struct GroupText {
    pub(super) summary: Summary,
    pub(super) extent_bytes: u64,
    /// Physical volumes by the names that segments use.
    pub(super) members: HashMap<String, Member>,
    /// Names and sections of the logical volumes, in the order of the text.
    pub(super) volumes: Vec<(String, Section)>,
    by_name: HashMap<String, usize>,
}

impl GroupText {
    pub(super) fn parse(text: &[u8]) -> Result<Self> {
        let root = Section::parse(text)?;
        let (name, section) = group_section(&root)?;
        let summary = Summary::of(name, section)?;
        let name = name.to_owned();
        let extent_bytes = section
            .number("extent_size")
            .and_then(|sectors| sectors.checked_mul(512));
        let Some(extent_bytes) = extent_bytes.filter(|bytes| *bytes > 0) else {
            return Err(Error::damaged(format!("metadata text: extent size of group {name}")));
        };
        let mut members = HashMap::new();
        let physical = section.section("physical_volumes").map_or(&[][..], Section::sections);
        for (key, member) in physical {
            let start_bytes = member.number("pe_start").and_then(|sectors| sectors.checked_mul(512));
            let uuid = member.text("id").filter(|uuid| is_uuid(uuid));
            if let (Some(uuid), Some(start_bytes), Some(extents)) = (uuid, start_bytes, member.number("pe_count")) {
                members.entry(key.clone()).or_insert(Member {
                    uuid: uuid.to_owned(),
                    start_bytes,
                    extents,
                    missing: member.has_flag("MISSING"),
                });
            }
        }
        let group = root.into_section(&name);
        let volumes = group.and_then(|group| group.into_section("logical_volumes"));
        let volumes = volumes.map_or_else(Vec::new, Section::into_sections);
        let mut by_name = HashMap::new();
        for (index, (name, _)) in volumes.iter().enumerate() {
            by_name.entry(name.clone()).or_insert(index);
        }
        Ok(Self {
            summary,
            extent_bytes,
            members,
            volumes,
            by_name,
        })
    }

    /// Returns the index of a logical volume.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}
