//! Recognises disk images of other formats, and archives, by their first and last bytes. Their size and content are not
//! those of the disk in them. Backed up as raw disks, they would cause a surprise on the day of the restore.

use std::path::Path;

use super::Source;
use crate::disk::buffer::{ALIGN, AlignedBuffer};
use crate::error::{Error, Result};

/// Length of the start that contains all marks.
const HEAD_BYTES: usize = 512;
/// Length of the footer of a VHD.
const TAIL_BYTES: u64 = 512;

/// The smallest sector that a disk has.
const SECTOR_BYTES: u64 = 512;

/// A format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Format {
    name: &'static str,
    remedy: Remedy,
}

/// The way to get a raw disk out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    /// Convert it with QEMU, which can read it.
    Convert,
    /// Unpack it with this program.
    Unpack(&'static str),
}

/// Offset, mark, name and remedy of each format.
const MARKS: &[(usize, &[u8], &str, Remedy)] = &[
    (0, b"QFI\xfb", "a qcow2 image", Remedy::Convert),
    (0, b"KDMV", "a VMDK image", Remedy::Convert),
    (0, b"COWD", "a VMDK image", Remedy::Convert),
    (
        0,
        b"# Disk DescriptorFile",
        "the description of a VMDK image",
        Remedy::Convert,
    ),
    (0, b"conectix", "a VHD image", Remedy::Convert),
    (0, b"vhdxfile", "a VHDX image", Remedy::Convert),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], "a VDI image", Remedy::Convert),
    (0, b"QED\0", "a QED image", Remedy::Convert),
    (0, b"WithoutFreeSpace", "a Parallels image", Remedy::Convert),
    (0, b"WithouFreSpacExt", "a Parallels image", Remedy::Convert),
    (
        0,
        &[0x1f, 0x8b, 0x08],
        "compressed with gzip",
        Remedy::Unpack("gzip -dk"),
    ),
    (
        0,
        &[0xfd, b'7', b'z', b'X', b'Z', 0],
        "compressed with xz",
        Remedy::Unpack("xz -dk"),
    ),
    (
        0,
        &[0x28, 0xb5, 0x2f, 0xfd],
        "compressed with zstd",
        Remedy::Unpack("zstd -d"),
    ),
    (
        0,
        &[0x04, 0x22, 0x4d, 0x18],
        "compressed with lz4",
        Remedy::Unpack("lz4 -d"),
    ),
    (
        0,
        b"\x89LZO\0\r\n\x1a\n",
        "compressed with lzop",
        Remedy::Unpack("lzop -d"),
    ),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", Remedy::Unpack("7z x")),
    (0, b"PK\x03\x04", "a zip archive", Remedy::Unpack("unzip")),
    (
        0,
        b"VMA\0",
        "a VMA archive of Proxmox VE",
        Remedy::Unpack("vma extract"),
    ),
    (
        257,
        b"ustar",
        "a tar archive, as OVA files are",
        Remedy::Unpack("tar -xf"),
    ),
];

fn format_of(head: &[u8], tail: &[u8]) -> Option<Format> {
    let format = |name, remedy| Some(Format { name, remedy });
    for (offset, mark, name, remedy) in MARKS {
        if head.get(*offset..).is_some_and(|bytes| bytes.starts_with(mark)) {
            return format(*name, *remedy);
        }
    }
    // BZh, the level, and the start of a block.
    if head.starts_with(b"BZh") && head.get(4..10) == Some(&[0x31, 0x41, 0x59, 0x26, 0x53, 0x59]) {
        return format("compressed with bzip2", Remedy::Unpack("bzip2 -dk"));
    }
    // A VHD of fixed size has no mark at the start.
    match tail.starts_with(b"conectix") {
        true => format("a VHD image", Remedy::Convert),
        false => None,
    }
}

/// Fails if a file is a disk image of another format than raw, or an archive, or does not consist of whole sectors. For a block device it only returns a
/// warning: a guest may write such bytes to its own disk.
pub fn check_raw(path: &Path) -> Result<Option<String>> {
    let source = Source::open(path)?;
    let Some(format) = look(&source)? else {
        return match source.size_bytes % SECTOR_BYTES {
            0 => Ok(None),
            _ => Err(Error::NoSectors {
                path: path.to_owned(),
                size_bytes: source.size_bytes,
            }),
        };
    };
    let shown = path.display();
    let remedy = match format.remedy {
        Remedy::Convert => format!(
            "Shut the guest down and make it raw with `qemu-img convert -O raw {shown} {shown}.raw`, or back up \
             the device that `qemu-nbd -r -c /dev/nbd0 {shown}` makes"
        ),
        Remedy::Unpack(command) => format!("Unpack it first (`{command} {shown}`) and back up the disk in it"),
    };
    if source.device {
        return Ok(Some(format!(
            "the first bytes of {shown} look like {}; it is backed up as a raw disk all the same. To suppress this \
             warning, use --raw (in the configuration `raw = true`)",
            format.name
        )));
    }
    Err(Error::Container {
        path: path.to_owned(),
        format: format.name,
        remedy,
    })
}

/// Reads like a backup: leaves nothing in the page cache.
fn look(source: &Source) -> Result<Option<Format>> {
    let size_bytes = source.size_bytes;
    let mut buffer = AlignedBuffer::new(TAIL_BYTES as usize + ALIGN);
    let mut read = |start_bytes: u64, end_bytes: u64| {
        let len = (end_bytes - start_bytes) as usize;
        source.read(start_bytes, len, &mut buffer)?;
        Ok::<_, Error>(buffer.as_slice()[..len].to_vec())
    };
    let head = read(0, size_bytes.min(HEAD_BYTES as u64))?;
    let aligned = size_bytes.saturating_sub(TAIL_BYTES) / ALIGN as u64 * ALIGN as u64;
    let end = read(aligned, size_bytes)?;
    Ok(format_of(&head, &end[end.len().saturating_sub(TAIL_BYTES as usize)..]))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn every_format_is_recognized_by_its_signature_and_a_disk_is_not() {
        for (offset, mark, name, _) in MARKS {
            let mut head = vec![0; HEAD_BYTES];
            head[*offset..offset + mark.len()].copy_from_slice(mark);
            assert_eq!(format_of(&head, &[]).map(|format| format.name), Some(*name));
            // The same mark at another offset does not count.
            let mut moved = vec![0; HEAD_BYTES];
            moved[offset + 1..offset + 1 + mark.len()].copy_from_slice(mark);
            assert_eq!(format_of(&moved, &[]), None, "{name}");
        }
        assert!(format_of(b"BZh91AY&SY", &[]).is_some());
        assert!(format_of(&[0; HEAD_BYTES], b"conectix").is_some());
        for disk in [&b""[..], b"QFI", b"BZh9", &[0xeb, 0x63, 0x90], &[0; HEAD_BYTES]] {
            assert_eq!(format_of(disk, &[]), None, "{disk:?}");
        }
    }

    #[test]
    fn a_file_that_is_no_raw_disk_is_refused_with_the_next_step() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().write_all_at(b"QFI\xfb", 0).expect("writes");
        let text = check_raw(file.path()).expect_err("is qcow2").to_string();
        for word in [
            "qcow2",
            "qemu-img convert -O raw",
            "qemu-nbd -r -c",
            "--raw",
            "raw = true",
        ] {
            assert!(text.contains(word), "{text}");
        }
        // An archive and a truncated image may have any size.
        file.as_file().write_all_at(b"text", 0).expect("writes");
        let text = check_raw(file.path()).expect_err("is no disk").to_string();
        for word in ["has 4 bytes", "multiple of 512", "--raw", "raw = true"] {
            assert!(text.contains(word), "{text}");
        }
        file.as_file().set_len(1024).expect("grows");
        assert_eq!(check_raw(file.path()).expect("looks"), None);
        let empty = tempfile::NamedTempFile::new().expect("a file");
        assert_eq!(check_raw(empty.path()).expect("looks"), None);
    }
}
