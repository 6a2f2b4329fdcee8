//! Passphrases of the guests' encrypted volumes: from files that an option names, or asked for at the terminal.

use std::io::IsTerminal;
use std::path::PathBuf;

use vbk_inside::volumes::Secrets;
use zeroize::Zeroizing;

use crate::core_files::keep_out_of_core_files;
use crate::exit::{Error, Result};
use crate::handover::Handover;
use crate::terminal::printable;

/// Option for the passphrases of encrypted volumes.
#[derive(Debug, Default, clap::Args)]
pub struct LuksArgs {
    /// Open LUKS volumes inside the backup with the key in this file, all of its bytes as in `cryptsetup --key-file`; may be
    /// given several times. Without it, a passphrase is asked for at a terminal
    #[arg(long, value_name = "FILE")]
    pub luks_key_file: Vec<PathBuf>,
}

/// Returns the passphrases in the named files, and those that a process in the background was given. Where there are
/// none, the volumes' passphrases are asked for when an encrypted volume is found, if there is a terminal.
pub fn find(args: &LuksArgs) -> Result<Secrets> {
    // The process that started this one has read the files, which may be pipes.
    if let Some(handover) = Handover::received()? {
        return Ok(Secrets::new(handover.passphrases.clone()));
    }
    let mut passphrases = Vec::new();
    for path in &args.luks_key_file {
        keep_out_of_core_files();
        let read = std::fs::read(path).map(Zeroizing::new);
        passphrases.push(read.map_err(|source| Error::KeyFile {
            what: "key file",
            path: path.clone(),
            source,
        })?);
    }
    if !passphrases.is_empty() || !std::io::stderr().is_terminal() {
        return Ok(Secrets::new(passphrases));
    }
    Ok(Secrets::asking(Box::new(|volume| {
        keep_out_of_core_files();
        let prompt = format!("Passphrase of {} (empty: leave it closed): ", printable::line(volume));
        let answer = rpassword::prompt_password(prompt).ok()?;
        (!answer.is_empty()).then(|| Zeroizing::new(answer.into_bytes()))
    })))
}
