//! QEMU's command line. Pure.

use rvm_protocol::vmm::QEMU_FIRST_FD;
use rvm_protocol::{POWER_OFF_PORT, SHARED_TAG};

use crate::network::Mac;
use crate::sizing::Size;

/// The most that QEMU's software CPU keeps of code that it has translated, in MiB.
pub const CODE_MIB: u64 = 256;

/// The guest's memory for the bounce buffers of the file device, in MiB, on top of what the machine
/// is to have.
///
/// The kernel answers ENOMEM to a program whose request finds no room, so there is room for all
/// that the two queues can hold: each of their [`FILES_QUEUE_SIZE`] descriptors takes at most a
/// page. (An extended attribute may take more; nobody keeps hundreds of requests for large ones in
/// flight.)
pub const BOUNCE_MIB: u64 = (2 * FILES_QUEUE_SIZE * PAGE_SIZE) >> 20;

/// The size of each queue of the file device. A request of 1 MiB, the largest, takes 259
/// descriptors: the guest prepares further requests while one is served. QEMU allows no more.
const FILES_QUEUE_SIZE: u64 = 1024;

const PAGE_SIZE: u64 = 4096;

/// The unit in which the kernel's `swiotlb` parameter counts (IO_TLB_SIZE).
const BOUNCE_SLOT: u64 = 2048;

/// The descriptors that QEMU inherits, in the order of their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fd {
    /// The guest's kernel.
    Kernel,
    /// The guest's initramfs.
    Initramfs,
    /// A stream for the guest's console.
    Console,
    /// The connection to the vsock device of rvm-vmm's back end.
    Vsock,
    /// The same for its file device.
    Files,
    /// A stream for QEMU's monitor.
    Monitor,
}

impl Fd {
    /// All of them, in their order.
    pub const ALL: [Self; 6] = [
        Self::Kernel,
        Self::Initramfs,
        Self::Console,
        Self::Vsock,
        Self::Files,
        Self::Monitor,
    ];

    fn number(self) -> i32 {
        QEMU_FIRST_FD + self as i32
    }
}

/// The parameters that a kernel needs on QEMU's microvm; see guest-kernel/README.md for what each
/// is worth. `quiet` comes before `earlyprintk`, which else prints all that was logged before it.
/// The machine adds its virtio-mmio devices itself.
const KERNEL_PARAMS: &str = "console=hvc0 quiet earlyprintk=ttyS0 panic=-1 reboot=t \
     tsc=reliable no_timer_check noreplace-smp lapic_timer_khz=1000000 \
     rootfstype=ramfs ifb.numifbs=0 dummy.numdummies=0 zram.num_devices=0";

/// The most network cards. microvm has eight slots, and three carry devices that every guest needs.
pub const MAX_NETS: usize = 5;

/// The most network cards that leave slots for both optional devices.
const NETS_BESIDE_BOTH: usize = 3;

/// The kernel's ticks a second, CONFIG_HZ in guest-kernel/config/10-boot.config.
const HZ: u32 = 250;

/// The machine: no firmware tables, no legacy devices but a clock for the time of day and what the
/// kernel's early console needs.
const MACHINE: &str = "microvm,acpi=off,rtc=on,isa-serial=on,memory-backend=memory";

/// All that QEMU's software CPU can do, but for the promise that copying with `rep movsb` is fast:
/// it takes a turn for each byte. Without it the kernel copies words, three times as fast.
const CPU: &str = "max,-erms,-fsrm";

/// The arguments for a machine of this size with these network cards, on a host whose time stamp
/// counter has this frequency. The machine has `max_vcpus` from the start, of which the kernel
/// brings `size.vcpus` online.
#[allow(clippy::too_many_lines, reason = "the list of QEMU's arguments")]
pub fn arguments(
    size: Size,
    max_vcpus: u8,
    tsc_khz: Option<u32>,
    kernel_params: &str,
    nets: &[Mac],
) -> Vec<String> {
    let fd = |fd: Fd| fd.number();
    let (clocks, clock_params) = clocks(tsc_khz);
    let maxcpus = match size.vcpus < max_vcpus {
        true => format!(" maxcpus={}", size.vcpus),
        false => String::new(),
    };
    let bounce_slots = (BOUNCE_MIB << 20) / BOUNCE_SLOT;
    let params = format!(
        "{KERNEL_PARAMS}{clock_params}{maxcpus} swiotlb={bounce_slots},1,force {kernel_params}"
    );
    let memory = format!("{}M", size.memory_mib + BOUNCE_MIB);
    let list = [
        ("-M", format!("{MACHINE}{clocks}")),
        ("-accel", format!("tcg,thread=multi,tb-size={CODE_MIB}")),
        ("-cpu", CPU.to_owned()),
        ("-smp", max_vcpus.to_string()),
        ("-m", memory.clone()),
        // Shared, because the vhost-user back end reads and writes it too.
        (
            "-object",
            format!("memory-backend-memfd,id=memory,share=on,size={memory}"),
        ),
        ("-kernel", format!("/proc/self/fd/{}", fd(Fd::Kernel))),
        ("-initrd", format!("/proc/self/fd/{}", fd(Fd::Initramfs))),
        ("-append", params.trim_end().to_owned()),
        // Devices of virtio 1.0, of which alone the file device can ask for bounce buffers.
        ("-global", "virtio-mmio.force-legacy=false".to_owned()),
        ("-nodefaults", String::new()),
        ("-no-user-config", String::new()),
        ("-no-reboot", String::new()),
        ("-display", "none".to_owned()),
        (
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned(),
        ),
        (
            "-device",
            format!("isa-debug-exit,iobase={POWER_OFF_PORT:#x},iosize=1"),
        ),
        (
            "-chardev",
            format!("socket,id=console,mux=on,fd={}", fd(Fd::Console)),
        ),
        ("-serial", "chardev:console".to_owned()),
        ("-device", "virtio-serial-device,max_ports=1".to_owned()),
        ("-device", "virtconsole,chardev=console".to_owned()),
        ("-chardev", format!("socket,id=vsock,fd={}", fd(Fd::Vsock))),
        (
            "-device",
            "vhost-user-vsock-device,chardev=vsock".to_owned(),
        ),
        (
            "-chardev",
            format!("socket,id=monitor,fd={}", fd(Fd::Monitor)),
        ),
        ("-qmp", "chardev:monitor".to_owned()),
        ("-chardev", format!("socket,id=files,fd={}", fd(Fd::Files))),
        (
            "-device",
            format!(
                "vhost-user-fs-device,chardev=files,tag={SHARED_TAG},\
                 queue-size={FILES_QUEUE_SIZE},iommu_platform=on"
            ),
        ),
    ];
    list.into_iter()
        .chain(optional_devices(nets.len()))
        .chain(nets.iter().enumerate().flat_map(net))
        .flat_map(|(option, value)| [option.to_owned(), value])
        .filter(|argument| !argument.is_empty())
        .collect()
}

/// The parts of the machine and of the kernel's parameters that depend on the counter's frequency.
/// A kernel that is given the frequency needs no PIT and no delay loop calibration; one that is not
/// measures it against the PIT.
fn clocks(tsc_khz: Option<u32>) -> (&'static str, String) {
    match tsc_khz {
        None => ("", String::new()),
        Some(khz) => (
            ",pit=off,pic=off",
            format!(
                " tsc_early_khz={khz} lpj={}",
                u64::from(khz) * 1000 / u64::from(HZ)
            ),
        ),
    }
}

/// The devices that give their slots to network cards: first the one for random numbers, which the
/// guest's CPU supplies too, then the balloon, without which the host gets no memory back. The
/// balloon has no deflate-on-oom: the guest must not take back what the host has reclaimed.
fn optional_devices(nets: usize) -> impl Iterator<Item = (&'static str, String)> {
    let rng = ("-device", "virtio-rng-device".to_owned());
    let balloon = "virtio-balloon-device,free-page-reporting=on";
    let balloon = ("-device", balloon.to_owned());
    let spare = MAX_NETS.saturating_sub(nets.max(NETS_BESIDE_BOTH));
    [balloon, rng].into_iter().take(spare)
}

/// A network card on the TAP that follows the other descriptors. No vhost: the host kernel's data
/// path would be one more surface, and many hosts have no /dev/vhost-net.
fn net((index, mac): (usize, &Mac)) -> [(&'static str, String); 2] {
    let fd = Fd::ALL.len() + index;
    let fd = QEMU_FIRST_FD + i32::try_from(fd).unwrap_or(i32::MAX);
    let [a, b, c, d, e, f] = mac;
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    [
        ("-netdev", format!("tap,id=net{index},fd={fd},vhost=off")),
        (
            "-device",
            format!("virtio-net-device,netdev=net{index},mac={mac}"),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size {
        vcpus: 2,
        memory_mib: 180,
    };

    fn value_of(arguments: &[String], option: &str) -> String {
        let at = arguments.iter().position(|it| it == option).unwrap();
        arguments[at + 1].clone()
    }

    #[test]
    fn a_kernel_that_knows_the_counter_has_no_other_timers_to_measure_it_with() {
        let arguments = arguments(SIZE, 2, Some(2_596_142), "", &[]);
        assert!(value_of(&arguments, "-M").ends_with(",pit=off,pic=off"));
        let params = value_of(&arguments, "-append");
        assert!(
            params.contains(" tsc_early_khz=2596142 lpj=10384568 "),
            "{params}"
        );
    }

    #[test]
    fn the_kernel_starts_only_the_cpus_that_it_is_to_have() {
        let growing = arguments(SIZE, 4, None, "", &[]);
        assert_eq!(value_of(&growing, "-smp"), "4");
        assert!(value_of(&growing, "-append").contains(" maxcpus=2 "));
        let fixed = arguments(SIZE, 2, None, "", &[]);
        assert_eq!(value_of(&fixed, "-smp"), "2");
        assert!(!value_of(&fixed, "-append").contains("maxcpus"));
    }

    #[test]
    fn a_kernel_that_does_not_know_it_has_a_pit() {
        let arguments = arguments(SIZE, 2, None, "", &[]);
        assert!(!value_of(&arguments, "-M").contains("pit"));
        assert!(!value_of(&arguments, "-append").contains("tsc_early_khz"));
    }

    #[test]
    fn the_ticks_are_those_of_the_kernel_that_is_built() {
        let config = include_str!("../../../../guest-kernel/config/10-boot.config");
        assert!(config.contains(&format!("\nCONFIG_HZ_{HZ}=y\n")));
    }

    #[test]
    fn only_the_file_device_bounces_in_a_pool_that_holds_its_queues_and_is_not_the_containers() {
        let arguments = arguments(SIZE, 2, None, "", &[]);
        let bounced: Vec<_> = (arguments.iter().map(String::as_str))
            .filter(|argument| argument.contains("iommu_platform"))
            .collect();
        let files = "vhost-user-fs-device,chardev=files,tag=rvm,queue-size=1024,iommu_platform=on";
        assert_eq!(bounced, [files]);
        assert!(value_of(&arguments, "-append").contains(" swiotlb=4096,1,force"));
        // 2 queues of 1024 pages.
        assert_eq!(value_of(&arguments, "-m"), "188M");
        assert!(value_of(&arguments, "-object").ends_with(",size=188M"));
    }

    #[test]
    fn the_users_parameters_come_last() {
        let arguments = arguments(SIZE, 2, Some(1), "a=b", &[]);
        assert!(value_of(&arguments, "-append").ends_with(" a=b"));
    }

    fn line(nets: &[Mac]) -> String {
        arguments(SIZE, 2, None, "", nets).join(" ")
    }

    #[test]
    fn a_network_card_has_the_tap_behind_the_other_descriptors() {
        let line = line(&[[2, 0, 0, 0, 0, 0x0a], [2, 0, 0, 0, 0, 0xff]]);
        assert!(line.ends_with(
            "-netdev tap,id=net0,fd=16,vhost=off \
             -device virtio-net-device,netdev=net0,mac=02:00:00:00:00:0a \
             -netdev tap,id=net1,fd=17,vhost=off \
             -device virtio-net-device,netdev=net1,mac=02:00:00:00:00:ff"
        ));
    }

    #[test]
    fn random_numbers_and_then_the_balloon_make_way_for_network_cards() {
        for (nets, balloon, rng) in [
            (0, true, true),
            (3, true, true),
            (4, true, false),
            (5, false, false),
        ] {
            let line = line(&vec![[2; 6]; nets]);
            assert_eq!(line.contains("virtio-balloon"), balloon, "{nets}");
            assert_eq!(line.contains("virtio-rng"), rng, "{nets}");
            let slots = line.matches("-device virtio-").count()
                + line.matches("-device vhost-user-").count();
            assert!(slots <= 8, "{nets}");
        }
    }
}
