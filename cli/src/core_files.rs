//! Keeps secrets out of core files.

use nix::sys::resource::{Resource, setrlimit};

/// Keeps keys, and the guests' data that is read with them, out of core files. The kernel does not apply the limit where a
/// program gets cores through a pipe, but passes it on (core(5), `%c`), and systemd-coredump and apport obey it. A process
/// that is not dumpable has no core at all, and other processes can open its files in /proc only with CAP_SYS_PTRACE
/// (PR_SET_DUMPABLE(2const)). The helpers that thaw guests open some (`/proc/PID/fd`, `src/guest/freeze`), so where they
/// would lack that right the limit must do.
pub fn keep_out_of_core_files() {
    // A process may always lower its own limits, and vbk works without them.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if may_trace(&status) {
        let _ = nix::sys::prctl::set_dumpable(false);
    }
}

/// Returns whether proc_pid_status(5), `CapEff`, has CAP_SYS_PTRACE.
fn may_trace(status: &str) -> bool {
    const CAP_SYS_PTRACE: u32 = 19;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << CAP_SYS_PTRACE != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_with_cap_sys_ptrace_may_trace() {
        assert!(may_trace("Name:\tvbk\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n"));
        assert!(!may_trace("CapEff:\t000001fffff7ffff\nCapBnd:\t000001ffffffffff\n"));
        assert!(!may_trace("CapEff:\t0000000000000000\n") && !may_trace(""));
    }
}
