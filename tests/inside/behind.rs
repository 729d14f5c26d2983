//! Writes of a program to a file behind whose end the host appends meanwhile:
//!   rvm-inside behind HOW PATH   prepares the file, prints `ready`, reads a line, does it, and
//!                                prints `done`

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::OFlags;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, mmap_anonymous, msync, munmap};

/// The length of a page, and of a write by O_DIRECT.
const PAGE: usize = 4096;

/// What is written to a page that is mapped.
const TEXT: &[u8] = b"GUEST";

/// How long the guest's kernel may know an older size.
const STALE: std::time::Duration = std::time::Duration::from_secs(2);

pub fn run(how: &str, path: &str) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    match how {
        "direct" => {
            rustix::fs::fcntl_setfl(&file, OFlags::DIRECT).unwrap();
            at_a_word(|| fail_directly(&file, PAGE as u64));
        }
        "stat" => with_changed_page(&file, || {
            std::thread::sleep(STALE);
            assert!(file.metadata().unwrap().len() > TEXT.len() as u64 + 1);
        }),
        "truncate" => with_changed_page(&file, || file.set_len(100).unwrap()),
        "write" => with_changed_page(&file, || file.write_all_at(b"tail", 100).unwrap()),
        other => panic!("what is {other}?"),
    }
}

fn at_a_word(work: impl FnOnce()) {
    println!("ready");
    io::stdin().read_line(&mut String::new()).unwrap();
    work();
    println!("done");
}

/// A write behind the end from memory that cannot be read.
fn fail_directly(file: &File, offset: u64) {
    let null = std::ptr::null_mut();
    // SAFETY: the mapping is new, and nothing refers to it.
    let memory = unsafe { mmap_anonymous(null, PAGE, ProtFlags::empty(), MapFlags::PRIVATE) };
    // SAFETY: the kernel checks the address.
    let written = unsafe {
        libc::pwrite(
            file.as_raw_fd(),
            memory.unwrap(),
            PAGE,
            offset.cast_signed(),
        )
    };
    let error = io::Error::last_os_error().raw_os_error();
    assert_eq!((written, error), (-1, Some(libc::EFAULT)));
}

/// Does the work at a word when the file's first page was changed through a mapping, which it is
/// written back from afterwards.
fn with_changed_page(file: &File, work: impl FnOnce()) {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let null = std::ptr::null_mut();
    // SAFETY: the mapping is new.
    let page = unsafe { mmap(null, PAGE, protection, MapFlags::SHARED, file, 0) }.unwrap();
    // SAFETY: the file has so many bytes, and no reference to the mapping exists.
    unsafe { page.cast::<u8>().copy_from(TEXT.as_ptr(), TEXT.len()) };
    at_a_word(|| {
        work();
        // SAFETY: the mapping is this one, to which nothing refers.
        unsafe { msync(page, PAGE, MsyncFlags::SYNC).and_then(|()| munmap(page, PAGE)) }.unwrap();
    });
}
