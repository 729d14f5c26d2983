//! The size of a sandbox's machine, from the container's limits. Pure: the host's size and the
//! configuration are arguments.
//!
//! The machine is as large as the container's limits, so that /proc in the container shows its own
//! limits and not the host's size.

pub mod pod_limits;
mod running;

use oci_spec::runtime::{LinuxResources, Spec};
use rvm_sys::cpu_list::CpuList;
use serde::{Deserialize, Serialize};

pub use running::{Change, Running};

use crate::config::Config;
use crate::config::EngineKind;

/// The guest's own memory in MiB, on top of its containers': the kernel's image, the agent, buffers
/// of devices, and a reserve. A container must reach its own limit before the guest is out of
/// memory.
const GUEST_OVERHEAD_MIB: u64 = 56;

/// One part in this many of the containers' memory is overhead as well: half of it for page
/// structures, the rest for tables that grow with the memory and for the kernel's free-page
/// reserve.
const GUEST_OVERHEAD_DIVISOR: u64 = 32;

/// The least memory that a guest boots with, in MiB.
const MIN_MEMORY_MIB: u64 = 96;

/// The most memory of a machine in MiB, as in rvm-vmm.
const MAX_MEMORY_MIB: u64 = 1 << 20;

/// The most vCPUs of a machine: APIC ids have 8 bits.
const MAX_VCPUS: u64 = 253;

/// The size of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Size {
    pub vcpus: u8,
    pub memory_mib: u64,
}

/// The machine that the configuration asks for itself (`vm.hwConfig`), whatever the limits are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hardware {
    vcpus: Option<u8>,
    memory_mib: Option<u64>,
}

impl Hardware {
    /// Fails with the member that no machine can have, and the reason. 0 asks for nothing; memory
    /// is in bytes.
    pub fn new(vcpus: u32, memory: u64) -> Result<Self, (&'static str, String)> {
        let is_possible = u64::from(vcpus) <= MAX_VCPUS;
        let vcpus = u8::try_from(vcpus).ok().filter(|_| is_possible);
        let reason = || format!("is more than a machine can have ({MAX_VCPUS})");
        let vcpus = vcpus.ok_or_else(|| ("vcpus", reason()))?;
        let mib = memory >> 20;
        if memory > 0 && !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&mib) {
            let reason = format!(
                "of {mib} MiB is no size of a machine, which has {MIN_MEMORY_MIB} to \
                 {MAX_MEMORY_MIB} MiB"
            );
            return Err(("memory", reason));
        }
        Ok(Self {
            vcpus: Some(vcpus).filter(|vcpus| *vcpus > 0),
            memory_mib: Some(mib).filter(|mib| *mib > 0),
        })
    }
}

/// The host's CPUs, and the defaults for a container without limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// CPUs that this process may run on.
    pub host_cpus: u64,
    pub default_vcpus: u64,
    pub default_memory_mib: u64,
    /// The most vCPUs that a running machine can be resized to, unless it starts with more.
    pub max_vcpus: u64,
}

impl Bounds {
    /// Reads the host's CPUs and the configuration. A process that enters a container's control
    /// groups asks before it does: they may allow it fewer CPUs, which is the container's limit of
    /// today and no bound of the machine.
    pub fn of(config: &Config) -> Self {
        Self {
            host_cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
            default_vcpus: config.vcpus,
            default_memory_mib: config.memory_mib,
            max_vcpus: config.max_vcpus,
        }
    }
}

/// No machine can have the size of a limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    #[error("config.json: linux.resources.cpu.cpus is no list of CPUs: {0:?}")]
    Cpuset(String),
    #[error("config.json: annotations[{0:?}] is no number: {1:?}")]
    Annotation(&'static str, String),
    #[error("config.json: annotations[{0:?}] does not hold the limits of a pod: {1:?}")]
    Resources(&'static str, String),
    #[error(
        "config.json: linux.resources.memory.limit of {0} MiB is more than a machine can have \
         ({MAX_MEMORY_MIB} MiB)"
    )]
    Memory(u64),
    #[error(
        "linux.resources.cpu asks for {wanted} vCPUs, and the sandbox was started with room for \
         {max}; max_vcpus in rvm's configuration gives those that are started later more room"
    )]
    NoRoomForVcpus { wanted: u8, max: u8 },
    #[error(
        "linux.resources.memory.limit asks for a machine of {wanted} MiB, and this one on the \
         {engine} engine can have at most {max} MiB; a container that is started with the limit \
         gets it"
    )]
    NoRoomForMemory {
        engine: EngineKind,
        wanted: u64,
        max: u64,
    },
}

impl Size {
    /// Whether a machine can have it.
    pub(crate) fn is_possible(&self) -> bool {
        (1..=MAX_VCPUS).contains(&u64::from(self.vcpus))
            && (1..=MAX_MEMORY_MIB).contains(&self.memory_mib)
    }

    /// The largest size that a machine of this size can be resized to: the configuration's maximum
    /// of vCPUs, and `memory_mib`.
    pub fn with_room(self, bounds: &Bounds, memory_mib: u64) -> Self {
        self.at_least(Self {
            vcpus: bounded(bounds.max_vcpus, bounds),
            memory_mib: memory_mib.min(MAX_MEMORY_MIB),
        })
    }

    fn at_least(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.max(other.vcpus),
            memory_mib: self.memory_mib.max(other.memory_mib),
        }
    }

    /// The size of the sandbox for a bundle: that of `hardware`, or else of a pod if annotations
    /// have the pod's limits, or of the container's limits.
    pub fn for_bundle(spec: &Spec, hardware: Hardware, bounds: &Bounds) -> Result<Self, SizeError> {
        let linux = spec.linux().as_ref();
        let own = linux.and_then(|linux| linux.resources().as_ref());
        let pods = spec
            .annotations()
            .as_ref()
            .map_or(Ok(None), pod_limits::annotated)?;
        let size = Self::of(pods.as_ref().or(own), bounds)?;
        Ok(size.or_as(hardware))
    }

    /// This size, but for what `hardware` asks for.
    fn or_as(self, hardware: Hardware) -> Self {
        Self {
            vcpus: hardware.vcpus.unwrap_or(self.vcpus),
            memory_mib: hardware.memory_mib.unwrap_or(self.memory_mib),
        }
    }

    /// The size for a container with these limits.
    pub fn of(resources: Option<&LinuxResources>, bounds: &Bounds) -> Result<Self, SizeError> {
        let vcpus = vcpu_limit(resources)?.unwrap_or(bounds.default_vcpus);
        let container_mib = memory_limit(resources)?.unwrap_or(bounds.default_memory_mib);
        check_memory(container_mib)?;
        Ok(Self {
            vcpus: bounded(vcpus, bounds),
            memory_mib: machine_mib(container_mib),
        })
    }
}

/// The memory limit in MiB, if there is one.
fn memory_limit(resources: Option<&LinuxResources>) -> Result<Option<u64>, SizeError> {
    let limit = resources
        .and_then(|resources| resources.memory().as_ref())
        .and_then(|memory| memory.limit())
        .and_then(limit_mib);
    limit.map_or(Ok(()), check_memory)?;
    Ok(limit)
}

fn check_memory(container_mib: u64) -> Result<(), SizeError> {
    match container_mib > MAX_MEMORY_MIB - MAX_MEMORY_MIB / 32 {
        true => Err(SizeError::Memory(container_mib)),
        false => Ok(()),
    }
}

/// Converts a memory limit to MiB, rounded up. None if the number means "no limit".
pub fn limit_mib(bytes: i64) -> Option<u64> {
    // Some engines write "no limit" as the largest number of whole pages.
    u64::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes > 0)
        .map(|bytes| bytes.div_ceil(1 << 20))
        .filter(|mib| *mib < 1 << 40)
}

/// The memory in MiB of a machine whose containers may use `container_mib`.
pub fn machine_mib(container_mib: u64) -> u64 {
    let memory_mib =
        container_mib + container_mib.div_ceil(GUEST_OVERHEAD_DIVISOR) + GUEST_OVERHEAD_MIB;
    memory_mib.max(MIN_MEMORY_MIB)
}

/// The vCPUs for the CPU quota and cpuset, if there are any.
fn vcpu_limit(resources: Option<&LinuxResources>) -> Result<Option<u64>, SizeError> {
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    let by_quota = cpu.and_then(|cpu| {
        let quota = u64::try_from(cpu.quota()?)
            .ok()
            .filter(|quota| *quota > 0)?;
        // The kernel's default period, in microseconds.
        let period = cpu.period().filter(|period| *period > 0).unwrap_or(100_000);
        Some(quota.div_ceil(period))
    });
    let by_cpuset = match cpu.and_then(|cpu| cpu.cpus().as_deref()).map(str::trim) {
        None | Some("") => None,
        Some(list) => Some(count_cpus(list).ok_or_else(|| SizeError::Cpuset(list.to_owned()))?),
    };
    Ok(match (by_quota, by_cpuset) {
        (Some(quota), Some(cpuset)) => Some(quota.min(cpuset)),
        (one, other) => one.or(other),
    })
}

/// No more vCPUs than the host has CPUs.
fn bounded(vcpus: u64, bounds: &Bounds) -> u8 {
    let count = vcpus.min(bounds.host_cpus).clamp(1, MAX_VCPUS);
    u8::try_from(count).unwrap_or(u8::MAX)
}

/// The number of CPUs in a list such as `0-2,7`.
fn count_cpus(list: &str) -> Option<u64> {
    CpuList::parse(list)?.count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResourcesBuilder};

    pub(super) const BOUNDS: Bounds = Bounds {
        host_cpus: 8,
        default_vcpus: 2,
        default_memory_mib: 512,
        max_vcpus: 4,
    };

    #[test]
    fn the_machine_that_is_asked_for_goes_before_the_limits() {
        let limits = Size::of(None, &BOUNDS).unwrap();
        let size = |vcpus, memory| limits.or_as(Hardware::new(vcpus, memory).unwrap());
        assert_eq!(size(0, 0), limits);
        let asked = size(7, (300 << 20) + 1);
        assert_eq!((asked.vcpus, asked.memory_mib), (7, 300));
        assert_eq!(size(7, 0).memory_mib, limits.memory_mib);
        assert_eq!(Hardware::new(254, 0).unwrap_err().0, "vcpus");
        assert_eq!(Hardware::new(u32::MAX, 0).unwrap_err().0, "vcpus");
        for memory in [1, 95 << 20, u64::MAX] {
            assert_eq!(Hardware::new(1, memory).unwrap_err().0, "memory");
        }
    }

    pub(super) fn cpu(quota: Option<i64>, period: Option<u64>, cpus: &str) -> LinuxResources {
        let mut cpu = LinuxCpuBuilder::default().cpus(cpus);
        if let Some(quota) = quota {
            cpu = cpu.quota(quota);
        }
        if let Some(period) = period {
            cpu = cpu.period(period);
        }
        LinuxResourcesBuilder::default()
            .cpu(cpu.build().unwrap())
            .build()
            .unwrap()
    }

    pub(super) fn memory(limit: i64) -> LinuxResources {
        let memory = LinuxMemoryBuilder::default().limit(limit).build().unwrap();
        LinuxResourcesBuilder::default()
            .memory(memory)
            .build()
            .unwrap()
    }

    fn vcpus_of(resources: LinuxResources) -> u8 {
        Size::of(Some(&resources), &BOUNDS).unwrap().vcpus
    }

    #[test]
    fn without_limits_the_defaults_hold() {
        let size = Size::of(None, &BOUNDS).unwrap();
        assert_eq!(
            size,
            Size {
                vcpus: 2,
                memory_mib: 512 + 16 + GUEST_OVERHEAD_MIB
            }
        );
    }

    #[test]
    fn part_of_a_cpu_counts_as_one() {
        assert_eq!(vcpus_of(cpu(Some(150_000), Some(100_000), "")), 2);
        assert_eq!(vcpus_of(cpu(Some(10_000), None, "")), 1);
        assert_eq!(vcpus_of(cpu(Some(-1), None, "")), 2, "no limit");
    }

    #[test]
    fn the_smaller_of_quota_and_cpuset_counts() {
        assert_eq!(vcpus_of(cpu(Some(400_000), Some(100_000), "0-2,5")), 4);
        assert_eq!(vcpus_of(cpu(Some(400_000), Some(100_000), "3")), 1);
    }

    #[test]
    fn there_are_never_more_vcpus_than_the_host_has() {
        assert_eq!(vcpus_of(cpu(Some(6_400_000), Some(100_000), "")), 8);
        assert_eq!(vcpus_of(cpu(None, None, "0-63")), 8);
    }

    #[test]
    fn a_malformed_cpuset_is_refused() {
        for list in ["a", "3-1", "1,,2", "-", "0-18446744073709551615"] {
            let error = Size::of(Some(&cpu(None, None, list)), &BOUNDS).unwrap_err();
            assert_eq!(error, SizeError::Cpuset(list.to_owned()));
        }
    }

    #[test]
    fn memory_is_the_limit_and_what_the_guest_needs() {
        let size = Size::of(Some(&memory(256 << 20)), &BOUNDS).unwrap();
        assert_eq!(size.memory_mib, 256 + 8 + GUEST_OVERHEAD_MIB);
        let odd = Size::of(Some(&memory((256 << 20) + 1)), &BOUNDS).unwrap();
        assert!(odd.memory_mib > size.memory_mib);
    }

    #[test]
    fn no_limit_has_many_spellings() {
        for limit in [-1, 0, i64::MAX, i64::MAX & !4095] {
            let size = Size::of(Some(&memory(limit)), &BOUNDS).unwrap();
            assert_eq!(size, Size::of(None, &BOUNDS).unwrap(), "{limit}");
        }
    }

    #[test]
    fn an_impossible_limit_is_refused() {
        let error = Size::of(Some(&memory(2 << 40)), &BOUNDS).unwrap_err();
        assert_eq!(error, SizeError::Memory(2 << 20));
    }

    proptest::proptest! {
        #[test]
        fn every_size_is_one_that_a_machine_can_have(
            quota: i64, period: u64, limit: i64, host_cpus in 1_u64..1000,
        ) {
            let bounds = Bounds { host_cpus, ..BOUNDS };
            let resources = LinuxResourcesBuilder::default()
                .cpu(LinuxCpuBuilder::default().quota(quota).period(period).build().unwrap())
                .memory(LinuxMemoryBuilder::default().limit(limit).build().unwrap())
                .build()
                .unwrap();
            if let Ok(size) = Size::of(Some(&resources), &bounds) {
                proptest::prop_assert!(size.vcpus >= 1 && u64::from(size.vcpus) <= host_cpus);
                proptest::prop_assert!((MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&size.memory_mib));
            }
        }
    }
}
