//! The methods that hold disks still. A new one is a file beside this one, a line here and a case in
//! `tests/conformance.rs`.

use super::hold::HoldMethod;
use super::live::Live;
use super::reflink::Reflink;
use super::thick::Thick;
use super::thin::Thin;
use super::unused::Unused;

/// All methods. A disk gets the first that suits it, and the last one refuses a disk that none can hold.
pub(super) const ALL: [&dyn HoldMethod; 5] = [&Thin, &Thick, &Reflink, &Live, &Unused];
