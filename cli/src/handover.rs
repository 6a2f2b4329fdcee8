//! The secrets that a command hands to the process that it starts in the background: the key of the repository, the
//! token for its server, and passphrases of encrypted volumes. They go through a pipe, which no other process can read.

use std::io::Read;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::core_files::keep_out_of_core_files;
use crate::exit::{Error, Result};

/// Variable that is set for a process that gets secrets on its standard input.
pub const SECRETS_ON_STDIN: &str = "VBK_BACKGROUND_SECRETS";

/// Secrets for a process in the background.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Handover {
    /// The exported key of an encrypted repository.
    pub key: Option<Zeroizing<String>>,
    /// The token for the server of a repository on another host.
    #[serde(default)]
    pub token: Option<Zeroizing<String>>,
    /// Passphrases of encrypted volumes.
    pub passphrases: Vec<Zeroizing<Vec<u8>>>,
}

impl Handover {
    /// Tests for nothing to hand over.
    pub fn is_empty(&self) -> bool {
        self.key.is_none() && self.token.is_none() && self.passphrases.is_empty()
    }

    /// Returns the secrets as one line.
    pub fn text(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(serde_json::to_vec(self).expect("strings and bytes have a JSON form"))
    }

    /// Returns the secrets that this process got, if it is one in the background. Reads them once.
    pub fn received() -> Result<Option<&'static Self>> {
        static RECEIVED: OnceLock<Handover> = OnceLock::new();
        if std::env::var_os(SECRETS_ON_STDIN).is_none() {
            return Ok(None);
        }
        if let Some(received) = RECEIVED.get() {
            return Ok(Some(received));
        }
        keep_out_of_core_files();
        let mut text = Zeroizing::new(Vec::new());
        let read = std::io::stdin().read_to_end(&mut text);
        read.map_err(Error::io("read the keys from standard input"))?;
        let received = serde_json::from_slice(&text).map_err(std::io::Error::from);
        let received = received.map_err(Error::io("read the keys from standard input"))?;
        Ok(Some(RECEIVED.get_or_init(|| received)))
    }
}
