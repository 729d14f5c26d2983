//! The state of a virtual machine that KVM keeps, beside that of its devices' connections, which
//! are made anew.

use std::os::fd::OwnedFd;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data,
    kvm_cpuid_entry2, kvm_irqchip, kvm_msr_entry,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::{KvmError, Vm, refused, take_kvm};
use crate::arch::x86_64::cpuid;
use crate::arch::x86_64::state::{self, VcpuState};

/// The interrupt controllers outside the vCPUs.
const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// What a virtual machine has beside its vCPUs and its memory.
#[derive(Serialize, Deserialize)]
pub struct VmState {
    chips: [kvm_irqchip; CHIPS.len()],
    /// The paravirtual clock.
    clock: kvm_clock_data,
    /// The CPUID of its first vCPU, which tells the host's CPU and KVM.
    cpuid: Vec<kvm_cpuid_entry2>,
}

/// A vCPU by its number, with its state.
#[derive(Serialize, Deserialize)]
pub struct SavedVcpu {
    /// Its APIC id.
    pub id: u8,
    pub state: VcpuState,
}

/// The model-specific registers that KVM can save, some of which a vCPU may lack.
pub fn saveable_msrs(kvm: OwnedFd) -> Result<Vec<u32>, KvmError> {
    let list = take_kvm(kvm).get_msr_index_list();
    let list = list.map_err(refused("list model-specific registers"))?;
    Ok(list.as_slice().to_vec())
}

impl Vm {
    /// Reads the state of a machine of at most `count` vCPUs, which are stopped.
    pub fn save(&self, count: u8) -> Result<VmState, KvmError> {
        let mut chips = [kvm_irqchip::default(); CHIPS.len()];
        for (chip, id) in chips.iter_mut().zip(CHIPS) {
            chip.chip_id = id;
            self.fd
                .get_irqchip(chip)
                .map_err(refused("read an interrupt controller"))?;
        }
        Ok(VmState {
            chips,
            clock: self.fd.get_clock().map_err(refused("read the clock"))?,
            cpuid: self.cpuid_of_first(count),
        })
    }

    /// The model-specific registers of a vCPU that has not run, which is created for this with an
    /// id that no vCPU of a machine of at most `count` has.
    pub fn new_msrs(&self, indices: &[u32], count: u8) -> Result<Vec<kvm_msr_entry>, KvmError> {
        let vcpu = self.create_vcpu(count, count)?;
        Ok(state::read_msrs(&vcpu, indices)?)
    }

    /// Gives the machine a state. Its vCPUs have theirs already.
    pub fn restore(&self, state: &VmState) -> Result<(), KvmError> {
        for chip in &state.chips {
            self.fd
                .set_irqchip(chip)
                .map_err(refused("set an interrupt controller"))?;
        }
        let clock = kvm_clock_data {
            clock: state.clock.clock,
            ..Default::default()
        };
        self.fd.set_clock(&clock).map_err(refused("set the clock"))
    }

    /// Creates a vCPU, in a machine of at most `count`, with the state of one that ran. With
    /// `all_msrs` the state has model-specific registers which are as in a new vCPU.
    pub fn restore_vcpu(
        &self,
        saved: &SavedVcpu,
        count: u8,
        all_msrs: bool,
    ) -> Result<VcpuFd, KvmError> {
        let vcpu = self.create_vcpu(saved.id, count)?;
        let khz = vcpu
            .get_tsc_khz()
            .map_err(refused("read the frequency of the time stamp counter"))?;
        if khz != saved.state.tsc_khz() {
            return Err(KvmError::Frequency {
                then: saved.state.tsc_khz(),
                now: khz,
            });
        }
        saved.state.restore(&vcpu, all_msrs)?;
        Ok(vcpu)
    }

    /// In what the host's CPU or its KVM differ from those of a state, of a machine of at most
    /// `count` vCPUs: the first leaf of CPUID that is not the same.
    pub fn difference(&self, state: &VmState, count: u8) -> Option<String> {
        let here = self.cpuid_of_first(count);
        let differs = |(then, now): &(&kvm_cpuid_entry2, &kvm_cpuid_entry2)| then != now;
        let found = state.cpuid.iter().zip(&here).find(differs);
        match found {
            Some((then, now)) => Some(format!(
                "leaf {:#x}:{} of CPUID was {}, and is {} now",
                now.function,
                now.index,
                registers(then),
                registers(now)
            )),
            None if state.cpuid.len() != here.len() => Some(format!(
                "CPUID had {} leaves, and has {} now",
                state.cpuid.len(),
                here.len()
            )),
            None => None,
        }
    }

    fn cpuid_of_first(&self, count: u8) -> Vec<kvm_cpuid_entry2> {
        cpuid::for_vcpu(&self.supported_cpuid, 0, count)
            .as_slice()
            .to_vec()
    }
}

fn registers(leaf: &kvm_cpuid_entry2) -> String {
    let kvm_cpuid_entry2 {
        eax, ebx, ecx, edx, ..
    } = leaf;
    format!("{eax:x}:{ebx:x}:{ecx:x}:{edx:x}")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use kvm_ioctls::VcpuExit;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::arch::x86_64::registers;
    use crate::memory::{self, GuestMemory};

    const CODE: GuestAddress = GuestAddress(0x10_0000);

    /// `inc eax; out 0x10, al; jmp -5`: writes 1, 2, 3, … to a port.
    const COUNT: &[u8] = &[0xff, 0xc0, 0xe6, 0x10, 0xeb, 0xfa];

    fn kvm() -> Option<OwnedFd> {
        let file = File::options().read(true).write(true).open("/dev/kvm");
        file.ok().map(OwnedFd::from)
    }

    fn new_vm() -> Option<(Vm, Arc<GuestMemory>)> {
        let memory = memory::map(4).unwrap();
        memory.write_slice(COUNT, CODE).unwrap();
        registers::write_tables(&memory).unwrap();
        Some((Vm::new(kvm()?, Arc::clone(&memory)).unwrap(), memory))
    }

    /// The next number that the guest writes. The end of another machine's ring interrupts the
    /// thread that made it.
    fn next(vcpu: &mut VcpuFd) -> u8 {
        loop {
            match vcpu.run() {
                Ok(VcpuExit::IoOut(0x10, &[number])) => return number,
                Err(error) if error.errno() == libc::EINTR => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Has KVM finish the exit, as a vCPU's thread does before its state is read.
    fn complete(vcpu: &mut VcpuFd) {
        vcpu.set_kvm_immediate_exit(1);
        assert_eq!(vcpu.run().unwrap_err().errno(), libc::EINTR);
        vcpu.set_kvm_immediate_exit(0);
    }

    #[test]
    fn a_vcpu_goes_on_where_it_was_saved_in_any_number_of_machines() {
        let Some((vm, _memory)) = new_vm() else {
            return;
        };
        let mut vcpu = vm.create_boot_vcpu(1, CODE).unwrap();
        assert_eq!([next(&mut vcpu), next(&mut vcpu)], [1, 2]);
        complete(&mut vcpu);
        let msrs = saveable_msrs(kvm().unwrap()).unwrap();
        let new = vm.new_msrs(&msrs, 1).unwrap();
        let vm_state = || vm.save(1).unwrap();
        let changed = VcpuState::save(&vcpu, &new).unwrap();
        let whole = VcpuState::save_whole(&vcpu, &msrs).unwrap();
        for (state, all) in [(changed, false), (whole, true)] {
            let file = postcard::to_stdvec(&(SavedVcpu { id: 0, state }, vm_state())).unwrap();
            let (restored, _memory) = new_vm().unwrap();
            let (saved, state): (SavedVcpu, VmState) = postcard::from_bytes(&file).unwrap();
            assert_eq!(restored.difference(&state, 1), None);
            let mut vcpu = restored.restore_vcpu(&saved, 1, all).unwrap();
            restored.restore(&state).unwrap();
            assert_eq!([next(&mut vcpu), next(&mut vcpu)], [3, 4]);
        }
        assert_eq!(next(&mut vcpu), 3, "the first goes on, too");
    }

    #[test]
    fn another_cpu_is_named_by_what_differs() {
        let Some((vm, _memory)) = new_vm() else {
            return;
        };
        let mut state = vm.save(1).unwrap();
        let leaf = state.cpuid.iter().position(|leaf| leaf.function == 1);
        state.cpuid[leaf.unwrap()].edx ^= 1;
        let difference = vm.difference(&state, 1).unwrap();
        assert!(
            difference.starts_with("leaf 0x1:0 of CPUID was"),
            "{difference}"
        );
        assert!(vm.difference(&vm.save(2).unwrap(), 1).is_some());
    }
}
