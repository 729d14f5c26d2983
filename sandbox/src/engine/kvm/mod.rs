//! The `kvm` engine: rvm-vmm.

mod control;
mod machine;
mod probe;
pub(crate) mod template;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rvm_protocol::vmm::{
    CheckpointFiles, DISK_SLOT, MAX_DISKS, MAX_NETS, MAX_SLOTS, MachineConfig, Rates, TemplateFiles,
};

use super::fds::Fds;
use super::files::{check_host_memory, create_console, open_failed, open_initramfs, open_kernel};
use super::spawn::Vmm;
use super::{Engine, EngineError, Plan, Verdict, Vm, io_failed};
use crate::cgroup::Overhead;
use crate::config::{Config, EngineKind};
use crate::network::NicLimits;
#[cfg(any(test, feature = "fuzzing"))]
pub use control::receive_any_event;
use machine::KvmMachine;
use template::Shape;

/// The parameters that a kernel on our machine needs; see guest-kernel/README.md for what each is
/// worth. `quiet` comes before `earlyprintk`, which else prints all that was logged before it.
const KERNEL_PARAMS: &str = "console=hvc0 quiet earlyprintk=ttyS0 panic=-1 reboot=t \
     tsc=reliable no_timer_check noreplace-smp swiotlb=noforce \
     rootfstype=ramfs ifb.numifbs=0 dummy.numdummies=0 zram.num_devices=0";

/// How many network cards can be plugged into a machine with one while it runs, and into one with
/// more. Each costs every start a few thousand instructions.
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
    rate_limits: true,
    templates: Ok(()),
    checkpoints: Ok(()),
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
    let cards = plan.nets.len();
    let saved = plan.checkpoint.as_ref();
    let at_start = saved.map_or(cards, |(image, _)| image.manifest.machine.cards_at_start);
    let slots = net_slots(at_start);
    let shape = Shape::new(plan.size, plan.max, slots, plan.disk_slots);
    let places = (plan.shared, plan.console);
    let mut machine = machine_config(open_kvm()?, config, shape, places, &mut fds)?;
    machine.vsock = fds.add_ports(plan.ports);
    machine.nets = fds.add_nets(plan.nets);
    machine.spare_nets = slots.saturating_sub(cards);
    if let Some((image, disks)) = plan.checkpoint {
        machine.disks = fds.add_disks(disks);
        let own = |file: &File| file.try_clone().map_err(io_failed("dup"));
        machine.checkpoint = Some(CheckpointFiles {
            state: fds.add(own(&image.files.state)?),
            memory: fds.add(own(&image.files.memory)?),
            removed: fds.add(own(&image.files.removed)?),
            files_later: !image.manifest.members.is_empty(),
        });
    }
    machine.rates = plan.rates;
    let template = plan.template.filter(|template| {
        let fits = template.has(shape);
        if !fits {
            tracing::debug!("the machine boots: a template has no slots for {cards} network cards");
        }
        fits
    });
    if let Some([state, memory]) = template.as_ref().and_then(|template| template.files()) {
        machine.template = Some(TemplateFiles {
            state: fds.add(state),
            memory: fds.add(memory),
        });
    }
    if let Some(template) = &template {
        machine.written = template.written().unwrap_or_default().to_vec();
    }
    let vmm = Vmm::start(&config.vmm, c"machine", plan.group, &machine, &fds.borrow())?;
    Ok(Box::new(KvmMachine::new(vmm, template)?))
}

/// A machine of this shape on this device of KVM, with all slots empty and no ports.
fn machine_config(
    kvm: File,
    config: &Config,
    shape: Shape,
    (shared, console): (&Path, &Path),
    fds: &mut Fds,
) -> Result<MachineConfig, EngineError> {
    Ok(MachineConfig {
        parent: std::process::id(),
        boot_vcpus: shape.vcpus,
        max_vcpus: shape.max_vcpus,
        memory_mib: shape.memory_mib,
        max_memory_mib: shape.max_memory_mib,
        cmdline: cmdline(config),
        kernel: fds.add(open_kernel(&config.kernel)?),
        initramfs: fds.add(open_initramfs(&config.initramfs)?),
        console: fds.add(create_console(console)?),
        kvm: fds.add(kvm),
        shared_dir: shared.to_owned(),
        vsock: Vec::new(),
        spare_disks: shape.disk_slots,
        disks: Vec::new(),
        map_layers: config.map_layers,
        spare_nets: shape.net_slots,
        rates: Rates::default(),
        nets: Vec::new(),
        template: None,
        written: Vec::new(),
        checkpoint: None,
    })
}

fn cmdline(config: &Config) -> String {
    format!("{KERNEL_PARAMS} {}", config.kernel_params)
}

/// How many slots for network cards a machine has that starts with so many. With none and with one
/// it has the same, so that one template serves both.
fn net_slots(cards: usize) -> usize {
    MAX_NETS.min(cards.max(1) + SPARE_NETS)
}

/// How many slots are left for disks beside those of network cards.
fn disk_slots(nets: usize) -> usize {
    MAX_DISKS.min(MAX_SLOTS.saturating_sub(DISK_SLOT + net_slots(nets)))
}

fn open_kvm() -> Result<File, EngineError> {
    let path = Path::new("/dev/kvm");
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(open_failed("KVM's device", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_with_no_card_and_with_one_have_the_same_slots() {
        assert_eq!(net_slots(0), SPARE_NETS + 1);
        assert_eq!(net_slots(1), net_slots(0));
        assert_eq!(disk_slots(1), disk_slots(0));
        assert_eq!(net_slots(3), 3 + SPARE_NETS);
        assert_eq!(net_slots(MAX_NETS), MAX_NETS);
        for cards in 0..=MAX_NETS {
            assert!(net_slots(cards) >= cards);
            assert!(DISK_SLOT + net_slots(cards) + disk_slots(cards) <= MAX_SLOTS);
        }
    }
}
