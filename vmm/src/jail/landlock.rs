//! Landlock as a further layer where the host's kernel has it, from Linux 5.19 on: what a jailed
//! process does not do it cannot do, even where mounts, users and filters would let it.
//!
//! Either kind of process also gives up TCP and, outside the jail, abstract sockets and signals, as
//! far as the kernel knows these rights.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rvm_sys::landlock::{Ruleset, file};

use super::{JailError, step};

/// The loaders that the programs of distributions name as their interpreter.
const LOADERS: [&str; 2] = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"];

/// A file server executes nothing of what it serves, and has no use for devices. All other rights
/// depend on the guest's requests, and are not looked at. Moving files is a right that is denied if
/// it is not granted.
pub(super) fn restrict_file_server() -> Result<(), JailError> {
    let given_up = file::EXECUTE | file::IOCTL_DEV | file::REFER;
    let Some(rules) = Ruleset::giving_up(given_up).map_err(step(MAKE))? else {
        return Ok(());
    };
    grant(&rules, Path::new("/"), file::REFER)?;
    rules.restrict_self().map_err(step(RESTRICT))
}

/// A program reads what is in its root and the files that it is given, and executes itself alone,
/// by its loader. It writes nothing.
pub fn restrict_program(program: &Path, given: &[OwnedFd]) -> Result<(), JailError> {
    let Some(rules) = Ruleset::giving_up(u64::MAX).map_err(step(MAKE))? else {
        return Ok(());
    };
    grant(&rules, Path::new("/"), file::READ | file::READ_DIR)?;
    grant(&rules, program, file::EXECUTE)?;
    for loader in LOADERS.map(Path::new) {
        if loader.exists() {
            grant(&rules, loader, file::EXECUTE)?;
        }
    }
    grant(&rules, Path::new("/dev/null"), file::WRITE)?;
    for fd in given {
        let found = rustix::fs::fstat(fd).map_err(step(GRANT))?;
        if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile {
            rules.grant(fd, file::READ).map_err(step(GRANT))?;
        }
    }
    rules.restrict_self().map_err(step(RESTRICT))
}

const MAKE: &str = "make a Landlock ruleset";
const GRANT: &str = "grant rights by Landlock";
const RESTRICT: &str = "restrict rights by Landlock";

fn grant(rules: &Ruleset, path: &Path, rights: u64) -> Result<(), JailError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(step(GRANT))?;
    rules.grant(fd, rights).map_err(step(GRANT))
}
