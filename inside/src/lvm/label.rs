//! Reads the head of a physical volume: the label, the areas it names, and the newest text in its metadata areas. The
//! structures are those of lib/label/label.h and lib/format_text/layout.h of LVM.

use super::crc;
use super::group::Summary;
use crate::device::{Device, le32, le64, read_array, read_inside};
use crate::error::{Error, Result};

const SECTOR_BYTES: u64 = 512;
/// Number of sectors that may have the label (`LABEL_SCAN_SECTORS`).
const LABEL_SECTORS: u64 = 4;
/// Length of a metadata area's header (`MDA_HEADER_SIZE`). The ring of texts starts after it.
const AREA_HEADER_BYTES: u64 = 512;
/// `FMTT_MAGIC`.
const AREA_MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";
/// `RAW_LOCN_IGNORED`: LVM does not write to this area (`--metadataignore`).
const IGNORED: u32 = 1;
/// Longest text. LVM makes areas of 1 MiB; 16 MiB have room for more volumes than one host can activate.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// A part of a physical volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Offset on the device.
    pub offset_bytes: u64,
    /// Size; 0 in a data area that reaches to the end of the device.
    pub size_bytes: u64,
}

/// A text that describes a group.
pub(super) struct Metadata {
    pub(super) text: Vec<u8>,
    pub(super) summary: Summary,
}

/// A physical volume: its label and the newest metadata in its areas.
pub struct PhysicalVolume {
    /// UUID in the form of LVM's commands: `TteLbE-N6Li-iv7F-VNXN-8t0X-RaVo-9Sjrkp`.
    pub uuid: String,
    /// Size of the device when the label was written.
    pub device_size_bytes: u64,
    /// Areas of the volumes' data.
    pub data_areas: Vec<Area>,
    /// Areas of metadata; none in a volume made with `--pvmetadatacopies 0`.
    pub metadata_areas: Vec<Area>,
    /// Remarks for people on damaged areas.
    pub remarks: Vec<String>,
    pub(super) metadata: Option<Metadata>,
}

impl PhysicalVolume {
    /// Returns name and UUID of the group that the metadata on this volume describes; `None` for a volume without
    /// metadata, which may still be part of a group.
    pub fn group(&self) -> Option<(&str, &str)> {
        let summary = &self.metadata.as_ref()?.summary;
        Some((&summary.name, &summary.uuid))
    }
}

/// Reads the head of a physical volume. Fails if it has no valid label; an area that is damaged gives a remark.
pub fn physical_volume(device: &dyn Device) -> Result<PhysicalVolume> {
    let mut damaged = None;
    for sector in 0..LABEL_SECTORS {
        let Some(label) = read_array::<512>(device, sector * SECTOR_BYTES)? else {
            break;
        };
        if label[..8] != *b"LABELONE" {
            continue;
        }
        match from_label(device, sector, &label) {
            Err(error @ Error::Io(_)) => return Err(error),
            Err(error) => damaged = damaged.or(Some(error)),
            Ok(found) => return Ok(found),
        }
    }
    Err(damaged.unwrap_or_else(|| Error::damaged("no LVM label in the first four sectors")))
}

fn from_label(device: &dyn Device, sector: u64, label: &[u8; 512]) -> Result<PhysicalVolume> {
    if le64(label, 8) != sector || !crate::proven(le32(label, 16) == crc::lvm(&label[20..])) {
        return Err(Error::damaged(format!("LVM label in sector {sector}")));
    }
    if label[24..32] != *b"LVM2 001" {
        return Err(Error::unsupported("LVM label of an old format"));
    }
    let header = label.get(le32(label, 20) as usize..).unwrap_or_default();
    let (Some(uuid), Some(size)) = (header.get(..32), header.get(32..40)) else {
        return Err(Error::damaged(format!("LVM label in sector {sector}")));
    };
    // Two lists of areas, each ended by one at 0. The extension that may follow names areas of a boot loader.
    let areas = header[40..].chunks_exact(16);
    let mut areas = areas.map(|area| Area {
        offset_bytes: le64(area, 0),
        size_bytes: le64(area, 8),
    });
    let mut list = || -> Vec<_> { areas.by_ref().take_while(|area| area.offset_bytes != 0).collect() };
    let mut volume = PhysicalVolume {
        uuid: format_uuid(uuid),
        device_size_bytes: le64(size, 0),
        data_areas: list(),
        metadata_areas: list(),
        remarks: Vec::new(),
        metadata: None,
    };
    let mut older = None;
    for (number, area) in (1..).zip(volume.metadata_areas.clone()) {
        match metadata(device, area) {
            // Another area or another physical volume may have the same text.
            Err(error) => volume.remarks.push(format!(
                "metadata area {number} of physical volume {}: {error}",
                volume.uuid
            )),
            Ok(None) => {}
            Ok(Some(found)) => {
                let seqno = found.summary.seqno;
                match &volume.metadata {
                    Some(best) if best.summary.seqno >= seqno => {
                        older = older.or((best.summary.seqno > seqno).then_some(number));
                    }
                    best => {
                        older = older.or(best.as_ref().map(|_| number - 1));
                        volume.metadata = Some(found);
                    }
                }
            }
        }
    }
    if let Some(number) = older {
        volume.remarks.push(format!(
            "metadata area {number} of physical volume {} is out of date",
            volume.uuid
        ));
    }
    Ok(volume)
}

/// Reads the committed text of a metadata area; `None` if the area has none or LVM ignores it.
fn metadata(device: &dyn Device, area: Area) -> Result<Option<Metadata>> {
    let Some(header) = read_array::<512>(device, area.offset_bytes)? else {
        return Err(Error::damaged("it is outside of the device"));
    };
    if header[4..20] != *AREA_MAGIC || !crate::proven(le32(&header, 0) == crc::lvm(&header[4..])) {
        return Err(Error::damaged("its header"));
    }
    if le32(&header, 20) != 1 {
        return Err(Error::unsupported(format!("version {}", le32(&header, 20))));
    }
    let (start, size) = (le64(&header, 24), le64(&header, 32));
    // The first location is that of the committed text; a second one exists while a change is being committed.
    let (offset, len) = (le64(&header, 40), le64(&header, 48));
    let (text_crc, flags) = (le32(&header, 56), le32(&header, 60));
    if offset == 0 || flags & IGNORED != 0 {
        return Ok(None);
    }
    if start != area.offset_bytes || offset < AREA_HEADER_BYTES || offset >= size || len > size - AREA_HEADER_BYTES {
        return Err(Error::damaged("the location of its text"));
    }
    if len > MAX_TEXT_BYTES {
        return Err(Error::unsupported(format!("metadata text of {len} bytes")));
    }
    // The text continues after the header when it reaches the end of the area.
    let mut text = vec![0; len as usize];
    let (head, tail) = text.split_at_mut(len.min(size - offset) as usize);
    let head_at = start.checked_add(offset);
    let inside = match head_at {
        Some(head_at) => read_inside(device, head_at, head)?,
        None => false,
    };
    if !inside || !read_inside(device, start.saturating_add(AREA_HEADER_BYTES), tail)? {
        return Err(Error::damaged("it is outside of the device"));
    }
    if !crate::proven(crc::lvm(&text) == text_crc) {
        return Err(Error::damaged("the checksum of its text"));
    }
    let summary = Summary::parse(&text)?;
    Ok(Some(Metadata { text, summary }))
}

/// Formats the 32 characters of a UUID as LVM's commands do (`id_write_format`).
fn format_uuid(uuid: &[u8]) -> String {
    let mut text = String::new();
    for (at, byte) in uuid.iter().enumerate() {
        if matches!(at, 6 | 10 | 14 | 18 | 22 | 26) {
            text.push('-');
        }
        text.push(if byte.is_ascii_graphic() {
            char::from(*byte)
        } else {
            '_'
        });
    }
    text
}
