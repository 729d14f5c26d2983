//! The state of a machine in a file, beside its memory in another: a template's or a checkpoint's.
//!
//! The state file begins with [`MAGIC`], then come the version of rvm-vmm as a line, the length of
//! the state, its CRC-32, and the state. It is trusted no more than a file can be: whatever it
//! holds, the machine is refused, or runs a guest that can do nothing that any guest cannot.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use rvm_protocol::vmm::{MachineConfig, PlacedDisk};
use serde::{Deserialize, Serialize};

use crate::arch::x86_64::registers::RegisterError;
use crate::bus::{Bus, SlotError};
use crate::file_id::FileId;
use crate::hotplug::{Grown, HotplugMemory, HotplugMemoryError, Mac};
use crate::kvm::{KvmError, SavedVcpu, Vm, VmState};
use crate::memory::image::{self, ImageError};
use crate::memory::{self, CurrentMemory, GuestMemory, MemoryError};
#[cfg(any(test, feature = "fuzzing"))]
use crate::virtio::hostile;
use crate::virtio::mem::{Mem, Sizes};
use crate::virtio::state::TransportState;

/// What a state file begins with.
const MAGIC: &[u8] = b"rvm machine ";

/// The largest state, in bytes. 253 vCPUs have some 2 MiB; a checkpoint has the table of open files
/// and what is on its way in streams.
const MAX_STATE: u64 = 256 << 20;

/// A machine could not be saved, or its state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    #[error("cannot read or write the machine's state")]
    File(#[source] io::Error),
    #[error("the machine's state is no such file, or is damaged")]
    Damaged,
    #[error("cannot read or write the machine's state")]
    Encoding(#[from] postcard::Error),
    /// With its size in MiB.
    #[error("the machine's state has {0} MiB, and can have 256")]
    TooLarge(usize),
    #[error("the machine was saved by another version: {0}")]
    Version(String),
    #[error("the machine was saved with {0}")]
    Shape(String),
    #[error("the machine was saved on another CPU: {0}")]
    Host(String),
    #[error("the machine's memory")]
    Memory(#[from] ImageError),
    #[error("the machine's memory")]
    Map(#[from] MemoryError),
    #[error("memory that the machine was given while it ran")]
    Grown(#[from] HotplugMemoryError),
    #[error("the disk {name}")]
    Disk {
        name: String,
        #[source]
        source: SlotError,
    },
    #[error("the machine's devices")]
    Devices(#[from] SlotError),
    #[error("the machine's interrupt controllers or vCPUs")]
    Kvm(#[from] KvmError),
    #[error("the machine's vCPUs")]
    Registers(#[from] RegisterError),
    #[error("the vCPUs do not stop")]
    Vcpus,
    /// With what keeps the machine from being saved.
    #[error("{0}")]
    Busy(&'static str),
    #[error("a card of the machine that was saved is missing")]
    Cards,
    #[error("the guest has ended before it was ready: {0}")]
    Ended(String),
}

/// What a machine must have in common with the one that was saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    vcpus: (u8, u8),
    memory_mib: (u64, u64),
    /// Disks, and network cards that are there or may come.
    slots: (usize, usize),
    /// What a template's guest has booted. A checkpoint's guest is what it has become.
    booted: Option<Booted>,
}

/// What a guest has booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Booted {
    cmdline: String,
    kernel: Option<FileId>,
    initramfs: Option<FileId>,
}

impl Shape {
    /// Of a machine with this kernel and this initramfs.
    pub(super) fn of(config: &MachineConfig, [kernel, initramfs]: [&File; 2]) -> Self {
        Self {
            booted: Some(Booted {
                cmdline: config.cmdline.clone(),
                kernel: FileId::of(kernel),
                initramfs: FileId::of(initramfs),
            }),
            ..Self::of_any_guest(config)
        }
    }

    /// Of a machine whatever its guest is.
    pub(super) fn of_any_guest(config: &MachineConfig) -> Self {
        Self {
            vcpus: (config.boot_vcpus, config.max_vcpus),
            memory_mib: (config.memory_mib, config.max_memory_mib),
            slots: (config.spare_disks, config.nets.len() + config.spare_nets),
            booted: None,
        }
    }

    /// In what the shape of a machine that was saved differs from this one.
    fn difference(&self, saved: &Self) -> Option<String> {
        let Self {
            vcpus: (vcpus, max_vcpus),
            memory_mib: (memory, max_memory),
            slots: (disks, cards),
            booted,
        } = saved;
        let guest = match (&self.booted, booted) {
            (Some(own), Some(booted)) => own.difference(booted),
            (None, None) => None,
            (Some(_), None) => Some("a guest of a checkpoint".to_owned()),
            (None, Some(_)) => Some("a guest of a template".to_owned()),
        };
        Some(if let Some(guest) = guest {
            guest
        } else if self.vcpus != saved.vcpus {
            format!("{vcpus} of {max_vcpus} vCPUs")
        } else if self.memory_mib != saved.memory_mib {
            format!("{memory} of {max_memory} MiB of memory")
        } else if self.slots != saved.slots {
            format!("room for {disks} disks and {cards} network cards")
        } else {
            return None;
        })
    }
}

impl Booted {
    fn difference(&self, saved: &Self) -> Option<String> {
        Some(if self.kernel != saved.kernel {
            "another kernel".to_owned()
        } else if self.initramfs != saved.initramfs {
            "another initramfs".to_owned()
        } else if self.cmdline != saved.cmdline {
            format!("the kernel parameters {:?}", saved.cmdline)
        } else {
            return None;
        })
    }
}

/// A machine's memory, and KVM's half of it.
pub(super) struct Hardware {
    pub(super) memory: CurrentMemory,
    pub(super) vm: Vm,
    pub(super) hotplug: HotplugMemory,
    pub(super) sizes: Sizes,
    /// The device of memory that was plugged in before the machine was saved.
    pub(super) plugged: Option<Mem>,
}

impl Hardware {
    /// Of a machine that has, and that may have, so many MiB of memory.
    pub(super) fn of(memory: Arc<GuestMemory>, vm: Vm, (mib, max_mib): (u64, u64)) -> Self {
        Self {
            hotplug: HotplugMemory::new(mib, max_mib, vm.address_bits()),
            memory: CurrentMemory::new(memory),
            vm,
            sizes: Sizes::default(),
            plugged: None,
        }
    }

    /// Gives it the memory that a machine had that was saved.
    fn grow(&mut self, grown: &Grown) -> Result<(), SavedError> {
        let (vm, memory) = (&self.vm, &self.memory);
        self.hotplug.restore(&grown.slot_ends, vm, memory)?;
        self.plugged = Some(grown.device(&self.hotplug, &self.sizes));
        Ok(())
    }
}

/// The state of a machine whose vCPUs are stopped, without the contents of its memory.
#[derive(Serialize, Deserialize)]
pub(super) struct MachineState {
    pub(super) shape: Shape,
    /// The network cards by their slots.
    pub(super) cards: Vec<Option<Mac>>,
    pub(super) vm: VmState,
    pub(super) vcpus: Vec<SavedVcpu>,
    pub(super) slots: Vec<TransportState>,
    /// If memory has been plugged in.
    pub(super) grown: Option<Grown>,
    /// See [`image::write`].
    pub(super) blocks: Vec<u64>,
}

impl MachineState {
    /// Reads the state of a machine of this shape, and maps its memory.
    pub(super) fn open(
        (state, memory): (File, File),
        shape: &Shape,
        kvm: &OwnedFd,
    ) -> Result<(Self, Hardware), SavedError> {
        let mut contents = Vec::new();
        state
            .take(MAX_STATE)
            .read_to_end(&mut contents)
            .map_err(SavedError::File)?;
        let saved: Self = postcard::from_bytes(unsealed(&contents)?)?;
        if let Some(difference) = shape.difference(&saved.shape) {
            return Err(SavedError::Shape(difference));
        }
        let (boot, max) = shape.vcpus;
        let mut ids = (0..max).zip(&saved.vcpus);
        let count = saved.vcpus.len();
        let is_possible = (boot.into()..=max.into()).contains(&count);
        if !is_possible || !ids.all(|(id, vcpu)| id == vcpu.id) {
            return Err(SavedError::Damaged);
        }
        if saved.cards.len() != shape.slots.1 {
            return Err(SavedError::Damaged);
        }
        let kvm = kvm.try_clone().map_err(SavedError::File)?;
        let boot = memory::map(shape.memory_mib.0)?;
        let vm = Vm::new(kvm, Arc::clone(&boot))?;
        if let Some(difference) = vm.difference(&saved.vm, max) {
            return Err(SavedError::Host(difference));
        }
        let mut hardware = Hardware::of(boot, vm, shape.memory_mib);
        if let Some(grown) = &saved.grown {
            hardware.grow(grown)?;
        }
        image::map(&hardware.memory.get(), &memory, &saved.blocks)?;
        Ok((saved, hardware))
    }

    /// Gives a new machine of at most `max` vCPUs the state, and creates the vCPUs that are to go
    /// on from it.
    pub(super) fn restore(
        &self,
        (vm, bus): (&Vm, &Bus),
        max: u8,
        disks: &[PlacedDisk],
    ) -> Result<Vec<VcpuFd>, SavedError> {
        if self.slots.len() != bus.slots() {
            return Err(SavedError::Damaged);
        }
        let vcpus = self.restore_cpus(vm, max)?;
        bus.restore(&self.slots).map_err(|source| {
            match disks.iter().find(|disk| disk.slot == source.number()) {
                Some(disk) => SavedError::Disk {
                    name: disk.name.clone(),
                    source,
                },
                None => source.into(),
            }
        })?;
        Ok(vcpus)
    }

    /// The part of a restore that is KVM's.
    pub(super) fn restore_cpus(&self, vm: &Vm, max: u8) -> Result<Vec<VcpuFd>, SavedError> {
        // A template has no registers that are as in a new vCPU.
        let all_msrs = self.shape.booted.is_none();
        let vcpus = self.vcpus.iter();
        let vcpus = vcpus.map(|saved| vm.restore_vcpu(saved, max, all_msrs));
        let vcpus = vcpus.collect::<Result<_, _>>()?;
        vm.restore(&self.vm)?;
        Ok(vcpus)
    }
}

impl MachineState {
    /// Writes the state to an empty file.
    pub(super) fn write(&self, mut file: File) -> Result<(), SavedError> {
        let state = sealed(&postcard::to_stdvec(self)?);
        if state.len() as u64 > MAX_STATE {
            return Err(SavedError::TooLarge(state.len() >> 20));
        }
        file.write_all(&state).map_err(SavedError::File)
    }
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
fn unsealed(contents: &[u8]) -> Result<&[u8], SavedError> {
    let rest = contents.strip_prefix(MAGIC).ok_or(SavedError::Damaged)?;
    let line = rest.iter().position(|byte| *byte == b'\n');
    let (version, rest) = rest.split_at(line.ok_or(SavedError::Damaged)?);
    if version != env!("CARGO_PKG_VERSION").as_bytes() {
        let version = String::from_utf8_lossy(version).into_owned();
        return Err(SavedError::Version(version));
    }
    let (length, rest) = rest[1..].split_first_chunk().ok_or(SavedError::Damaged)?;
    let (checksum, state) = rest.split_first_chunk().ok_or(SavedError::Damaged)?;
    let is_whole = u64::from_le_bytes(*length) == state.len() as u64
        && u32::from_le_bytes(*checksum) == crc32fast::hash(state);
    is_whole.then_some(state).ok_or(SavedError::Damaged)
}

/// Reads bytes as a state file, and as the state in one, and restores what they hold where that
/// needs no KVM.
#[cfg(any(test, feature = "fuzzing"))]
pub fn read_any(contents: &[u8]) {
    let state = unsealed(contents).unwrap_or(contents);
    if let Ok(slot) = postcard::from_bytes(state) {
        hostile::restore(&slot);
    }
    if let Ok(machine) = postcard::from_bytes::<MachineState>(state) {
        machine.slots.iter().for_each(hostile::restore);
        if let Some(grown) = machine.grown {
            let hotplug = HotplugMemory::new(512, 4096, 40);
            let _ = hotplug.check(&grown.slot_ends);
            drop(grown.device(&hotplug, &Sizes::default()));
        }
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
    fn what_differs_from_the_saved_machine_is_named() {
        let file = tempfile::tempfile().unwrap();
        let shape = || Shape {
            vcpus: (1, 4),
            memory_mib: (512, 1024),
            slots: (0, 5),
            booted: Some(Booted {
                cmdline: "quiet".to_owned(),
                kernel: FileId::of(&file),
                initramfs: FileId::of(&file),
            }),
        };
        assert_eq!(shape().difference(&shape()), None);
        fn booted(shape: &mut Shape) -> &mut Booted {
            shape.booted.as_mut().unwrap()
        }
        let other = tempfile::tempfile().unwrap();
        for (change, word) in [
            (
                (|shape, _| shape.vcpus.0 = 2) as fn(&mut Shape, &File),
                "2 of 4 vCPUs",
            ),
            (|shape, _| shape.memory_mib.1 = 512, "512 of 512 MiB"),
            (|shape, _| shape.slots.0 = 3, "3 disks"),
            (|shape, _| shape.booted = None, "checkpoint"),
            (|shape, _| booted(shape).cmdline.clear(), "parameters \"\""),
            (
                |shape, other| booted(shape).kernel = FileId::of(other),
                "kernel",
            ),
            (
                |shape, other| booted(shape).initramfs = FileId::of(other),
                "initramfs",
            ),
        ] {
            let mut saved = shape();
            change(&mut saved, &other);
            let difference = shape().difference(&saved).unwrap();
            assert!(difference.contains(word), "{difference}");
        }
    }
}
