//! What a file without a name holds: it was removed while it was open, or has never had one. It is
//! part of the state, and is made again from it.

use std::ffi::CString;
use std::fs::File;
use std::io;

use rustix::fs::{
    AtFlags, Gid, MemfdFlags, Mode, OFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags,
    chownat, fchmod, fgetxattr, flistxattr, fsetxattr, fstat, ftruncate, futimens, memfd_create,
    openat, seek, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::places::Tree;
use super::removed::{Piece, Store};

/// The longest list or value of extended attributes, XATTR_LIST_MAX and XATTR_SIZE_MAX.
const XATTR_BYTES: usize = 64 << 10;

/// How many names are tried for a file that is to have none.
const ATTEMPTS: u32 = 1000;

#[derive(Debug, Serialize, Deserialize)]
pub struct Contents {
    /// linkat(2) may give it a name.
    pub is_linkable: bool,
    mode: u32,
    owner: (u32, u32),
    /// Of the last access and the last modification: seconds since 1970, and nanoseconds.
    times: [(i64, u32); 2],
    size: u64,
    /// What is not a hole: offset and bytes.
    data: Vec<(u64, Piece)>,
    /// By their names on the host.
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Contents {
    /// Reads a file that is open for reading. EFBIG if it holds more than the store takes.
    pub fn read(file: &File, is_linkable: bool, store: &mut Store) -> io::Result<Self> {
        let stat = fstat(file)?;
        // Times before 1970 and nanoseconds fit.
        let time = |seconds, nanoseconds: u64| (seconds, nanoseconds as u32);
        Ok(Self {
            is_linkable,
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
            times: [
                time(stat.st_atime, stat.st_atime_nsec),
                time(stat.st_mtime, stat.st_mtime_nsec),
            ],
            size: stat.st_size.cast_unsigned(),
            data: read_data(file, store)?,
            attributes: read_attributes(file)?,
        })
    }

    /// Makes the file again, in the directory in which it had this path or in the nearest above.
    pub fn create(&self, tree: &Tree, path: &[u8], store: &Store) -> io::Result<File> {
        let file = make(&tree.directory_of(path)?, self.is_linkable)?;
        for (offset, piece) in &self.data {
            store.take(piece, &file, *offset)?;
        }
        ftruncate(&file, self.size)?;
        let (owner, group) = self.owner;
        let (owner, group) = (Uid::from_raw(owner), Gid::from_raw(group));
        chownat(&file, c"", Some(owner), Some(group), AtFlags::EMPTY_PATH)?;
        for (name, value) in &self.attributes {
            let name = CString::new(name.as_slice())?;
            fsetxattr(&file, &name, value, XattrFlags::empty())?;
        }
        // Owner and attributes may change the mode, and everything changes the times.
        fchmod(&file, Mode::from_raw_mode(self.mode & 0o7777))?;
        let [last_access, last_modification] = self.times.map(|(seconds, nanoseconds)| Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds.into(),
        });
        let times = Timestamps {
            last_access,
            last_modification,
        };
        futimens(&file, &times)?;
        Ok(file)
    }
}

fn read_data(file: &File, store: &mut Store) -> io::Result<Vec<(u64, Piece)>> {
    let mut data = Vec::new();
    let mut end = 0;
    loop {
        let start = match seek(file, SeekFrom::Data(end)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(data),
            Err(error) => return Err(error.into()),
        };
        end = seek(file, SeekFrom::Hole(start))?;
        let length = end.checked_sub(start).filter(|length| *length > 0);
        let length = length.ok_or(Errno::IO)?;
        data.push((start, store.put(file, start, length)?));
    }
}

fn read_attributes(file: &File) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; XATTR_BYTES];
    let length = match flistxattr(file, names.as_mut_slice()) {
        Err(Errno::NOTSUP) => 0,
        length => length?,
    };
    names.truncate(length);
    let mut attributes = Vec::new();
    for name in names.split(|&byte| byte == 0) {
        // The others are the host's own, such as its labels, and the jail may not set them.
        let is_guests = name.starts_with(b"user.")
            || name == b"security.capability"
            || name == b"system.posix_acl_access";
        if is_guests {
            let mut value = vec![0; XATTR_BYTES];
            let length = fgetxattr(file, &CString::new(name)?, value.as_mut_slice())?;
            value.truncate(length);
            attributes.push((name.to_vec(), value));
        }
    }
    Ok(attributes)
}

/// Makes a file without a name.
fn make(dir: &File, is_linkable: bool) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let excl = match is_linkable {
        true => OFlags::empty(),
        false => OFlags::EXCL,
    };
    match openat(dir, c".", flags | excl | OFlags::TMPFILE, mode) {
        Err(Errno::OPNOTSUPP) => {}
        // Nobody can write to it, and what was removed is gone from it for good.
        Err(Errno::ROFS) => return Ok(memfd_create("removed", MemfdFlags::CLOEXEC)?.into()),
        made => return Ok(made?.into()),
    }
    // A file system without such files.
    for attempt in 0..ATTEMPTS {
        let name = format!(".rvm-restored-{attempt}");
        match openat(dir, &name, flags | OFlags::CREATE | OFlags::EXCL, mode) {
            Err(Errno::EXIST) => {}
            made => {
                let made = made?;
                unlinkat(dir, &name, AtFlags::empty())?;
                return Ok(made.into());
            }
        }
    }
    Err(Errno::EXIST.into())
}

#[cfg(test)]
mod tests {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use std::os::unix::fs::FileExt;

    use super::super::super::client::Client;
    use super::super::removed::RemovedFiles;
    use super::*;

    fn tree() -> (Client, Tree) {
        let guest = Client::new();
        let tree = Tree::new(&guest.driver.device.files()).unwrap();
        (guest, tree)
    }

    #[test]
    fn a_file_is_made_again_with_its_holes_and_attributes() {
        let (guest, tree) = tree();
        let path = guest.path("file");
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true);
        let file = options.open(path).unwrap();
        file.write_all_at(b"start", 0).unwrap();
        file.write_all_at(b"end", 5 << 20).unwrap();
        file.set_len(9 << 20).unwrap();
        fsetxattr(&file, c"user.a", b"value", XattrFlags::empty()).unwrap();
        chownat(
            &file,
            c"",
            Some(Uid::from_raw(12)),
            Some(Gid::from_raw(34)),
            AtFlags::EMPTY_PATH,
        )
        .unwrap();
        fchmod(&file, Mode::from_raw_mode(0o4751)).unwrap();
        let mut store = Store::new(&RemovedFiles::default());
        let read = Contents::read(&file, false, &mut store).unwrap();
        let state = postcard::to_stdvec(&read).unwrap();
        assert!(state.len() < 1 << 20, "holes are left out");
        let again = read.create(&tree, b"no/longer/there", &store).unwrap();
        let (then, now) = (fstat(&file).unwrap(), fstat(&again).unwrap());
        assert_eq!(now.st_nlink, 0);
        let fixed = |stat: &rustix::fs::Stat| {
            let owner = (stat.st_uid, stat.st_gid);
            (
                stat.st_mode,
                owner,
                stat.st_size,
                stat.st_mtime,
                stat.st_mtime_nsec,
            )
        };
        assert_eq!(fixed(&then), fixed(&now));
        assert!(now.st_blocks < 1 << 11, "holes stay holes");
        let mut bytes = [0; 5];
        again.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"start");
        again.read_exact_at(&mut bytes[..3], 5 << 20).unwrap();
        assert_eq!(&bytes[..3], b"end");
        let mut value = [0; 5];
        assert_eq!(fgetxattr(&again, c"user.a", &mut value), Ok(5));
        assert_eq!(&value, b"value");
    }

    #[test]
    #[allow(unsafe_code, reason = "unshare can break what relies on shared state")]
    fn a_file_of_a_read_only_file_system_is_made_in_memory() {
        let made = std::thread::spawn(|| {
            // SAFETY: the mount namespace, the root and the working directory of this thread become
            // its own; none of the other threads is affected.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).unwrap();
            mount("tmpfs", "/mnt", "tmpfs", MountFlags::RDONLY, None).unwrap();
            make(&File::open("/mnt").unwrap(), false).unwrap()
        });
        let made = made.join().unwrap();
        made.write_all_at(b"text", 0).unwrap();
        assert_eq!(fstat(&made).unwrap().st_nlink, 0);
    }

    #[test]
    fn a_state_that_says_nonsense_is_refused_by_the_host() {
        let (_guest, tree) = tree();
        let store = Store::new(&RemovedFiles::default());
        let contents = |offset, size| Contents {
            is_linkable: true,
            mode: u32::MAX,
            owner: (0, 0),
            times: [(i64::MIN, u32::MAX); 2],
            size,
            data: vec![(offset, Piece::Here(vec![1; 10]))],
            attributes: vec![(b"a\0b".to_vec(), Vec::new())],
        };
        for (offset, size) in [(u64::MAX, 0), (1 << 63, 0), (0, u64::MAX), (0, 0)] {
            let made = contents(offset, size).create(&tree, b"/a/../..//b", &store);
            assert!(made.is_err());
        }
    }
}
