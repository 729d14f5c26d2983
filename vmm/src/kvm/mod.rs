//! KVM: the virtual machine and its CPUs, before they run.

pub mod vcpu;

use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemory as _, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::registers::{self, RegisterError};
use crate::arch::x86_64::{cpuid, layout};
use crate::memory::GuestMemory;

/// Making a machine failed.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The host's KVM is too old.
    #[error("the host's KVM lacks {0}")]
    Missing(&'static str),
    /// KVM refused.
    #[error("KVM: cannot {action}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// The reason.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A CPU's registers.
    #[error(transparent)]
    Registers(#[from] RegisterError),
}

fn refused(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Refused { action, source }
}

/// What we cannot do without. All of it is in Linux 5.4 and later.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// A virtual machine.
pub struct Vm {
    kvm: Kvm,
    fd: VmFd,
    // Mapped as long as the machine may run in it.
    _memory: Arc<GuestMemory>,
}

impl Vm {
    /// A machine with this memory and the interrupt controllers of a PC.
    pub fn new(kvm: OwnedFd, memory: Arc<GuestMemory>) -> Result<Self, KvmError> {
        let kvm = take_kvm(kvm);
        for (cap, name) in NEEDED {
            if !kvm.check_extension(*cap) {
                return Err(KvmError::Missing(name));
            }
        }
        let fd = kvm
            .create_vm()
            .map_err(refused("create a virtual machine"))?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(refused("place the identity map"))?;
        fd.set_tss_address(layout::KVM_TSS)
            .map_err(refused("place the task state segment"))?;
        fd.create_irq_chip()
            .map_err(refused("create the interrupt controllers"))?;
        add_memory(&fd, &memory)?;
        Ok(Self {
            kvm,
            fd,
            _memory: memory,
        })
    }

    /// The CPUs, the first of which starts at the kernel's entry point.
    pub fn create_vcpus(
        &self,
        count: u8,
        entry: vm_memory::GuestAddress,
    ) -> Result<Vec<VcpuFd>, KvmError> {
        let supported = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("list CPU features"))?;
        (0..count)
            .map(|id| {
                let vcpu = self
                    .fd
                    .create_vcpu(id.into())
                    .map_err(refused("create a vCPU"))?;
                vcpu.set_cpuid2(&cpuid::for_vcpu(&supported, id, count))
                    .map_err(refused("set a vCPU's features"))?;
                registers::set_common(&vcpu)?;
                if id == 0 {
                    registers::set_boot(&vcpu, entry)?;
                }
                Ok(vcpu)
            })
            .collect()
    }

    /// Raises an interrupt line whenever `line` is written to.
    pub fn connect_interrupt(&self, line: &EventFd, pin: u32) -> Result<(), KvmError> {
        self.fd
            .register_irqfd(line, pin)
            .map_err(refused("connect an interrupt"))
    }

    /// Writes to `bell` whenever the guest writes `value` at `address`.
    pub fn connect_bell(&self, bell: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(bell, &IoEventAddress::Mmio(address), value)
            .map_err(refused("connect a queue's bell"))
    }
}

#[expect(unsafe_code, reason = "kvm-ioctls takes a raw descriptor")]
fn take_kvm(kvm: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is open and ownership passes. If it were not /dev/kvm, every ioctl on
    // it would fail.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(kvm.into_raw_fd()) }
}

#[expect(unsafe_code, reason = "the guest's memory must stay mapped")]
fn add_memory(vm: &VmFd, memory: &GuestMemory) -> Result<(), KvmError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let description = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping lives as long as the `Arc` in `Vm`, and slots do not overlap because
        // `GuestMemory` checked that regions do not.
        unsafe { vm.set_user_memory_region(description) }.map_err(refused("add memory"))?;
    }
    Ok(())
}
