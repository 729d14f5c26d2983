//! Access to the files that virtiofsd has open. It shows them only to the code that copies data
//! between a file and the guest, so that code lends them to us.

use std::fs::File;
use std::io;

use virtiofsd::filesystem::{Context, FileSystem, ZeroCopyWriter};
use virtiofsd::oslib::ReadvFlags;

use super::files::{Handle, Inode};

/// The identity of requests that no process of the guest makes.
pub fn server_itself() -> Context {
    Context {
        uid: 0.into(),
        gid: 0.into(),
        pid: 0,
    }
}

/// Calls `work` with the file of a handle that the guest has open; EBADF if there is none.
pub fn with_handle<T>(
    fs: &impl FileSystem<Inode = Inode, Handle = Handle>,
    inode: Inode,
    handle: Handle,
    work: impl FnOnce(&File) -> io::Result<T>,
) -> io::Result<T> {
    let mut loan = Loan {
        work: Some(work),
        result: None,
    };
    fs.read(server_itself(), inode, handle, &mut loan, 0, 0, None, 0)?;
    loan.result
        .unwrap_or_else(|| Err(io::Error::from_raw_os_error(libc::EBADF)))
}

/// Calls `work` with a file that stands for an inode, opened with O_PATH; EBADF if the guest knows
/// no such inode, or if it is neither a file nor a directory.
pub fn with_path<T>(
    fs: &impl FileSystem<Inode = Inode, Handle = Handle>,
    inode: Inode,
    work: impl FnOnce(&File) -> io::Result<T>,
) -> io::Result<T> {
    with_opened(fs, inode, libc::O_PATH, work)
}

/// As [`with_path`], with the file opened for reading.
pub fn with_contents<T>(
    fs: &impl FileSystem<Inode = Inode, Handle = Handle>,
    inode: Inode,
    work: impl FnOnce(&File) -> io::Result<T>,
) -> io::Result<T> {
    with_opened(fs, inode, libc::O_RDONLY, work)
}

fn with_opened<T>(
    fs: &impl FileSystem<Inode = Inode, Handle = Handle>,
    inode: Inode,
    flags: libc::c_int,
    work: impl FnOnce(&File) -> io::Result<T>,
) -> io::Result<T> {
    let flags = flags.cast_unsigned();
    let (handle, _) = fs.open(server_itself(), inode, false, flags)?;
    let handle = handle.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
    let result = with_handle(fs, inode, handle, work);
    fs.release(server_itself(), inode, flags, handle, false, false, None)?;
    result
}

struct Loan<W, T> {
    work: Option<W>,
    result: Option<io::Result<T>>,
}

impl<W: FnOnce(&File) -> io::Result<T>, T> ZeroCopyWriter for Loan<W, T> {
    fn read_from_file_at(
        &mut self,
        file: &File,
        _count: usize,
        _offset: u64,
        _flags: Option<ReadvFlags>,
    ) -> io::Result<usize> {
        self.result = self.work.take().map(|work| work(file));
        Ok(0)
    }
}
