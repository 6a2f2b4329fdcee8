//! One edit of a list of files (db/version_edit.cc): an entry after the other, each a tag and its fields.

/// One edit, as far as it says something about files.
#[derive(Debug, Default)]
pub(super) struct Edit {
    pub(super) family: u64,
    pub(super) removed: Vec<u64>,
    pub(super) added: Vec<(u64, Table)>,
    pub(super) blobs: Vec<NewBlobFile>,
    pub(super) garbage: Vec<(u64, u64)>,
    /// Edits of its group that come after it.
    pub(super) after: Option<u64>,
    pub(super) has_sequence: bool,
}

/// A table of a store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    /// Oldest blob file that it needs (0: none).
    pub(super) oldest: u64,
    /// Length of the file.
    pub(super) bytes: u64,
}

/// A blob file that was added.
#[derive(Debug)]
pub(super) struct NewBlobFile {
    pub(super) number: u64,
    pub(super) blobs: u64,
    /// Length of the file.
    pub(super) bytes: u64,
}

/// Bytes of a blob file before and after its blobs (db/blob/blob_log_format.h).
const BLOB_FILE_FRAME_BYTES: u64 = 30 + 32;

/// Fields of an edit that are not read to their end.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text)
    }

    fn skip(&mut self, numbers: usize) -> Option<()> {
        (0..numbers).try_for_each(|_| self.number().map(drop))
    }

    /// The fields that an entry ends with: a tag and a text each, and the tag `end` last. `None` also if one has a tag that
    /// must not be passed over, unless `each` takes it.
    fn extras(&mut self, end: u64, mut each: impl FnMut(u64, &'a [u8]) -> Option<bool>) -> Option<()> {
        loop {
            let tag = self.number()?;
            if tag == end {
                return Some(());
            }
            let text = self.text()?;
            if !each(tag, text)? && tag & MUST_KNOW_EXTRA != 0 {
                return None;
            }
        }
    }
}

/// Bits of tags, see db/version_edit.h.
const MUST_KNOW_EXTRA: u64 = 1 << 6;
const MAY_SKIP: u64 = 1 << 13;
/// Old tags with that bit, whose entries have another form.
const OLD_FORMS: std::ops::RangeInclusive<u64> = MAY_SKIP + 2..=MAY_SKIP + 5;

impl Edit {
    pub(super) fn decode(bytes: &[u8]) -> std::result::Result<Self, &'static str> {
        let mut fields = Fields(bytes);
        let mut edit = Self::default();
        while !fields.0.is_empty() {
            edit.entry(&mut fields).ok_or("an unknown entry")?;
        }
        Ok(edit)
    }

    /// Reads one entry; `None` if it is unknown or cut off.
    fn entry(&mut self, fields: &mut Fields<'_>) -> Option<()> {
        match fields.number()? {
            // Comparator; column family that is added.
            1 | 201 => fields.text().map(drop),
            // Log number, next file number, previous log number, oldest log that is kept, highest column family.
            2 | 3 | 9 | 10 | 203 => fields.skip(1),
            // Last sequence number.
            4 => {
                self.has_sequence = true;
                fields.skip(1)
            }
            // Compaction cursor: level and key.
            5 => {
                fields.skip(1)?;
                fields.text().map(drop)
            }
            6 => {
                fields.skip(1)?;
                self.removed.push(fields.number()?);
                Some(())
            }
            103 => self.table(fields),
            200 => {
                self.family = fields.number()?;
                Some(())
            }
            300 => {
                self.after = Some(fields.number()?);
                Some(())
            }
            400 => {
                self.blobs.push(NewBlobFile {
                    number: fields.number()?,
                    blobs: fields.number()?,
                    bytes: fields.number()?.saturating_add(BLOB_FILE_FRAME_BYTES),
                });
                // Checksum: method and value.
                fields.text()?;
                fields.text()?;
                fields.extras(0, |_, _| Some(false))
            }
            401 => {
                let (number, garbage) = (fields.number()?, fields.number()?);
                fields.skip(1)?;
                self.garbage.push((number, garbage));
                fields.extras(0, |_, _| Some(false))
            }
            tag if tag & MAY_SKIP != 0 && !OLD_FORMS.contains(&tag) => fields.text().map(drop),
            _ => None,
        }
    }

    /// Level, number, length, smallest and largest key, smallest and largest sequence number, more.
    fn table(&mut self, fields: &mut Fields<'_>) -> Option<()> {
        fields.skip(1)?;
        let (number, bytes) = (fields.number()?, fields.number()?);
        fields.text()?;
        fields.text()?;
        fields.skip(2)?;
        let mut oldest = 0;
        fields.extras(1, |tag, text| match tag {
            4 => {
                oldest = Fields(text).number()?;
                Some(true)
            }
            // The directory of the file, of several that a store may have: this one has one.
            65 => (text == [0]).then_some(true),
            _ => Some(false),
        })?;
        self.added.push((number, Table { oldest, bytes }));
        Some(())
    }
}
