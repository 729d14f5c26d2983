//! Templates: machines as they were when their agent was ready, in two files from which any number
//! of machines are restored.
//!
//! The state file begins with [`MAGIC`], then come the version of rvm-vmm as a line, the length of
//! the state, its CRC-32, and the state. It is trusted no more than a file can be: whatever it
//! holds, the machine is refused, or runs a guest that can do nothing that any guest cannot.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use rustix::event::{PollFd, PollFlags, poll};
use rvm_protocol::vmm::{MachineConfig, StopReason, TemplateConfig};
use serde::{Deserialize, Serialize};

use super::{Kernel, MachineError, config, connect, enter_jail, spawn_workers};
use crate::arch::x86_64::registers::RegisterError;
use crate::arch::x86_64::state::VcpuState;
use crate::bus::{Bus, SlotError};
use crate::fds::{PassedFds, borrow_eventfd};
use crate::kvm::{self, KvmError, SavedVcpu, Vm, VmState};
use crate::memory::image::{self, ImageError};
use crate::memory::{self, CurrentMemory, GuestMemory};
use crate::vcpus::{RunState, Vcpus};
#[cfg(any(test, feature = "fuzzing"))]
use crate::virtio::hostile;
use crate::virtio::state::TransportState;
use crate::virtio::thread::DeviceThread;
use crate::virtio::vsock::HeldRequest;

/// What a state file begins with.
const MAGIC: &[u8] = b"rvm template ";

/// The largest state, in bytes: 253 vCPUs have some 2 MiB.
const MAX_STATE: u64 = 8 << 20;

/// A template could not be written, or cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("cannot read or write the template's state")]
    File(#[source] io::Error),
    #[error("the template's state is no such file, or is damaged")]
    Damaged,
    #[error("cannot read or write the template's state")]
    Encoding(#[from] postcard::Error),
    #[error("the template is of another version: {0}")]
    Version(String),
    #[error("the template is of a machine with {0}")]
    Shape(String),
    #[error("the template was made on another CPU: {0}")]
    Host(String),
    #[error("the template's memory")]
    Memory(#[from] ImageError),
    #[error("the template's devices")]
    Devices(#[from] SlotError),
    #[error("the template's interrupt controllers or vCPUs")]
    Kvm(#[from] KvmError),
    #[error("the template's vCPUs")]
    Registers(#[from] RegisterError),
    #[error("the vCPUs do not stop")]
    Vcpus,
    #[error("the guest has ended before it was ready: {0}")]
    Ended(String),
}

/// What a machine must have in common with its template.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    vcpus: (u8, u8),
    memory_mib: (u64, u64),
    /// Disks, and network cards that are there or may come.
    slots: (usize, usize),
    cmdline: String,
    kernel: FileId,
    initramfs: FileId,
}

/// A file as it was when the template was made.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileId {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Shape {
    /// Of a machine with this kernel and this initramfs.
    pub(super) fn of(config: &MachineConfig, [kernel, initramfs]: [&File; 2]) -> Self {
        Self {
            vcpus: (config.boot_vcpus, config.max_vcpus),
            memory_mib: (config.memory_mib, config.max_memory_mib),
            slots: (config.spare_disks, config.nets.len() + config.spare_nets),
            cmdline: config.cmdline.clone(),
            kernel: FileId::of(kernel),
            initramfs: FileId::of(initramfs),
        }
    }

    /// In what a template's shape differs from this one.
    fn difference(&self, template: &Self) -> Option<String> {
        let Self {
            vcpus: (vcpus, max_vcpus),
            memory_mib: (memory, max_memory),
            slots: (disks, cards),
            ..
        } = template;
        Some(if self.kernel != template.kernel {
            "another kernel".to_owned()
        } else if self.initramfs != template.initramfs {
            "another initramfs".to_owned()
        } else if self.cmdline != template.cmdline {
            format!("the kernel parameters {:?}", template.cmdline)
        } else if self.vcpus != template.vcpus {
            format!("{vcpus} of {max_vcpus} vCPUs")
        } else if self.memory_mib != template.memory_mib {
            format!("{memory} of {max_memory} MiB of memory")
        } else if self.slots != template.slots {
            format!("room for {disks} disks and {cards} network cards")
        } else {
            return None;
        })
    }
}

impl FileId {
    fn of(file: &File) -> Self {
        match file.metadata() {
            Ok(found) => Self {
                device: found.dev(),
                inode: found.ino(),
                size: found.size(),
                modified: (found.mtime(), found.mtime_nsec()),
            },
            // It cannot be read either.
            Err(_) => Self {
                device: 0,
                inode: 0,
                size: 0,
                modified: (0, 0),
            },
        }
    }
}

/// The state of a machine whose vCPUs are stopped, without its memory.
#[derive(Serialize, Deserialize)]
pub(super) struct Template {
    shape: Shape,
    vm: VmState,
    vcpus: Vec<SavedVcpu>,
    slots: Vec<TransportState>,
    /// See [`image::write`].
    blocks: Vec<u64>,
}

impl Template {
    /// Reads the state of a machine of this shape, and maps its memory.
    pub(super) fn open(
        (state, memory): (File, File),
        shape: &Shape,
        kvm: &OwnedFd,
    ) -> Result<(Self, Arc<GuestMemory>, Vm), TemplateError> {
        let mut contents = Vec::new();
        state
            .take(MAX_STATE)
            .read_to_end(&mut contents)
            .map_err(TemplateError::File)?;
        let template: Self = postcard::from_bytes(unsealed(&contents)?)?;
        if let Some(difference) = shape.difference(&template.shape) {
            return Err(TemplateError::Shape(difference));
        }
        let ((count, max), (mib, _)) = (shape.vcpus, shape.memory_mib);
        let ids = template.vcpus.iter().map(|vcpu| vcpu.id);
        if !ids.eq(0..count) {
            return Err(TemplateError::Damaged);
        }
        let memory = image::map(mib, &memory, &template.blocks)?;
        let kvm = kvm.try_clone().map_err(TemplateError::File)?;
        let vm = Vm::new(kvm, Arc::clone(&memory))?;
        match vm.difference(&template.vm, max) {
            Some(difference) => Err(TemplateError::Host(difference)),
            None => Ok((template, memory, vm)),
        }
    }

    /// Gives a new machine of at most `max` vCPUs the state, and creates the vCPUs that are to go
    /// on from it.
    pub(super) fn restore(
        &self,
        vm: &Vm,
        bus: &Bus,
        max: u8,
    ) -> Result<Vec<VcpuFd>, TemplateError> {
        if self.slots.len() != bus.slots() {
            return Err(TemplateError::Damaged);
        }
        let vcpus = self.restore_cpus(vm, max)?;
        bus.restore(&self.slots)?;
        Ok(vcpus)
    }

    /// The part of a restore that is KVM's.
    fn restore_cpus(&self, vm: &Vm, max: u8) -> Result<Vec<VcpuFd>, TemplateError> {
        let vcpus = self.vcpus.iter().map(|saved| vm.restore_vcpu(saved, max));
        let vcpus = vcpus.collect::<Result<_, _>>()?;
        vm.restore(&self.vm)?;
        Ok(vcpus)
    }
}

/// Makes a template: boots its machine until the agent is ready, and writes it. The calling thread
/// is the process's only one, and is never filtered: until the machine ends it has run nothing but
/// our kernel and our agent, which have seen nothing of anybody.
pub fn make(config: &TemplateConfig, fds: Vec<OwnedFd>) -> Result<(), MachineError> {
    let mut fds = PassedFds::new(fds);
    let (machine, files) = (&config.machine, &config.files);
    config::validate(machine)?;
    let proc_self_fd = enter_jail(machine)?;

    let (state_file, memory_file) = (fds.take(files.state)?, fds.take(files.memory)?);
    let kernel = Kernel::take(machine, &mut fds)?;
    let shape = kernel.shape(machine);
    let kvm = fds.take(machine.kvm)?;
    let kvm_again = || kvm.try_clone().map_err(TemplateError::File);
    let (kvm_of_trial, msrs) = (kvm_again()?, kvm::saveable_msrs(kvm_again()?)?);
    let memory = memory::map(machine.memory_mib)?;
    let vm = Vm::new(kvm, Arc::clone(&memory))?;
    let ready = Arc::new(HeldRequest::default());
    let current = CurrentMemory::new(Arc::clone(&memory));
    let connected = connect(
        machine,
        &mut fds,
        (&vm, &current),
        Some(&ready),
        proc_self_fd,
    );
    let (devices, bus) = connected?;

    let vcpus = kernel.load(machine, &memory, &vm, bus.slots())?;
    let state = RunState::new(bus).map_err(MachineError::Thread)?;
    spawn_workers(devices.workers, &state)?;
    let vcpus = Vcpus::start(vcpus, Arc::clone(&state), machine.max_vcpus)?;
    run_until_ready(&devices.main, &state, &ready)?;
    let vcpus = vcpus.collect().ok_or(TemplateError::Vcpus)?;
    // What the guest asked for last.
    devices
        .main
        .handle_pending()
        .map_err(MachineError::Thread)?;

    let max = machine.max_vcpus;
    let new_msrs = vm.new_msrs(&msrs, max)?;
    let vcpus = vcpus.iter().map(|(id, vcpu)| {
        let state = VcpuState::save(vcpu, &new_msrs)?;
        Ok(SavedVcpu { id: *id, state })
    });
    let template = Template {
        shape,
        vcpus: vcpus.collect::<Result<_, RegisterError>>()?,
        vm: vm.save(max)?,
        slots: state.bus().save().map_err(TemplateError::Devices)?,
        blocks: image::write(&memory, &mut memory_file.into()).map_err(TemplateError::Memory)?,
    };
    // A KVM that does not take back what it has told makes no template, in place of one from which
    // no machine starts.
    template.restore_cpus(&Vm::new(kvm_of_trial, memory)?, max)?;
    let state = postcard::to_stdvec(&template).map_err(TemplateError::Encoding)?;
    let mut state_file: File = state_file.into();
    let written = state_file.write_all(&sealed(&state));
    Ok(written.map_err(TemplateError::File)?)
}

/// Serves the devices of the main thread until the guest says that it is ready.
fn run_until_ready(
    devices: &DeviceThread,
    state: &RunState,
    ready: &HeldRequest,
) -> Result<(), TemplateError> {
    while ready.guest_port().is_none() {
        let mut fds = [
            PollFd::from_borrowed_fd(devices.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(borrow_eventfd(state.ended()), PollFlags::IN),
        ];
        poll(&mut fds, None).map_err(|error| TemplateError::File(error.into()))?;
        devices.handle_pending().map_err(TemplateError::File)?;
        match state.stop_reason() {
            None => {}
            Some(StopReason::PowerOff) => {
                return Err(TemplateError::Ended("it has powered off".to_owned()));
            }
            Some(StopReason::GuestReset { place }) => return Err(TemplateError::Ended(place)),
            Some(StopReason::Failed(failure)) => {
                return Err(TemplateError::Ended(failure.to_string()));
            }
        }
    }
    Ok(())
}

/// The contents of a file with this state.
fn sealed(state: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(env!("CARGO_PKG_VERSION").as_bytes());
    bytes.push(b'\n');
    bytes.extend((state.len() as u64).to_le_bytes());
    bytes.extend(crc32fast::hash(state).to_le_bytes());
    bytes.extend(state);
    bytes
}

/// The state in a file of these contents, if they are whole.
fn unsealed(contents: &[u8]) -> Result<&[u8], TemplateError> {
    let rest = contents.strip_prefix(MAGIC).ok_or(TemplateError::Damaged)?;
    let line = rest.iter().position(|byte| *byte == b'\n');
    let (version, rest) = rest.split_at(line.ok_or(TemplateError::Damaged)?);
    if version != env!("CARGO_PKG_VERSION").as_bytes() {
        let version = String::from_utf8_lossy(version).into_owned();
        return Err(TemplateError::Version(version));
    }
    let (length, rest) = rest[1..]
        .split_first_chunk()
        .ok_or(TemplateError::Damaged)?;
    let (checksum, state) = rest.split_first_chunk().ok_or(TemplateError::Damaged)?;
    let is_whole = u64::from_le_bytes(*length) == state.len() as u64
        && u32::from_le_bytes(*checksum) == crc32fast::hash(state);
    is_whole.then_some(state).ok_or(TemplateError::Damaged)
}

/// Reads bytes as a state file, and as the state in one, and restores what they hold where that
/// needs no KVM.
#[cfg(any(test, feature = "fuzzing"))]
pub fn read_any(contents: &[u8]) {
    let state = unsealed(contents).unwrap_or(contents);
    if let Ok(slot) = postcard::from_bytes(state) {
        hostile::restore(&slot);
    }
    if let Ok(template) = postcard::from_bytes::<Template>(state) {
        template.slots.iter().for_each(hostile::restore);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_is_read_and_any_other_refused() {
        let whole = sealed(b"some state");
        assert_eq!(unsealed(&whole).unwrap(), b"some state");
        for end in 0..whole.len() {
            assert!(unsealed(&whole[..end]).is_err(), "cut at {end}");
        }
        for index in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[index] ^= 0x20;
            assert!(unsealed(&damaged).is_err(), "damaged at {index}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let other = [MAGIC, b"9.8.7\nrest"].concat();
        let error = unsealed(&other).unwrap_err().to_string();
        assert!(error.contains("9.8.7"), "{error}");
    }

    #[test]
    fn what_differs_from_the_template_is_named() {
        let file = tempfile::tempfile().unwrap();
        let shape = || Shape {
            vcpus: (1, 4),
            memory_mib: (512, 1024),
            slots: (0, 5),
            cmdline: "quiet".to_owned(),
            kernel: FileId::of(&file),
            initramfs: FileId::of(&file),
        };
        assert_eq!(shape().difference(&shape()), None);
        let other = tempfile::tempfile().unwrap();
        for (change, word) in [
            (
                (|shape, _| shape.vcpus.0 = 2) as fn(&mut Shape, &File),
                "2 of 4 vCPUs",
            ),
            (|shape, _| shape.memory_mib.1 = 512, "512 of 512 MiB"),
            (|shape, _| shape.slots.0 = 3, "3 disks"),
            (|shape, _| shape.cmdline.clear(), "parameters \"\""),
            (|shape, other| shape.kernel = FileId::of(other), "kernel"),
            (
                |shape, other| shape.initramfs = FileId::of(other),
                "initramfs",
            ),
        ] {
            let mut template = shape();
            change(&mut template, &other);
            let difference = shape().difference(&template).unwrap();
            assert!(difference.contains(word), "{difference}");
        }
    }
}
