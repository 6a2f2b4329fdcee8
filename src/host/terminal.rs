//! The size of a terminal.

use std::os::fd::AsFd;

use crate::sys;

/// Returns the number of columns of a terminal; `None` for anything else, and for a terminal that does not know its size.
pub fn columns(stream: impl AsFd) -> Option<usize> {
    let columns = sys::window_columns(stream.as_fd()).ok()?;
    (columns > 0).then_some(columns.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_no_columns() {
        assert_eq!(columns(tempfile::tempfile().expect("opens")), None);
    }
}
