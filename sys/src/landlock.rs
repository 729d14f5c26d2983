//! Landlock: a process gives up rights to files, networks and other processes for good, itself and
//! all that it makes. See landlock(7) and the kernel's Documentation/userspace-api/landlock.rst.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::check;

/// Rights to files, LANDLOCK_ACCESS_FS_*.
pub mod file {
    /// Executing a file.
    pub const EXECUTE: u64 = 1 << 0;
    /// Opening a file for writing.
    pub const WRITE: u64 = 1 << 1;
    /// Opening a file for reading.
    pub const READ: u64 = 1 << 2;
    /// Opening a directory.
    pub const READ_DIR: u64 = 1 << 3;
    /// Moving and linking a file to another directory. Denied where it is not granted, even if it
    /// is not handled; version 2.
    pub const REFER: u64 = 1 << 13;
    /// ioctl(2) of devices opened later; version 5.
    pub const IOCTL_DEV: u64 = 1 << 15;

    /// All that each version of the interface knows.
    pub(super) const OF_VERSION: [u64; 5] = [
        (1 << 13) - 1,
        (1 << 14) - 1,
        (1 << 15) - 1,
        (1 << 15) - 1,
        (1 << 16) - 1,
    ];
}

/// LANDLOCK_ACCESS_NET_BIND_TCP and LANDLOCK_ACCESS_NET_CONNECT_TCP, version 4.
const NET: u64 = 3;

/// LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and LANDLOCK_SCOPE_SIGNAL, version 6.
const SCOPE: u64 = 3;

/// struct landlock_ruleset_attr
#[repr(C)]
struct Attributes {
    files: u64,
    net: u64,
    scope: u64,
}

/// struct landlock_path_beneath_attr
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
const LANDLOCK_RULE_PATH_BENEATH: u32 = 1;

/// Rights that are given up, but for those that are granted.
#[derive(Debug)]
pub struct Ruleset {
    fd: OwnedFd,
    /// The rights to files that are given up.
    files: u64,
}

impl Ruleset {
    /// Gives up these rights to files, as far as the kernel knows them, and all to networks and to
    /// processes outside, which later versions of it do. None if the kernel has no Landlock, or its
    /// first version, which never lets a file be moved to another directory.
    pub fn giving_up(files: u64) -> io::Result<Option<Self>> {
        let Some(version) = version()?.filter(|version| *version > 1) else {
            return Ok(None);
        };
        let known = file::OF_VERSION[(version - 1).min(file::OF_VERSION.len() - 1)];
        let attributes = Attributes {
            files: files & known,
            net: if version >= 4 { NET } else { 0 },
            scope: if version >= 6 { SCOPE } else { 0 },
        };
        // Older kernels take a longer structure whose rest is zero.
        let fd = create(&raw const attributes, size_of::<Attributes>(), 0)?;
        Ok(Some(Self {
            fd,
            files: attributes.files,
        }))
    }

    /// Grants rights to a file, or to all below a directory.
    pub fn grant(&self, to: impl AsFd, rights: u64) -> io::Result<()> {
        let rule = PathBeneath {
            allowed: rights & self.files,
            parent: to.as_fd().as_raw_fd(),
        };
        if rule.allowed == 0 {
            return Ok(());
        }
        add_rule(&self.fd, &rule)
    }

    /// Restricts the calling thread, which has no_new_privs, and what it makes.
    pub fn restrict_self(&self) -> io::Result<()> {
        restrict(&self.fd)
    }
}

/// The version of the interface, from 1 on.
fn version() -> io::Result<Option<usize>> {
    #[expect(unsafe_code, reason = "landlock_create_ruleset")]
    // SAFETY: with this flag the call takes no structure, and returns a number.
    let result = check(unsafe {
        let none = std::ptr::null::<Attributes>();
        let flags = LANDLOCK_CREATE_RULESET_VERSION;
        libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, flags)
    });
    match result.map_err(io::Error::from) {
        Ok(version) => Ok(usize::try_from(version).ok().filter(|version| *version > 0)),
        // Not built in, or not turned on.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[expect(unsafe_code, reason = "landlock_create_ruleset")]
fn create(attributes: *const Attributes, size: usize, flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: the structure has this size and lives as long as the call, which returns a new
    // descriptor.
    unsafe {
        let call = libc::SYS_landlock_create_ruleset;
        let fd = check(libc::syscall(call, attributes, size, flags))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

#[expect(unsafe_code, reason = "landlock_add_rule")]
fn add_rule(ruleset: &OwnedFd, rule: &PathBeneath) -> io::Result<()> {
    // SAFETY: the structure is of the rule's type and lives as long as the call.
    check(unsafe {
        let (call, kind) = (libc::SYS_landlock_add_rule, LANDLOCK_RULE_PATH_BENEATH);
        libc::syscall(call, ruleset.as_raw_fd(), kind, &raw const *rule, 0_u32)
    })?;
    Ok(())
}

#[expect(unsafe_code, reason = "landlock_restrict_self")]
fn restrict(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: the call takes numbers.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn what_is_given_up_is_denied_but_where_it_is_granted() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["granted", "other"] {
            fs::write(path(name), name).unwrap();
        }
        let granted = File::open(path("granted")).unwrap();
        let thread = std::thread::spawn(move || {
            let Some(rules) = Ruleset::giving_up(file::READ).unwrap() else {
                return println!("skipped: the kernel has no Landlock");
            };
            rules.grant(&granted, file::READ | file::EXECUTE).unwrap();
            rustix::thread::set_no_new_privs(true).unwrap();
            rules.restrict_self().unwrap();
            let read = |name| fs::read_to_string(dir.path().join(name));
            assert_eq!(read("granted").unwrap(), "granted");
            let denied = read("other").unwrap_err();
            assert_eq!(denied.raw_os_error(), Some(libc::EACCES));
            fs::write(dir.path().join("other"), "writing is another right").unwrap();
        });
        thread.join().unwrap();
    }
}
