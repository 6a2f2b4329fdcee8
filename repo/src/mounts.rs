//! Reads the kernel's table of mounts, /proc/self/mountinfo (proc_pid_mountinfo(5)). Pure text: it never touches a
//! mounted file system, so it also works if one is dead.
//!
//! The table has nothing to do with repositories. It is here because all other crates depend on this one.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount of the kernel's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Id of the mount while it lives; the kernel reuses it afterwards.
    pub id: u64,
    /// Id of the mount that this one sits on.
    pub parent: u64,
    /// Mounted part of the file system: `/`, or a directory of it.
    pub root: PathBuf,
    /// Mount point, below the root of this process.
    pub mount_point: PathBuf,
    /// The kernel's name for the file system, with the subtype: `ext4`, `fuse.vbk`.
    pub fs_type: String,
    /// Source of the mount: a device, or any text.
    pub source: OsString,
    /// Major and minor number that `stat` shows for its files. For btrfs not those of the loop device, because btrfs
    /// invents a number.
    pub device: (u32, u32),
    /// Options of the mount, then of the file system: e.g. `ro,nodev`.
    pub options: (String, String),
}

impl Mount {
    /// Tests that the mount point is `path` or below it.
    pub fn at_or_below(&self, path: &Path) -> bool {
        self.mount_point.starts_with(path)
    }

    /// Tests that the file system, not only this mount of it, has an option.
    pub fn has_option(&self, option: &str) -> bool {
        self.options.1.split(',').any(|given| given == option)
    }

    /// Tests that this mount reads from the loop device with that number.
    pub fn is_on_loop(&self, number: u32) -> bool {
        const LOOP_MAJOR: u32 = 7;
        self.device == (LOOP_MAJOR, number) || self.source == OsString::from(format!("/dev/loop{number}"))
    }
}

/// Reads the mounts that this process sees, oldest first.
pub fn read() -> io::Result<Vec<Mount>> {
    std::fs::read("/proc/self/mountinfo").map(|text| parse(&text))
}

/// Parses a mountinfo table. Leaves out a line that it can't parse: an odd mount of another program must not stop a
/// teardown.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .filter_map(|line| {
            let mount = parse_line(line);
            if mount.is_none() {
                tracing::debug!(line = %String::from_utf8_lossy(line), "mountinfo line not understood");
            }
            mount
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    // Not split at runs of blanks: an empty source is two blanks.
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let (major, minor) = text(fields.next()?)
        .split_once(':')
        .map(|(major, minor)| (major.parse().ok(), minor.parse().ok()))?;
    let root = PathBuf::from(unescape(fields.next()?));
    let mount_point = PathBuf::from(unescape(fields.next()?));
    let mount_options = text(fields.next()?);
    // Any number of optional fields such as `shared:3`, up to a lone dash.
    fields.find(|field| *field == b"-")?;
    let fs_type = text_of(unescape(fields.next()?));
    let source = unescape(fields.next()?);
    let super_options = text(fields.next()?);
    Some(Mount {
        id,
        parent,
        root,
        mount_point,
        fs_type,
        source,
        device: (major?, minor?),
        options: (mount_options, super_options),
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn text_of(name: OsString) -> String {
    name.to_string_lossy().into_owned()
}

fn number(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Decodes the kernel's escapes: blank, tab, newline, backslash and `#` are a backslash and three octal digits
/// (`mangle`, fs/seq_file.c).
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_optional_fields_is_read() {
        let text = b"36 35 98:5 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - fuse.vbk vbk ro,user_id=0\n";
        assert_eq!(
            parse(text),
            [Mount {
                id: 36,
                parent: 35,
                root: "/mnt1".into(),
                mount_point: "/mnt2".into(),
                fs_type: "fuse.vbk".into(),
                source: "vbk".into(),
                device: (98, 5),
                options: ("rw,noatime".into(), "ro,user_id=0".into()),
            }]
        );
    }

    #[test]
    fn an_option_of_the_file_system_is_matched_whole() {
        let mount = &parse(b"33 30 0:28 / /cgroup rw,noatime - cgroup cgroup rw,cpu,blkio\n")[0];
        assert!(mount.has_option("blkio") && mount.has_option("rw"));
        assert!(!mount.has_option("blk") && !mount.has_option("noatime"));
    }

    #[test]
    fn escapes_are_decoded_and_other_backslashes_kept() {
        let text = br"1 2 0:3 / /a\040b\011c\134d\012e\9 ro - tmpfs vbk-files:/x\040\043y ro";
        let mounts = parse(text);
        assert_eq!(mounts[0].mount_point, PathBuf::from("/a b\tc\\d\ne\\9"));
        assert_eq!(mounts[0].source, "vbk-files:/x #y");
    }

    #[test]
    fn an_empty_source_is_a_field() {
        let mounts = parse(b"1 2 0:3 / /a ro - tmpfs  rw,size=4k");
        assert_eq!(mounts[0].source, "");
        assert_eq!(mounts[0].options.1, "rw,size=4k");
    }

    #[test]
    fn malformed_lines_are_skipped() {
        let text = b"\nnonsense\n1 2 0:3 / /a ro - tmpfs\n1 2 03 / /a ro - tmpfs x rw\n1 2 0:3 / /a ro - tmpfs x rw";
        assert_eq!(parse(text).len(), 1);
    }

    #[test]
    fn below_compares_whole_path_components() {
        let mount = &parse(b"1 2 0:3 / /mnt/ab/c ro - tmpfs x rw")[0];
        assert!(mount.at_or_below(Path::new("/mnt/ab")));
        assert!(mount.at_or_below(Path::new("/mnt/ab/c")));
        assert!(!mount.at_or_below(Path::new("/mnt/a")));
        assert!(!mount.at_or_below(Path::new("/mnt/ab/c/d")));
    }

    #[test]
    fn a_mount_of_a_loop_device_is_matched_by_number_or_name() {
        let mounts = parse(b"1 2 7:3 / /a ro - ext4 /dev/other ro\n1 2 0:50 / /b ro - btrfs /dev/loop31 ro\n");
        assert!(mounts[0].is_on_loop(3));
        assert!(mounts[1].is_on_loop(31));
        assert!(!mounts[1].is_on_loop(3));
    }

    #[test]
    fn mountinfo_of_this_kernel_is_parsed() {
        let mounts = read().expect("/proc is mounted");
        assert!(mounts.iter().any(|mount| mount.mount_point == Path::new("/proc")));
    }
}
