//! Claims about who may do what: ACLs, set-id bits, capabilities of files.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Mode, XattrFlags, getxattr, setxattr};
use rustix::io::Errno;

use super::{USER, as_user, chmod, file, mode};

/// An ACL: mode 0600, and [`USER`] may read and write.
fn acl_of_user() -> Vec<u8> {
    // See acl(5) and linux/posix_acl_xattr.h: version 2, then tag, permissions, id.
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 6, u32::MAX),
        (0x02, 6, USER),
        (0x04, 0, u32::MAX),
        (0x10, 6, u32::MAX),
        (0x20, 0, u32::MAX),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

pub fn acl(dir: &Path) {
    let (path, _file) = file(dir, "f", "text");
    chmod(&path, 0o600);
    assert_eq!(as_user("read", &path), "13");
    let name = "system.posix_acl_access";
    setxattr(&path, name, &acl_of_user(), XattrFlags::empty()).unwrap();
    assert_eq!(mode(&path) & 0o777, 0o660, "the mask is the group's mode");
    assert_eq!(as_user("read", &path), "ok");
    assert_eq!(as_user("write", &path), "ok");
    let mut value = [0; 256];
    let length = getxattr(&path, name, &mut value).unwrap();
    assert_eq!(value[..length], acl_of_user());
    chmod(&path, 0o600);
    assert_eq!(as_user("read", &path), "13", "an empty mask");
}

pub fn default_acl(dir: &Path) {
    let name = "system.posix_acl_default";
    setxattr(dir, name, &acl_of_user(), XattrFlags::empty()).unwrap();
    let before = rustix::process::umask(Mode::from_raw_mode(0o077));
    let (path, _file) = file(dir, "f", "text");
    let below = dir.join("d");
    fs::create_dir(&below).unwrap();
    rustix::process::umask(before);
    assert_eq!(mode(&path) & 0o777, 0o660, "no umask beside a default ACL");
    let mut value = [0; 256];
    let length = getxattr(&path, "system.posix_acl_access", &mut value).unwrap();
    assert_eq!(length, acl_of_user().len());
    let length = getxattr(&below, name, &mut value).unwrap();
    assert_eq!(value[..length], acl_of_user());
}

pub fn sticky(dir: &Path) {
    chmod(dir, 0o1777);
    let (path, _file) = file(dir, "f", "");
    chmod(&path, 0o666);
    assert_eq!(as_user("unlink", &path), "1");
    let own = dir.join("own");
    assert_eq!(as_user("create", &own), "ok");
    assert_eq!(fs::metadata(&own).unwrap().uid(), USER);
    assert_eq!(as_user("unlink", &own), "ok");
}

pub fn setgid(dir: &Path) {
    let group = USER + 5;
    std::os::unix::fs::chown(dir, None, Some(group)).unwrap();
    chmod(dir, 0o2777);
    let (path, _file) = file(dir, "f", "");
    assert_eq!(fs::metadata(path).unwrap().gid(), group);
    let below = dir.join("d");
    fs::create_dir(&below).unwrap();
    let found = fs::metadata(&below).unwrap();
    assert_eq!((found.gid(), found.mode() & 0o2000), (group, 0o2000));
    assert_eq!(as_user("create", &dir.join("of-user")), "ok");
    assert_eq!(fs::metadata(dir.join("of-user")).unwrap().gid(), group);
}

/// CAP_CHOWN, permitted and effective: version 2 of struct vfs_cap_data.
fn capability() -> Vec<u8> {
    let words: [u32; 5] = [0x0200_0001, 1, 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub fn privileges(dir: &Path) {
    chmod(dir, 0o777);
    let (path, file) = file(dir, "f", "text");
    let name = "security.capability";
    chmod(&path, 0o6777);
    setxattr(&path, name, &capability(), XattrFlags::empty()).unwrap();
    assert_eq!(as_user("write", &path), "ok");
    assert_eq!(mode(&path) & 0o7777, 0o777);
    let mut value = [0; 64];
    assert_eq!(getxattr(&path, name, &mut value), Err(Errno::NODATA));
    setxattr(&path, name, &capability(), XattrFlags::empty()).unwrap();
    file.write_all_at(b"by root", 0).unwrap();
    assert_eq!(getxattr(&path, name, &mut value), Err(Errno::NODATA));
}

pub fn capabilities(dir: &Path) {
    let path = dir.join("program");
    fs::copy("/proc/self/exe", &path).unwrap();
    chmod(dir, 0o755);
    chmod(&path, 0o755);
    let name = "security.capability";
    setxattr(&path, name, &capability(), XattrFlags::empty()).unwrap();
    let mut value = [0; 64];
    let length = getxattr(&path, name, &mut value).unwrap();
    assert_eq!(value[..length], capability());
    // Only CAP_CHOWN lets a user give a file away.
    let (given, _file) = file(dir, "given", "");
    std::os::unix::fs::chown(&given, Some(USER), Some(USER)).unwrap();
    let mut command = Command::new(&path);
    command.args(["give-away"]).arg(&given);
    let status = command.uid(USER).gid(USER).status().unwrap();
    assert!(status.success());
    assert_eq!(fs::metadata(&given).unwrap().uid(), USER + 1);
}

/// Gives a file to another user.
pub fn give_away(path: &str) {
    std::os::unix::fs::chown(path, Some(USER + 1), None).unwrap();
}
