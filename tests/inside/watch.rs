//! Says what happens in a directory, by inotify(7): a line with the name of what an event is about.

use std::ffi::CStr;
use std::io::Write as _;
use std::mem::MaybeUninit;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

fn main() {
    let dir = std::env::args_os().nth(1).unwrap();
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
