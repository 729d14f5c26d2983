//! The `kvm` engine: rvm-vmm.

mod machine;
mod probe;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rvm_protocol::vmm::{DISK_SLOT, MAX_DISKS, MAX_NETS, MAX_SLOTS, MachineConfig};

use super::fds::Fds;
use super::files::{check_host_memory, create_console, open_failed, open_initramfs, open_kernel};
use super::spawn::Vmm;
use super::{Engine, EngineError, Plan, Verdict, Vm};
use crate::cgroup::Overhead;
use crate::config::{Config, EngineKind};
use crate::network::NicLimits;
use machine::KvmMachine;

/// The parameters that a kernel on our machine needs; see guest-kernel/README.md for what each is
/// worth. `quiet` comes before `earlyprintk`, which else prints all that was logged before it.
const KERNEL_PARAMS: &str = "console=hvc0 quiet earlyprintk=ttyS0 panic=-1 reboot=t \
     tsc=reliable no_timer_check noreplace-smp swiotlb=noforce \
     rootfstype=ramfs ifb.numifbs=0 dummy.numdummies=0 zram.num_devices=0";

/// How many network cards can be plugged in while the machine runs. Each costs every start a few
/// thousand instructions.
const SPARE_NETS: usize = 4;

/// The engine.
pub(super) static ENGINE: Engine = Engine {
    kind: EngineKind::Kvm,
    title: "KVM",
    // rvm-vmm and the monitor take some 15 MiB; the rest is for the kernel's own structures.
    overhead: Overhead {
        memory_mib: 48,
        cpu_millis: 100,
    },
    start_timeout: Duration::from_secs(30),
    nic_limits: NicLimits {
        max: MAX_NETS,
        idle: 0,
    },
    net_hotplug: Ok(()),
    disk_hotplug: Ok(()),
    disk_slots,
    memory_hotplug: true,
    probe,
    check,
    start,
};

fn probe(config: &Config) -> Verdict {
    probe::verdict(&probe::cached(&config.vmm))
}

/// The probe is run, not taken from the cache.
fn check(config: &Config) -> Verdict {
    probe::verdict(&probe::run(&config.vmm))
}

fn start(plan: Plan<'_>) -> Result<Box<dyn Vm>, EngineError> {
    check_host_memory(plan.size.memory_mib)?;
    let config = plan.config;
    let mut fds = Fds::default();
    let machine = MachineConfig {
        parent: std::process::id(),
        boot_vcpus: plan.size.vcpus,
        max_vcpus: plan.max.vcpus,
        memory_mib: plan.size.memory_mib,
        max_memory_mib: plan.max.memory_mib,
        cmdline: format!("{KERNEL_PARAMS} {}", config.kernel_params),
        kernel: fds.add(open_kernel(&config.kernel)?),
        initramfs: fds.add(open_initramfs(&config.initramfs)?),
        console: fds.add(create_console(plan.console)?),
        kvm: fds.add(open_kvm()?),
        shared_dir: plan.shared.to_owned(),
        vsock: fds.add_ports(plan.ports),
        spare_disks: plan.disk_slots,
        spare_nets: spare_nets(plan.nets.len()),
        nets: fds.add_nets(plan.nets),
        template: None,
    };
    let vmm = Vmm::start(&config.vmm, c"machine", plan.group, &machine, &fds.borrow())?;
    Ok(Box::new(KvmMachine::new(vmm)?))
}

fn spare_nets(nets: usize) -> usize {
    SPARE_NETS.min(MAX_NETS.saturating_sub(nets))
}

/// How many slots are left for disks beside those of network cards.
fn disk_slots(nets: usize) -> usize {
    MAX_DISKS.min(MAX_SLOTS.saturating_sub(DISK_SLOT + nets + spare_nets(nets)))
}

fn open_kvm() -> Result<File, EngineError> {
    let path = Path::new("/dev/kvm");
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(open_failed("KVM's device", path))
}
