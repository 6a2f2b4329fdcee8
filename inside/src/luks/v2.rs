//! The header of LUKS2: two copies, each a binary part and JSON (LUKS2 On-Disk Format Specification 1.1.1).

use std::collections::BTreeMap;

use argon2::Algorithm;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::key::{Hash, Kdf};
use super::{Area, Digest, Header, Refused, STRIPES, Segment, Slot, printable, text, v1};
use crate::device::{Device, be16, be64, read_inside};
use crate::error::{Error, Result};

/// Length of the binary part (`struct luks2_hdr_disk`).
const BINARY_BYTES: usize = 4096;
/// Mark of the second copy; the first has that of LUKS1.
const SECOND_MAGIC: &[u8; 6] = b"SKUL\xba\xbe";
/// Lengths of a copy that the specification allows (section 2.1), and so the offsets of the second one. The longest, 4 MiB,
/// bounds the JSON.
const COPY_BYTES: [u64; 9] = [
    16 << 10,
    32 << 10,
    64 << 10,
    128 << 10,
    256 << 10,
    512 << 10,
    1 << 20,
    2 << 20,
    4 << 20,
];
/// Offset and length of the checksum.
const CHECKSUM: std::ops::Range<usize> = 448..512;
/// Most objects of one kind (`LUKS2_KEYSLOTS_MAX` in cryptsetup).
const MAX_OBJECTS: usize = 32;

/// Reads the copy that counts: of the valid ones that with the higher sequence number, as cryptsetup does.
pub(super) fn read(device: &dyn Device) -> Result<Header> {
    let first = Copy::read(device, 0);
    let second = match &first {
        Ok(first) => Copy::read(device, first.bytes),
        // The length of the first copy is not known, so the second may be at any of the offsets.
        Err(_) => second_anywhere(device),
    };
    let (copy, remark) = match (first, second) {
        (Ok(first), Ok(second)) if second.sequence > first.sequence => {
            let at = second.offset_bytes;
            (
                second,
                Some(format!("the first LUKS header is older; opened by the copy at {at}")),
            )
        }
        (Ok(first), Ok(_)) => (first, None),
        (Ok(first), Err(why)) => (first, Some(format!("the second LUKS header can't be used ({why})"))),
        (Err(why), Ok(second)) => {
            let at = second.offset_bytes;
            let remark = format!("the first LUKS header can't be used ({why}); opened by the copy at {at}");
            (second, Some(remark))
        }
        (Err(why), Err(_)) => return Err(why),
    };
    let mut header = copy.header;
    header.remark = remark;
    Ok(header)
}

fn second_anywhere(device: &dyn Device) -> Result<Copy> {
    COPY_BYTES
        .iter()
        .map(|offset_bytes| Copy::read(device, *offset_bytes))
        .find(Result::is_ok)
        .unwrap_or_else(|| Err(Error::damaged("no second LUKS header")))
}

/// A copy whose checksum matches and whose JSON is JSON.
struct Copy {
    offset_bytes: u64,
    bytes: u64,
    sequence: u64,
    header: Header,
}

impl Copy {
    /// Reads the copy at an offset.
    fn read(device: &dyn Device, offset_bytes: u64) -> Result<Self> {
        let mut bytes = vec![0; BINARY_BYTES];
        let is_inside = read_inside(device, offset_bytes, &mut bytes)?;
        let magic = if offset_bytes == 0 { v1::MAGIC } else { SECOND_MAGIC };
        if !is_inside || !bytes.starts_with(magic) {
            return Err(Error::damaged("no LUKS header"));
        }
        if be16(&bytes, 6) != 2 {
            return Err(Error::unsupported(format!("LUKS version {}", be16(&bytes, 6))));
        }
        let length = be64(&bytes, 8);
        let is_known = COPY_BYTES.contains(&length) && (offset_bytes == 0 || offset_bytes == length);
        if !is_known || be64(&bytes, 256) != offset_bytes {
            let at = be64(&bytes, 256);
            return Err(Error::damaged(format!("LUKS header of {length} bytes at {at}")));
        }
        bytes.resize(length as usize, 0);
        let json_offset_bytes = offset_bytes + BINARY_BYTES as u64;
        if !read_inside(device, json_offset_bytes, &mut bytes[BINARY_BYTES..])? {
            return Err(Error::damaged("LUKS header that passes the end"));
        }
        Ok(Self::parse(bytes, offset_bytes)?)
    }

    fn parse(mut bytes: Vec<u8>, offset_bytes: u64) -> std::result::Result<Self, Refused> {
        let algorithm = text(&bytes[72..104]).unwrap_or_default();
        let checksum = bytes[CHECKSUM].to_vec();
        bytes[CHECKSUM].fill(0);
        let digest = Hash::known(&algorithm)?.digest(&[&bytes]);
        if !crate::proven(checksum.starts_with(&digest)) {
            return Err(Refused::Damaged("checksum of the LUKS header".into()));
        }
        let json = &bytes[BINARY_BYTES..];
        let json = json.split(|byte| *byte == 0).next().unwrap_or_default();
        let json: Json<'_> = serde_json::from_slice(json)
            .map_err(|error| Refused::Damaged(format!("JSON of the LUKS header at line {}", error.line())))?;
        let bytes_of_both = 2 * bytes.len() as u64;
        Ok(Self {
            offset_bytes,
            bytes: bytes.len() as u64,
            sequence: be64(&bytes, 16),
            header: json.header(&bytes, bytes_of_both)?,
        })
    }
}

/// The JSON area. Objects are parsed one by one, so that a damaged one leaves the others; unknown ones and tokens are not
/// parsed at all.
#[derive(Deserialize)]
struct Json<'a> {
    #[serde(borrow)]
    keyslots: BTreeMap<String, &'a RawValue>,
    #[serde(borrow)]
    segments: BTreeMap<String, &'a RawValue>,
    #[serde(borrow)]
    digests: BTreeMap<String, &'a RawValue>,
    #[serde(default)]
    config: JsonConfig,
}

#[derive(Deserialize, Default)]
struct JsonConfig {
    #[serde(default)]
    requirements: JsonRequirements,
}

#[derive(Deserialize, Default)]
struct JsonRequirements {
    #[serde(default)]
    mandatory: Vec<String>,
}

#[derive(Deserialize)]
struct JsonType {
    r#type: String,
}

#[derive(Deserialize)]
struct JsonSegment {
    offset: String,
    size: String,
    iv_tweak: String,
    encryption: String,
    sector_size: u64,
}

/// Marks of a segment that this reader does not open.
#[derive(Deserialize)]
struct JsonSegmentMarks {
    r#type: String,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    integrity: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct JsonDigest {
    keyslots: Vec<String>,
    segments: Vec<String>,
    hash: String,
    iterations: u64,
    salt: String,
    digest: String,
}

#[derive(Deserialize)]
struct JsonSlot {
    key_size: u64,
    #[serde(default)]
    priority: Option<u64>,
    af: JsonSplitter,
    area: JsonArea,
    kdf: JsonKdf,
}

#[derive(Deserialize)]
struct JsonSplitter {
    r#type: String,
    stripes: u64,
    hash: String,
}

#[derive(Deserialize)]
struct JsonArea {
    r#type: String,
    offset: String,
    size: String,
    encryption: String,
    key_size: u64,
}

#[derive(Deserialize)]
struct JsonKdf {
    r#type: String,
    salt: String,
    #[serde(default)]
    hash: String,
    #[serde(default)]
    iterations: u64,
    #[serde(default)]
    time: u64,
    #[serde(default)]
    memory: u64,
    #[serde(default)]
    cpus: u64,
}

fn object<'a, T: Deserialize<'a>>(json: &'a RawValue, what: &str) -> std::result::Result<T, Refused> {
    serde_json::from_str(json.get()).map_err(|_| Refused::Damaged(what.into()))
}

fn number(text: &str, what: &str) -> std::result::Result<u64, Refused> {
    text.parse().map_err(|_| Refused::Damaged(what.into()))
}

fn binary(text: &str, what: &str) -> std::result::Result<Vec<u8>, Refused> {
    STANDARD.decode(text).map_err(|_| Refused::Damaged(what.into()))
}

impl Json<'_> {
    fn header(&self, binary: &[u8], bytes_of_both: u64) -> std::result::Result<Header, Refused> {
        let most = self.keyslots.len().max(self.segments.len()).max(self.digests.len());
        if most > MAX_OBJECTS {
            return Err(Refused::Damaged(format!("LUKS header with {most} objects of a kind")));
        }
        let segment = self.segment(bytes_of_both);
        let digest = segment.as_ref().map_err(Clone::clone);
        let digest = digest.and_then(|(name, _)| self.digest(name));
        let bound = digest.as_ref().map(|(slots, _)| slots.as_slice()).unwrap_or_default();
        let slots = self.keyslots.iter().filter_map(|(name, json)| {
            // A key slot outside of the volume's digest has a key for something else.
            let number = name.parse().ok().filter(|_| bound.contains(name))?;
            Some((number, slot(json)))
        });
        Ok(Header {
            version: 2,
            uuid: text(&binary[168..208]).unwrap_or_default(),
            label: label(&binary[24..72]),
            slots: slots.collect(),
            digest: digest.map(|(_, digest)| digest),
            segment: segment.map(|(_, segment)| segment),
            remark: None,
        })
    }

    /// Returns the only segment and its name.
    fn segment(&self, bytes_of_both: u64) -> std::result::Result<(String, Segment), Refused> {
        let unsupported = |text: String| Err(Refused::Unsupported(text));
        if let Some(name) = self.config.requirements.mandatory.first() {
            return unsupported(match name.contains("reencrypt") {
                true => "LUKS volume whose reencryption is not finished".into(),
                false => format!("LUKS requirement {}", printable(name)),
            });
        }
        let mut segments = self.segments.iter();
        let (Some((name, json)), None) = (segments.next(), segments.next()) else {
            return unsupported(format!("LUKS volume of {} segments", self.segments.len()));
        };
        let marks: JsonSegmentMarks = object(json, "segment")?;
        if marks.r#type != "crypt" {
            return unsupported(format!("LUKS segment of type {}", printable(&marks.r#type)));
        }
        if marks.integrity.is_some() {
            return unsupported("LUKS volume with integrity".into());
        }
        if let Some(flag) = marks.flags.first() {
            return unsupported(format!("LUKS segment with the flag {}", printable(flag)));
        }
        let json: JsonSegment = object(json, "segment")?;
        let offset_bytes = number(&json.offset, "offset of the segment")?;
        if offset_bytes < bytes_of_both {
            return unsupported("detached LUKS header".into());
        }
        if !matches!(json.sector_size, 512 | 1024 | 2048 | 4096) {
            return Err(Refused::Damaged(format!("sectors of {} bytes", json.sector_size)));
        }
        let size_bytes = match json.size.as_str() {
            "dynamic" => None,
            size => Some(number(size, "size of the segment")?),
        };
        let segment = Segment {
            encryption: json.encryption,
            offset_bytes,
            size_bytes,
            sector_bytes: json.sector_size as usize,
            first: number(&json.iv_tweak, "IV offset of the segment")?,
        };
        Ok((name.clone(), segment))
    }

    /// Returns the digest of a segment's key and the names of the key slots with that key.
    fn digest(&self, segment: &str) -> std::result::Result<(Vec<String>, Digest), Refused> {
        for json in self.digests.values() {
            // A digest that is damaged, or of another type, may be that of something else.
            let Ok(kind) = object::<JsonType>(json, "digest") else {
                continue;
            };
            let Ok(json) = object::<JsonDigest>(json, "digest") else {
                continue;
            };
            if kind.r#type != "pbkdf2" || !json.segments.iter().any(|name| name == segment) {
                continue;
            }
            let digest = Digest {
                kdf: Kdf::Pbkdf2 {
                    hash: Hash::known(&json.hash)?,
                    iterations: json.iterations,
                },
                salt: binary(&json.salt, "salt of the digest")?,
                digest: binary(&json.digest, "digest of the key")?,
            };
            return Ok((json.keyslots, digest));
        }
        Err(Refused::Damaged("no digest of the segment's key".into()))
    }
}

fn slot(json: &RawValue) -> std::result::Result<Slot, Refused> {
    let kind: JsonType = object(json, "key slot without a type")?;
    if kind.r#type != "luks2" {
        return Err(Refused::Unsupported(format!("type {}", printable(&kind.r#type))));
    }
    let json: JsonSlot = object(json, "JSON")?;
    if json.af.r#type != "luks1" || json.af.stripes != u64::from(STRIPES) {
        let text = format!("splitter {} of {} stripes", printable(&json.af.r#type), json.af.stripes);
        return Err(Refused::Unsupported(text));
    }
    if json.area.r#type != "raw" {
        return Err(Refused::Unsupported(format!(
            "area of type {}",
            printable(&json.area.r#type)
        )));
    }
    Ok(Slot {
        priority: json.priority.unwrap_or(1),
        key_bytes: usize::try_from(json.key_size).unwrap_or(usize::MAX),
        splitter: Hash::known(&json.af.hash)?,
        salt: binary(&json.kdf.salt, "salt")?,
        kdf: kdf(&json.kdf)?,
        area: Area {
            encryption: json.area.encryption,
            key_bytes: usize::try_from(json.area.key_size).unwrap_or(usize::MAX),
            offset_bytes: number(&json.area.offset, "offset of the area")?,
            size_bytes: number(&json.area.size, "size of the area")?,
        },
    })
}

fn kdf(json: &JsonKdf) -> std::result::Result<Kdf, Refused> {
    let algorithm = match json.r#type.as_str() {
        "pbkdf2" => {
            return Ok(Kdf::Pbkdf2 {
                hash: Hash::known(&json.hash)?,
                iterations: json.iterations,
            });
        }
        "argon2i" => Algorithm::Argon2i,
        "argon2id" => Algorithm::Argon2id,
        other => return Err(Refused::Unsupported(format!("key derivation {}", printable(other)))),
    };
    Ok(Kdf::Argon2 {
        algorithm,
        passes: json.time,
        memory_kib: json.memory,
        lanes: json.cpus,
    })
}

fn label(bytes: &[u8]) -> Option<String> {
    let label = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let label = String::from_utf8_lossy(label);
    (!label.is_empty()).then(|| label.into_owned())
}
