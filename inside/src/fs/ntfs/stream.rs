//! Streams: the attributes of a file, from its record and from those that extend it.

use std::io;

use crate::device::{le16, le32, le64};
use crate::error::{Error, Result};
use crate::fs::pages::Pages;
use crate::fs::runs::{Runs, Source};

use super::record::{Record, number};
use super::{ATTRIBUTE_LIST, Attribute, Boot, DATA, MFT};

/// Longest list of attributes: Windows makes none that is longer.
const MAX_LIST_BYTES: u64 = 256 << 10;
/// Longest unit of compression that Windows makes: 16 clusters of 4 KiB.
const MAX_UNIT_BYTES: u64 = 64 << 10;

/// A stream of a file.
#[derive(Default)]
pub(super) struct Stream {
    /// Content of a stream that is inside the file record.
    pub(super) resident: Option<Vec<u8>>,
    pub(super) runs: Runs,
    pub(super) size_bytes: u64,
    pub(super) initialized_bytes: u64,
    /// Length of a unit of compression; 0 if the stream is not compressed.
    pub(super) unit_bytes: u64,
    encrypted: bool,
}

impl Stream {
    pub(super) fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// Returns the runs, with zeros after the part that was written.
    pub(super) fn initialized(self) -> Result<Runs> {
        let mut runs = self.runs;
        runs.resize(self.size_bytes.min(self.initialized_bytes), Source::Nowhere)?;
        runs.resize(self.size_bytes, Source::Zeros)?;
        Ok(runs)
    }

    /// Fills `buf` through the cache of metadata, not regarding the part that was written.
    pub(super) fn read_at(&self, streams: &Streams, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        if let Some(bytes) = &self.resident {
            let start = usize::try_from(offset_bytes).ok();
            let found = start.and_then(|start| bytes.get(start..)?.get(..buf.len()));
            buf.copy_from_slice(found.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?);
            return Ok(());
        }
        let mut read = |from, out: &mut [u8]| streams.pages.read_at(from, out).map_err(io::Error::from);
        Ok(self.runs.read(offset_bytes, buf, &mut read)?)
    }

    /// Returns the whole content if it is not longer than `limit_bytes`.
    pub(super) fn read_all(self, streams: &Streams, limit_bytes: u64) -> Result<Vec<u8>> {
        if self.size_bytes > limit_bytes {
            return Err(Error::damaged(format!("attribute of {} bytes", self.size_bytes)));
        }
        if let Some(bytes) = self.resident {
            return Ok(bytes);
        }
        let mut bytes = vec![0; self.size_bytes as usize];
        self.read_at(streams, 0, &mut bytes)?;
        Ok(bytes)
    }
}

/// The master file table, from which all streams come.
pub(super) struct Streams {
    pub(super) pages: Pages,
    boot: Boot,
    mft: Runs,
}

impl Streams {
    pub(super) fn cluster_bytes(&self) -> u64 {
        self.boot.cluster_bytes
    }

    /// Finds the runs of the master file table by its own first record, or by the copy of that.
    pub(super) fn open(pages: Pages, boot: Boot, remarks: &mut Vec<String>) -> Result<Self> {
        let mut streams = Self {
            pages,
            boot,
            mft: Runs::default(),
        };
        let first = |streams: &mut Self, at| {
            // The table's own runs are not known yet, but its first record is at the start of one.
            let mut bytes = vec![0; boot.record_bytes];
            streams.pages.read_at(at, &mut bytes)?;
            let record = Record::parse(MFT, bytes)?;
            streams.mft = Runs::default();
            streams.mft.push(Source::Device(at), boot.record_bytes as u64)?;
            streams.read_mft(&record)
        };
        first(&mut streams, boot.mft_at).or_else(|error| {
            first(&mut streams, boot.mirror_at).map_err(|_| error)?;
            remarks.push("the master file table is damaged; opened by its mirror".to_owned());
            Ok::<_, Error>(())
        })?;
        Ok(streams)
    }

    /// Reads the runs of the table. Records that extend the first one are in parts of the table that are known by then.
    fn read_mft(&mut self, record: &Record) -> Result<()> {
        let data = record
            .attributes()
            .find(|it| it.kind() == DATA && it.name() == Some(&[]));
        let data = data.filter(|data| !data.is_resident() && data.first_cluster() == 0);
        let data = data.ok_or_else(|| Error::damaged("file record 0: no data"))?;
        let size_bytes = data.size_bytes();
        self.mft = Runs::default();
        data.runs(self.boot.cluster_bytes, self.boot.clusters, &mut self.mft)?;
        for part in self.parts(record, DATA, &[])? {
            if part.first_cluster == 0 {
                continue;
            }
            // A part that is lost takes its files with it, no others.
            let Ok(extension) = self.extension(record, &part) else {
                break;
            };
            let mut runs = std::mem::take(&mut self.mft);
            let from = extension.as_ref().unwrap_or(record);
            let appended = self.append(from, &part, DATA, &[], &mut runs, &mut |_| {});
            self.mft = runs;
            if appended.is_err() {
                break;
            }
        }
        self.mft.truncate(size_bytes);
        Ok(())
    }

    /// Reads a record by its number.
    pub(super) fn record(&self, number: u64) -> Result<Record> {
        let at = number.checked_mul(self.boot.record_bytes as u64);
        let Some(at) = at.filter(|at| *at < self.mft.size_bytes()) else {
            return Err(Error::damaged(format!(
                "file record {number}: outside of the master file table"
            )));
        };
        let mut bytes = vec![0; self.boot.record_bytes];
        let mut read = |from, out: &mut [u8]| self.pages.read_at(from, out).map_err(io::Error::from);
        self.mft.read(at, &mut bytes, &mut read)?;
        Record::parse(number, bytes)
    }

    /// Reads the record of a file reference, which must be that of a file.
    pub(super) fn record_of(&self, reference: u64) -> Result<Record> {
        let record = self.record(number(reference))?;
        if record.reference() != reference || record.base() != 0 {
            return Err(Error::damaged(format!(
                "file record {}: the directory means another file",
                record.number
            )));
        }
        Ok(record)
    }

    /// Returns the list of attributes of a file that has more than its record holds.
    fn attribute_list(&self, record: &Record) -> Result<Option<Vec<u8>>> {
        let Some(list) = record.attributes().find(|it| it.kind() == ATTRIBUTE_LIST) else {
            return Ok(None);
        };
        let mut stream = Stream::default();
        self.start(&list, &mut stream);
        if !list.is_resident() {
            list.runs(self.boot.cluster_bytes, self.boot.clusters, &mut stream.runs)?;
        }
        stream.read_all(self, MAX_LIST_BYTES).map(Some)
    }

    /// Takes from a stream's first part all but its runs.
    fn start(&self, attribute: &Attribute, stream: &mut Stream) {
        stream.resident = attribute.value().map(<[u8]>::to_vec);
        stream.size_bytes = attribute.size_bytes();
        stream.initialized_bytes = attribute.initialized_bytes();
        stream.encrypted = attribute.is_encrypted();
        if attribute.is_compressed() && !attribute.is_resident() {
            let unit_clusters = 1_u64.checked_shl(attribute.unit_log().into()).unwrap_or(u64::MAX);
            stream.unit_bytes = unit_clusters.saturating_mul(self.boot.cluster_bytes);
        }
    }

    /// Returns the parts of a stream, in its order.
    pub(super) fn parts(&self, record: &Record, kind: u32, name: &[u8]) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        let Some(list) = self.attribute_list(record)? else {
            let found = record
                .attributes()
                .any(|it| it.kind() == kind && it.name() == Some(name));
            if found {
                parts.push(Part {
                    first_cluster: 0,
                    reference: record.reference(),
                });
            }
            return Ok(parts);
        };
        // struct ATTR_LIST_ENTRY
        let mut rest = &list[..];
        while rest.len() >= 26 {
            let len = usize::from(le16(rest, 4));
            let (name_len, name_at) = (usize::from(rest[6]) * 2, usize::from(rest[7]));
            if le32(rest, 0) == kind && rest.get(name_at..name_at + name_len) == Some(name) {
                parts.push(Part {
                    first_cluster: le64(rest, 8),
                    reference: le64(rest, 16),
                });
            }
            match rest.get(len..) {
                Some(next) if len >= 26 => rest = next,
                _ => break,
            }
        }
        parts.sort_by_key(|part| part.first_cluster);
        Ok(parts)
    }

    /// Returns the record of a part, unless that is the file's first one.
    fn extension(&self, base: &Record, part: &Part) -> Result<Option<Record>> {
        if number(part.reference) == base.number {
            return Ok(None);
        }
        let extension = self.record(number(part.reference))?;
        if extension.base() != base.reference() || extension.reference() != part.reference {
            return Err(Error::damaged(format!(
                "file record {}: list of attributes",
                base.number
            )));
        }
        Ok(Some(extension))
    }

    /// Appends the runs of a part, which is in `record`, to those before it.
    fn append(
        &self,
        record: &Record,
        part: &Part,
        kind: u32,
        name: &[u8],
        runs: &mut Runs,
        each: &mut dyn FnMut(&Attribute),
    ) -> Result<()> {
        let bad = || Error::damaged(format!("file record {}: part of a stream", record.number));
        let mut attributes = record.attributes();
        let found = attributes
            .find(|it| it.kind() == kind && it.name() == Some(name) && it.first_cluster() == part.first_cluster);
        let found = found.ok_or_else(bad)?;
        let expected = part.first_cluster.checked_mul(self.boot.cluster_bytes);
        // The parts before may have been lost.
        let gap = expected
            .and_then(|expected| expected.checked_sub(runs.size_bytes()))
            .ok_or_else(bad)?;
        runs.push(Source::Nowhere, gap)?;
        each(&found);
        if found.is_resident() {
            return Ok(());
        }
        found.runs(self.boot.cluster_bytes, self.boot.clusters, runs)
    }

    /// Returns a stream of a file by its type and name (little-endian UTF-16); `Error::NotFound` if it has none.
    pub(super) fn stream(&self, record: &Record, kind: u32, name: &[u8]) -> Result<Stream> {
        let parts = self.parts(record, kind, name)?;
        if parts.first().ok_or(Error::NotFound)?.first_cluster != 0 {
            return Err(Error::damaged(format!(
                "file record {}: start of a stream",
                record.number
            )));
        }
        let mut stream = Stream::default();
        let mut runs = Runs::default();
        for (index, part) in parts.iter().enumerate() {
            let mut start = |attribute: &Attribute| {
                if index == 0 {
                    self.start(attribute, &mut stream);
                }
            };
            let appended = self.extension(record, part).and_then(|extension| {
                let from = extension.as_ref().unwrap_or(record);
                self.append(from, part, kind, name, &mut runs, &mut start)
            });
            match appended {
                Ok(()) => {}
                // A damaged later part must not hide those before it.
                Err(Error::Damaged(_) | Error::NotFound | Error::Io(_)) if index > 0 || runs.size_bytes() > 0 => {}
                Err(error) => return Err(error),
            }
        }
        stream.runs = runs;
        let resident = stream.resident.as_ref().map(|bytes| bytes.len() as u64);
        if let Some(len) = resident {
            stream.size_bytes = len;
        }
        check_size(record, stream.size_bytes)?;
        if stream.unit_bytes > MAX_UNIT_BYTES {
            return Err(Error::unsupported(format!(
                "compression in units of {} bytes",
                stream.unit_bytes
            )));
        }
        Ok(stream)
    }

    /// Returns the length of a stream without a name, reading no more than its first part.
    pub(super) fn size_bytes(&self, record: &Record, kind: u32) -> Result<u64> {
        let parts = self.parts(record, kind, &[])?;
        let part = parts.first().ok_or(Error::NotFound)?;
        let mut size_bytes = None;
        let mut start = |attribute: &Attribute| {
            size_bytes = Some(
                attribute
                    .value()
                    .map_or(attribute.size_bytes(), |value| value.len() as u64),
            );
        };
        let extension = self.extension(record, part)?;
        let from = extension.as_ref().unwrap_or(record);
        let appended = self.append(from, part, kind, &[], &mut Runs::default(), &mut start);
        match size_bytes {
            Some(size_bytes) => check_size(record, size_bytes),
            None => appended.and(Err(Error::NotFound)),
        }
    }

    /// Returns the number of a file's names, without DOS doubles as far as its own record shows them.
    pub(super) fn links(&self, record: &Record) -> u32 {
        let names = record.attributes().filter(|it| it.kind() == super::index::FILE_NAME);
        let doubles = names.filter(|it| it.value().and_then(|value| value.get(65)) == Some(&super::index::DOS));
        let doubles = u32::try_from(doubles.count()).unwrap_or(u32::MAX);
        u32::from(record.names()).saturating_sub(doubles).max(1)
    }
}

/// Refuses lengths that are negative: with the others, ends of units and blocks can be computed.
fn check_size(record: &Record, size_bytes: u64) -> Result<u64> {
    if i64::try_from(size_bytes).is_err() {
        return Err(Error::damaged(format!(
            "file record {}: length of a stream",
            record.number
        )));
    }
    Ok(size_bytes)
}

/// Part of a stream.
pub(super) struct Part {
    first_cluster: u64,
    /// Record that describes it.
    reference: u64,
}
