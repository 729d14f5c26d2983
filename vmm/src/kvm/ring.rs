//! What lets go of a machine last.
//!
//! KVM takes a machine apart when its last descriptor is closed, and in that waits until the
//! callbacks of RCU have run that other processes have left on every CPU: some ten milliseconds. A
//! process that closes the descriptor by its end spends them in it, and so does whoever waits for
//! the process. What an io_uring holds is closed by a thread of the kernel instead, which nobody
//! waits for.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;

use kvm_ioctls::VmFd;
use rustix::io;
use rustix::io_uring::{
    IoringRegisterOp, IoringSetupFlags, io_uring_params, io_uring_register, io_uring_setup,
};

/// Makes a ring that holds the machine. It is disabled, so it takes no requests, and whoever takes
/// over the process can change nothing about that: no filter of its threads allows a system call of
/// io_uring. See io_uring_setup(2), IORING_SETUP_R_DISABLED, and io_uring_register(2),
/// IORING_REGISTER_FILES.
///
/// Fails on Linux before 5.10, and where the host forbids rings (`kernel.io_uring_disabled`).
#[expect(unsafe_code, reason = "rings can share memory with the kernel")]
pub fn holding(vm: &VmFd) -> io::Result<OwnedFd> {
    let mut params = io_uring_params::default();
    params.flags = IoringSetupFlags::R_DISABLED;
    let files = [vm.as_raw_fd()];
    // SAFETY: nothing of the ring is mapped, and it gets no requests. The kernel reads one
    // descriptor.
    unsafe {
        let ring = io_uring_setup(1, &mut params)?;
        let files = ptr::from_ref(&files).cast();
        io_uring_register(ring.as_fd(), IoringRegisterOp::RegisterFiles, files, 1)?;
        Ok(ring)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kvm_ioctls::Kvm;

    use super::*;

    #[test]
    fn a_ring_holds_a_machine_whose_descriptor_is_closed() {
        let Ok(kvm) = Kvm::new() else {
            return println!("skipped: /dev/kvm cannot be opened");
        };
        let vm = kvm.create_vm().unwrap();
        let ring = match holding(&vm) {
            Ok(ring) => ring,
            Err(error) => return println!("skipped: no ring: {error}"),
        };
        drop(vm);
        let info = format!("/proc/self/fdinfo/{}", ring.as_raw_fd());
        let info = fs::read_to_string(info).unwrap();
        assert!(info.contains("kvm-vm"), "{info}");
    }
}
