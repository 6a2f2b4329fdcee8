//! The user of a QEMU that root starts: a number of its own for each boot.
//!
//! Processes of one user can signal and trace each other, and open each other's files in /proc/PID/fd (ptrace(2), kill(2)).
//! So a guest that has taken over its QEMU must not share the user with the QEMU of another guest, whose disks are open there;
//! nor with other programs that run as `nobody`. A common group, as that of /dev/kvm, gives none of these rights.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User};
use vbk::boot::machine::Account;

use crate::exit::{Error, Result};
use crate::machine::user_of_process;

/// Numbers that no account has: systemd gives them to services while they run (`DynamicUser=`; UIDS-GIDS of systemd).
const NUMBERS: Range<u32> = 61_184..65_520;
/// Directory in which systemd notes the numbers that it has given.
const OF_SYSTEMD: &str = "/run/systemd/dynamic-uid";
/// Numbers that are looked at before vbk gives up: a directory service may take a second for each.
const ATTEMPTS: u32 = 64;

/// User of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QemuUser {
    /// That of this process.
    This,
    /// A given one.
    Given(Account),
    /// One that no other process has.
    Own,
}

/// Chooses a number that no account and no process has, and none of these boots. The caller prevents another choice until it
/// has noted this one.
pub fn choose(name: &str, of_boots: &HashSet<u32>) -> Result<Account> {
    let of_processes = of_processes();
    let is_free = |uid: &u32| !of_boots.contains(uid) && !of_processes.contains(uid) && has_no_account(*uid);
    let found = candidates(name).find(is_free);
    found.map(|uid| Account { uid, gid: uid }).ok_or_else(|| {
        Error::Usage(format!(
            "no user number from {} to {} is free for QEMU; --qemu-user names a user",
            NUMBERS.start,
            NUMBERS.end - 1
        ))
    })
}

/// Returns numbers to try. Two boots seldom get the same first one, so a file that one leaves is seldom another one's.
fn candidates(name: &str) -> impl Iterator<Item = u32> + use<> {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let count = NUMBERS.end - NUMBERS.start;
    let first = (hasher.finish() % u64::from(count)) as u32;
    (0..ATTEMPTS).map(move |number| NUMBERS.start + (first + number) % count)
}

fn has_no_account(uid: u32) -> bool {
    let user = User::from_uid(Uid::from_raw(uid));
    let group = Group::from_gid(Gid::from_raw(uid));
    // Not every host has systemd's module for these look-ups.
    let is_given = Path::new(OF_SYSTEMD).join(uid.to_string()).symlink_metadata().is_ok();
    matches!((user, group), (Ok(None), Ok(None))) && !is_given
}

fn of_processes() -> HashSet<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(user_of_process).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_another_boot_or_process_has_is_not_chosen() {
        let first: Vec<u32> = candidates("1-a").collect();
        assert!(first.iter().all(|uid| NUMBERS.contains(uid)));
        let none = HashSet::new();
        let chosen = choose("1-a", &none).expect("there are thousands");
        assert_eq!(chosen, choose("1-a", &none).expect("the same"));
        let taken = HashSet::from([chosen.uid]);
        let next = choose("1-a", &taken).expect("another");
        assert_ne!(next.uid, chosen.uid);
        let all: HashSet<u32> = first.into_iter().collect();
        let refused = choose("1-a", &all).expect_err("all of them are taken");
        assert!(refused.to_string().contains("--qemu-user"));
        assert!(of_processes().contains(&nix::unistd::geteuid().as_raw()));
        assert!(!has_no_account(0));
    }
}
