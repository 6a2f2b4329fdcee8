//! All targets of the crate `vbk-remote` in one program: `VBK_FUZZ_TARGET` names the one to run.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vbk_remote::fuzzing::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("VBK_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    let known: Vec<_> = TARGETS.iter().map(|(known, _)| *known).collect();
    found
        .unwrap_or_else(|| panic!("VBK_FUZZ_TARGET is one of {}", known.join(", ")))
        .1
});

fuzz_target!(|input: &[u8]| TARGET(input));
