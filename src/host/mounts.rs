//! The mounts that this process sees, from /proc/self/mountinfo (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::host::device::DeviceNumber;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Device number that stat(2) shows for its files.
    pub device: DeviceNumber,
    /// Directory of the file system that is mounted.
    pub root: PathBuf,
    /// Mount point.
    pub point: PathBuf,
    /// Kind of the file system, e.g. `ext4`.
    pub kind: String,
    /// Mounted device, or any text.
    pub source: PathBuf,
    /// Options of the file system, separated by commas.
    pub options: String,
}

impl Mount {
    /// Tests that the file system has this option.
    pub(crate) fn has_option(&self, option: &str) -> bool {
        self.options.split(',').any(|given| given == option)
    }
}

/// Reads the table; empty where it can't be read.
pub(crate) fn read() -> Vec<Mount> {
    parse(&std::fs::read("/proc/self/mountinfo").unwrap_or_default())
}

/// Parses the table. Leaves out lines that it can't parse.
pub(crate) fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// Parses `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
fn parse_line(line: &[u8]) -> Option<Mount> {
    // Not split at runs of blanks: an empty source is two blanks.
    let mut fields = line.split(|byte| *byte == b' ').skip(2);
    let device = DeviceNumber::parse(std::str::from_utf8(fields.next()?).ok()?)?;
    let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
    // Any number of optional fields such as `shared:3`, up to a lone dash.
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = unescape(fields.next()?);
    let options = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mount {
        device,
        root,
        point,
        kind,
        source,
        options,
    })
}

/// Decodes the kernel's escapes: blank, tab, line feed and backslash are a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = |digit: &u8| matches!(digit, b'0'..=b'7').then(|| u32::from(digit - b'0'));
        let escaped = match (first, tail) {
            (b'\\', [a, b, c, ..]) => octal(a)
                .zip(octal(b))
                .zip(octal(c))
                .and_then(|((a, b), c)| u8::try_from(a * 64 + b * 8 + c).ok()),
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    Path::new(&OsString::from_vec(bytes)).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks_and_empty_sources_are_read() {
        let table = b"36 35 98:0 / /mnt/my\\040disk rw master:1 shared:2 - ext3 /dev/root rw,errors=continue\n\
                      rubbish\n37 35 0:40 /a /b rw - tmpfs  rw\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].point, Path::new("/mnt/my disk"));
        assert_eq!(mounts[0].device.to_string(), "98:0");
        assert!(mounts[0].has_option("rw") && mounts[0].has_option("errors=continue"));
        assert_eq!(
            (mounts[1].source.as_path(), mounts[1].kind.as_str()),
            (Path::new(""), "tmpfs")
        );
    }
}
