//! Leaving namespaces and state that threads share: unshare(2).

use rustix::io::{self, Errno};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread new namespaces, or state of its own, in place of those that it shares.
///
/// Fails with EINVAL for [`UnshareFlags::FILES`], after which descriptors of this thread would no
/// longer be those of the others; and, as the kernel does, for NEWUSER in a process with threads.
#[expect(unsafe_code, reason = "unsafe for UnshareFlags::FILES alone")]
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(Errno::INVAL);
    }
    // SAFETY: without FILES the table of descriptors stays shared, so that an owned descriptor is
    // the same file in every thread.
    unsafe { unshare_unsafe(flags) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_stay_shared() {
        assert_eq!(unshare(UnshareFlags::FILES), Err(Errno::INVAL));
        let all = UnshareFlags::FILES | UnshareFlags::FS;
        assert_eq!(unshare(all), Err(Errno::INVAL));
    }

    #[test]
    fn a_thread_gets_a_working_directory_of_its_own() {
        let before = std::env::current_dir().unwrap();
        let changed = std::thread::spawn(|| {
            unshare(UnshareFlags::FS).unwrap();
            std::env::set_current_dir("/").unwrap();
        });
        changed.join().unwrap();
        assert_eq!(std::env::current_dir().unwrap(), before);
    }
}
