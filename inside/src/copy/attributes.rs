//! Attributes of a copied object, as far as the caller's rights and the target's file system allow.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, BorrowedFd};

use jiff::Timestamp;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chmod, chownat, fchmod, fchown, fsetxattr,
    futimens, setxattr, utimensat,
};
use rustix::io::Errno;

use super::Trouble;
use crate::error::Result;
use crate::fs::{FileKind, Stat, Xattr};

/// Sets attributes, and warns of each kind of attribute that can't be kept once.
pub(super) struct Setter {
    uid: u32,
    gid: u32,
    warned: HashSet<String>,
}

/// An open object. One that is open only as a path is reached through `/proc`, which leads to the object itself, also if
/// that is a link.
struct Object<'a> {
    fd: BorrowedFd<'a>,
    path: Option<String>,
    is_link: bool,
}

impl Setter {
    /// Makes a setter with the rights of this process.
    pub fn new() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            warned: HashSet::new(),
        }
    }

    /// Returns whether owners can be set, and devices made.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Returns a warning the first time.
    pub fn once(&mut self, text: &str) -> Option<String> {
        self.warned
            .insert(text.to_owned())
            .then(|| format!("{text} (said once)"))
    }

    /// Sets owner, mode, extended attributes and times, in the order in which none undoes another: a change of the owner
    /// clears set-user-ID bits and capabilities. Returns warnings.
    pub fn set(
        &mut self,
        fd: BorrowedFd<'_>,
        is_path_only: bool,
        stat: &Stat,
        xattrs: Result<Vec<Xattr>>,
    ) -> std::result::Result<Vec<String>, Trouble> {
        let object = Object {
            fd,
            path: is_path_only.then(|| format!("/proc/self/fd/{}", fd.as_raw_fd())),
            is_link: stat.kind == FileKind::Link,
        };
        let mut warnings = Vec::new();
        let mut note = |warning: Option<String>| warnings.extend(warning);
        let mut keeps_owner = (stat.uid, stat.gid) == (self.uid, self.gid);
        if self.is_root() && !keeps_owner {
            match object.chown(stat.uid, stat.gid) {
                Ok(()) => keeps_owner = true,
                Err(errno) => note(self.once(&format!("owners can't be kept: {errno}"))),
            }
        }
        if !object.is_link {
            // The set-user-ID bit would give the rights of another owner.
            let mask = if keeps_owner { 0o7777 } else { 0o1777 };
            match object.chmod(Mode::from_raw_mode(u32::from(stat.mode) & mask)) {
                Ok(()) => {}
                Err(errno) => note(self.once(&format!("modes can't be kept: {errno}"))),
            }
        }
        match xattrs {
            Err(error) => note(Some(format!("copied without its extended attributes: {error}"))),
            Ok(xattrs) => {
                for xattr in xattrs {
                    note(self.xattr(&object, &xattr, keeps_owner));
                }
            }
        }
        match object.set_times(stat) {
            Ok(()) => {}
            Err(errno) => note(self.once(&format!("times can't be kept: {errno}"))),
        }
        Ok(warnings)
    }

    fn xattr(&mut self, object: &Object<'_>, xattr: &Xattr, keeps_owner: bool) -> Option<String> {
        let is_user = xattr.name.starts_with(b"user.");
        if !is_user && (!self.is_root() || !keeps_owner) {
            return None;
        }
        let space = xattr.name.split(|byte| *byte == b'.').next().unwrap_or_default();
        let space = String::from_utf8_lossy(space).into_owned();
        match object.set_xattr(xattr) {
            Ok(()) => None,
            Err(errno) => self.once(&format!("extended attributes {space}.* can't be kept: {errno}")),
        }
    }
}

impl Object<'_> {
    fn chown(&self, uid: u32, gid: u32) -> std::result::Result<(), Errno> {
        // (uid_t)-1 means no change, and is no owner.
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match &self.path {
            None => fchown(self.fd, uid, gid),
            Some(_) => chownat(self.fd, "", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    fn chmod(&self, mode: Mode) -> std::result::Result<(), Errno> {
        match &self.path {
            None => fchmod(self.fd, mode),
            Some(path) => chmod(&path[..], mode),
        }
    }

    fn set_xattr(&self, xattr: &Xattr) -> std::result::Result<(), Errno> {
        match &self.path {
            None => fsetxattr(self.fd, &xattr.name[..], &xattr.value, XattrFlags::empty()),
            Some(path) => setxattr(&path[..], &xattr.name[..], &xattr.value, XattrFlags::empty()),
        }
    }

    fn set_times(&self, stat: &Stat) -> std::result::Result<(), Errno> {
        let times = Timestamps {
            last_access: timespec(stat.accessed),
            last_modification: timespec(stat.modified),
        };
        match &self.path {
            None => futimens(self.fd, &times),
            // Linux 5.8: the empty path means the object itself. Before, links keep the time of the copy.
            Some(_) if self.is_link => utimensat(self.fd, "", &times, AtFlags::EMPTY_PATH),
            Some(path) => utimensat(CWD, &path[..], &times, AtFlags::empty()),
        }
    }
}

/// Returns a time as the kernel writes it: nanoseconds count forward, also before 1970.
fn timespec(at: Timestamp) -> Timespec {
    let (mut tv_sec, mut tv_nsec) = (at.as_second(), i64::from(at.subsec_nanosecond()));
    if tv_nsec < 0 {
        tv_sec -= 1;
        tv_nsec += 1_000_000_000;
    }
    Timespec { tv_sec, tv_nsec }
}
