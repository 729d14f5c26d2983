//! `rvm-vmm machine` from its configuration to its end, with guests of a few bytes. Needs root and
//! /dev/kvm, on which ring 0 may be emulated.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rvm_protocol::failure::Code;
use rvm_protocol::vmm::{
    Channel, CheckpointFiles, DISK_SLOT, DiskConfig, Event, FdIndex, MachineConfig, PlacedDisk,
    Rates, Request, StopReason,
};

/// `mov al, 1; out 0xf4, al`: powers the machine off. Then an endless loop.
const POWER_OFF: &[u8] = &[0xb0, 0x01, 0xe6, 0xf4, 0xeb, 0xfe];

/// `jmp $`: an endless loop.
const LOOP: &[u8] = &[0xeb, 0xfe];

/// `mov dword [address], value`
fn store(address: u32, value: u32) -> Vec<u8> {
    let code = [0xc7, 0x04, 0x25].as_slice();
    [code, &address.to_le_bytes(), &value.to_le_bytes()].concat()
}

/// Maps the devices, and has the address of the registers of the fourth one, the balloon, in rdi.
fn reach_balloon() -> Vec<u8> {
    /// The page tables that the boot CPU starts with, whose fourth GiB is missing.
    const GIBIBYTES: u32 = 0xa000;
    const FOURTH: u32 = 0x11_5000;
    [
        store(GIBIBYTES + 3 * 8, FOURTH | 3),
        store(FOURTH + 128 * 8, 0xd000_0083),
        // mov edi, 0xd0003000
        vec![0xbf, 0x00, 0x30, 0x00, 0xd0],
    ]
    .concat()
}

/// Powers the machine off when the host wants memory back, see [`shrink`]: when the host says so,
/// however fast the guest is.
fn wait_for_balloon() -> Vec<u8> {
    // mov eax, [rdi + 0x100]; test eax, eax; jz to the first
    let wait = [0x8b, 0x87, 0x00, 0x01, 0x00, 0x00, 0x85, 0xc0, 0x74, 0xf6];
    [reach_balloon().as_slice(), &wait, POWER_OFF].concat()
}

/// Wants one MiB back.
fn shrink() -> Request {
    Request::Resize {
        vcpus: 1,
        memory_mib: MEMORY_MIB - 1,
    }
}

/// The memory of a machine at its start.
const MEMORY_MIB: u64 = 16;

/// A driver of virtio-balloon that makes requests available as fast as it can, and never stops.
fn refill() -> Vec<u8> {
    const DESCRIPTOR: usize = 0x200;
    const AVAILABLE: u32 = 0x11_1000;
    const USED: u32 = 0x11_0000;
    const QUEUE_SIZE: u8 = 128;
    let available = store(AVAILABLE, u32::from(QUEUE_SIZE) << 16);
    let mut code = [reach_balloon(), available].concat();
    for (register, value) in [
        (0x70, 3_u32),             // Status: ACKNOWLEDGE, DRIVER
        (0x24, 1),                 // DriverFeaturesSel
        (0x20, 1),                 // DriverFeatures: VERSION_1
        (0x70, 11),                // Status: and FEATURES_OK
        (0x38, QUEUE_SIZE.into()), // QueueNum
        (0x80, 0x10_0000 + DESCRIPTOR as u32),
        (0x90, AVAILABLE),
        (0xa0, USED),
        (0x44, 1),  // QueueReady
        (0x70, 15), // Status: and DRIVER_OK
        (0x50, 0),  // QueueNotify
    ] {
        // mov dword [rdi + register], value
        code.extend([0xc7, 0x87, register, 0, 0, 0]);
        code.extend(value.to_le_bytes());
    }
    let again = code.len();
    code.extend([0x8b, 0x04, 0x25]); // mov eax, [USED]
    code.extend(USED.to_le_bytes());
    code.extend([0x05, 0, 0, QUEUE_SIZE, 0]); // add eax, size << 16: the whole ring is available
    code.extend([0x89, 0x04, 0x25]); // mov [AVAILABLE], eax
    code.extend(AVAILABLE.to_le_bytes());
    let back = code.len() + 2 - again;
    code.extend([0xeb, 0_u8.wrapping_sub(back as u8)]); // jmp
    code.resize(DESCRIPTOR, 0);
    // 1024 times the page at 0. Every place of the ring, which is zero, names this request.
    code.extend(0x12_0000_u64.to_le_bytes());
    code.extend(4096_u32.to_le_bytes());
    code.extend([0; 4]);
    code
}

/// A running rvm-vmm. It ends when the control socket is closed.
struct Vmm {
    channel: Channel,
    child: Child,
    _shared: tempfile::TempDir,
}

impl Vmm {
    /// Starts a machine that runs `code`. None without /dev/kvm.
    fn start(code: &[u8]) -> Option<Self> {
        Self::start_from(code, None)
    }

    /// The same with the files of a checkpoint to go on from.
    fn start_from(code: &[u8], checkpoint: Option<[&File; 3]>) -> Option<Self> {
        let vmm = Self::begin(code, checkpoint, None)?;
        let started = vmm.event();
        assert!(matches!(started, Event::Started(_)), "{started:?}");
        Some(vmm)
    }

    /// The same with a disk that is there from the start. What comes of it is not waited for.
    fn begin(code: &[u8], checkpoint: Option<[&File; 3]>, disk: Option<&File>) -> Option<Self> {
        let Ok(kvm) = File::options().read(true).write(true).open("/dev/kvm") else {
            eprintln!("skipped: no /dev/kvm");
            return None;
        };
        let (channel, theirs) = Channel::pair().unwrap();
        let child = Command::new("unshare")
            .args(["--fork", "--pid", "--kill-child"])
            .args([env!("CARGO_BIN_EXE_rvm-vmm"), "machine"])
            .stdin(Stdio::from(theirs.into_fd()))
            .spawn()
            .unwrap();
        let shared = tempfile::tempdir().unwrap();
        let fds: [OwnedFd; 4] = [
            kernel(code).into(),
            tempfile::tempfile().unwrap().into(),
            tempfile::tempfile().unwrap().into(),
            kvm.into(),
        ];
        let config = MachineConfig {
            parent: child.id(),
            boot_vcpus: 1,
            max_vcpus: 2,
            memory_mib: MEMORY_MIB,
            max_memory_mib: 272,
            cmdline: String::new(),
            kernel: FdIndex(0),
            initramfs: FdIndex(1),
            console: FdIndex(2),
            kvm: FdIndex(3),
            shared_dir: shared.path().to_owned(),
            vsock: Vec::new(),
            nets: Vec::new(),
            template: None,
            written: Vec::new(),
            checkpoint: checkpoint.map(|_| CheckpointFiles {
                state: FdIndex(4),
                memory: FdIndex(5),
                removed: FdIndex(6),
                files_later: false,
            }),
            spare_nets: 1,
            spare_disks: 1,
            map_layers: true,
            disks: disk.map(|_| placed()).into_iter().collect(),
            rates: Rates::default(),
        };
        let fds = fds.iter().map(AsFd::as_fd);
        let files = checkpoint.into_iter().flatten().map(AsFd::as_fd);
        let fds: Vec<_> = fds.chain(files).chain(disk.map(AsFd::as_fd)).collect();
        channel.send(&config, &fds).unwrap();
        Some(Self {
            channel,
            child,
            _shared: shared,
        })
    }

    fn event(&self) -> Event {
        let mut fds = [PollFd::new(&self.channel, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        assert_eq!(
            poll(&mut fds, Some(&limit)),
            Ok(1),
            "rvm-vmm does not answer"
        );
        self.channel.receive().unwrap().0
    }

    fn request(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Event {
        self.channel.send(&request, fds).unwrap();
        self.event()
    }

    /// The code of a request that must fail.
    fn code(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Code {
        match self.request(request.clone(), fds) {
            Event::Refused(failure) => failure.code(),
            other => panic!("{request:?}: {other:?}"),
        }
    }

    fn end(mut self) {
        drop(self.channel);
        self.child.wait().unwrap();
    }
}

/// An ELF kernel with one segment, which is loaded at 1 MiB and starts there.
fn kernel(code: &[u8]) -> File {
    const START: u64 = 0x10_0000;
    let mut elf = vec![0; 0x1000];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let mut put = |offset: usize, value: u64, bytes: usize| {
        elf[offset..offset + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    };
    // ET_EXEC, EM_X86_64, version, e_entry, e_phoff, e_ehsize, e_phentsize, e_phnum.
    for (offset, value, bytes) in [
        (16, 2, 2),
        (18, 62, 2),
        (20, 1, 4),
        (24, START, 8),
        (32, 64, 8),
        (52, 64, 2),
        (54, 56, 2),
        (56, 1, 2),
    ] {
        put(offset, value, bytes);
    }
    // PT_LOAD, p_offset, p_paddr, p_filesz, p_memsz.
    let length = code.len() as u64;
    for (offset, value, bytes) in [
        (64, 1, 4),
        (72, 0x800, 8),
        (88, START, 8),
        (96, length, 8),
        (104, length, 8),
    ] {
        put(offset, value, bytes);
    }
    elf[0x800..0x800 + code.len()].copy_from_slice(code);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&elf).unwrap();
    file
}

#[test]
fn a_guest_that_powers_off_ends_the_machine() {
    let Some(vmm) = Vmm::start(POWER_OFF) else {
        return;
    };
    assert_eq!(vmm.event(), Event::Stopped(StopReason::PowerOff));
    vmm.end();
}

#[test]
fn a_running_machine_is_paused_and_resumed() {
    let Some(vmm) = Vmm::start(LOOP) else { return };
    for _ in 0..3 {
        assert_eq!(vmm.request(Request::Pause, &[]), Event::Done);
        assert_eq!(vmm.request(Request::Resume, &[]), Event::Done);
    }
    vmm.end();
}

/// On the main thread, whose devices a guest must not be able to keep from yielding.
#[test]
fn a_driver_that_refills_a_queue_does_not_keep_the_host_waiting() {
    let Some(vmm) = Vmm::start(&refill()) else {
        return;
    };
    let (tap, _peer) = UnixDatagram::pair().unwrap();
    let mac = [2, 0, 0, 0, 0, 1];
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(20));
        let asked = Instant::now();
        let plugged = vmm.request(Request::PlugNet { mac }, &[tap.as_fd()]);
        let unplugged = vmm.request(Request::UnplugNet { mac }, &[]);
        assert_eq!((plugged, unplugged), (Event::Done, Event::Done));
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    vmm.end();
}

#[test]
fn a_running_machine_gets_vcpus_and_memory_up_to_its_limits() {
    let Some(vmm) = Vmm::start(LOOP) else { return };
    let resize = |vcpus, memory_mib| Request::Resize { vcpus, memory_mib };
    assert_eq!(vmm.request(resize(2, 200), &[]), Event::Done);
    for beyond in [resize(3, 200), resize(2, 1000)] {
        assert_eq!(vmm.code(beyond, &[]), Code::FailedPrecondition);
    }
    vmm.end();
}

#[test]
fn a_network_card_is_plugged_and_unplugged() {
    let Some(vmm) = Vmm::start(LOOP) else { return };
    // Replaces a TAP: the guest has no driver, so nothing is read from it.
    let (tap, _peer) = UnixDatagram::pair().unwrap();
    let plug = |last| Request::PlugNet {
        mac: [2, 0, 0, 0, 0, last],
    };
    let unplug = |last| Request::UnplugNet {
        mac: [2, 0, 0, 0, 0, last],
    };
    assert_eq!(vmm.code(plug(1), &[]), Code::InvalidArgument);
    assert_eq!(vmm.code(unplug(1), &[]), Code::NotFound);
    for _ in 0..2 {
        assert_eq!(vmm.request(plug(1), &[tap.as_fd()]), Event::Done);
        assert_eq!(
            vmm.code(plug(2), &[tap.as_fd()]),
            Code::FailedPrecondition,
            "there is one spare slot"
        );
        assert_eq!(vmm.request(unplug(1), &[]), Event::Done);
    }
    vmm.end();
}

#[test]
fn a_disk_is_plugged_and_unplugged() {
    let Some(vmm) = Vmm::start(LOOP) else { return };
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let plug = |slot| Request::PlugDisk {
        slot,
        disk: DiskConfig {
            read_only: false,
            serial: "disk".to_owned(),
            block_size: 512,
            layer: false,
        },
    };
    let unplug = |slot| Request::UnplugDisk { slot };
    assert_eq!(vmm.code(plug(DISK_SLOT), &[]), Code::InvalidArgument);
    for other in [0, DISK_SLOT - 1, DISK_SLOT + 1, usize::MAX] {
        let code = vmm.code(plug(other), &[file.as_fd()]);
        assert_eq!(
            code,
            Code::InvalidArgument,
            "slot {other} is none for disks"
        );
        assert_eq!(vmm.code(unplug(other), &[]), Code::InvalidArgument);
    }
    assert_eq!(vmm.code(unplug(DISK_SLOT), &[]), Code::NotFound);
    for _ in 0..2 {
        assert_eq!(vmm.request(plug(DISK_SLOT), &[file.as_fd()]), Event::Done);
        let again = vmm.code(plug(DISK_SLOT), &[file.as_fd()]);
        assert_eq!(again, Code::FailedPrecondition);
        assert_eq!(vmm.request(unplug(DISK_SLOT), &[]), Event::Done);
    }
    vmm.end();
}

fn disk_config() -> DiskConfig {
    DiskConfig {
        read_only: false,
        serial: "rvm-disk-6".to_owned(),
        block_size: 512,
        layer: false,
    }
}

/// The disk that comes after the files of a checkpoint.
fn placed() -> PlacedDisk {
    PlacedDisk {
        slot: DISK_SLOT,
        file: FdIndex(7),
        disk: disk_config(),
        name: "/images/data".to_owned(),
    }
}

#[test]
fn a_machine_goes_on_with_the_memory_and_the_disk_that_it_was_given_and_not_without() {
    let Some(vmm) = Vmm::start(&wait_for_balloon()) else {
        return;
    };
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let plug = Request::PlugDisk {
        slot: DISK_SLOT,
        disk: disk_config(),
    };
    assert_eq!(vmm.request(plug, &[file.as_fd()]), Event::Done);
    let grow = Request::Resize {
        vcpus: 2,
        memory_mib: MEMORY_MIB + 200,
    };
    assert_eq!(vmm.request(grow.clone(), &[]), Event::Done);
    let files = checkpoint();
    let save = Request::Save {
        go_on: false,
        has_swap: false,
    };
    let fds = files.each_ref().map(AsFd::as_fd);
    let saved = vmm.request(save, &fds);
    assert_eq!(saved, Event::Stopped(StopReason::Saved));
    vmm.end();

    let restored = |disk: Option<&File>| {
        let [state, memory, removed, _] = files.each_ref().map(reopened);
        Vmm::begin(LOOP, Some([&state, &memory, &removed]), disk).unwrap()
    };
    let without = restored(None);
    let Event::Stopped(StopReason::Failed(failure)) = without.event() else {
        panic!("a machine without its disk");
    };
    assert!(failure.to_string().contains("device slot 6"), "{failure}");
    without.end();
    let with = restored(Some(&file));
    assert!(matches!(with.event(), Event::Started(_)));
    let occupied = Request::PlugDisk {
        slot: DISK_SLOT,
        disk: disk_config(),
    };
    let code = with.code(occupied, &[file.as_fd()]);
    assert_eq!(code, Code::FailedPrecondition);
    assert_eq!(with.request(grow, &[]), Event::Done);
    assert_eq!(with.request(shrink(), &[]), Event::Done);
    assert_eq!(with.event(), Event::Stopped(StopReason::PowerOff));
    with.end();
}

/// The files of a checkpoint, and KVM's device.
fn checkpoint() -> [File; 4] {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let file = || tempfile::tempfile().unwrap();
    [file(), file(), file(), kvm.unwrap()]
}

/// Opens a file again, at its beginning.
fn reopened(file: &File) -> File {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}

#[test]
fn a_machine_goes_on_after_a_checkpoint_and_from_it_any_number_of_times() {
    let Some(vmm) = Vmm::start(&wait_for_balloon()) else {
        return;
    };
    let files = checkpoint();
    let save = |go_on| Request::Save {
        go_on,
        has_swap: false,
    };
    let fds = files.each_ref().map(AsFd::as_fd);
    assert_eq!(vmm.code(save(true), &fds[..2]), Code::InvalidArgument);
    assert_eq!(vmm.request(save(true), &fds), Event::Done);
    assert_eq!(vmm.event(), Event::Written(None));
    assert_eq!(vmm.request(shrink(), &[]), Event::Done);
    assert_eq!(vmm.event(), Event::Stopped(StopReason::PowerOff));
    vmm.end();

    let [state, memory, removed, _] = files.each_ref().map(reopened);
    let restored = Vmm::start_from(LOOP, Some([&state, &memory, &removed])).unwrap();
    let again = checkpoint();
    let fds = again.each_ref().map(AsFd::as_fd);
    let end = restored.request(save(false), &fds);
    assert_eq!(end, Event::Stopped(StopReason::Saved));
    restored.end();

    for files in [&files, &again] {
        let [state, memory, removed, _] = files.each_ref().map(reopened);
        let restored = Vmm::start_from(LOOP, Some([&state, &memory, &removed])).unwrap();
        assert_eq!(restored.request(Request::Adopted, &[]), Event::Done);
        assert_eq!(restored.request(shrink(), &[]), Event::Done);
        assert_eq!(restored.event(), Event::Stopped(StopReason::PowerOff));
        restored.end();
    }
}
