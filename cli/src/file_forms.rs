//! Forms in which several commands show a file of a backup.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use vbk_inside::fs::{FileKind, FileTree, Node, Stat};
use vbk_inside::guest::{Small, read_small};

use crate::terminal::{printable, units};

/// Longest `/etc/passwd` or `/etc/group` that is read for names.
const MAX_NAMES_BYTES: u64 = 1 << 20;

/// JSON of a file.
#[derive(Serialize)]
pub struct FileJson {
    /// Path; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// Bytes of a path that is not UTF-8, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    links: u32,
    size_bytes: u64,
    modified: jiff::Timestamp,
    changed: jiff::Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<(u32, u32)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

impl FileJson {
    /// Describes a file; `target` is that of a link.
    pub fn new(path: &[u8], stat: &Stat, target: Option<&[u8]>) -> Self {
        let is_device = matches!(stat.kind, FileKind::CharDevice | FileKind::BlockDevice);
        Self {
            path: lossy(path),
            path_hex: hex_of(path),
            kind: kind_name(stat.kind),
            mode: format!("{:04o}", stat.mode),
            uid: stat.uid,
            gid: stat.gid,
            links: stat.links,
            size_bytes: stat.size_bytes,
            modified: stat.modified,
            changed: stat.changed,
            device: is_device.then_some(stat.device),
            target: target.map(lossy),
        }
    }
}

/// Returns a path for JSON.
pub fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the bytes of a path that is not UTF-8.
pub fn hex_of(bytes: &[u8]) -> Option<String> {
    match std::str::from_utf8(bytes) {
        Ok(_) => None,
        Err(_) => Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
    }
}

/// Returns a path or name in one line for people: bytes that are not UTF-8 become `\xff`, control characters `\u{1b}`.
pub fn shown(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(&printable::line(chunk.valid()));
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Returns the word for a kind of file in JSON.
pub fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Link => "link",
        FileKind::CharDevice => "char-device",
        FileKind::BlockDevice => "block-device",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
    }
}

/// Returns the mode as ls(1) shows it: `drwxr-xr-x`.
pub fn mode_text(stat: &Stat) -> String {
    let kind = match stat.kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Link => 'l',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = stat.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (stat.mode & special != 0, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
        });
    }
    text
}

/// Returns the size as ls(1) shows it; the numbers of a device.
pub fn size_text(stat: &Stat, for_people: bool) -> String {
    match stat.kind {
        FileKind::CharDevice | FileKind::BlockDevice => format!("{}, {}", stat.device.0, stat.device.1),
        _ if for_people => units::size(stat.size_bytes),
        _ => stat.size_bytes.to_string(),
    }
}

/// Names of a guest's users and groups.
#[derive(Default)]
pub struct Names {
    users: BTreeMap<u32, String>,
    groups: BTreeMap<u32, String>,
}

impl Names {
    /// Reads the names of a guest, as far as it has them.
    pub fn of(tree: &Arc<dyn FileTree>, root: Node) -> Self {
        let read = |path: &[u8]| match read_small(tree, root, path, MAX_NAMES_BYTES) {
            Ok(Some(Small::Bytes(bytes))) => names_in(&bytes),
            _ => BTreeMap::new(),
        };
        Self {
            users: read(b"/etc/passwd"),
            groups: read(b"/etc/group"),
        }
    }

    /// Returns the name of a user, or the number.
    pub fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    /// Returns the name of a group, or the number.
    pub fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }
}

/// Reads `name:x:number:...` lines; of a number the first name counts, as in getpwuid(3).
fn names_in(bytes: &[u8]) -> BTreeMap<u32, String> {
    let mut names = BTreeMap::new();
    for line in String::from_utf8_lossy(bytes).lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(number)) = (fields.next(), fields.nth(1))
            && let Ok(number) = number.parse()
        {
            // Names longer than this are not made by useradd(8).
            names.entry(number).or_insert_with(|| name.chars().take(32).collect());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_drive_a_terminal() {
        assert_eq!(shown(b"a\x1b[2J\n\xff\xc3"), "a\\u{1b}[2J\\u{a}\\xff\\xc3");
        assert_eq!(shown("Größe".as_bytes()), "Größe");
        assert_eq!((hex_of(b"a\xff"), hex_of(b"a")), (Some("61ff".into()), None));
    }

    #[test]
    fn modes_are_shown_as_by_ls() {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let mut stat = Stat::of_directory(at);
        for (mode, text) in [
            (0o755, "drwxr-xr-x"),
            (0o1777, "drwxrwxrwt"),
            (0o6644, "drwSr-Sr--"),
            (0o4711, "drws--x--x"),
        ] {
            stat.mode = mode;
            assert_eq!(mode_text(&stat), text);
        }
    }

    #[test]
    fn names_of_users_are_the_guests() {
        let names = names_in(b"root:x:0:0:root:/root:/bin/sh\nbad\nwww-data:x:33:33::/var/www:\ntoor:x:0:0\n");
        assert_eq!(names.get(&0).map(String::as_str), Some("root"));
        assert_eq!(names.get(&33).map(String::as_str), Some("www-data"));
        assert_eq!(names.len(), 2);
    }
}
