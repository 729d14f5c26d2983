//! The checks of a machine's configuration, and the kernel command line that follows from it.

use rvm_protocol::vmm::{DISK_SLOT, MAX_DISKS, MAX_NETS, MAX_SLOTS, MachineConfig};

use super::MachineError;
use crate::arch::x86_64::MAX_VCPUS;
use crate::bus::SlotAddress;

/// The largest memory at boot: 1 TiB, which every common host can address.
const MAX_MEMORY_MIB: u64 = 1 << 20;

/// Refuses a configuration that contradicts itself or exceeds a limit.
pub(super) fn validate(config: &MachineConfig) -> Result<(), MachineError> {
    let wrong = |what: String| Err(MachineError::Config(what));
    if config.boot_vcpus == 0 || config.boot_vcpus > config.max_vcpus {
        return wrong(format!(
            "{} of {} vCPUs at boot",
            config.boot_vcpus, config.max_vcpus
        ));
    }
    if config.max_vcpus > MAX_VCPUS {
        return wrong(format!(
            "{} vCPUs; at most {MAX_VCPUS} are possible",
            config.max_vcpus
        ));
    }
    if config.memory_mib > config.max_memory_mib {
        return wrong(format!(
            "{} of at most {} MiB of memory",
            config.memory_mib, config.max_memory_mib
        ));
    }
    if config.nets.len() + config.spare_nets > MAX_NETS {
        return wrong(format!(
            "{} network cards and room for {} more; at most {MAX_NETS} are possible",
            config.nets.len(),
            config.spare_nets
        ));
    }
    let slots = DISK_SLOT + config.spare_disks + config.nets.len() + config.spare_nets;
    if config.spare_disks > MAX_DISKS || slots > MAX_SLOTS {
        return wrong(format!(
            "room for {} disks, with {slots} slots; at most {MAX_DISKS} and {MAX_SLOTS} are \
             possible",
            config.spare_disks
        ));
    }
    for (index, disk) in config.disks.iter().enumerate() {
        let is_in_slots = (DISK_SLOT..DISK_SLOT + config.spare_disks).contains(&disk.slot);
        let is_alone = config.disks[..index].iter().all(|it| it.slot != disk.slot);
        if !(is_in_slots && is_alone) {
            return wrong(format!("a disk in slot {}", disk.slot));
        }
    }
    if !(1..=MAX_MEMORY_MIB).contains(&config.memory_mib) {
        return wrong(format!("{} MiB of memory", config.memory_mib));
    }
    Ok(())
}

/// The kernel command line of a machine with this many slots.
pub(super) fn cmdline(config: &MachineConfig, slots: usize) -> String {
    let mut line = config.cmdline.clone();
    if config.boot_vcpus < config.max_vcpus {
        line += &format!(" maxcpus={}", config.boot_vcpus);
    }
    for address in (0..slots).map_while(SlotAddress::of) {
        line.push(' ');
        line += &address.kernel_parameter();
    }
    line
}
