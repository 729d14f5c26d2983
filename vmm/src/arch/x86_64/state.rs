//! The state of a vCPU that ran and is stopped between two instructions, and its restoration in
//! another machine. The order of the calls is that of KVM's rules (Documentation/virt/kvm/api.rst).

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::registers::{RegisterError, refused};

const IA32_TSC: u32 = 0x10;
const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// Everything that KVM keeps of a vCPU.
#[derive(Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// In the order in which they are set.
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
    /// The frequency of its time stamp counter.
    tsc_khz: u32,
}

impl VcpuState {
    /// Reads the state of a vCPU that has completed its last exit. `new` are the model-specific
    /// registers of a vCPU that was just created.
    pub fn save(vcpu: &VcpuFd, new: &[kvm_msr_entry]) -> Result<Self, RegisterError> {
        Self::with(vcpu, |vcpu| changed_msrs(vcpu, new))
    }

    /// The same with all of these model-specific registers that the vCPU has.
    pub fn save_whole(vcpu: &VcpuFd, indices: &[u32]) -> Result<Self, RegisterError> {
        Self::with(vcpu, |vcpu| {
            let mut msrs = read_msrs(vcpu, indices)?;
            order(&mut msrs);
            Ok(msrs)
        })
    }

    fn with(
        vcpu: &VcpuFd,
        msrs: impl FnOnce(&VcpuFd) -> Result<Vec<kvm_msr_entry>, RegisterError>,
    ) -> Result<Self, RegisterError> {
        Ok(Self {
            // First: it may take an INIT that waits, which changes the rest.
            mp_state: vcpu.get_mp_state().map_err(refused("run state"))?,
            regs: vcpu.get_regs().map_err(refused("registers"))?,
            sregs: vcpu.get_sregs().map_err(refused("control registers"))?,
            xsave: vcpu.get_xsave().map_err(refused("extended state"))?,
            xcrs: vcpu
                .get_xcrs()
                .map_err(refused("extended control registers"))?,
            debug_regs: vcpu.get_debug_regs().map_err(refused("debug registers"))?,
            lapic: vcpu.get_lapic().map_err(refused("local APIC"))?,
            msrs: msrs(vcpu)?,
            // Last: reading other registers may take an exception that waits.
            events: vcpu.get_vcpu_events().map_err(refused("events"))?,
            tsc_khz: vcpu.get_tsc_khz().map_err(refused("counter's frequency"))?,
        })
    }

    /// The frequency of the time stamp counter, in kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// Gives a vCPU that has never run this state. Its CPUID must be that of the vCPU that was
    /// saved. With `all_msrs` some of its model-specific registers are as in a new vCPU, and are
    /// not set.
    #[expect(
        unsafe_code,
        reason = "KVM_SET_XSAVE reads as much as the host's CPU has"
    )]
    pub fn restore(&self, vcpu: &VcpuFd, all_msrs: bool) -> Result<(), RegisterError> {
        let msrs = match all_msrs {
            true => self.msrs_to_set(vcpu)?,
            false => self.msrs.clone(),
        };
        vcpu.set_mp_state(self.mp_state)
            .map_err(refused("run state"))?;
        vcpu.set_regs(&self.regs).map_err(refused("registers"))?;
        vcpu.set_sregs(&self.sregs)
            .map_err(refused("control registers"))?;
        vcpu.set_xcrs(&self.xcrs)
            .map_err(refused("extended control registers"))?;
        // SAFETY: KVM reads more than the structure only after arch_prctl(2) has allowed the
        // process a larger state (ARCH_REQ_XCOMP_GUEST_PERM), which nothing here asks for.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(refused("extended state"))?;
        vcpu.set_debug_regs(&self.debug_regs)
            .map_err(refused("debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(refused("local APIC"))?;
        set_msrs(vcpu, &msrs)?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(refused("events"))
    }

    /// Those of the model-specific registers that differ from the ones of this new vCPU.
    fn msrs_to_set(&self, vcpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>, RegisterError> {
        let indices: Vec<u32> = self.msrs.iter().map(|msr| msr.index).collect();
        let new = read_msrs(vcpu, &indices)?;
        let differs = |msr: &&kvm_msr_entry| must_be_set(msr, &new);
        Ok(self.msrs.iter().filter(differs).copied().collect())
    }
}

/// Reads model-specific registers, without those that the vCPU lacks.
pub fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, RegisterError> {
    let mut found = Vec::new();
    let mut rest = indices;
    while let Some(&first) = rest.first() {
        let entries: Vec<_> = rest.iter().copied().map(entry).collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| RegisterError::Msr(first))?;
        // KVM stops at the first that the vCPU lacks.
        let read = vcpu
            .get_msrs(&mut msrs)
            .map_err(refused("model-specific registers"))?;
        found.extend_from_slice(&msrs.as_slice()[..read]);
        rest = rest.get(read + 1..).unwrap_or_default();
    }
    Ok(found)
}

/// The model-specific registers that differ from a new vCPU's. KVM does not take every register
/// back that it tells, so the fewer the better.
fn changed_msrs(vcpu: &VcpuFd, new: &[kvm_msr_entry]) -> Result<Vec<kvm_msr_entry>, RegisterError> {
    let indices: Vec<u32> = new.iter().map(|msr| msr.index).collect();
    let mut msrs = read_msrs(vcpu, &indices)?;
    msrs.retain(|msr| must_be_set(msr, new));
    order(&mut msrs);
    Ok(msrs)
}

/// Whether a register is not as in a new vCPU, or never is.
fn must_be_set(msr: &kvm_msr_entry, new: &[kvm_msr_entry]) -> bool {
    [IA32_TSC, IA32_TSC_DEADLINE].contains(&msr.index)
        || new
            .iter()
            .all(|new| (new.index, new.data) != (msr.index, msr.data))
}

fn entry(index: u32) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        ..Default::default()
    }
}

/// The deadline comes after the counter that it is a value of. KVM clears the deadline when the
/// timer has expired, before it has raised the interrupt, which would be lost: a deadline that has
/// passed raises it at once, and one interrupt of the timer too many does no harm.
fn order(msrs: &mut [kvm_msr_entry]) {
    msrs.sort_by_key(|msr| msr.index == IA32_TSC_DEADLINE);
    let counter = msrs.iter().find(|msr| msr.index == IA32_TSC);
    let now = counter.map_or(0, |msr| msr.data);
    if let Some(deadline) = msrs.last_mut()
        && deadline.index == IA32_TSC_DEADLINE
        && deadline.data == 0
    {
        deadline.data = now;
    }
}

/// Sets model-specific registers in their order.
pub fn set_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), RegisterError> {
    let first = entries.first().map_or(0, |msr| msr.index);
    let msrs = Msrs::from_entries(entries).map_err(|_| RegisterError::Msr(first))?;
    let set = vcpu
        .set_msrs(&msrs)
        .map_err(refused("model-specific registers"))?;
    entries
        .get(set)
        .map_or(Ok(()), |refused| Err(RegisterError::Msr(refused.index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msr(index: u32, data: u64) -> kvm_msr_entry {
        kvm_msr_entry {
            data,
            ..entry(index)
        }
    }

    fn ordered(list: &[kvm_msr_entry]) -> Vec<(u32, u64)> {
        let mut list = list.to_vec();
        order(&mut list);
        list.iter().map(|msr| (msr.index, msr.data)).collect()
    }

    #[test]
    fn the_deadline_is_set_after_the_counter() {
        let list = [msr(IA32_TSC_DEADLINE, 70), msr(IA32_TSC, 50), msr(1, 2)];
        assert_eq!(
            ordered(&list),
            [(IA32_TSC, 50), (1, 2), (IA32_TSC_DEADLINE, 70)]
        );
    }

    #[test]
    fn a_timer_that_may_have_expired_does_so_again() {
        let list = [msr(IA32_TSC_DEADLINE, 0), msr(IA32_TSC, 50)];
        assert_eq!(ordered(&list), [(IA32_TSC, 50), (IA32_TSC_DEADLINE, 50)]);
        assert_eq!(ordered(&[msr(1, 0)]), [(1, 0)]);
        assert_eq!(ordered(&[]), []);
    }
}
