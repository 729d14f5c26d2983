//! KVM: a virtual machine, its memory slots, its interrupts, and vCPUs before they run.

mod memory_slots;
mod ring;
mod state;

use std::ops::Range;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestAddress, GuestMemory as _, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::registers::{self, RegisterError};
use crate::arch::x86_64::{cpuid, layout};
use crate::memory::{GuestMemory, Reservation};

pub use memory_slots::MemorySlot;
pub use state::{SavedVcpu, VmState, saveable_msrs};

/// KVM could not do what a machine needs.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    #[error("the host's KVM lacks {0}")]
    Missing(&'static str),
    #[error("KVM: cannot {action}")]
    Refused {
        action: &'static str,
        #[source]
        source: kvm_ioctls::Error,
    },
    #[error("the time stamp counter ran at {then} kHz, and runs at {now} kHz now")]
    Frequency { then: u32, now: u32 },
    #[error("the guest's memory has more regions than a machine boots with")]
    TooManyRegions,
    #[error(transparent)]
    Registers(#[from] RegisterError),
}

fn refused(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Refused { action, source }
}

/// The extensions that the VMM needs. Linux 5.4 and later have all of them.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
];

/// A virtual machine.
pub struct Vm {
    fd: VmFd,
    // Closes it last, in the kernel.
    _ring: Option<OwnedFd>,
    /// KVM_GET_SUPPORTED_CPUID
    supported_cpuid: CpuId,
    // Keeps the memory mapped as long as the machine may run in it.
    _memory: Arc<GuestMemory>,
}

/// The contents of a memory slot. A slot of no bytes is deleted.
#[derive(Default)]
struct Mapping {
    guest: u64,
    bytes: u64,
    /// The address in this process, where the memory stays mapped as long as the machine may run in
    /// it.
    host: usize,
    read_only: bool,
}

impl Vm {
    /// Creates a machine with this memory and the interrupt controllers of a PC.
    pub fn new(kvm: OwnedFd, memory: Arc<GuestMemory>) -> Result<Self, KvmError> {
        let kvm = take_kvm(kvm);
        for (cap, name) in REQUIRED {
            if !kvm.check_extension(*cap) {
                return Err(KvmError::Missing(name));
            }
        }
        let fd = kvm
            .create_vm()
            .map_err(refused("create a virtual machine"))?;
        let ring = ring::holding(&fd)
            .inspect_err(|error| log::debug!("no ring holds the machine: {error}"))
            .ok();
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(refused("place the identity map"))?;
        fd.set_tss_address(layout::KVM_TSS)
            .map_err(refused("place the task state segment"))?;
        fd.create_irq_chip()
            .map_err(refused("create the interrupt controllers"))?;
        let supported_cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("list CPU features"))?;
        let vm = Self {
            fd,
            _ring: ring,
            supported_cpuid,
            _memory: Arc::clone(&memory),
        };
        if memory.num_regions() > MemorySlot::BOOT.len() {
            return Err(KvmError::TooManyRegions);
        }
        for (slot, region) in MemorySlot::BOOT.into_iter().zip(memory.iter()) {
            let mapping = Mapping {
                guest: region.start_addr().raw_value(),
                bytes: region.len(),
                host: region.as_ptr().expose_provenance(),
                read_only: false,
            };
            vm.set_memory_slot(slot, &mapping)?;
        }
        Ok(vm)
    }

    /// Creates the vCPUs of a machine that boots with `count` of at most `max`: the first starts at
    /// the kernel's entry point, the others wait for it to start them.
    pub fn create_vcpus(
        &self,
        (count, max): (u8, u8),
        entry: GuestAddress,
    ) -> Result<Vec<VcpuFd>, KvmError> {
        (0..count)
            .map(|id| match id {
                0 => self.create_boot_vcpu(max, entry),
                id => self.create_vcpu(id, max),
            })
            .collect()
    }

    /// Creates the vCPU that starts at the kernel's entry point, in a machine of at most `count`.
    pub fn create_boot_vcpu(&self, count: u8, entry: GuestAddress) -> Result<VcpuFd, KvmError> {
        let vcpu = self.create_vcpu(0, count)?;
        registers::set_boot(&vcpu, entry)?;
        Ok(vcpu)
    }

    /// Creates a vCPU that waits for another to start it, in a machine of at most `count`.
    pub fn create_vcpu(&self, id: u8, count: u8) -> Result<VcpuFd, KvmError> {
        let vcpu = self
            .fd
            .create_vcpu(id.into())
            .map_err(refused("create a vCPU"))?;
        vcpu.set_cpuid2(&cpuid::for_vcpu(&self.supported_cpuid, id, count))
            .map_err(refused("set a vCPU's features"))?;
        registers::set_common(&vcpu)?;
        Ok(vcpu)
    }

    /// The width of a guest-physical address in bits.
    pub fn address_bits(&self) -> u8 {
        cpuid::address_bits(&self.supported_cpuid)
    }

    /// Maps a range of a reservation at the guest address `guest`. KVM refuses overlapping slots.
    pub fn add_memory(
        &self,
        slot: MemorySlot,
        guest: u64,
        memory: &Reservation,
        range: &Range<usize>,
    ) -> Result<(), KvmError> {
        let mapping = Mapping {
            guest,
            bytes: (range.end - range.start) as u64,
            host: memory.host_address(range.start),
            read_only: false,
        };
        self.set_memory_slot(slot, &mapping)
    }

    /// Maps the first `bytes` bytes of a reservation at the guest address `guest`, to be read by
    /// the vCPUs. What they write there is a write to an address that is not memory.
    pub fn add_read_only(
        &self,
        slot: MemorySlot,
        guest: u64,
        memory: &Reservation,
        bytes: u64,
    ) -> Result<(), KvmError> {
        let mapping = Mapping {
            guest,
            bytes,
            host: memory.host_address(0),
            read_only: true,
        };
        self.set_memory_slot(slot, &mapping)
    }

    /// Removes the memory of a slot from the guest's address space.
    pub fn remove_memory(&self, slot: MemorySlot) -> Result<(), KvmError> {
        self.set_memory_slot(slot, &Mapping::default())
    }

    #[expect(unsafe_code, reason = "the guest's memory must stay mapped")]
    fn set_memory_slot(&self, slot: MemorySlot, mapping: &Mapping) -> Result<(), KvmError> {
        let description = kvm_userspace_memory_region {
            slot: slot.number(),
            flags: match mapping.read_only {
                true => KVM_MEM_READONLY,
                false => 0,
            },
            guest_phys_addr: mapping.guest,
            memory_size: mapping.bytes,
            userspace_addr: mapping.host as u64,
        };
        // SAFETY: a reservation stays mapped as long as the process lives, and where it is not
        // accessible yet, the guest cannot access it either; the memory of the boot is kept by
        // `Vm`. KVM refuses slots that overlap.
        unsafe { self.fd.set_user_memory_region(description) }
            .map_err(refused("change the guest's memory"))
    }

    /// Connects an irqfd: a write to `event` raises the I/O APIC's `pin`.
    pub fn connect_irqfd(&self, event: &EventFd, pin: u32) -> Result<(), KvmError> {
        self.fd
            .register_irqfd(event, pin)
            .map_err(refused("connect an irqfd"))
    }

    /// Connects an ioeventfd: the guest's write of `value` at `address` writes to `event`.
    pub fn connect_ioeventfd(
        &self,
        event: &EventFd,
        address: u64,
        value: u32,
    ) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(refused("connect an ioeventfd"))
    }
}

#[expect(unsafe_code, reason = "kvm-ioctls takes a raw descriptor")]
fn take_kvm(kvm: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is open and ownership passes. If it were not /dev/kvm, every ioctl on
    // it would fail.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(kvm.into_raw_fd()) }
}
