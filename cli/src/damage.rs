//! Damaged ranges as `vbk verify` and `vbk repair` show them.

use serde::Serialize;
use vbk_repo::verify::Damage;

use crate::context::Context;
use crate::terminal::units;

/// Number of ranges that are printed without -v; --json has all of them.
const SHOWN: usize = 50;

/// JSON of a damaged range.
#[derive(Serialize)]
pub struct DamageJson<'a> {
    backup: &'a str,
    disk: &'a str,
    offset_bytes: u64,
    len_bytes: u64,
    what: &'a str,
}

impl<'a> DamageJson<'a> {
    /// Describes a damaged range.
    pub fn new(damage: &'a Damage) -> Self {
        Self {
            backup: &damage.backup,
            disk: &damage.disk,
            offset_bytes: damage.offset_bytes,
            len_bytes: damage.len_bytes,
            what: &damage.what,
        }
    }
}

/// Prints the first damaged ranges; with -v all of them.
pub fn print_damage(context: &Context<'_>, all: &[Damage]) {
    let shown = if context.verbose() { usize::MAX } else { SHOWN };
    for damage in all.iter().take(shown) {
        context.print(format_args!(
            "{}/{}: {} at {} ({} bytes): {}\n",
            damage.backup,
            damage.disk,
            units::size(damage.len_bytes),
            units::size(damage.offset_bytes),
            damage.offset_bytes,
            damage.what
        ));
    }
    if all.len() > shown {
        context.print(format_args!("... and {} more; -v shows all\n", all.len() - shown));
    }
}
