//! Kicks: the signal that makes a vCPU's thread leave the guest.
//!
//! The signal is blocked except while the guest runs (KVM_SET_SIGNAL_MASK), so a kick cannot be
//! lost between a vCPU's look at the run state and its next KVM_RUN.

use std::os::fd::AsRawFd;
use std::{io, mem, ptr};

use kvm_ioctls::VcpuFd;

/// A thread that runs a vCPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct VcpuThread(libc::pthread_t);

impl VcpuThread {
    /// Prepares the calling thread for running `vcpu`.
    pub(super) fn adopt_current(vcpu: &VcpuFd) -> io::Result<Self> {
        block_kick()?;
        unblock_kick_in_guest(vcpu)?;
        #[expect(unsafe_code, reason = "pthread_self")]
        // SAFETY: it takes nothing and cannot fail.
        Ok(Self(unsafe { libc::pthread_self() }))
    }

    /// Makes the thread leave the guest, now or at its next KVM_RUN.
    #[expect(unsafe_code, reason = "pthread calls")]
    pub(super) fn kick(self) {
        // SAFETY: CPU threads end only with the process, so the id is valid.
        unsafe { libc::pthread_kill(self.0, kick_signal()) };
    }
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

#[expect(unsafe_code, reason = "signal sets")]
fn kick_set() -> libc::sigset_t {
    // SAFETY: sigemptyset initializes the set, and the signal number is valid.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, kick_signal());
        set
    }
}

#[expect(unsafe_code, reason = "pthread_sigmask")]
fn block_kick() -> io::Result<()> {
    // SAFETY: the set is initialized; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &kick_set(), ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Removes pending kicks, so that a kick that has interrupted one KVM_RUN does not interrupt the
/// next.
#[expect(unsafe_code, reason = "sigtimedwait")]
pub(super) fn drain_kick() {
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the set and the time are initialized; the details are not asked for.
    while unsafe { libc::sigtimedwait(&kick_set(), ptr::null_mut(), &now) } >= 0 {}
}

/// The kernel's struct kvm_signal_mask with its 8-byte set.
#[repr(C)]
struct SignalMask {
    len: u32,
    set: [u8; 8],
}

/// Sets the signal mask that applies while the guest runs: no signal is blocked.
#[expect(unsafe_code, reason = "an ioctl that kvm-ioctls lacks")]
fn unblock_kick_in_guest(vcpu: &VcpuFd) -> io::Result<()> {
    // _IOW(KVMIO, 0x8b, struct kvm_signal_mask), whose flexible array has no size.
    const KVM_SET_SIGNAL_MASK: libc::Ioctl = 0x4004_ae8b;
    let mask = SignalMask {
        len: 8,
        set: [0; 8],
    };
    // SAFETY: the kernel reads `len` and then that many bytes behind it.
    let result =
        unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, ptr::from_ref(&mask)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
