//! What tests do in a container for which busybox has no program.
//!   rvm-inside watch DIR      a line for what happens in a directory, by inotify(7)
//!   rvm-inside listen PATH    greets the first who connects to a Unix socket
//!   rvm-inside connect PATH   prints what is said there
//!   rvm-inside traffic ADDR   sends and receives over TCP as it is told there

use std::ffi::CStr;
use std::io::{Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match (arguments[0].as_str(), &arguments[1]) {
        ("watch", dir) => watch(dir),
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
        ("traffic", address) => traffic(TcpStream::connect(address).unwrap()),
        (other, _) => panic!("what is {other}?"),
    }
}

/// Obeys until nobody is there any more: `s` and a number of MiB asks for so many, `r` announces so
/// many, whose arrival is confirmed.
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
