//! Overlay file systems that config.json mounts, of directories of the host. See overlayfs.rst in
//! the kernel's documentation.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, OpenTreeFlags, mount, mount_change, open_tree,
};
use rustix::thread::UnshareFlags;

use rvm_sys::namespaces::unshare;

/// Mounts an overlay with these options of its file system, at most 4,095 bytes, attached nowhere.
/// It is made on `point`, an existing directory, in a mount namespace that ends with the call:
/// fsconfig(2), which needs none, takes no option that is longer than 255 bytes.
pub fn detached(options: &str, point: &Path) -> io::Result<OwnedFd> {
    let options = CString::new(options)?;
    let make = || {
        unshare(UnshareFlags::NEWNS)?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private)?;
        let none = MountFlags::empty();
        mount("overlay", point, "overlay", none, Some(options.as_c_str()))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(open_tree(CWD, point, flags)?)
    };
    std::thread::scope(|scope| {
        let made = std::thread::Builder::new().spawn_scoped(scope, make)?;
        made.join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that mounts it panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn it_is_mounted_nowhere_and_its_options_may_be_long() {
        let dir = tempfile::tempdir().unwrap();
        let name = "long".repeat(60);
        let at = |part: &str| dir.path().join(&name).join(part);
        for part in ["lower", "upper", "work", "point"] {
            fs::create_dir_all(at(part)).unwrap();
        }
        fs::write(at("lower").join("file"), "text").unwrap();
        let part = |part: &str| at(part).display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            part("lower"),
            part("upper"),
            part("work")
        );
        let made = detached(&options, &at("point")).unwrap();
        let opened = rustix::fs::openat(
            &made,
            "file",
            rustix::fs::OFlags::RDONLY,
            rustix::fs::Mode::empty(),
        );
        assert_eq!(
            io::read_to_string(fs::File::from(opened.unwrap())).unwrap(),
            "text"
        );
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(&name));
        assert!(fs::read_dir(at("point")).unwrap().next().is_none());
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(detached("lowerdir=/nowhere/at/all", dir.path()).is_err());
        assert!(detached("lowerdir=/a\0b", dir.path()).is_err());
    }
}
