//! A virtual CPU: runs the guest and handles its exits.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{VcpuExit, VcpuFd};
use rvm_protocol::POWER_OFF_PORT;
use rvm_protocol::failure::{Code, Failure};
use rvm_protocol::vmm::StopReason;

use super::kick::{VcpuThread, drain_kick};
use super::run_state::{Order, RunState};
use crate::arch::x86_64::registers::RegisterError;
use crate::arch::x86_64::state::VcpuState;
use crate::kvm::SavedVcpu;

pub(super) struct Vcpu {
    id: u8,
    fd: VcpuFd,
    state: Arc<RunState>,
}

impl Vcpu {
    pub(super) fn new(id: u8, fd: VcpuFd, state: Arc<RunState>) -> Self {
        Self { id, fd, state }
    }

    pub(super) fn id(&self) -> u8 {
        self.id
    }

    /// Makes the calling thread the one that runs this vCPU.
    pub(super) fn adopt_thread(&self) -> io::Result<VcpuThread> {
        VcpuThread::adopt_current(&self.fd)
    }

    /// Runs the guest until the machine ends, or until the vCPU is collected.
    pub(super) fn run(mut self) {
        let reason = loop {
            if let Order::Save(msrs) = self.state.wait_while_paused(self.id) {
                match self.complete_exit() {
                    Ok(()) => self.state.put_saved(self.save(&msrs)),
                    Err(error) => break failed(format!("KVM_RUN: {error}")),
                }
                continue;
            }
            if self.state.is_collecting() {
                match self.complete_exit() {
                    Ok(()) => return self.state.hand_over(self.id, self.fd),
                    Err(error) => break failed(format!("KVM_RUN: {error}")),
                }
            }
            match self.step() {
                Ok(None) => {}
                Ok(Some(reason)) => break reason,
                Err(error) => break run_failed(&error),
            }
        };
        self.state.end(reason);
    }

    fn save(&self, msrs: &[u32]) -> Result<SavedVcpu, RegisterError> {
        let state = VcpuState::save_whole(&self.fd, msrs)?;
        Ok(SavedVcpu { id: self.id, state })
    }

    /// Runs the guest until its next exit and handles the exit. A stop reason ends the machine.
    fn step(&mut self) -> Result<Option<StopReason>, kvm_ioctls::Error> {
        let bus = self.state.bus();
        let exit = match self.fd.run() {
            Err(error) if error.errno() == libc::EINTR => {
                drain_kick();
                return Ok(None);
            }
            Err(error) if error.errno() == libc::EAGAIN => return Ok(None),
            other => other?,
        };
        match exit {
            VcpuExit::MmioRead(address, data) => bus.mmio_read(address, data),
            VcpuExit::MmioWrite(address, data) => bus.mmio_write(address, data),
            VcpuExit::IoIn(port, data) => bus.port_read(port, data),
            VcpuExit::IoOut(POWER_OFF_PORT, _) => return Ok(Some(StopReason::PowerOff)),
            VcpuExit::IoOut(port, data) => bus.port_write(port, data),
            VcpuExit::Shutdown => return Ok(Some(self.guest_reset())),
            VcpuExit::Intr => {}
            VcpuExit::FailEntry(reason, cpu) => {
                return Ok(Some(failed(format!(
                    "KVM cannot enter the guest: {reason:#x} on CPU {cpu}"
                ))));
            }
            VcpuExit::InternalError => return Ok(self.internal_error()),
            other => {
                return Ok(Some(failed(format!("unexpected exit of KVM: {other:?}"))));
            }
        }
        Ok(None)
    }

    /// Has KVM take the answer to the last exit, for example what was read from a device. KVM_RUN
    /// begins with that, and then returns without running the guest if `immediate_exit` is set.
    fn complete_exit(&mut self) -> Result<(), kvm_ioctls::Error> {
        self.fd.set_kvm_immediate_exit(1);
        let result = self.fd.run().map(drop);
        self.fd.set_kvm_immediate_exit(0);
        match result {
            Err(error) if error.errno() != libc::EINTR => Err(error),
            _ => Ok(()),
        }
    }

    /// Describes a reset. A kernel that panicked has printed more to its console; after a triple
    /// fault the registers are all there is.
    fn guest_reset(&self) -> StopReason {
        StopReason::GuestReset {
            place: self.place(),
        }
    }

    /// The vCPU's registers in one line, for debugging.
    fn place(&self) -> String {
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => format!(
                "CPU {} at {:#x}, code segment at {:#x}, stack at {:#x}, CR0 {:#x}, CR2 {:#x}, \
                 CR3 {:#x}, CR4 {:#x}, EFER {:#x}",
                self.id,
                regs.rip,
                sregs.cs.base,
                regs.rsp,
                sregs.cr0,
                sregs.cr2,
                sregs.cr3,
                sregs.cr4,
                sregs.efer
            ),
            _ => format!("CPU {}", self.id),
        }
    }

    /// Handles KVM_EXIT_INTERNAL_ERROR. An emulation failure in the guest's user mode does not end
    /// the machine: without SVM's nRIP, KVM must read an instruction to skip it, which fails if the
    /// guest's kernel has just unmapped the page; executed again, the instruction faults and the
    /// kernel maps the page.
    #[expect(unsafe_code, reason = "kvm_run is a union")]
    fn internal_error(&mut self) -> Option<StopReason> {
        // SAFETY: the last exit was KVM_EXIT_INTERNAL_ERROR, so this is the member that KVM wrote;
        // its fields are plain numbers.
        let error = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let what = match error.suberror {
            kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => {
                "cannot emulate an instruction of the guest"
            }
            kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => {
                "cannot deliver an exception to the guest"
            }
            _ => "gave up",
        };
        let is_emulation = error.suberror == kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
        if is_emulation && self.fd.get_sregs().is_ok_and(|sregs| sregs.ss.dpl == 3) {
            return None;
        }
        let known = error.data.iter().take(error.ndata as usize);
        let known: Vec<_> = known.map(|word| format!("{word:#x}")).collect();
        Some(failed(format!(
            "KVM {what} (internal error {}: {}), {}",
            error.suberror,
            known.join(" "),
            self.place()
        )))
    }
}

/// The guest's memory maps files: templates, checkpoints and layers.
fn run_failed(error: &kvm_ioctls::Error) -> StopReason {
    failed(match error.errno() {
        libc::EFAULT => format!(
            "KVM_RUN: {error}: a file that is mapped for the guest, such as a layer, was cut or \
             cannot be read"
        ),
        _ => format!("KVM_RUN: {error}"),
    })
}

pub(super) fn failed(message: String) -> StopReason {
    StopReason::Failed(Failure::new(Code::Internal, message))
}
