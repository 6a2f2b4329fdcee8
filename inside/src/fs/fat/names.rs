//! Names in FAT directories: 8.3 in the code page of the first IBM PC, and long ones in UTF-16.

use crate::device::le16;
use crate::fs::utf16;

/// Characters 0x80 to 0xff of code page 437, Linux's default for FAT.
const CODE_PAGE_437: &str = "\
    ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
    └┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// Flags of Windows NT in an entry (`CASE_LOWER_BASE`, `CASE_LOWER_EXT`).
const LOWER_BASE: u8 = 0x08;
const LOWER_EXTENSION: u8 = 0x10;

/// Units of a long name in one entry.
const UNITS: usize = 13;
/// Most entries of a long name: 255 units.
const MAX_PIECES: u8 = 20;

fn decode(bytes: &[u8], lower: bool) -> String {
    let end = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    let chars = bytes[..end].iter().map(|byte| match byte.checked_sub(0x80) {
        None if lower => char::from(byte.to_ascii_lowercase()),
        None => char::from(*byte),
        Some(index) => CODE_PAGE_437.chars().nth(index.into()).unwrap_or('\u{fffd}'),
    });
    if lower {
        chars.flat_map(char::to_lowercase).collect()
    } else {
        chars.collect()
    }
}

/// Returns the 8.3 name of an entry.
pub(super) fn short(entry: &[u8; 32]) -> Vec<u8> {
    let mut base: [u8; 8] = std::array::from_fn(|at| entry[at]);
    // The byte 0xe5 would mark a deleted entry.
    if base[0] == 0x05 {
        base[0] = 0xe5;
    }
    let mut name = decode(&base, entry[12] & LOWER_BASE != 0);
    let extension = decode(&entry[8..11], entry[12] & LOWER_EXTENSION != 0);
    if !extension.is_empty() {
        name.push('.');
        name.push_str(&extension);
    }
    name.into_bytes()
}

/// Returns a label of eleven bytes.
pub(super) fn label(bytes: &[u8]) -> Option<String> {
    let label = decode(bytes, false);
    // mkfs writes this where there is no label.
    (!label.is_empty() && label != "NO NAME" && !label.contains('\0')).then_some(label)
}

/// Collects the entries of a long name, which come last piece first, before the entry they belong to.
#[derive(Default)]
pub(super) struct LongName {
    units: [[u16; UNITS]; MAX_PIECES as usize],
    pieces: u8,
    /// Number of the piece that was added last; 1 completes the name.
    last: u8,
    checksum: u8,
}

impl LongName {
    pub(super) fn clear(&mut self) {
        self.pieces = 0;
    }

    /// Adds an entry (`struct msdos_dir_slot`).
    pub(super) fn add(&mut self, entry: &[u8; 32]) {
        let number = entry[0] & 0x1f;
        if !(1..=MAX_PIECES).contains(&number) {
            return self.clear();
        }
        if entry[0] & 0x40 != 0 {
            (self.pieces, self.checksum) = (number, entry[13]);
        } else if self.pieces == 0 || number + 1 != self.last || self.checksum != entry[13] {
            return self.clear();
        }
        self.last = number;
        let offsets = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
        self.units[usize::from(number - 1)] = offsets.map(|at| le16(entry, at));
    }

    /// Returns the long name of the entry whose eleven bytes these are, if it has one, and forgets it.
    pub(super) fn take(&mut self, short: &[u8]) -> Option<Vec<u8>> {
        let pieces = usize::from(std::mem::take(&mut self.pieces));
        let checksum = short
            .iter()
            .fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if pieces == 0 || self.last != 1 || checksum != self.checksum {
            return None;
        }
        let units = self.units[..pieces].iter().flatten().copied();
        let name = utf16::to_utf8(units.take_while(|unit| *unit != 0));
        (!name.is_empty()).then_some(name)
    }
}
