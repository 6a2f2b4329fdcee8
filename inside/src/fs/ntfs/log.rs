//! State of `$LogFile`: whether changes wait in it. It is not replayed.

use crate::device::{le16, le32, le64};
use crate::error::{Error, Result};

use super::DATA;
use super::stream::Streams;

/// Number of `$LogFile`.
const LOG_FILE: u64 = 2;
/// `LOGFILE_NO_CLIENT`.
const NO_CLIENT: u16 = 0xffff;
/// `RESTART_VOLUME_IS_CLEAN`.
const IS_CLEAN: u16 = 0x2;

/// Tests that no changes wait in the log, as the newer one of its two restart pages says (`struct
/// RESTART_PAGE_HEADER`, `RESTART_AREA` of ntfs-3g's logfile.h).
pub(super) fn is_clean(streams: &Streams) -> Result<bool> {
    let log = streams.stream(&streams.record(LOG_FILE)?, DATA, &[])?;
    let page = |at| -> Result<[u8; 512]> {
        let mut bytes = [0; 512];
        log.read_at(streams, at, &mut bytes)?;
        Ok(bytes)
    };
    let first = page(0)?;
    // ntfs-3g empties the log.
    if first == [0xff; 512] {
        return Ok(true);
    }
    let second_at = match le32(&first, 16) {
        bytes @ 512..=65536 => bytes,
        _ => 4096,
    };
    let pages = [Ok(first), page(second_at.into())].into_iter().flatten();
    let states = pages.filter_map(|page| {
        let area = page.get(usize::from(le16(&page, 24))..)?;
        let valid = matches!(&page[..4], b"RSTR" | b"CHKD") && area.len() >= 16;
        let clean = |area| le16(area, 12) == NO_CLIENT || le16(area, 14) & IS_CLEAN != 0;
        valid.then(|| (le64(area, 0), clean(area)))
    });
    let newest = states.max_by_key(|(number, _)| *number);
    newest
        .map(|(_, clean)| clean)
        .ok_or_else(|| Error::damaged("restart pages of the log"))
}
