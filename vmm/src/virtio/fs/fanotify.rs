//! A group of fanotify(7): the host's kernel tells of changes of single files and directories, and
//! which of them this process made. Such a group needs no privilege and Linux 5.17.

#![expect(unsafe_code, reason = "system calls that rustix lacks")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The changes that a group is told of: all of inotify's that are changes.
pub const CHANGES: u64 = libc::FAN_MODIFY
    | libc::FAN_ATTRIB
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_RENAME
    | libc::FAN_MOVE_SELF
    | libc::FAN_DELETE_SELF;

/// The longest file handle, MAX_HANDLE_SZ of linux/exportfs.h.
const MAX_HANDLE_BYTES: usize = 128;

/// What a file is known by in events: its file system and its handle there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    fsid: u64,
    kind: i32,
    handle: Box<[u8]>,
}

impl Identity {
    /// EOPNOTSUPP for a file system without handles.
    pub fn of(file: &File) -> io::Result<Self> {
        #[repr(C)]
        struct Handle {
            bytes: u32,
            kind: i32,
            handle: [u8; MAX_HANDLE_BYTES],
        }
        let fsid = rustix::fs::fstatvfs(file)?.f_fsid;
        let encode = |flags: libc::c_int| {
            let mut handle = Handle {
                bytes: MAX_HANDLE_BYTES as u32,
                kind: 0,
                handle: [0; MAX_HANDLE_BYTES],
            };
            let mut mount_id: libc::c_int = 0;
            // SAFETY: the path is a C string, and the kernel writes to the handle, whose size it
            // is told, and to the mount's id.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_name_to_handle_at,
                    file.as_raw_fd(),
                    c"".as_ptr(),
                    &raw mut handle,
                    &raw mut mount_id,
                    flags | libc::AT_EMPTY_PATH,
                )
            };
            match result {
                0 => Ok(handle),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // Linux 6.5 and later give a handle that only identifies, where no file could be opened by
        // it: overlayfs has no other.
        let handle = match encode(libc::AT_HANDLE_FID) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => encode(0)?,
            handle => handle?,
        };
        let length = (handle.bytes as usize).min(MAX_HANDLE_BYTES);
        Ok(Self {
            fsid,
            kind: handle.kind,
            handle: handle.handle[..length].into(),
        })
    }

    /// The identity at the front of `bytes`, and what follows it.
    fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (fsid, rest) = bytes.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (kind, rest) = rest.split_first_chunk()?;
        let (handle, rest) = rest.split_at_checked(u32::from_ne_bytes(*length) as usize)?;
        let identity = Self {
            fsid: u64::from_ne_bytes(*fsid),
            kind: i32::from_ne_bytes(*kind),
            handle: handle.into(),
        };
        Some((identity, rest))
    }
}

/// A name in a directory. A directory itself is called "." in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub dir: Identity,
    pub name: Vec<u8>,
}

/// What the kernel reports at once. Changes of one kind of object and name that come one soon after
/// the other are one report, and so are those that this process makes; the two never mix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Bits of [`CHANGES`], FAN_ONDIR and FAN_Q_OVERFLOW.
    pub mask: u64,
    /// Whether this process made the changes.
    pub own: bool,
    pub place: Option<Place>,
    /// The file or directory that changed, as far as it is not `place` that tells.
    pub object: Option<Identity>,
    /// Of a renamed file, where its directory is watched.
    pub from: Option<Place>,
    pub to: Option<Place>,
}

pub struct Group(OwnedFd);

impl Group {
    /// EINVAL or ENOSYS if the host's kernel is too old, EMFILE if its user has too many groups.
    pub fn new() -> io::Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_REPORT_DFID_NAME_TARGET;
        // SAFETY: takes numbers only.
        let fd = unsafe { libc::syscall(libc::SYS_fanotify_init, flags, libc::O_RDONLY) };
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just made this descriptor.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Starts to report changes of a file or a directory and of what is in it.
    pub fn add(&self, file: &File) -> io::Result<()> {
        self.mark(libc::FAN_MARK_ADD, file)
    }

    pub fn remove(&self, file: &File) -> io::Result<()> {
        self.mark(libc::FAN_MARK_REMOVE, file)
    }

    fn mark(&self, action: libc::c_uint, file: &File) -> io::Result<()> {
        let mut mask = CHANGES;
        if file.metadata()?.is_dir() {
            mask |= libc::FAN_ONDIR | libc::FAN_EVENT_ON_CHILD;
        } else {
            // Linux refuses to be asked for entries of what is no directory.
            mask &= !(libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_RENAME);
        }
        // SAFETY: without a path the call takes numbers only.
        let result = unsafe {
            libc::syscall(
                libc::SYS_fanotify_mark,
                self.0.as_raw_fd(),
                action,
                mask,
                file.as_raw_fd(),
                std::ptr::null::<libc::c_char>(),
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads as many reports as fit into `buffer`; none if there are none now.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Vec<Report>> {
        match rustix::io::read(&self.0, &mut *buffer) {
            Ok(length) => Ok(parse(&buffer[..length])),
            Err(rustix::io::Errno::AGAIN) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `struct fanotify_event_metadata`: event_len, version, metadata_len, mask, fd, pid.
fn parse(mut bytes: &[u8]) -> Vec<Report> {
    let mut reports = Vec::new();
    while let Some((report, rest)) = parse_report(bytes) {
        reports.push(report);
        bytes = rest;
    }
    reports
}

fn parse_report(bytes: &[u8]) -> Option<(Report, &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let (event, rest) = bytes.split_at_checked(length)?;
    let metadata_length = u16::from_ne_bytes(event.get(6..8)?.try_into().ok()?);
    let pid = u32::from_ne_bytes(event.get(20..24)?.try_into().ok()?);
    let mut report = Report {
        mask: u64::from_ne_bytes(event.get(8..16)?.try_into().ok()?),
        own: pid == std::process::id(),
        ..Report::default()
    };
    let mut records = event.get(usize::from(metadata_length)..)?;
    while let [kind, _, length @ ..] = records {
        let length = u16::from_ne_bytes(*length.first_chunk()?);
        let (record, next) = records.split_at_checked(usize::from(length))?;
        let (identity, name) = Identity::parse(record.get(4..)?)?;
        let place = || Place {
            dir: identity.clone(),
            name: name.split(|&byte| byte == 0).next().unwrap_or(name).into(),
        };
        match *kind {
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME => report.place = Some(place()),
            libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME => report.from = Some(place()),
            libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME => report.to = Some(place()),
            libc::FAN_EVENT_INFO_TYPE_FID => report.object = Some(identity),
            _ => {}
        }
        records = next;
    }
    Some((report, rest))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn reports(group: &Group) -> Vec<Report> {
        group.read(&mut [0; 8192]).unwrap()
    }

    #[test]
    fn changes_of_a_directory_come_with_names_and_with_who_made_them() {
        let dir = tempfile::tempdir().unwrap();
        let opened = File::open(dir.path()).unwrap();
        let group = Group::new().unwrap();
        group.add(&opened).unwrap();
        fs::write(dir.path().join("own"), "text").unwrap();
        let script = "touch theirs; mv theirs moved";
        let mut command = std::process::Command::new("sh");
        let status = command
            .args(["-c", script])
            .current_dir(dir.path())
            .status();
        assert!(status.unwrap().success());
        let place = |name: &str| Place {
            dir: Identity::of(&opened).unwrap(),
            name: name.into(),
        };
        let [own, theirs, moved, ..] = &reports(&group)[..] else {
            panic!("too few reports");
        };
        assert!(own.own && own.mask & libc::FAN_CREATE != 0);
        assert_eq!(own.place, Some(place("own")));
        assert!(!theirs.own && theirs.mask & libc::FAN_CREATE != 0);
        assert_eq!(theirs.place, Some(place("theirs")));
        assert_eq!(moved.mask, libc::FAN_RENAME);
        assert_eq!(moved.from, Some(place("theirs")));
        assert_eq!(moved.to, Some(place("moved")));
    }

    #[test]
    fn a_mark_that_is_removed_is_silent() {
        let dir = tempfile::tempdir().unwrap();
        let opened = File::open(dir.path()).unwrap();
        let group = Group::new().unwrap();
        group.add(&opened).unwrap();
        group.remove(&opened).unwrap();
        fs::write(dir.path().join("file"), "text").unwrap();
        assert_eq!(reports(&group), []);
    }

    #[test]
    fn reports_that_are_cut_short_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let group = Group::new().unwrap();
        group.add(&File::open(dir.path()).unwrap()).unwrap();
        fs::write(dir.path().join("file"), "text").unwrap();
        let mut bytes = [0; 8192];
        let length = rustix::io::read(&group, &mut bytes[..]).unwrap();
        assert_eq!(parse(&bytes[..length]).len(), 1);
        for cut in 0..length {
            assert_eq!(parse(&bytes[..cut]), []);
        }
    }
}
