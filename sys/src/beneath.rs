//! Opening paths below a directory that somebody else may change meanwhile.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{self, Errno};
use rustix::path::Arg;

/// How often a path is tried. The kernel answers EAGAIN when it cannot be sure of a `..` because
/// something was mounted or renamed meanwhile, anywhere on the machine; see openat2(2).
const TRIES: usize = 128;

/// Opens an existing path below `root`, and tries again while the kernel asks for that.
///
/// `resolve` says how links and `..` are confined; O_CLOEXEC is added to `flags`.
pub fn open(
    root: impl AsFd,
    path: impl Arg + Copy,
    flags: OFlags,
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    let root = root.as_fd();
    let flags = flags | OFlags::CLOEXEC;
    let open = || openat2(root, path, flags, Mode::empty(), resolve);
    for _ in 1..TRIES {
        match open() {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    open()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_in_the_root() {
        let directory = tempfile::tempdir().unwrap();
        symlink("/inside", directory.path().join("link")).unwrap();
        let root = rustix::fs::open(directory.path(), OFlags::PATH, Mode::empty()).unwrap();
        let open = || open(&root, "link", OFlags::PATH, ResolveFlags::IN_ROOT);
        assert_eq!(open().unwrap_err(), Errno::NOENT);
        std::fs::write(directory.path().join("inside"), "").unwrap();
        open().unwrap();
    }
}
