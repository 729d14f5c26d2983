//! KVM: the virtual machine and its CPUs, before they run.

pub mod vcpu;

use std::ops::Range;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestAddress, GuestMemory as _, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::registers::{self, RegisterError};
use crate::arch::x86_64::{cpuid, layout};
use crate::memory::GuestMemory;
use crate::reserved::Reserved;

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
    fd: VmFd,
    /// What KVM says of CPUs.
    supported: CpuId,
    // Mapped as long as the machine may run in it.
    _memory: Arc<GuestMemory>,
}

/// A piece of the guest's address space that is memory, or with no length, is not.
struct MemorySlot {
    number: u32,
    guest: u64,
    bytes: u64,
    /// Where it lies in this process, mapped as long as the machine may run in it.
    host: usize,
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
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("list CPU features"))?;
        let vm = Self {
            fd,
            supported,
            _memory: Arc::clone(&memory),
        };
        for (number, region) in (0..).zip(memory.iter()) {
            vm.set_slot(&MemorySlot {
                number,
                guest: region.start_addr().raw_value(),
                bytes: region.len(),
                host: region.as_ptr().expose_provenance(),
            })?;
        }
        Ok(vm)
    }

    /// The CPU that starts at the kernel's entry point, of `count` that there may be.
    pub fn create_boot_vcpu(&self, count: u8, entry: GuestAddress) -> Result<VcpuFd, KvmError> {
        let vcpu = self.create_vcpu(0, count)?;
        registers::set_boot(&vcpu, entry)?;
        Ok(vcpu)
    }

    /// A CPU that waits to be started by another, of `count` that there may be.
    pub fn create_vcpu(&self, id: u8, count: u8) -> Result<VcpuFd, KvmError> {
        let vcpu = self
            .fd
            .create_vcpu(id.into())
            .map_err(refused("create a vCPU"))?;
        vcpu.set_cpuid2(&cpuid::for_vcpu(&self.supported, id, count))
            .map_err(refused("set a vCPU's features"))?;
        registers::set_common(&vcpu)?;
        Ok(vcpu)
    }

    /// How many bits the CPUs have for an address of memory.
    pub fn address_bits(&self) -> u8 {
        cpuid::address_bits(&self.supported)
    }

    /// Makes memory of the guest's address space from `guest` on: the range of what was reserved.
    /// Slots of other numbers must lie elsewhere.
    pub fn add_memory(
        &self,
        number: u32,
        guest: u64,
        memory: &Reserved,
        range: &Range<u64>,
    ) -> Result<(), KvmError> {
        self.set_slot(&MemorySlot {
            number,
            guest,
            bytes: range.end - range.start,
            host: memory.address(range.start as usize),
        })
    }

    /// Makes nothing again of what has this number.
    pub fn remove_memory(&self, number: u32) -> Result<(), KvmError> {
        self.set_slot(&MemorySlot {
            number,
            guest: 0,
            bytes: 0,
            host: 0,
        })
    }

    #[expect(unsafe_code, reason = "the guest's memory must stay mapped")]
    fn set_slot(&self, slot: &MemorySlot) -> Result<(), KvmError> {
        let description = kvm_userspace_memory_region {
            slot: slot.number,
            flags: 0,
            guest_phys_addr: slot.guest,
            memory_size: slot.bytes,
            userspace_addr: slot.host as u64,
        };
        // SAFETY: what was reserved stays mapped as long as the process lives, and where it is not
        // memory yet, the guest cannot reach it either; the memory of the start lives in `Vm`. KVM
        // refuses slots that overlap.
        unsafe { self.fd.set_user_memory_region(description) }
            .map_err(refused("change the guest's memory"))
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
