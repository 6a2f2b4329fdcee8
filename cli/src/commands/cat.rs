//! `vbk cat`

use vbk_inside::device::Device;
use vbk_inside::fs::FileKind;
use vbk_inside::path::Last;
use vbk_repo::reader::ReadResources;

use crate::args::CatArgs;
use crate::context::{Context, stdout_is_terminal, threads};
use crate::exit::{Error, Outcome, Result};
use crate::file_forms::shown;
use crate::guest_files::BackupFiles;
use crate::secrets;
use crate::terminal::output;
use crate::terminal::printable;
use crate::warnings::{warn_of_clock, warn_of_foreign_changes};

/// Bytes that are read at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// Writes the content of files to standard output.
pub fn run(context: &Context<'_>, args: &CatArgs) -> Result<Outcome> {
    if context.json() {
        let reason = "the files themselves go to standard output, so --json is not possible";
        return Err(Error::Usage(reason.into()));
    }
    let view = context.view_to_read()?;
    let catalogue = view.catalogue()?;
    warn_of_foreign_changes(&catalogue);
    let resources = ReadResources::new(threads());
    let secrets = secrets::find(&args.luks)?;
    for named in &args.paths {
        let entry = catalogue.find(&named.backup)?;
        warn_of_clock(&catalogue, &named.backup, entry);
        let path = match named.path.as_deref() {
            None | Some(b"") => return Err(Error::Usage(format!("no path; write e.g. {}:/etc/fstab", named.backup))),
            Some(path) => path,
        };
        let files = BackupFiles::open(&view, &resources, entry, Some(&named.backup), &secrets)?;
        let found = files.locate(path, Last::Follow)?;
        let what = || format!("{}:{}", files.spec, shown(path));
        let read = |source: vbk_inside::Error| Error::Inside { what: what(), source };
        match found.kind {
            FileKind::File => {}
            FileKind::Directory => {
                let hint = "is a directory; `vbk ls` lists it, `vbk cp -r` copies it";
                return Err(Error::Usage(format!("{} {hint}", what())));
            }
            _ => return Err(read(vbk_inside::Error::NotAFile)),
        }
        let content = found.tree.open(found.node).map_err(read)?;
        write(&*content).map_err(|error| read(error.into()))?;
        if output::is_closed() {
            break;
        }
    }
    Ok(Outcome::Done)
}

fn write(content: &dyn Device) -> std::io::Result<()> {
    let is_terminal = stdout_is_terminal();
    // The start of a character that continues in the next chunk.
    let mut rest = Vec::new();
    let mut at_bytes = 0;
    while at_bytes < content.size_bytes() && !output::is_closed() {
        let length = (content.size_bytes() - at_bytes).min(CHUNK_BYTES);
        // At most a chunk, which fits.
        let mut buffer = vec![0; length as usize];
        content.read_at(at_bytes, &mut buffer)?;
        at_bytes += length;
        match is_terminal {
            true => {
                rest.append(&mut buffer);
                let end = at_bytes == content.size_bytes();
                output::write_bytes(printable_text(&mut rest, end).as_bytes());
            }
            false => output::write_bytes(&buffer),
        }
    }
    Ok(())
}

/// Takes the text for a terminal out of `bytes`; leaves a character that is not complete, unless it is the end.
fn printable_text(bytes: &mut Vec<u8>, is_end: bool) -> String {
    let mut text = String::new();
    let mut left = 0;
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(&printable::lines(chunk.valid()));
        // An incomplete character is the only error that more bytes can correct.
        let invalid = chunk.invalid();
        let is_cut = !is_end
            && chunks.peek().is_none()
            && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
        match is_cut {
            true => left = invalid.len(),
            false => invalid.iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}"))),
        }
    }
    bytes.drain(..bytes.len() - left);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_for_a_terminal_is_safe_wherever_it_is_cut() {
        let all = "a\u{1b}[2Jé\n日".as_bytes();
        for cut in 0..=all.len() {
            let mut rest = all[..cut].to_vec();
            let mut text = printable_text(&mut rest, false);
            rest.extend(&all[cut..]);
            text += &printable_text(&mut rest, true);
            assert_eq!(text, "a\\u{1b}[2Jé\n日", "{cut}");
        }
        let mut bad = b"x\xff\xe6\x97".to_vec();
        assert_eq!(printable_text(&mut bad, true), "x\\xff\\xe6\\x97");
    }
}
