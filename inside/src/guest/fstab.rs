//! `/etc/fstab` of a guest (fstab(5)). Any content is possible.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Entries that are read; a machine has a dozen.
const MAX_ENTRIES: usize = 1000;

/// An entry of fstab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FstabEntry {
    /// Name of the file system's device: `UUID=…`, `/dev/vda1`.
    pub spec: String,
    /// Mount point; begins with a slash.
    pub point: Vec<u8>,
    fs: String,
    options: String,
}

/// Name of a subvolume of a btrfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subvolume {
    /// Path from the top.
    Path(Vec<u8>),
    /// Number.
    Number(u64),
}

impl FstabEntry {
    fn has_option(&self, wanted: &str) -> bool {
        self.options.split(',').any(|option| option == wanted)
    }

    /// Returns whether the entry mounts a file system of a disk. The kernel's own file systems, swap space, network file
    /// systems and second names of directories are in no volume.
    pub fn is_of_a_disk(&self) -> bool {
        let spec = &self.spec;
        let is_tag = ["UUID=", "LABEL=", "PARTUUID=", "PARTLABEL="]
            .iter()
            .any(|tag| spec.starts_with(tag));
        (is_tag || spec.starts_with("/dev/"))
            && !matches!(&self.fs[..], "swap" | "none" | "ignore")
            && !self.has_option("bind")
            && !self.has_option("rbind")
    }

    /// Returns whether the guest mounts it only on demand, e.g. a disc that is rarely inserted.
    pub fn is_on_demand(&self) -> bool {
        self.has_option("noauto")
    }

    /// Returns the subvolume that the options name.
    pub fn subvolume(&self) -> Option<Subvolume> {
        let value = |name: &str| {
            let mut options = self.options.rsplit(',');
            options.find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
        };
        if let Some(path) = value("subvol") {
            return Some(Subvolume::Path(path.as_bytes().to_vec()));
        }
        value("subvolid")?.parse().ok().map(Subvolume::Number)
    }

    /// Tests for one of a volume's names.
    pub fn names(&self, uuid: Option<&str>, label: Option<&str>, names: &[String]) -> bool {
        let by_link = |name: &str| {
            let link = self.spec.strip_prefix("/dev/disk/by-")?;
            let value = link.strip_prefix(name)?.strip_prefix('/')?;
            Some(decode_udev(value))
        };
        let value_of = |tag: &str, link: &str| {
            let value = self.spec.strip_prefix(tag).and_then(|rest| rest.strip_prefix('='));
            value
                .map(|value| value.trim_matches('"').to_owned())
                .or_else(|| by_link(link))
        };
        let partition = |tag: &str, link: &str| {
            let value = value_of(tag, link)?;
            let mut known = names
                .iter()
                .filter_map(|name| name.strip_prefix(tag)?.strip_prefix('='));
            Some(known.any(|known| match tag {
                "PARTUUID" => known.eq_ignore_ascii_case(&value),
                _ => known == value,
            }))
        };
        if let Some(value) = value_of("UUID", "uuid") {
            return uuid.is_some_and(|uuid| uuid.eq_ignore_ascii_case(&value));
        }
        if let Some(value) = value_of("LABEL", "label") {
            return label == Some(&value[..]);
        }
        partition("PARTUUID", "partuuid")
            .or_else(|| partition("PARTLABEL", "partlabel"))
            .unwrap_or_else(|| names.contains(&self.spec))
    }
}

/// Reads the entries that name a device and a mount point. Other lines mean nothing to mount(8) either.
pub(super) fn parse(text: &[u8]) -> Vec<FstabEntry> {
    let lines = text.split(|byte| *byte == b'\n');
    lines.filter_map(parse_line).take(MAX_ENTRIES).collect()
}

fn parse_line(line: &[u8]) -> Option<FstabEntry> {
    let fields = line.split(|byte| matches!(byte, b' ' | b'\t' | b'\r'));
    let mut fields = fields.filter(|field| !field.is_empty());
    let text = |field: Option<&[u8]>| String::from_utf8_lossy(&unescape(field.unwrap_or_default())).into_owned();
    let spec = fields.next().filter(|spec| !spec.starts_with(b"#"))?;
    let point = unescape(fields.next()?);
    if !Path::new(std::ffi::OsStr::from_bytes(&point)).is_absolute() || point.contains(&0) {
        return None;
    }
    Some(FstabEntry {
        spec: text(Some(spec)),
        point,
        fs: text(fields.next()),
        options: text(fields.next()),
    })
}

/// Decodes `\040`, by which fstab writes a space.
fn unescape(field: &[u8]) -> Vec<u8> {
    decode(field, b"\\", 3, 8)
}

/// Decodes `\x20`, by which udev writes a space in the name of a link.
fn decode_udev(value: &str) -> String {
    String::from_utf8_lossy(&decode(value.as_bytes(), b"\\x", 2, 16)).into_owned()
}

fn decode(text: &[u8], mark: &[u8], digits: usize, radix: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let number = rest.strip_prefix(mark).and_then(|rest| rest.get(..digits));
        let number = number.and_then(|number| std::str::from_utf8(number).ok());
        match number.and_then(|number| u8::from_str_radix(number, radix).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &rest[mark.len() + digits..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_with_their_escapes() {
        let text = b"# comment\n\nUUID=ab-c / ext4 rw,relatime 0 1\n/dev/vdb1\t/srv/my\\040data\txfs\n\
            tmpfs /tmp tmpfs defaults\n/srv /var/srv none bind\nUUID=x none swap sw\nLABEL=\"x y\" relative ext4\n\
            UUID=1 /.snap btrfs subvolid=257,noauto\nUUID=1 /home btrfs compress,subvol=/@home\n";
        let entries = parse(text);
        let points: Vec<_> = entries
            .iter()
            .filter(|entry| entry.is_of_a_disk())
            .map(|entry| &entry.point[..])
            .collect();
        assert_eq!(points, [&b"/"[..], b"/srv/my data", b"/.snap", b"/home"]);
        let subvolumes: Vec<_> = entries.iter().filter_map(FstabEntry::subvolume).collect();
        assert_eq!(
            subvolumes,
            [Subvolume::Number(257), Subvolume::Path(b"/@home".to_vec())]
        );
        assert!(entries.iter().any(FstabEntry::is_on_demand));
    }

    #[test]
    fn a_volume_is_named_in_many_ways() {
        let names = [
            "/dev/vda1",
            "/dev/mapper/vg0-root",
            "PARTUUID=ab-01",
            "PARTLABEL=the root",
        ]
        .map(str::to_owned);
        let matches = |spec: &str| {
            let entries = parse(format!("{spec} / ext4").as_bytes());
            entries[0].names(Some("AB12-CD34"), Some("my root"), &names)
        };
        for good in [
            "UUID=ab12-cd34",
            "UUID=\"AB12-CD34\"",
            "/dev/disk/by-uuid/AB12-CD34",
            "LABEL=my\\040root",
            "/dev/disk/by-label/my\\x20root",
            "PARTUUID=AB-01",
            "/dev/disk/by-partuuid/ab-01",
            "PARTLABEL=the\\040root",
            "/dev/disk/by-partlabel/the\\x20root",
            "/dev/vda1",
            "/dev/mapper/vg0-root",
        ] {
            assert!(matches(good), "{good}");
        }
        for bad in [
            "UUID=",
            "UUID=ab12",
            "LABEL=MY\\040ROOT",
            "PARTUUID=",
            "/dev/vda",
            "/dev/disk/by-uuid/",
            "UUID=\\777",
        ] {
            assert!(!matches(bad), "{bad}");
        }
    }
}
