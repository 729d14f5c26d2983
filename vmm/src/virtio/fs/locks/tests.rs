use super::super::client::Client;
use super::super::message::opcode;
use super::super::wait::MAX_WAITERS;
use super::*;
use crate::jail::filter::ThreadKind;
use virtiofsd::filesystem::FsOptions;

const RDLCK: u32 = libc::F_RDLCK as u32;
const WRLCK: u32 = libc::F_WRLCK as u32;
const UNLCK: u32 = libc::F_UNLCK as u32;

/// A file of the host that the guest has open.
struct Locked {
    guest: Client,
    host: File,
    inode: u64,
    handle: u64,
}

impl Locked {
    fn new(flags: libc::c_int) -> Self {
        let mut guest = Client::new();
        let path = guest.path("file");
        std::fs::write(&path, "text").unwrap();
        let host = File::options().read(true).write(true).open(path).unwrap();
        let inode = guest.lookup("file").unwrap().nodeid;
        let handle = guest.open(inode, flags);
        Self {
            guest,
            host,
            inode,
            handle,
        }
    }

    fn request(&self, owner: u64, kind: u32) -> LkIn {
        LkIn {
            fh: self.handle,
            owner,
            lk: FileLock {
                start: 0,
                end: Range::LAST,
                type_: kind,
                pid: owner as u32,
            },
            ..LkIn::default()
        }
    }

    fn flock_request(&self, kind: u32) -> LkIn {
        LkIn {
            lk_flags: LK_FLOCK,
            ..self.request(1, kind)
        }
    }

    fn set(&mut self, request: LkIn) -> Result<(), i32> {
        let answer = (self.guest).call(opcode::SETLK, self.inode, request.as_slice());
        answer.map(|body| assert!(body.is_empty()))
    }

    fn wait_for(&mut self, request: LkIn) -> u64 {
        (self.guest).send(opcode::SETLKW, self.inode, request.as_slice())
    }

    fn get(&mut self, request: LkIn) -> FileLock {
        let answer = (self.guest).call(opcode::GETLK, self.inode, request.as_slice());
        LkOut::from_slice(&answer.unwrap()).unwrap().lk
    }

    fn host_can_lock(&self) -> bool {
        let locked = ofd_locks::try_lock(&self.host, Range::ALL, Kind::Exclusive).is_ok();
        ofd_locks::unlock(&self.host, Range::ALL).unwrap();
        locked
    }

    fn release(&mut self, release_flags: u32) {
        let request = ReleaseIn {
            fh: self.handle,
            release_flags,
            ..ReleaseIn::default()
        };
        let answer = (self.guest).call(opcode::RELEASE, self.inode, request.as_slice());
        assert_eq!(answer, Ok(Vec::new()));
    }

    fn flush(&mut self, owner: u64) {
        let request = FlushIn {
            fh: self.handle,
            lock_owner: owner,
            ..FlushIn::default()
        };
        let answer = (self.guest).call(opcode::FLUSH, self.inode, request.as_slice());
        assert_eq!(answer, Ok(Vec::new()));
    }
}

#[test]
fn the_guest_is_asked_to_pass_locks_on() {
    let wanted = FsOptions::POSIX_LOCKS | FsOptions::FLOCK_LOCKS;
    assert!(Client::new().options.contains(wanted));
}

#[test]
fn a_lock_holds_between_owners_and_against_the_host() {
    let mut file = Locked::new(libc::O_RDWR);
    assert_eq!(file.set(file.request(1, WRLCK)), Ok(()));
    assert_eq!(file.set(file.request(1, RDLCK)), Ok(()), "it is its own");
    assert!(!file.host_can_lock());
    assert_eq!(file.set(file.request(2, RDLCK)), Ok(()));
    assert_eq!(file.set(file.request(2, WRLCK)), Err(libc::EAGAIN));
    assert_eq!(file.set(file.request(1, UNLCK)), Ok(()));
    assert_eq!(file.set(file.request(2, WRLCK)), Ok(()));
    assert_eq!(file.set(file.request(2, UNLCK)), Ok(()));
    assert!(file.host_can_lock());
}

#[test]
fn a_lock_in_the_way_is_shown_with_its_process_if_that_is_the_guests() {
    let mut file = Locked::new(libc::O_RDWR);
    let mut request = file.request(1, WRLCK);
    (request.lk.start, request.lk.end) = (10, 19);
    assert_eq!(file.set(request), Ok(()));
    let found = file.get(file.request(2, RDLCK));
    assert_eq!((found.start, found.end), (10, 19));
    assert_eq!((found.type_, found.pid), (WRLCK, 1));
    assert_eq!(file.get(file.request(1, WRLCK)).type_, UNLCK);
    file.flush(1);
    file.release(0);
    file.handle = file.guest.open(file.inode, libc::O_RDWR);
    ofd_locks::try_lock(&file.host, Range::ALL, Kind::Shared).unwrap();
    let found = file.get(file.request(2, WRLCK));
    assert_eq!((found.type_, found.end, found.pid), (RDLCK, Range::LAST, 0));
    assert_eq!(file.get(file.request(2, RDLCK)).type_, UNLCK);
}

#[test]
fn a_whole_lock_is_one_of_the_open_file() {
    let mut file = Locked::new(libc::O_RDONLY);
    let host = FlockOperation::NonBlockingLockShared;
    assert_eq!(file.set(file.flock_request(WRLCK)), Ok(()));
    assert_eq!(flock(&file.host, host), Err(Errno::AGAIN));
    let first = file.handle;
    file.handle = file.guest.open(file.inode, libc::O_RDONLY);
    assert_eq!(file.set(file.flock_request(RDLCK)), Err(libc::EAGAIN));
    file.handle = first;
    file.release(RELEASE_FLOCK_UNLOCK);
    assert_eq!(flock(&file.host, host), Ok(()));
}

#[test]
fn a_lock_that_waits_keeps_no_other_request_waiting() {
    for whole in [false, true] {
        let mut file = Locked::new(libc::O_RDWR);
        flock(&file.host, FlockOperation::LockExclusive).unwrap();
        ofd_locks::lock(&file.host, Range::ALL, Kind::Exclusive).unwrap();
        let request = if whole {
            file.flock_request(WRLCK)
        } else {
            file.request(1, WRLCK)
        };
        let waiting = file.wait_for(request);
        assert!(file.guest.answer().is_none());
        file.guest.lookup("file").unwrap();
        flock(&file.host, FlockOperation::Unlock).unwrap();
        ofd_locks::unlock(&file.host, Range::ALL).unwrap();
        assert_eq!(file.guest.wait(), (waiting, Ok(Vec::new())));
        let host = FlockOperation::NonBlockingLockShared;
        let locked = if whole {
            flock(&file.host, host).is_err()
        } else {
            !file.host_can_lock()
        };
        assert!(locked);
    }
}

#[test]
fn an_interrupted_wait_ends_without_a_lock() {
    let mut file = Locked::new(libc::O_RDWR);
    ofd_locks::lock(&file.host, Range::ALL, Kind::Exclusive).unwrap();
    for _ in 0..20 {
        let waiting = file.wait_for(file.request(1, WRLCK));
        file.guest.interrupt(waiting);
        assert_eq!(file.guest.wait(), (waiting, Err(libc::EINTR)));
    }
    ofd_locks::unlock(&file.host, Range::ALL).unwrap();
    assert!(file.host_can_lock());
}

#[test]
fn a_close_releases_the_locks_of_its_owner_and_of_no_other() {
    let mut file = Locked::new(libc::O_RDWR);
    assert_eq!(file.set(file.request(1, RDLCK)), Ok(()));
    assert_eq!(file.set(file.request(2, RDLCK)), Ok(()));
    file.flush(1);
    assert_eq!(file.get(file.request(1, WRLCK)).type_, RDLCK);
    file.flush(2);
    assert!(file.host_can_lock());
}

#[test]
fn the_last_close_releases_what_was_locked_by_the_open_file() {
    let mut file = Locked::new(libc::O_RDWR);
    assert_eq!(file.set(file.request(1, WRLCK)), Ok(()));
    file.release(0);
    assert!(file.host_can_lock());
}

#[test]
fn a_file_that_is_open_for_another_inode_is_not_locked() {
    let mut file = Locked::new(libc::O_RDWR);
    file.inode = 1;
    assert_eq!(file.set(file.request(1, WRLCK)), Err(libc::EBADF));
    assert_eq!(file.set(file.flock_request(WRLCK)), Err(libc::EBADF));
}

#[test]
fn ranges_and_kinds_that_do_not_exist_are_refused() {
    let mut file = Locked::new(libc::O_RDWR);
    let mut backwards = file.request(1, WRLCK);
    (backwards.lk.start, backwards.lk.end) = (5, 4);
    let mut beyond = file.request(1, WRLCK);
    beyond.lk.end = u64::MAX;
    for request in [
        backwards,
        beyond,
        file.request(1, 77),
        file.flock_request(77),
    ] {
        assert_eq!(file.set(request), Err(libc::EINVAL));
    }
}

#[test]
fn the_number_of_waits_is_limited_and_cancelling_ends_them() {
    let file = Locked::new(libc::O_RDWR);
    ofd_locks::lock(&file.host, Range::ALL, Kind::Exclusive).unwrap();
    let mut deferred = Deferred::new().unwrap();
    let mut locks = Locks::new(Arc::clone(&file.guest.driver.device.front.locks.fs)).unwrap();
    let request = file.request(1, WRLCK);
    let mut wait = |deferred: &mut Deferred| {
        let origin = Origin {
            queue: 1,
            head: 0,
            unique: 0,
        };
        matches!(
            locks.set(deferred, origin, file.inode, &request, true),
            Outcome::Later
        )
    };
    assert!((0..MAX_WAITERS).all(|_| wait(&mut deferred)));
    assert!(!wait(&mut deferred));
    deferred.reset();
    // Their threads may still be about to end.
    let started = std::time::Instant::now();
    while !wait(&mut deferred) {
        assert!(started.elapsed() < std::time::Duration::from_secs(20));
        std::thread::yield_now();
    }
    deferred.reset();
}

#[test]
fn the_filter_of_the_threads_calls_allows_locks_and_waits() {
    let mut file = Locked::new(libc::O_RDWR);
    let filtered = std::thread::spawn(move || {
        ThreadKind::Files.apply().unwrap();
        assert_eq!(file.get(file.request(1, WRLCK)).type_, UNLCK);
        ofd_locks::lock(&file.host, Range::ALL, Kind::Exclusive).unwrap();
        let interrupted = file.wait_for(file.request(1, WRLCK));
        file.guest.interrupt(interrupted);
        assert_eq!(file.guest.wait(), (interrupted, Err(libc::EINTR)));
        let waiting = file.wait_for(file.request(2, WRLCK));
        ofd_locks::unlock(&file.host, Range::ALL).unwrap();
        assert_eq!(file.guest.wait(), (waiting, Ok(Vec::new())));
        file
    });
    filtered.join().unwrap();
}
