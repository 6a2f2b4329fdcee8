//! Names of guests, disks and points in time. All of them become parts of paths, so they are checked when they are
//! created.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Longest name in bytes: a file name may have 255, and `.p128.img` must fit after it.
const MAX_NAME_BYTES: usize = 200;

pub(crate) fn check(what: &'static str, name: &str) -> Result<()> {
    let refuse = |reason| {
        Err(Error::BadName {
            what,
            name: name.to_owned(),
            reason,
        })
    };
    if name.is_empty() {
        return refuse("is empty");
    }
    if name.len() > MAX_NAME_BYTES {
        return refuse("is longer than 200 bytes");
    }
    if name.starts_with('.') || name.starts_with('-') {
        return refuse("starts with a dot or a dash");
    }
    if name.chars().any(char::is_control) {
        return refuse("contains a control character");
    }
    // '@' and '/' end a guest's name in GUEST@WHEN/DISK, '=' ends a disk's in DISK=PATH.
    if name.chars().any(|c| matches!(c, '/' | '@' | '=' | ':')) {
        return refuse("contains one of / @ = :");
    }
    if name.chars().any(char::is_whitespace) {
        return refuse("contains a space");
    }
    Ok(())
}

/// Name of a guest, e.g. `web1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestName(String);

impl GuestName {
    /// Checks a name.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        check("guest", &name)?;
        if name == "latest" {
            return Err(Error::BadName {
                what: "guest",
                name,
                reason: "is reserved for the newest backup of a guest",
            });
        }
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Name of a guest's disk, e.g. `vda`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskName(String);

impl DiskName {
    /// Checks a name.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        check("disk", &name)?;
        let ending = name.rsplit_once(".p").map(|(_, number)| number);
        if ending.is_some_and(|number| !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit())) {
            return Err(Error::BadName {
                what: "disk",
                name,
                reason: "ends like a partition (.p1, .p2 ...) and would hide that partition's file",
            });
        }
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Refuses names that a mount uses for something else, so that no file stored with a backup can have them:
/// `backup.json` is the record, and names that end in `.img` are disks and partitions.
pub fn check_file_name(name: &DiskName) -> Result<()> {
    let reason = match name.as_str() {
        "backup.json" => "is the name of a backup's record in a mount",
        name if name.ends_with(".img") => "ends like a disk in a mount (.img)",
        _ => return Ok(()),
    };
    Err(Error::BadName {
        what: "file",
        name: name.to_string(),
        reason,
    })
}

macro_rules! name_traits {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(name: String) -> Result<Self> {
                Self::new(name)
            }
        }
        impl FromStr for $name {
            type Err = Error;
            fn from_str(name: &str) -> Result<Self> {
                Self::new(name)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}
name_traits!(GuestName);
name_traits!(DiskName);

/// Time of a backup: UTC, whole seconds. Written as `2026-11-21T05-54-00Z`, which is also its directory name in a
/// mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "Timestamp", from = "Timestamp")]
pub struct BackupTime(Timestamp);

const FORMAT: &str = "%Y-%m-%dT%H-%M-%SZ";

impl BackupTime {
    /// Returns the time, truncated to whole seconds.
    pub fn new(at: Timestamp) -> Self {
        Self(Timestamp::from_second(at.as_second()).unwrap_or(at))
    }

    /// Returns the time one second later.
    pub fn next(self) -> Self {
        Self(Timestamp::from_second(self.0.as_second() + 1).unwrap_or(self.0))
    }

    /// Returns the seconds from `other` to this time.
    pub fn seconds_since(self, other: Self) -> i64 {
        self.0.as_second() - other.0.as_second()
    }

    /// Returns the point in time.
    pub fn timestamp(self) -> Timestamp {
        self.0
    }
}

impl From<Timestamp> for BackupTime {
    fn from(at: Timestamp) -> Self {
        Self::new(at)
    }
}

impl From<BackupTime> for Timestamp {
    fn from(time: BackupTime) -> Self {
        time.0
    }
}

impl fmt::Display for BackupTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.strftime(FORMAT).to_string())
    }
}

impl FromStr for BackupTime {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::BadSpec { spec: text.to_owned() };
        let at = jiff::civil::DateTime::strptime(FORMAT, text).map_err(|_| bad())?;
        let zoned = at.to_zoned(TimeZone::UTC).map_err(|_| bad())?;
        Ok(Self::new(zoned.timestamp()))
    }
}

/// Returns whether a pattern with `*` (any text) and `?` (any one character) matches a whole name.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut place) = (0, 0);
    // The last star, and the end of the text it matches; only this one ever needs to match more.
    let mut star = None;
    while place < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, place));
                at += 1;
            }
            Some(&c) if c == '?' || c == name[place] => (at, place) = (at + 1, place + 1),
            _ => match star {
                Some((star_at, taken)) => {
                    star = Some((star_at, taken + 1));
                    (at, place) = (star_at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_could_leave_a_directory_are_refused() {
        for bad in [
            "", ".", "..", "a/b", "/etc", "a\0b", "a\nb", "a@b", "a=b", "-x", "a b", "\u{85}",
        ] {
            assert!(GuestName::new(bad).is_err(), "{bad:?}");
            assert!(DiskName::new(bad).is_err(), "{bad:?}");
        }
        assert!(GuestName::new("x".repeat(201)).is_err() && GuestName::new("latest").is_err());
    }

    #[test]
    fn names_people_use_are_taken() {
        for bad in ["vda.p1", "x.p128"] {
            assert!(DiskName::new(bad).is_err() && GuestName::new(bad).is_ok(), "{bad}");
        }
        assert!(DiskName::new("vda.p").is_ok() && DiskName::new("disk.p1x").is_ok());
        for good in ["web1", "db-02.example.com", "vm_100", "münchen", "100"] {
            assert_eq!(GuestName::new(good).expect("good").to_string(), good);
        }
    }

    #[test]
    fn a_name_from_a_record_is_checked_too() {
        assert!(serde_json::from_str::<GuestName>("\"../x\"").is_err());
    }

    #[test]
    fn a_time_is_written_as_in_the_mount() {
        let time: BackupTime = "2026-11-21T05-54-00Z".parse().expect("a time");
        assert_eq!(time.to_string(), "2026-11-21T05-54-00Z");
        assert_eq!(time.next().to_string(), "2026-11-21T05-54-01Z");
        assert!("2026-11-21".parse::<BackupTime>().is_err());
    }

    proptest! {
        #[test]
        fn times_go_there_and_back(second in 0..4_000_000_000_i64) {
            let time = BackupTime::new(Timestamp::from_second(second).expect("in range"));
            prop_assert_eq!(time.to_string().parse::<BackupTime>().expect("parses"), time);
        }
    }
}
