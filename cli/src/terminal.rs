//! Everything that a person sees: output, messages, the progress line, tables and units.

pub mod log;
pub mod output;
pub mod printable;
pub mod progress;
pub mod table;
pub mod units;
