//! What every target is linked with.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

pub use libfuzzer_sys;

/// The most bytes of one allocation, and of all that live at a time. What is read in a target has
/// bounds far below both; guest memory is mapped and does not count.
const LARGEST: usize = 64 << 20;
const ALL: usize = 256 << 20;

/// Ends the program where more is allocated than any input is worth: libFuzzer's own limit of one
/// allocation needs AddressSanitizer.
struct Bounded(AtomicUsize);

#[global_allocator]
static ALLOCATOR: Bounded = Bounded(AtomicUsize::new(0));

impl Bounded {
    fn take(&self, bytes: usize) {
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        if bytes > LARGEST || before + bytes > ALL {
            // A panic would allocate.
            eprintln!("an allocation of {bytes} bytes beside {before}");
            std::process::abort();
        }
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        // SAFETY: the caller's contract is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        // SAFETY: the caller's contract is the system's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.take(size);
        self.give_back(layout.size());
        // SAFETY: the caller's contract is the system's.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        self.give_back(layout.size());
        // SAFETY: the caller's contract is the system's.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Does what Rust's runtime does before `main`, which is libFuzzer's here: a write to a socket
/// whose other end is closed is an error, and not the end of the program.
pub fn begin() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// The entry of a target.
#[macro_export]
macro_rules! target {
    ($function:path) => {
        $crate::libfuzzer_sys::fuzz_target!(init: $crate::begin(), |data: &[u8]| $function(data));
    };
}
