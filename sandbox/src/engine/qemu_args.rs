//! QEMU's command line. Pure.

use rvm_protocol::vmm::{QEMU_FIRST_FD, QEMU_SHARED_DIR};
use rvm_protocol::{PARAM_SHARED, POWER_OFF_PORT, SHARED_TAG};

use crate::sizing::{QEMU_CODE_MIB, Size};

/// The descriptors that QEMU inherits, by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fd {
    /// The guest's kernel.
    Kernel,
    /// The guest's initramfs.
    Initramfs,
    /// A stream for the guest's console.
    Console,
    /// The connection to rvm-vmm's vhost-user back end.
    Vsock,
}

impl Fd {
    /// All of them, in their order.
    pub const ALL: [Self; 4] = [Self::Kernel, Self::Initramfs, Self::Console, Self::Vsock];

    fn number(self) -> i32 {
        QEMU_FIRST_FD + self as i32
    }
}

/// The parameters that a kernel needs on QEMU's microvm; see guest-kernel/README.md for what each is
/// worth. The machine adds its virtio-mmio devices itself.
const KERNEL_PARAMS: &str = "console=hvc0 earlyprintk=ttyS0 quiet panic=-1 reboot=t \
     tsc=reliable no_timer_check noreplace-smp lapic_timer_khz=1000000 \
     ifb.numifbs=0 dummy.numdummies=0 zram.num_devices=0";

/// The arguments for a machine of this size.
pub fn arguments(size: Size, kernel_params: &str) -> Vec<String> {
    let fd = |fd: Fd| fd.number();
    let params = format!("{KERNEL_PARAMS} {PARAM_SHARED}=9p {kernel_params}");
    let memory = format!("{}M", size.memory_mib);
    let list = [
        // The machine: no firmware tables, no legacy devices but what the kernel's clocks and its
        // early console need.
        (
            "-M",
            "microvm,acpi=off,rtc=on,isa-serial=on,memory-backend=memory".to_owned(),
        ),
        (
            "-accel",
            format!("tcg,thread=multi,tb-size={QEMU_CODE_MIB}"),
        ),
        ("-cpu", "max".to_owned()),
        ("-smp", size.vcpus.to_string()),
        ("-m", memory.clone()),
        // Shared, because the vhost-user back end reads and writes it too.
        (
            "-object",
            format!("memory-backend-memfd,id=memory,share=on,size={memory}"),
        ),
        ("-kernel", format!("/proc/self/fd/{}", fd(Fd::Kernel))),
        ("-initrd", format!("/proc/self/fd/{}", fd(Fd::Initramfs))),
        ("-append", params.trim_end().to_owned()),
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
        ("-device", "virtio-serial-device".to_owned()),
        ("-device", "virtconsole,chardev=console".to_owned()),
        ("-chardev", format!("socket,id=vsock,fd={}", fd(Fd::Vsock))),
        (
            "-device",
            "vhost-user-vsock-device,chardev=vsock".to_owned(),
        ),
        (
            "-fsdev",
            format!(
                "local,id=shared,path={QEMU_SHARED_DIR},security_model=passthrough,multidevs=remap"
            ),
        ),
        (
            "-device",
            format!("virtio-9p-device,fsdev=shared,mount_tag={SHARED_TAG}"),
        ),
        ("-device", "virtio-rng-device".to_owned()),
        (
            "-device",
            "virtio-balloon-device,free-page-reporting=on,deflate-on-oom=on".to_owned(),
        ),
    ];
    list.into_iter()
        .flat_map(|(option, value)| [option.to_owned(), value])
        .filter(|argument| !argument.is_empty())
        .collect()
}
