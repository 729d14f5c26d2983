//! The probe: whether the host's KVM can run a kernel.
//!
//! Some hosts have a /dev/kvm that runs a guest's user code on the processor but emulates its
//! kernel code in software, at a million instructions per second, and fails on some instructions.
//! Only a trial tells them apart: a throw-away machine runs a few thousand instructions of 64-bit
//! kernel code, among them those that are known to fail, and is timed.

mod guest;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuExit;
use rustix::fs::{Mode, OFlags};
use rvm_protocol::vmm::ProbeReport;
use vm_memory::{Bytes, GuestAddress};

use crate::arch::x86_64::registers;
use crate::kvm::Vm;
use crate::logging::error_chain;
use crate::memory::{self, GuestMemory};

use self::guest::{INSTRUCTIONS, OK, PORT, code};

/// The address of the guest's code. Page tables and descriptor table are at the addresses that a
/// kernel starts with.
const CODE: u64 = 0x1000;

/// The address of the interrupt descriptor table.
const IDT: u64 = 0x2000;

/// The slowest usable KVM, in millions of instructions per second. Software emulation reaches one
/// or two, the slowest nested virtualization some hundreds.
const SLOWEST_MIPS: u64 = 20;

/// After this time the guest counts as hung. Even an emulated one takes a tenth of a second.
const LIMIT_SECONDS: u32 = 5;

/// How often the guest is run before KVM counts as slow: another load may have slowed a single run.
const TRIES: usize = 3;

/// Probes the host's KVM. SIGALRM ends the process if KVM hangs.
pub fn run() -> ProbeReport {
    // SIGALRM's default action ends the process; there is nothing to clean up.
    alarm();
    let mut best = ProbeReport::Slow { mips: 0 };
    for _ in 0..TRIES {
        match (open().and_then(attempt), &best) {
            (Ok(ProbeReport::Slow { mips }), ProbeReport::Slow { mips: before }) => {
                best = ProbeReport::Slow {
                    mips: mips.max(*before),
                };
            }
            (Ok(report), _) => return report,
            (Err(reason), _) => return ProbeReport::Unavailable { reason },
        }
    }
    best
}

#[expect(unsafe_code, reason = "alarm")]
fn alarm() {
    // SAFETY: it takes a number and cannot fail.
    unsafe { libc::alarm(LIMIT_SECONDS) };
}

fn open() -> Result<OwnedFd, String> {
    rustix::fs::open("/dev/kvm", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| format!("cannot open /dev/kvm: {error}"))
}

/// Runs the guest once. An error means that no machine could be created.
fn attempt(kvm: OwnedFd) -> Result<ProbeReport, String> {
    let start = Instant::now();
    let memory = memory::map(1).map_err(|error| error_chain(&error))?;
    prepare(&memory).map_err(|error| error_chain(&error))?;
    let vm = Vm::new(kvm, Arc::clone(&memory)).map_err(|error| error_chain(&error))?;
    let mut vcpu = vm
        .create_boot_vcpu(1, GuestAddress(CODE))
        .map_err(|error| error_chain(&error))?;
    let mut sregs = vcpu.get_sregs().map_err(|error| error.to_string())?;
    sregs.idt.base = IDT;
    sregs.idt.limit = 4 * 16 - 1;
    vcpu.set_sregs(&sregs).map_err(|error| error.to_string())?;

    if let Some(reason) = unexpected(vcpu.run()) {
        return Ok(ProbeReport::Wrong { reason });
    }
    let entered = Instant::now();
    if let Some(reason) = unexpected(vcpu.run()) {
        return Ok(ProbeReport::Wrong { reason });
    }
    let mips = mips(entered.elapsed());
    if mips < SLOWEST_MIPS {
        return Ok(ProbeReport::Slow { mips });
    }
    let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Ok(ProbeReport::Usable { nanoseconds, mips })
}

/// The reason why an exit of the guest is not the expected one. None if it is.
fn unexpected(exit: Result<VcpuExit<'_>, kvm_ioctls::Error>) -> Option<String> {
    let reason = match exit {
        Ok(VcpuExit::IoOut(PORT, &[OK])) => return None,
        Ok(VcpuExit::IoOut(PORT, &[1])) => "CMPXCHG16B in kernel mode does not work".to_owned(),
        Ok(VcpuExit::IoOut(PORT, _)) => "INT3 in kernel mode does not work".to_owned(),
        Ok(VcpuExit::InternalError) => "KVM cannot emulate an instruction of kernels".to_owned(),
        Ok(exit) => format!("the guest ended unexpectedly: {exit:?}"),
        Err(error) => format!("KVM_RUN: {error}"),
    };
    Some(reason)
}

fn mips(elapsed: Duration) -> u64 {
    let micros = u64::try_from(elapsed.as_micros())
        .unwrap_or(u64::MAX)
        .max(1);
    INSTRUCTIONS / micros
}

fn prepare(memory: &GuestMemory) -> Result<(), registers::RegisterError> {
    let (code, handler) = code();
    registers::write_tables(memory)?;
    memory.write_slice(code, GuestAddress(CODE))?;
    // An interrupt gate for vector 3: offset 15:0, the code selector, present and 64-bit, 31:16.
    let handler = CODE + handler as u64;
    let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
    memory.write_obj([gate, 0], GuestAddress(IDT + 3 * 16))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_instructions_by_time() {
        assert_eq!(mips(Duration::from_millis(100)), 1);
        assert_eq!(mips(Duration::from_micros(100)), 1000);
    }
}
