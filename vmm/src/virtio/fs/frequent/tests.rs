use super::super::client::{Client, private_mounts};
use super::*;

/// A file of the host that the guest has open.
struct Written {
    guest: Client,
    inode: u64,
    handle: u64,
}

impl Written {
    fn new(content: &str) -> Self {
        Self::of(Client::new(), content)
    }

    fn of(mut guest: Client, content: &str) -> Self {
        std::fs::write(guest.path("file"), content).unwrap();
        let inode = guest.lookup("file").unwrap().nodeid;
        let handle = guest.open(inode, libc::O_RDWR);
        Self {
            guest,
            inode,
            handle,
        }
    }

    /// The bytes that the answer to a WRITE counts.
    fn write(&mut self, request: WriteIn, data: &[u8]) -> Result<u32, i32> {
        let request = WriteIn {
            fh: self.handle,
            ..request
        };
        self.guest.write_with(self.inode, &request, data)
    }

    fn content(&self) -> String {
        std::fs::read_to_string(self.guest.path("file")).unwrap()
    }
}

#[test]
fn a_write_takes_as_many_bytes_as_it_names() {
    let mut file = Written::new("0123456789");
    let request = WriteIn {
        offset: 2,
        size: 3,
        ..WriteIn::default()
    };
    assert_eq!(file.write(request, b"abcdef"), Ok(3));
    assert_eq!(file.content(), "01abc56789");
}

#[test]
fn a_write_that_names_more_bytes_than_it_has_takes_those_it_has() {
    let mut file = Written::new("");
    let request = WriteIn {
        size: u32::MAX,
        ..WriteIn::default()
    };
    assert_eq!(file.write(request, b"abc"), Ok(3));
    assert_eq!(file.content(), "abc");
}

#[test]
fn a_write_to_a_file_opened_for_appending_goes_to_its_end() {
    let mut file = Written::new("0123");
    let request = WriteIn {
        size: 2,
        flags: libc::O_APPEND.cast_unsigned(),
        ..WriteIn::default()
    };
    assert_eq!(file.write(request, b"45"), Ok(2));
    assert_eq!(file.content(), "012345");
}

#[test]
fn a_write_longer_than_the_guest_may_send_changes_nothing() {
    let mut file = Written::new("0123");
    let data = vec![b'x'; MAX_WRITE + 1];
    let request = WriteIn {
        size: data.len() as u32,
        ..WriteIn::default()
    };
    assert_eq!(file.write(request, &data), Err(libc::EINVAL));
    assert_eq!(file.content(), "0123");
    let request = WriteIn {
        size: MAX_WRITE as u32,
        ..WriteIn::default()
    };
    assert_eq!(file.write(request, &data[1..]), Ok(MAX_WRITE as u32));
}

#[test]
fn a_handle_that_is_not_open_is_refused() {
    let mut file = Written::new("0123");
    file.handle += 1;
    let request = WriteIn {
        size: 1,
        ..WriteIn::default()
    };
    assert_eq!(file.write(request, b"x"), Err(libc::EBADF));
}

#[test]
fn what_was_written_before_the_disk_was_full_counts() {
    let dir = tempfile::tempdir().unwrap();
    std::thread::spawn(move || {
        private_mounts();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", dir.path(), "tmpfs", flags, c"size=64k").unwrap();
        let mut file = Written::of(Client::serving(dir), "");
        let data = vec![b'x'; 128 << 10];
        let mut request = WriteIn {
            size: data.len() as u32,
            ..WriteIn::default()
        };
        let written = file.write(request, &data).unwrap();
        assert_eq!(file.content().len(), written as usize);
        request.offset = u64::from(written);
        assert_eq!(file.write(request, &data), Err(libc::ENOSPC));
    })
    .join()
    .unwrap();
}
