//! Receives signals through signalfd(2).

use std::io;
use std::mem;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::ptr;

use rvm_sys::readiness::Readable;

/// Signals that concern only this process, and are not forwarded to the container.
const NOT_FORWARDED: &[libc::c_int] = &[
    // Children, I/O and faults of this process.
    libc::SIGCHLD,
    libc::SIGPIPE,
    libc::SIGURG,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGSYS,
];

/// The signals to forward to the container. They no longer have an effect on this process.
pub struct Signals {
    fd: OwnedFd,
    readable: Readable,
}

impl Signals {
    /// Blocks the signals in the calling thread and in threads that it spawns later.
    pub fn block() -> io::Result<Self> {
        let fd = signalfd()?;
        Ok(Self {
            readable: Readable::new(fd.as_fd())?,
            fd,
        })
    }

    /// Waits for the next signal and returns its number. Safe to cancel.
    pub async fn next(&self) -> io::Result<i32> {
        self.readable.read(|_| read(&self.fd)).await
    }
}

/// Blocks the signals in the calling thread and in threads that it spawns later.
pub fn mask() -> io::Result<()> {
    block(&set())
}

#[expect(unsafe_code, reason = "signal sets")]
fn set() -> libc::sigset_t {
    // SAFETY: sigfillset initializes the set; every number is valid.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigfillset(&mut set);
        for signal in NOT_FORWARDED {
            libc::sigdelset(&mut set, *signal);
        }
        set
    }
}

#[expect(unsafe_code, reason = "pthread_sigmask")]
fn block(set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the set lives across the call, and the old one is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[expect(unsafe_code, reason = "signalfd")]
fn signalfd() -> io::Result<OwnedFd> {
    let set = set();
    block(&set)?;
    // SAFETY: the set lives across the call; the descriptor is new and nobody else's.
    unsafe {
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

fn read(fd: &OwnedFd) -> io::Result<i32> {
    // struct signalfd_siginfo, whose first field is the number.
    let mut info = [0; 128];
    rustix::io::read(fd, &mut info)?;
    Ok(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read_and_not_delivered() {
        // A thread of its own keeps the mask from the other tests.
        let thread = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build();
            runtime.unwrap().block_on(async {
                let signals = Signals::block().unwrap();
                let own = rustix::thread::gettid();
                for signal in [libc::SIGUSR1, libc::SIGRTMIN() + 3] {
                    // SAFETY: a signal to this thread, which blocks it.
                    #[expect(unsafe_code, reason = "tgkill")]
                    unsafe {
                        let pid = libc::getpid();
                        libc::syscall(libc::SYS_tgkill, pid, own.as_raw_nonzero().get(), signal);
                    }
                    assert_eq!(signals.next().await.unwrap(), signal);
                }
            });
        });
        thread.join().unwrap();
    }
}
