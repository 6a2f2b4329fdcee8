//! The lvm2 commands.
