//! Names of objects that are stored under their hash. All are BLAKE3-256 and written as 64 hexadecimal digits.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// Returns the first 12 digits: enough for people.
            pub fn short(&self) -> String {
                to_hex(&self.0[..6])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let bytes = from_hex(&text).ok_or_else(|| serde::de::Error::custom("not 64 hexadecimal digits"))?;
                Ok(Self(bytes))
            }
        }
    };
}

id! {
    /// The name of a block: the hash of its plain bytes.
    BlockId
}
id! {
    /// The name of a node of a manifest: the hash of its bytes.
    NodeId
}
id! {
    /// The name of a backup: the hash of its record's bytes.
    BackupId
}

impl NodeId {
    /// Stands for a part of an image that has only zero blocks and is not stored.
    pub const ZERO: Self = Self([0; 32]);
}

/// Returns lower-case hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Parses 64 hexadecimal digits.
pub fn from_hex(text: &str) -> Option<[u8; 32]> {
    // from_str_radix would accept a sign.
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hex_goes_there_and_back(bytes: [u8; 32]) {
            prop_assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
            let json = serde_json::to_string(&BlockId(bytes)).expect("serialises");
            prop_assert_eq!(serde_json::from_str::<BlockId>(&json).expect("parses"), BlockId(bytes));
        }

        #[test]
        fn text_that_is_not_hex_is_refused(text in "[+0-9a-fg-k]{64}|.{0,70}") {
            if let Some(bytes) = from_hex(&text) {
                prop_assert_eq!(to_hex(&bytes), text.to_lowercase());
            }
        }
    }
}
