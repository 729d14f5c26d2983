//! Programs for tests in a container that busybox lacks.
//!   rvm-inside watch DIR      prints a line for each change in a directory, by inotify(7)
//!   rvm-inside changes PATH…  prints each change of these files and directories, and what stat(2)
//!                             then says
//!   rvm-inside listen PATH    sends a greeting to the first client of a Unix socket
//!   rvm-inside connect PATH   connects to it and prints the greeting
//!   rvm-inside clock OFFSET   prints its clocks at once, adds milliseconds to the time of day, and
//!                             prints the clocks again for each line that it reads
//!   rvm-inside traffic ADDR   sends and receives over TCP, on the server's commands
//!   rvm-inside lock PATH      locks a file by flock(2) and fcntl(2), prints `busy` if it must
//!                             wait, then `locked`, and waits for its input's end
//!   rvm-inside append PATH    appends each line that it reads to a file, by pwritev2(2) with
//!                             RWF_APPEND, and prints `done`
//!   rvm-inside behind HOW PATH  writes to a file that the host appends to (behind.rs)
//!   rvm-inside direct FROM TO maps a file and writes its first bytes to another one from there, by
//!                             direct I/O
//!   rvm-inside file-costs DIR prints what file operations cost in an empty directory
//!   rvm-inside program-costs DIR MIB  prints what programs cost that work with files there, and a
//!                             file of so many MiB
//!   rvm-inside files DIR      tries claims about the files of a directory (files.rs)
//!   rvm-inside identity -     prints what tells its machine and itself apart from all others
//!   rvm-inside attack -       tries to reach the machine and its other containers (attack.rs)
//!   rvm-inside restart -      restarts the machine, and prints what came of it

#![allow(unsafe_code, reason = "system calls that rustix does not have")]

mod attack;
mod behind;
mod file_costs;
mod files;
mod identity;
mod program_costs;

use std::ffi::CStr;
use std::io::{Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::time::{ClockId, clock_gettime, clock_settime};

/// The file that is written and read in one go.
const FILE_MIB: usize = 8;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match (arguments[0].as_str(), &arguments[1]) {
        ("watch", dir) => watch(dir),
        ("changes", _) => changes(&arguments[1..]),
        ("listen", path) => {
            let (mut stream, _) = UnixListener::bind(path).unwrap().accept().unwrap();
            stream.write_all(b"hello\n").unwrap();
        }
        ("connect", path) => {
            let mut said = String::new();
            let mut stream = UnixStream::connect(path).unwrap();
            stream.read_to_string(&mut said).unwrap();
            print!("{said}");
        }
        ("direct", from) => direct(Path::new(from), Path::new(&arguments[2])).unwrap(),
        ("clock", offset) => clock(offset.parse().unwrap()),
        ("file-costs", dir) => file_costs::measure(Path::new(dir), FILE_MIB).unwrap(),
        ("program-costs", dir) => {
            let mib = arguments[2].parse().unwrap();
            program_costs::measure(Path::new(dir), mib).unwrap();
        }
        ("files", dir) => files::run(dir),
        ("identity", _) => identity::print().unwrap(),
        ("attack", _) => attack::run(),
        ("restart", _) => attack::restart(),
        ("user", operation) => files::act(operation, &arguments[2]),
        ("give-away", path) => files::rights::give_away(path),
        ("pause", _) => drop(std::io::stdin().read(&mut [0])),
        ("lock", path) => lock(path),
        ("append", path) => append(path),
        ("behind", how) => behind::run(how, &arguments[2]),
        ("traffic", address) => traffic(TcpStream::connect(address).unwrap()),
        (other, _) => panic!("what is {other}?"),
    }
}

fn lock(path: &str) {
    use rustix::fs::{FlockOperation, fcntl_lock, flock};
    let file = std::fs::File::options().read(true).write(true).open(path);
    let file = file.unwrap();
    let now = FlockOperation::NonBlockingLockExclusive;
    if flock(&file, now).is_err() && fcntl_lock(&file, now).is_err() {
        println!("busy");
    }
    flock(&file, FlockOperation::LockExclusive).unwrap();
    fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
    println!("locked");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn append(path: &str) {
    use rustix::io::{ReadWriteFlags, pwritev2};
    let file = std::fs::File::options().write(true).open(path).unwrap();
    for line in std::io::stdin().lines() {
        let line = line.unwrap() + "\n";
        let text = [std::io::IoSlice::new(line.as_bytes())];
        let written = pwritev2(&file, &text, 0, ReadWriteFlags::APPEND);
        assert_eq!(written, Ok(line.len()));
        println!("done");
    }
}

/// The bytes that are written at once, which is what a sector of any disk divides.
const DIRECT_BYTES: usize = 64 << 10;

fn direct(from: &Path, to: &Path) -> std::io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let from = std::fs::File::open(from)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::DIRECT;
    let to = open(to, flags, Mode::RUSR | Mode::WUSR)?;
    let (place, flags) = (std::ptr::null_mut(), MapFlags::PRIVATE);
    // SAFETY: the kernel chooses the place.
    let mapped = unsafe { mmap(place, DIRECT_BYTES, ProtFlags::READ, flags, &from, 0)? };
    // SAFETY: so much is mapped there, and nobody writes to it.
    let bytes = unsafe { std::slice::from_raw_parts(mapped.cast::<u8>(), DIRECT_BYTES) };
    let written = rustix::io::write(&to, bytes)?;
    assert_eq!(written, DIRECT_BYTES);
    Ok(())
}

/// Carries out commands until the server closes: `s` and a number sends that many MiB, `r` and a
/// number receives that many and confirms.
fn traffic(mut peer: TcpStream) {
    let mut block = vec![0; 1 << 20];
    let mut order = [0; 5];
    while peer.read_exact(&mut order).is_ok() {
        let [what, mib @ ..] = order;
        for _ in 0..u32::from_be_bytes(mib) {
            match what {
                b's' => peer.write_all(&block).unwrap(),
                _ => peer.read_exact(&mut block).unwrap(),
            }
        }
        if what == b'r' {
            peer.write_all(b"!").unwrap();
        }
    }
}

/// Prints CLOCK_REALTIME and CLOCK_MONOTONIC, in nanoseconds.
fn clock(offset: i64) {
    let print = || {
        let [real, monotonic] = [ClockId::Realtime, ClockId::Monotonic].map(|clock| {
            let now = clock_gettime(clock);
            now.tv_sec * 1_000_000_000 + now.tv_nsec
        });
        println!("{real} {monotonic}");
    };
    print();
    if offset != 0 {
        let mut now = clock_gettime(ClockId::Realtime);
        let nanoseconds = now.tv_nsec + offset * 1_000_000;
        now.tv_sec += nanoseconds.div_euclid(1_000_000_000);
        now.tv_nsec = nanoseconds.rem_euclid(1_000_000_000);
        clock_settime(ClockId::Realtime, now).unwrap();
    }
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).unwrap() > 0 {
        print();
    }
}

fn watch(dir: &str) {
    let queue = inotify::init(CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&queue, dir, WatchFlags::ALL_EVENTS & !WatchFlags::ACCESS).unwrap();
    println!("ready");
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(&queue, &mut buffer);
    loop {
        let event = events.next().unwrap();
        let name = event.file_name().map(CStr::to_string_lossy);
        println!("event {}", name.unwrap_or_default());
        std::io::stdout().flush().unwrap();
    }
}

/// Prints a line for each event: the number of the watched path, the events, the name, `paired` if
/// the cookie is the last event's, and what stat(2) says after events that others seldom follow at
/// once: the file's length and mode, or `gone`.
fn changes(paths: &[String]) {
    let changes = WatchFlags::MODIFY
        | WatchFlags::ATTRIB
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF;
    const MADE: ReadFlags = ReadFlags::CLOSE_WRITE
        .union(ReadFlags::ATTRIB)
        .union(ReadFlags::MOVED_TO);
    const LOST: ReadFlags = ReadFlags::DELETE.union(ReadFlags::MOVED_FROM);
    let queue = inotify::init(CreateFlags::CLOEXEC).unwrap();
    let mut watched = Vec::new();
    for path in paths {
        watched.push(inotify::add_watch(&queue, path, changes).unwrap());
        // What the kernel has cached now is out of date later.
        for entry in std::fs::read_dir(path).into_iter().flatten() {
            let _ = entry.unwrap().metadata();
        }
    }
    println!("ready");
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(&queue, &mut buffer);
    let mut last_cookie = 0;
    loop {
        let event = events.next().unwrap();
        let number = watched.iter().position(|&wd| wd == event.wd());
        let path = number.map_or("", |number| &paths[number]);
        let names: Vec<&str> = event.events().iter_names().map(|(name, _)| name).collect();
        let name = event.file_name().map(CStr::to_string_lossy);
        let mut words = vec![number.map_or("-".to_owned(), |number| number.to_string())];
        words.push(names.join("|"));
        words.extend(name.as_ref().map(ToString::to_string));
        if event.cookie() != 0 && event.cookie() == last_cookie {
            words.push("paired".to_owned());
        }
        last_cookie = event.cookie();
        let has_name = name.is_some();
        let path = match name {
            Some(name) => format!("{path}/{name}"),
            None => path.to_owned(),
        };
        match std::fs::metadata(path) {
            Ok(found) if has_name && event.events().intersects(MADE) => {
                words.push(format!("{} {:o}", found.len(), found.mode() & 0o777));
            }
            Err(_) if has_name && event.events().intersects(LOST) => words.push("gone".to_owned()),
            _ => {}
        }
        println!("{}", words.join(" "));
        std::io::stdout().flush().unwrap();
    }
}
