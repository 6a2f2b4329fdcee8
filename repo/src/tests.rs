//! Tests of the crate as a whole, and what the tests of several modules share.

mod flips;
mod model;
pub(crate) mod testing;
