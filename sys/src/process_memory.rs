//! What a process keeps of the memory that it has used, though it may never use it again.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;

use rustix::io;
use rustix::mm::{Advice, madvise};

use crate::last_errno;

/// How much of the stack below the caller's frame stays: more than the calls below need, and some
/// of what the next calls do.
const KEPT_STACK: usize = 64 << 10;

const PAGE: usize = 4096;

/// Keeps the C library from giving each thread a heap of its own, which grows by a few pages at a
/// time and reuses nothing of the others'. For a process whose threads allocate little.
#[expect(unsafe_code, reason = "mallopt")]
pub fn share_one_heap() {
    // SAFETY: it takes numbers.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives the kernel back the memory of the C library's heaps that is free, and that of the calling
/// thread's stack below the caller. Both come back, zeroed, when they are used again. A process
/// calls it that has done much and will do little.
///
/// For threads that Rust or the C library has made, and not for signal handlers.
#[expect(unsafe_code, reason = "malloc_trim, and madvise on the own stack")]
pub fn give_back() -> io::Result<()> {
    // SAFETY: it takes a number, and locks the heaps.
    unsafe { libc::malloc_trim(0) };
    let here = MaybeUninit::<u8>::uninit();
    let start = stack_start()?;
    let end = (ptr::from_ref(&here).addr().saturating_sub(KEPT_STACK)) & !(PAGE - 1);
    if end <= start {
        return Ok(());
    }
    let pointer: *mut c_void = ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is part of this thread's stack, and lies below all frames: nothing lives
    // there, but what the calls from here on write, which is nearer than what is kept.
    unsafe { madvise(pointer, end - start, Advice::LinuxDontNeed) }
}

/// The lowest address of the calling thread's stack, guard pages included.
#[expect(unsafe_code, reason = "pthread_getattr_np")]
fn stack_start() -> io::Result<usize> {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut start, mut size) = (ptr::null_mut::<c_void>(), 0);
    // SAFETY: the attributes are initialized by the first call, and destroyed once; the others get
    // pointers to variables of their types.
    let found = unsafe {
        let thread = libc::pthread_self();
        if libc::pthread_getattr_np(thread, attributes.as_mut_ptr()) != 0 {
            return Err(last_errno());
        }
        let found = libc::pthread_attr_getstack(attributes.as_ptr(), &mut start, &mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        found
    };
    match found {
        0 => Ok(start.expose_provenance()),
        errno => Err(io::Errno::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;
    use std::thread;

    /// How many pages of the calling thread's stack have memory.
    #[expect(unsafe_code, reason = "mincore")]
    fn resident() -> usize {
        let here = MaybeUninit::<u8>::uninit();
        let start = stack_start().unwrap();
        let end = ptr::from_ref(&here).addr() & !(PAGE - 1);
        let mut pages = vec![0_u8; (end - start) / PAGE];
        let pointer: *mut c_void = ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is mapped, and there is a byte for each page.
        let result = unsafe { libc::mincore(pointer, end - start, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    #[inline(never)]
    fn use_a_mebibyte() -> u8 {
        let mut used = [1_u8; 1 << 20];
        black_box(&mut used)[4096]
    }

    #[test]
    fn what_a_call_has_used_of_the_stack_is_given_back_and_can_be_used_again() {
        let test = || {
            let before = black_box([7_u8; 100]);
            assert_eq!(use_a_mebibyte(), 1);
            assert!(resident() > 200, "{} pages", resident());
            give_back().unwrap();
            assert!(resident() < 64, "{} pages", resident());
            assert_eq!(use_a_mebibyte(), 1);
            assert_eq!(before, [7; 100]);
        };
        let thread = thread::Builder::new().stack_size(4 << 20).spawn(test);
        thread.unwrap().join().unwrap();
    }
}
