//! Reads what `thin_delta` prints: which blocks of two thin volumes share their data. Trusts nothing it reads.
//!
//! ```xml
//! <superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="0">
//!   <diff left="2" right="3">
//!     <same begin="0" length="33"/>
//!     <different begin="33" length="2"/>
//!     <left_only begin="160" length="32"/>
//!     <right_only begin="960" length="48"/>
//!   </diff>
//! </superblock>
//! ```
//!
//! `data_block_size` is in sectors of 512 bytes, `begin` and `length` in data blocks. Elements come in order and never
//! overlap. A range that no element covers is mapped in neither volume and reads as zeros in both (or as the same bytes
//! of an external origin, which LVM keeps read-only), so it is unchanged. The closing tags and the program's exit code
//! show that the output is complete. (thin_delta(8), thin-provisioning-tools 0.9.0 and 1.0)

use std::io::{self, BufReader, Read};
use std::ops::{Range, RangeInclusive};

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use crate::hints::{Collector, HintError};

/// The longest tag; a longer one is not ours, and must not fill the memory.
const MAX_TAG_BYTES: usize = 4096;
/// dm-thin's limits: 64 KiB to 1 GiB (drivers/md/dm-thin.c, DATA_DEV_BLOCK_SIZE_MIN_SECTORS and _MAX_SECTORS).
const DATA_BLOCK_BYTES: RangeInclusive<u64> = (64 << 10)..=(1 << 30);
const SECTOR_BYTES: u64 = 512;

/// Adds what is the same in both volumes to `unchanged`, for a disk of `size_bytes`.
pub(super) fn read(
    input: &mut dyn Read,
    left: u64,
    right: u64,
    size_bytes: u64,
    unchanged: &mut Collector,
) -> Result<(), HintError> {
    let mut reader = Reader::from_reader(BufReader::new(ShortTags { input, tag_bytes: 0 }));
    reader.config_mut().expand_empty_elements = true;
    let mut buffer = Vec::new();
    let mut place = Place::Outside;
    // The end of what was said so far, in bytes.
    let mut said = 0;
    loop {
        buffer.clear();
        let event = reader.read_event_into(&mut buffer).map_err(wrong)?;
        place = match (place, event) {
            (place, Event::Decl(_) | Event::Comment(_)) => place,
            (place, Event::Text(text)) if text.iter().all(u8::is_ascii_whitespace) => place,
            (Place::Outside, Event::Start(tag)) if tag.name().as_ref() == b"superblock" => {
                let block_bytes = number(&tag, "data_block_size")?.saturating_mul(SECTOR_BYTES);
                if !DATA_BLOCK_BYTES.contains(&block_bytes) {
                    return Err(wrong(format!("data blocks of {block_bytes} bytes")));
                }
                Place::Superblock { block_bytes }
            }
            (Place::Superblock { block_bytes }, Event::Start(tag)) if tag.name().as_ref() == b"diff" => {
                if (number(&tag, "left")?, number(&tag, "right")?) != (left, right) {
                    return Err(wrong("other volumes than it was asked for"));
                }
                Place::Diff { block_bytes }
            }
            (Place::Diff { block_bytes }, Event::Start(tag)) => {
                let (same, range) = range_of(&tag, block_bytes)?;
                if range.start < said || range.is_empty() {
                    let begin = range.start / block_bytes;
                    return Err(wrong(format!("a range out of order, at data block {begin}")));
                }
                if said < range.start {
                    unchanged.add(said..range.start)?;
                }
                said = range.end;
                if same {
                    unchanged.add(range)?;
                }
                Place::Range { block_bytes }
            }
            // The reader has seen to it that end tags fit their start tags.
            (Place::Range { block_bytes }, Event::End(_)) => Place::Diff { block_bytes },
            (Place::Diff { .. }, Event::End(_)) => Place::AfterDiff,
            (Place::AfterDiff, Event::End(_)) => Place::End,
            (Place::End, Event::Eof) => {
                if said < size_bytes {
                    unchanged.add(said..size_bytes)?;
                }
                return Ok(());
            }
            (_, Event::Eof) => return Err(wrong("it ends too early")),
            _ => return Err(wrong("elements in an unknown order")),
        };
    }
}

#[derive(Clone, Copy)]
enum Place {
    Outside,
    Superblock { block_bytes: u64 },
    Diff { block_bytes: u64 },
    Range { block_bytes: u64 },
    AfterDiff,
    End,
}

/// Returns whether an element is a range that both volumes share, and its bytes.
fn range_of(tag: &BytesStart<'_>, block_bytes: u64) -> Result<(bool, Range<u64>), HintError> {
    let same = match tag.name().as_ref() {
        b"same" => true,
        b"different" | b"left_only" | b"right_only" => false,
        name => return Err(wrong(format!("an unknown element {}", String::from_utf8_lossy(name)))),
    };
    let (begin, length) = (number(tag, "begin")?, number(tag, "length")?);
    let start = begin.checked_mul(block_bytes);
    let end = begin.checked_add(length).and_then(|end| end.checked_mul(block_bytes));
    match (start, end) {
        (Some(start), Some(end)) => Ok((same, start..end)),
        _ => Err(wrong("a range that no volume can have")),
    }
}

fn number(tag: &BytesStart<'_>, name: &str) -> Result<u64, HintError> {
    let attribute = tag.try_get_attribute(name).map_err(wrong)?;
    let text = attribute
        .as_ref()
        .and_then(|attribute| str::from_utf8(&attribute.value).ok());
    // Digits alone: parse would take a sign too.
    text.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| wrong(format!("no number where {name} should be")))
}

fn wrong(what: impl std::fmt::Display) -> HintError {
    HintError::not_understood(format!("the answer of thin_delta is not understood: {what}"))
}

/// Fails where a tag is longer than any of ours, because the XML reader would keep it.
struct ShortTags<'a> {
    input: &'a mut dyn Read,
    tag_bytes: usize,
}

impl Read for ShortTags<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        for &byte in &buffer[..read] {
            self.tag_bytes = if byte == b'>' { 0 } else { self.tag_bytes + 1 };
            if self.tag_bytes > MAX_TAG_BYTES {
                return Err(io::Error::other("a tag without an end"));
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hints::Unchanged;
    use proptest::prelude::*;
    use vbk_repo::block::{BlockIndex, BlockSize};

    const MIB: u64 = 1 << 20;

    /// Output of thin_delta 0.9.0 for an LV of 120 MiB, of which 40 MiB had been written before the first snapshot;
    /// between the two, 128 KiB at 2112 KiB, 4 KiB at 6404 KiB and 3 MiB at 60 MiB were written, and 2 MiB at 10 MiB
    /// discarded.
    const REAL: &str = r#"<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="0">
  <diff left="2" right="3">
    <same begin="0" length="33"/>
    <different begin="33" length="2"/>
    <same begin="35" length="65"/>
    <different begin="100" length="1"/>
    <same begin="101" length="59"/>
    <left_only begin="160" length="32"/>
    <same begin="192" length="448"/>
    <right_only begin="960" length="48"/>
  </diff>
</superblock>
"#;

    fn parse(text: &[u8]) -> Result<Unchanged, HintError> {
        let mut collector = Collector::new(120 * MIB, BlockSize::DEFAULT);
        read(&mut &*text, 2, 3, 120 * MIB, &mut collector)?;
        Ok(collector.finish())
    }

    /// Firsts and ends.
    fn runs(unchanged: &Unchanged) -> Vec<(u64, u64)> {
        let mut runs = Vec::new();
        let mut at = 0;
        while let Some(run) = unchanged.run_from(BlockIndex(at)) {
            at = run.end;
            runs.push((run.start, run.end));
        }
        runs
    }

    #[test]
    fn shared_and_unmapped_ranges_are_unchanged() {
        let unchanged = parse(REAL.as_bytes()).expect("is understood");
        assert_eq!(runs(&unchanged), [(0, 2), (3, 6), (7, 10), (12, 60), (63, 120)]);
    }

    #[test]
    fn a_volume_without_mappings_is_unchanged() {
        let text = REAL.lines().filter(|line| !line.contains("begin")).collect::<String>();
        assert_eq!(runs(&parse(text.as_bytes()).expect("is understood")), [(0, 120)]);
    }

    #[test]
    fn an_unparsable_answer_gives_no_hint() {
        let wrong = [
            ("<different begin", "<differing begin"),
            ("left=\"2\"", "left=\"7\""),
            ("data_block_size=\"128\"", "data_block_size=\"0\""),
            ("data_block_size=\"128\"", "data_block_size=\"9999999999\""),
            (" data_block_size=\"128\"", ""),
            ("begin=\"35\"", "begin=\"34\""),
            ("begin=\"35\"", "begin=\"+35\""),
            ("begin=\"35\"", "begin=\"18446744073709551615\""),
            ("length=\"65\"", "length=\"66\""),
            ("length=\"65\"", "length=\"0\""),
            ("length=\"65\"", ""),
            ("</diff>", ""),
            ("</superblock>", ""),
            ("</superblock>", "</superblock><superblock>"),
            ("  </diff>", "</diff><diff left=\"2\" right=\"3\"></diff>"),
            ("  </diff>", "trouble</diff>"),
            (
                "<same begin=\"192\" length=\"448\"/>",
                "<same><range begin=\"192\" data_begin=\"1\" length=\"448\"/></same>",
            ),
        ];
        for (from, to) in wrong {
            let text = REAL.replace(from, to);
            assert_ne!(text, REAL, "{from}");
            let error = parse(text.as_bytes()).expect_err(to).to_string();
            assert!(error.contains("thin_delta"), "{error}");
        }
        assert!(parse(b"").is_err());
        let endless = [REAL.as_bytes(), b"<", &vec![b'x'; 1 << 20]].concat();
        assert!(
            parse(&endless)
                .expect_err("is too long")
                .to_string()
                .contains("without an end")
        );
    }

    #[test]
    fn a_truncated_answer_gives_no_hint() {
        for end in 0..REAL.trim_end().len() {
            assert!(parse(&REAL.as_bytes()[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn a_million_ranges_take_little_memory() {
        /// Prints every other data block as different.
        struct Printer(u64, Vec<u8>);
        impl Read for Printer {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if self.1.is_empty() && self.0 < 1_000_000 {
                    let begin = self.0 * 2;
                    self.0 += 1;
                    self.1 = format!(
                        "<same begin=\"{begin}\" length=\"1\"/><different begin=\"{}\" length=\"1\"/>",
                        begin + 1
                    )
                    .into_bytes();
                }
                let len = self.1.len().min(buffer.len());
                buffer[..len].copy_from_slice(&self.1[..len]);
                self.1.drain(..len);
                Ok(len)
            }
        }
        let head = "<superblock data_block_size=\"128\"><diff left=\"2\" right=\"3\">";
        let mut text = head
            .as_bytes()
            .chain(Printer(0, Vec::new()))
            .chain(&b"</diff></superblock>"[..]);
        let size = 2_000_000 * (64 << 10) + 5 * MIB;
        let mut collector = Collector::new(size, BlockSize::DEFAULT);
        read(&mut text, 2, 3, size, &mut collector).expect("is understood");
        assert_eq!(runs(&collector.finish()), [(125_000, 125_005)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn damaged_answers_never_panic(
            places in prop::collection::vec((0..REAL.len(), any::<u8>()), 1..8),
            cut in prop::option::of(0..REAL.len()),
        ) {
            let mut bytes = REAL.as_bytes().to_vec();
            for (place, byte) in places {
                bytes[place] = byte;
            }
            bytes.truncate(cut.unwrap_or(bytes.len()));
            if let Ok(unchanged) = parse(&bytes) {
                prop_assert!(unchanged.blocks() <= 120);
            }
        }
    }
}
