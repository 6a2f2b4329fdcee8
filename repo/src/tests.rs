//! Tests of the whole crate, and the code that the tests of several modules share.

mod flips;
mod model;
pub(crate) mod testing;
