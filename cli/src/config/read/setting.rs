//! Parses the values of settings: one arm for each row of `config/settings.rs`.

use std::fmt::Display;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;
use vbk::hints::ChangeHints;
use vbk::retention::{Age, KeepPolicy};
use vbk_repo::name::DiskName;

use super::{Reader, Value};
use crate::args::parse;
use crate::config::settings::Section;
use crate::config::{GuestAgent, Keep, ONLY_DISK};

/// Rules of `keep`.
pub(super) const KEEP: &[&str] = &["last", "hourly", "daily", "weekly", "monthly", "yearly", "within"];

impl Reader<'_> {
    /// Parses a setting that any section may have; returns `false` for other keys.
    pub(super) fn setting(
        &mut self,
        section: &mut Section,
        name: &str,
        key: &Spanned<impl Display>,
        value: &Value<'_>,
    ) -> bool {
        match name {
            "read-limit" => section.read_limit = self.parsed(key, value, parse::parse_read_limit),
            "keep" => section.keep = self.keep(key, value),
            "device-speed" => section.device_bytes_per_sec = self.parsed(key, value, parse::parse_speed),
            "snapshot-size" => section.snapshot_size = self.parsed(key, value, parse::parse_snapshot_size),
            "extend" => section.extend = self.extend(key, value),
            "change-hints" => {
                section.change_hints = self.parsed(key, value, |text| match text {
                    "off" => Ok(ChangeHints::Off),
                    "auto" => Ok(ChangeHints::Auto),
                    _ => Err("write \"off\" or \"auto\"".to_owned()),
                });
            }
            "full-read-every" => section.full_read_every = self.parsed(key, value, parse::parse_age),
            "compression" => {
                let text = match value.get_ref() {
                    DeValue::Integer(number) => Some(number.as_str().to_owned()),
                    _ => self.text(key, value),
                };
                let level = text.map(|text| parse::parse_compression(&text));
                section.compression = level.and_then(|level| self.accept_for(key, value, level));
            }
            "pre-freeze" => section.pre_freeze = self.command(key, value),
            "post-thaw" => section.post_thaw = self.command(key, value),
            "freeze-timeout" => section.freeze_timeout = self.parsed(key, value, parse::parse_duration),
            "guest-agent" => {
                section.guest_agent = match value.get_ref() {
                    DeValue::Boolean(true) => Some(GuestAgent::Always),
                    DeValue::Boolean(false) => Some(GuestAgent::Never),
                    DeValue::String(text) if text == "auto" => Some(GuestAgent::Auto),
                    _ => self.wrong_for(key, value, "write true, false or \"auto\""),
                }
            }
            "backoff" => section.backoff = self.flag(key, value),
            "kernel-limit" => section.kernel_limit = self.flag(key, value),
            "idle" => section.idle = self.flag(key, value),
            "live" => section.live = self.flag(key, value),
            "raw" => section.raw = self.flag(key, value),
            _ => return false,
        }
        true
    }

    fn keep(&mut self, key: &Spanned<impl Display>, value: &Value<'_>) -> Option<Keep> {
        const HOW: &str = "write rules, e.g. { daily = 7, weekly = 4 }, or \"all\" to forget nothing";
        let table = match value.get_ref() {
            DeValue::Table(table) => table,
            DeValue::String(text) if text == "all" => return Some(Keep::All),
            _ => return self.wrong_for(key, value, HOW),
        };
        let mut policy = KeepPolicy::default();
        let wrong = self.errors.len();
        for (key, value) in table {
            let count = match key.get_ref().as_ref() {
                "last" => &mut policy.last,
                "hourly" => &mut policy.hourly,
                "daily" => &mut policy.daily,
                "weekly" => &mut policy.weekly,
                "monthly" => &mut policy.monthly,
                "yearly" => &mut policy.yearly,
                "within" => {
                    policy.within = self.parsed(key, value, |text| text.parse::<Age>().map_err(|why| why.to_string()));
                    continue;
                }
                _ => {
                    self.unknown(key, "keep", KEEP);
                    continue;
                }
            };
            *count = self.number(key, value).unwrap_or_default();
        }
        match policy.is_empty() {
            // A mistake in a rule is reported already.
            _ if self.errors.len() > wrong => None,
            // {} and { last = 0 } could mean to keep everything, or nothing.
            true => self.wrong_for(key, value, &format!("these rules keep nothing; {HOW}")),
            false => Some(Keep::Rules(policy)),
        }
    }

    fn extend(&mut self, key: &Spanned<impl Display>, value: &Value<'_>) -> Option<Option<f64>> {
        let result = match value.get_ref() {
            DeValue::Boolean(false) => return Some(None),
            DeValue::String(text) => parse::parse_extend(text),
            _ => parse::parse_extend(""),
        };
        match result {
            Ok(share) => Some(Some(share)),
            Err(why) => self.wrong_for(key, value, &format!("{why}, or false")),
        }
    }

    pub(super) fn disks(&mut self, key: &Spanned<impl Display>, value: &Value<'_>) -> Option<Vec<(DiskName, PathBuf)>> {
        const HOW: &str = "name at least one disk, e.g. { vda = \"/dev/vg0/web1\" }";
        let table = match value.get_ref() {
            DeValue::Table(table) => table,
            // As on the command line, a disk without a name is vda.
            DeValue::String(_) => {
                let disk = self.accept(value.span(), DiskName::new(ONLY_DISK));
                return disk.zip(self.path(key, value)).map(|disk| vec![disk]);
            }
            _ => return self.wrong_for(key, value, HOW),
        };
        let mut disks = Vec::<(DiskName, PathBuf)>::new();
        for (name, value) in table {
            let disk = DiskName::new(name.get_ref().as_ref());
            let disk = self.accept(name.span(), disk);
            let (Some(disk), Some(path)) = (disk, self.path(name, value)) else {
                continue;
            };
            if let Some((other, _)) = disks.iter().find(|(_, known)| *known == path) {
                let what = format!("{} is given twice, as {other} and as {disk}", path.display());
                self.wrong(value.span(), what);
            }
            disks.push((disk, path));
        }
        if table.is_empty() {
            self.wrong_for::<()>(key, value, HOW);
        }
        Some(disks)
    }

    pub(super) fn disk_names(&mut self, key: &Spanned<impl Display>, value: &Value<'_>) -> Option<Vec<DiskName>> {
        let names = self.texts(key, value).into_iter();
        names
            .map(|name| self.accept(value.span(), DiskName::new(name)))
            .collect()
    }
}
