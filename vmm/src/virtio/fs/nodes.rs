//! Device nodes that a container makes on a shared file system.
//!
//! The host's kernel lets the jail make none. A node is an empty file instead, with the sticky bit,
//! which has no meaning for files, and an attribute that says the device. So only files that look
//! like this cost a look at an attribute. The guest's kernel sees a device, and has checked that
//! its maker may have one; the host sees the empty file.
//!
//! The attribute's name is of those that only the guest's root reaches, who can make nodes anyway.

use std::ffi::CStr;

use virtiofsd::filesystem::{FileSystem, GetxattrReply, SetxattrFlags};
use virtiofsd::fuse::Attr;

use super::files::Files;
use super::lend::server_itself;

/// `user.virtiofs.trusted.rvm.device` on the host, see `xattrs.rs`.
const ATTRIBUTE: &CStr = c"trusted.rvm.device";

/// Longer than any value of the attribute.
const VALUE_BYTES: u32 = 32;

/// A device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// S_IFCHR or S_IFBLK
    kind: u32,
    /// The device's number in the kernel's 32-bit form, as FUSE has it.
    device: u32,
}

impl Node {
    /// The node that mknod(2) with this mode makes, if the jail cannot make it. A whiteout, device
    /// 0 of kind `c`, is free for everybody.
    pub fn wanted(mode: u32, device: u32) -> Option<Self> {
        let kind = mode & libc::S_IFMT;
        match kind {
            libc::S_IFBLK => Some(Self { kind, device }),
            libc::S_IFCHR if device != 0 => Some(Self { kind, device }),
            _ => None,
        }
    }

    /// The mode of the file that stands for a node with this mode.
    pub fn mode_of_file(mode: u32) -> u32 {
        mode & !libc::S_IFMT | libc::S_IFREG | libc::S_ISVTX
    }

    /// The node that a file stands for, if it stands for one.
    pub fn of(fs: &Files, inode: u64, mode: u32, size: u64) -> Option<Self> {
        let marked = libc::S_IFREG | libc::S_ISVTX;
        if mode & (libc::S_IFMT | libc::S_ISVTX) != marked || size != 0 {
            return None;
        }
        match fs.getxattr(server_itself(), inode, ATTRIBUTE, VALUE_BYTES) {
            Ok(GetxattrReply::Value(value)) => Self::parse(&value),
            _ => None,
        }
    }

    /// Makes a file stand for the node.
    pub fn mark(self, fs: &Files, inode: u64) -> std::io::Result<()> {
        let none = SetxattrFlags::empty();
        let value = self.value();
        fs.setxattr(server_itself(), inode, ATTRIBUTE, value.as_bytes(), 0, none)
    }

    /// The mode of a node whose file has this mode.
    pub fn mode(self, of_file: u32) -> u32 {
        of_file & !(libc::S_IFMT | libc::S_ISVTX) | self.kind
    }

    pub fn device(self) -> u32 {
        self.device
    }

    fn value(self) -> String {
        let letter = if self.kind == libc::S_IFBLK { 'b' } else { 'c' };
        format!("{letter} {}", self.device)
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let (letter, device) = std::str::from_utf8(value).ok()?.split_once(' ')?;
        let kind = match letter {
            "b" => libc::S_IFBLK,
            "c" => libc::S_IFCHR,
            _ => return None,
        };
        let device = device.parse().ok()?;
        Some(Self { kind, device })
    }
}

/// Shows a file that stands for a node as that node.
pub fn show(fs: &Files, inode: u64, attributes: &mut Attr) {
    if let Some(node) = Node::of(fs, inode, attributes.mode, attributes.size) {
        attributes.mode = node.mode(attributes.mode);
        attributes.rdev = node.device();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::client::Client;
    use super::*;
    use virtiofsd::fuse::{AttrOut, EntryOut, MknodIn, SetattrIn};
    use vm_memory::ByteValued;

    fn mknod(guest: &mut Client, name: &str, mode: u32, rdev: u32) -> EntryOut {
        let request = MknodIn {
            mode,
            rdev,
            umask: 0o022,
            ..MknodIn::default()
        };
        let body = [request.as_slice(), name.as_bytes(), b"\0"].concat();
        let answer = guest.call(8, 1, &body).unwrap();
        *EntryOut::from_slice(&answer).unwrap()
    }

    #[test]
    fn a_device_is_one_for_the_guest_and_an_empty_file_for_the_host() {
        let mut guest = Client::new();
        for (name, mode, device) in [
            ("null", libc::S_IFCHR | 0o666, 0x103),
            ("loop", libc::S_IFBLK | 0o660, 0x700),
        ] {
            let made = mknod(&mut guest, name, mode, device);
            let found = guest.lookup(name).unwrap();
            for attributes in [made.attr, found.attr] {
                assert_eq!(attributes.mode, mode & !0o022);
                assert_eq!(attributes.rdev, device);
            }
            let host = std::fs::metadata(guest.path(name)).unwrap();
            assert!(host.is_file());
            assert_eq!(host.len(), 0);
        }
    }

    #[test]
    fn a_device_stays_one_when_its_mode_changes() {
        let mut guest = Client::new();
        let inode = mknod(&mut guest, "null", libc::S_IFCHR | 0o600, 0x103).nodeid;
        let request = SetattrIn {
            valid: 1,
            mode: libc::S_IFCHR | 0o666,
            ..SetattrIn::default()
        };
        let answer = guest.call(4, inode, request.as_slice()).unwrap();
        let changed = AttrOut::from_slice(&answer).unwrap().attr;
        assert_eq!((changed.mode, changed.rdev), (request.mode, 0x103));
        assert_eq!(guest.lookup("null").unwrap().attr.mode, request.mode);
        let host = std::fs::metadata(guest.path("null")).unwrap();
        assert_eq!(host.mode(), libc::S_IFREG | 0o1666);
    }

    #[test]
    fn other_nodes_are_the_hosts() {
        let mut guest = Client::new();
        for (name, mode) in [
            ("fifo", libc::S_IFIFO | 0o644),
            ("socket", libc::S_IFSOCK | 0o644),
            ("file", libc::S_IFREG | 0o644),
            ("whiteout", libc::S_IFCHR),
        ] {
            assert_eq!(mknod(&mut guest, name, mode, 0).attr.mode, mode);
            let host = std::fs::symlink_metadata(guest.path(name)).unwrap();
            assert_eq!(host.mode(), mode);
        }
    }

    #[test]
    fn an_attribute_that_says_no_device_makes_none() {
        for value in ["", "c", "c ", "c x", "d 1", "c 1 ", "c 4294967296", "c -1"] {
            assert_eq!(Node::parse(value.as_bytes()), None, "{value:?}");
        }
        let node = Node {
            kind: libc::S_IFBLK,
            device: u32::MAX,
        };
        assert_eq!(Node::parse(node.value().as_bytes()), Some(node));
        assert!(node.value().len() < VALUE_BYTES as usize);
    }
}
