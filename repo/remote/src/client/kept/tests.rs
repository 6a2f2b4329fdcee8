//! Copies on disk.

use super::*;

fn id(number: u8) -> NodeId {
    NodeId([number; 32])
}
