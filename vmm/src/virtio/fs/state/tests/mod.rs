mod busy;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};

use rustix::fs::{FlockOperation, flock};
use virtiofsd::fuse::{FsyncIn, OpenIn};
use vm_memory::ByteValued;

use self::busy::{Busy, OPENDIR, RENAME, RMDIR, ROOT, copy_of};
use super::super::client::Client;
use super::super::message::opcode;
use crate::jail::filter::ThreadKind;

#[test]
fn a_session_goes_on_with_the_same_directory() {
    let mut busy = Busy::new();
    busy.guest.go_on_here();
    busy.goes_on();
}

#[test]
fn a_session_goes_on_with_a_copy_of_the_directory() {
    let mut busy = Busy::new();
    let state = busy.guest.save().unwrap();
    let copy = copy_of(&busy.guest.dir);
    let original = std::mem::replace(&mut busy.guest.dir, copy);
    busy.guest.go_on_from(&state).unwrap();
    busy.goes_on();
    let text = fs::read(original.path().join("dir/file")).unwrap();
    assert_eq!(text, b"some text");
}

#[test]
fn what_removed_files_hold_goes_to_a_file_if_there_is_one() {
    let mut busy = Busy::new();
    let file = tempfile::tempfile().unwrap();
    let given = |guest: &Client| {
        guest
            .driver
            .device
            .removed_files()
            .set(file.try_clone().ok())
    };
    given(&busy.guest);
    let state = busy.guest.save().unwrap();
    assert!(state.len() < 10_000);
    let refusal = busy.guest.go_on_from(&state).unwrap_err().to_string();
    assert!(refusal.contains("removed, which was removed"), "{refusal}");
    let root = busy.guest.dir.path().to_owned();
    busy.guest.replace_device(&root);
    given(&busy.guest);
    busy.guest.restore(&state).unwrap();
    busy.goes_on();
}

#[test]
fn a_session_that_went_on_can_be_saved_again() {
    let mut busy = Busy::new();
    busy.guest.go_on_here();
    busy.guest.go_on_here();
    busy.goes_on();
    // The driver of the tests reuses descriptors, also those of a request that waits.
    busy.stop_watching();
    busy.guest.go_on_here();
    let (inode, handle) = busy.removed;
    assert_eq!(busy.guest.read(inode, handle, 0, 3), Ok(b"on\0".to_vec()));
}

#[test]
fn a_saved_device_that_lives_on_is_as_before() {
    let mut busy = Busy::new();
    busy.guest.save().unwrap();
    let (inode, handle) = busy.file;
    assert_eq!(busy.guest.read(inode, handle, 5, 100), Ok(b"text".to_vec()));
    assert_eq!(busy.guest.answer(), None, "what waited waits still");
}

#[test]
fn what_takes_long_ends_before_the_device_is_saved() {
    let mut busy = Busy::new();
    let (inode, fh) = busy.file;
    let request = FsyncIn {
        fh,
        ..FsyncIn::default()
    };
    let guest = &mut busy.guest;
    let synced = guest.send(opcode::FSYNC, inode, request.as_slice());
    let state = guest.save().unwrap();
    assert_eq!(guest.answer(), Some((synced, Ok(Vec::new()))));
    let session: super::Session = postcard::from_bytes(&state).unwrap();
    assert_eq!(session.kept.len(), 2, "the lock and the events");
}

#[test]
fn saving_keeps_within_the_filter() {
    let mut busy = Busy::new();
    let saved = std::thread::spawn(move || {
        ThreadKind::Files.apply().unwrap();
        busy.guest.save().map(|state| (busy, state))
    });
    let (mut busy, state) = saved.join().unwrap().unwrap();
    busy.guest.go_on_from(&state).unwrap();
}

/// A pod's files come when the device's thread runs already.
#[test]
fn restoring_keeps_within_the_filter() {
    let mut busy = Busy::new();
    let state = busy.guest.save().unwrap();
    let root = busy.guest.dir.path().to_owned();
    busy.guest.replace_device(&root);
    let restored = std::thread::spawn(move || {
        ThreadKind::Files.apply().unwrap();
        busy.guest.restore(&state).map(|()| busy)
    });
    restored.join().unwrap().unwrap().goes_on();
}

#[test]
fn a_guest_that_has_mounted_nothing_has_no_state() {
    let mut guest = Client::new();
    guest.driver.restart();
    assert_eq!(guest.save(), Ok(Vec::new()));
}

#[test]
fn what_was_agreed_on_is_agreed_on_still() {
    let mut guest = Client::new();
    guest.go_on_here();
    // SETXATTR has eight bytes more if SETXATTR_EXT was agreed on.
    fs::write(guest.path("file"), "").unwrap();
    let inode = guest.find(ROOT, b"file").unwrap();
    let mut body = 5_u32.to_ne_bytes().to_vec();
    body.extend([0; 12]);
    body.extend(b"user.a\0value");
    guest.call(opcode::SETXATTR, inode, &body).unwrap();
    let mut value = [0; 5];
    let found = rustix::fs::getxattr(guest.path("file"), c"user.a", &mut value);
    assert_eq!((found, &value), (Ok(5), b"value"));
}

#[test]
fn an_open_file_that_has_vanished_is_named() {
    let mut busy = Busy::new();
    let refusal = busy.guest.refusal_after(|guest| {
        fs::rename(guest.path("dir/file"), guest.path("elsewhere")).unwrap();
    });
    assert!(refusal.contains("no longer there: dir/file"), "{refusal}");
    let mut busy = Busy::new();
    let refusal = busy.guest.refusal_after(|guest| {
        fs::remove_file(guest.path("dir/file")).unwrap();
        symlink("/etc/passwd", guest.path("dir/file")).unwrap();
    });
    assert!(refusal.contains("dir/file"), "{refusal}");
}

#[test]
fn a_file_that_vanished_and_is_not_open_is_stale_and_found_again_by_its_name() {
    let mut guest = Client::new();
    for name in ["gone", "replaced", "same"] {
        fs::write(guest.path(name), name).unwrap();
    }
    let [gone, replaced, same] =
        [b"gone".as_slice(), b"replaced", b"same"].map(|name| guest.find(ROOT, name).unwrap());
    let state = guest.save().unwrap();
    fs::remove_file(guest.path("gone")).unwrap();
    fs::remove_file(guest.path("replaced")).unwrap();
    fs::create_dir(guest.path("replaced")).unwrap();
    guest.go_on_from(&state).unwrap();
    for lost in [gone, replaced] {
        assert_eq!(guest.attributes(lost).unwrap_err(), libc::ESTALE);
    }
    guest.post_forget(gone);
    assert!(guest.attributes(same).is_ok());
    assert_eq!(guest.find(ROOT, b"gone"), Err(libc::ENOENT));
    let found = guest.find(ROOT, b"replaced").unwrap();
    assert!(found > same, "another inode than any before");
    guest.go_on_here();
    assert_eq!(guest.attributes(gone).unwrap_err(), libc::EBADF);
    assert_eq!(guest.attributes(replaced).unwrap_err(), libc::ESTALE);
    assert!(guest.attributes(found).is_ok());
}

#[test]
fn a_file_is_found_by_the_name_that_it_has_now() {
    let mut guest = Client::new();
    fs::create_dir(guest.path("dir")).unwrap();
    fs::write(guest.path("old (deleted)"), "text").unwrap();
    let dir = guest.find(ROOT, b"dir").unwrap();
    let inode = guest.find(ROOT, b"old (deleted)").unwrap();
    let handle = guest.open(inode, libc::O_RDONLY);
    guest.go_on_here();
    assert_eq!(guest.read(inode, handle, 0, 10), Ok(b"text".to_vec()));
    let body = [&dir.to_ne_bytes()[..], b"old (deleted)\0new\0"].concat();
    guest.call(RENAME, ROOT, &body).unwrap();
    guest.go_on_here();
    assert_eq!(guest.read(inode, handle, 0, 10), Ok(b"text".to_vec()));
    assert_eq!(guest.find(dir, b"new"), Ok(inode));
}

#[test]
fn a_name_that_is_no_text_is_served_while_it_is_open() {
    let mut guest = Client::new();
    let name = b"caf\xe9";
    fs::write(guest.dir.path().join(OsStr::from_bytes(name)), "text").unwrap();
    let inode = guest.find(ROOT, name).unwrap();
    let handle = guest.open(inode, libc::O_RDWR);
    guest.go_on_here();
    assert_eq!(guest.read(inode, handle, 0, 10), Ok(b"text".to_vec()));
    guest.write(inode, handle, 0, b"T").unwrap();
    guest.release(inode, handle).unwrap();
    let host = fs::read(guest.dir.path().join(OsStr::from_bytes(name))).unwrap();
    assert_eq!(host, b"Text");
    guest.go_on_here();
    assert_eq!(guest.attributes(inode).unwrap_err(), libc::ESTALE);
    assert!(guest.find(ROOT, name).is_ok());
}

#[test]
fn a_directory_that_is_too_deep_for_a_path_is_looked_up_again() {
    let mut guest = Client::new();
    let name = [b'd'; 250];
    let mut dir = ROOT;
    for _ in 0..20 {
        let body = [&[0; 8][..], &name, b"\0"].concat();
        guest.call(opcode::MKDIR, dir, &body).unwrap();
        dir = guest.find(dir, &name).unwrap();
    }
    guest.go_on_here();
    assert_eq!(guest.attributes(dir).unwrap_err(), libc::ESTALE);
    assert!(guest.find(ROOT, &name).is_ok());
}

#[test]
fn a_removed_file_that_has_another_name_is_not_cut_off_from_it() {
    let mut guest = Client::new();
    fs::create_dir(guest.path("dir")).unwrap();
    fs::write(guest.path("file"), "text").unwrap();
    let inode = guest.find(ROOT, b"file").unwrap();
    let handle = guest.open(inode, libc::O_RDWR);
    fs::hard_link(guest.path("file"), guest.path("other")).unwrap();
    fs::remove_file(guest.path("file")).unwrap();
    guest.go_on_here();
    guest.write(inode, handle, 0, b"T").unwrap();
    assert_eq!(fs::read(guest.path("other")).unwrap(), b"Text");
    assert_eq!(guest.attributes(inode).unwrap().nlink, 1);
    fs::hard_link(guest.path("other"), guest.path("dir/far")).unwrap();
    fs::remove_file(guest.path("other")).unwrap();
    let busy = guest.save().unwrap_err().to_string();
    assert!(busy.starts_with("other is open"), "{busy}");
}

#[test]
fn a_removed_directory_in_use_is_stale() {
    let mut guest = Client::new();
    fs::create_dir(guest.path("dir")).unwrap();
    let dir = guest.find(ROOT, b"dir").unwrap();
    guest
        .call(OPENDIR, dir, OpenIn::default().as_slice())
        .unwrap();
    guest.call_by_name(RMDIR, ROOT, b"dir").unwrap();
    guest.go_on_here();
    assert_eq!(guest.attributes(dir).unwrap_err(), libc::ESTALE);
}

#[test]
fn a_lock_that_another_has_by_now_is_reported() {
    let mut busy = Busy::new();
    let state = busy.guest.save().unwrap();
    // Ends the first device, and its locks with it.
    busy.guest.go_on_from(b"").unwrap();
    let file = fs::File::open(busy.guest.path("locked")).unwrap();
    flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    let refusal = busy.guest.go_on_from(&state).unwrap_err().to_string();
    assert!(
        refusal.contains("locked cannot be locked again"),
        "{refusal}"
    );
}

#[test]
fn a_file_that_was_made_for_appending_is_written_where_the_guest_says() {
    let mut guest = Client::new();
    let (inode, handle) = guest.create(opcode::CREATE, b"log", libc::O_APPEND);
    guest.write(inode, handle, 0, b"0123456789").unwrap();
    guest.go_on_here();
    guest.write(inode, handle, 2, b"xx").unwrap();
    assert_eq!(fs::read(guest.path("log")).unwrap(), b"01xx456789");
}

#[test]
fn the_guest_keeps_its_pages_of_files_that_are_the_same() {
    let mut guest = Client::new();
    fs::write(guest.path("same"), "text").unwrap();
    fs::write(guest.path("changed"), "text").unwrap();
    let [same, changed] = [b"same".as_slice(), b"changed"].map(|n| guest.find(ROOT, n).unwrap());
    std::thread::sleep(std::time::Duration::from_millis(150));
    for inode in [same, changed] {
        assert_eq!([(); 2].map(|()| guest.keeps_cache(inode)), [false, true]);
    }
    let state = guest.save().unwrap();
    let mtime = fs::metadata(guest.path("changed"))
        .unwrap()
        .modified()
        .unwrap();
    let file = fs::File::options().write(true).open(guest.path("changed"));
    let file = file.unwrap();
    file.write_all_at(b"TEXT", 0).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(mtime))
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(150));
    let copy = copy_of(&guest.dir);
    std::thread::sleep(std::time::Duration::from_millis(150));
    guest.go_on_from(&state).unwrap();
    assert!(guest.keeps_cache(same));
    assert!(!guest.keeps_cache(changed));
    // Another file of the same name is not known yet.
    guest.go_on(copy.path(), &state).unwrap();
    assert_eq!([(); 2].map(|()| guest.keeps_cache(same)), [false, true]);
}

#[test]
fn a_state_whose_numbers_do_not_fit_is_refused() {
    let mut guest = Client::new();
    fs::write(guest.path("file"), "text").unwrap();
    let inode = guest.find(ROOT, b"file").unwrap();
    guest.open(inode, libc::O_RDONLY);
    let state = guest.save().unwrap();
    let changes: [fn(&mut super::Session); 10] = [
        |session| session.next_inode = 2,
        |session| session.next_inode = u64::MAX,
        |session| session.next_handle = u64::MAX,
        |session| session.nameless_made = u64::MAX,
        |session| session.handles[0].inode = 99,
        |session| session.inodes.retain(|inode| inode.id != ROOT),
        |session| session.inodes[1].id = ROOT,
        |session| session.inodes[0].references = u64::MAX,
        |session| session.inodes[1].place = super::Place::Path(b"../file".to_vec()),
        |session| session.kept = vec![(9, 0)],
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut session = postcard::from_bytes(&state).unwrap();
        change(&mut session);
        let damaged = postcard::to_stdvec(&session).unwrap();
        let refusal = guest.go_on_from(&damaged).unwrap_err().to_string();
        assert!(refusal.contains("damaged"), "{index}: {refusal}");
    }
}

#[test]
fn a_damaged_state_is_refused_or_served() {
    let mut busy = Busy::new();
    // Its megabytes say little, byte by byte.
    let (inode, handle) = busy.removed;
    busy.guest.release(inode, handle).unwrap();
    let guest = &mut busy.guest;
    let state = guest.save().unwrap();
    for end in 0..state.len() {
        assert!(guest.go_on_from(&state[..end]).is_err() || end == 0);
    }
    for index in 0..state.len() {
        for bit in [0, 3, 7] {
            let mut damaged = state.clone();
            damaged[index] ^= 1 << bit;
            if guest.go_on_from(&damaged).is_ok() {
                let _ = guest.driver.wake();
                let _ = guest.save();
            }
        }
    }
}
