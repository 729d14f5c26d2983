//! The host's limits for the processes that run a container's machine, from config.json. Pure.
//!
//! Inside the machine the guest's kernel enforces the limits as config.json has them. The host
//! enforces them on the machine as a whole, with the machine's overhead added:
//!
//! | | on the host |
//! |---|---|
//! | memory.limit | [`overhead`] more |
//! | memory.swap | the same distance above the host's memory limit as above config.json's |
//! | memory.reservation | the same distance below it |
//! | cpu, blockIO | as written: the machine's own work counts |
//! | pids.limit | at least [`THREADS`]: the container's processes are in the guest |

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use crate::sizing;

/// Room for the threads of the monitor and of the processes that run a machine: one per vCPU, the
/// devices' and QEMU's own.
pub const THREADS: i64 = 512;

/// A value for an interface file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The field below `linux.resources` that sets the limit.
    pub field: &'static str,
    /// The controller; version 1 has a directory per controller.
    pub controller: &'static str,
    /// Files and their values. The first file that exists is written.
    pub choices: Vec<(String, String)>,
    /// The value is the kernel's default, so a missing file is no error.
    pub is_default: bool,
}

impl Setting {
    pub fn new(
        field: &'static str,
        controller: &'static str,
        file: &str,
        value: impl ToString,
    ) -> Self {
        Self {
            field,
            controller,
            choices: vec![(file.to_owned(), value.to_string())],
            is_default: false,
        }
    }

    /// Adds a file to write where the earlier ones do not exist.
    pub fn or(mut self, file: &str, value: impl ToString) -> Self {
        self.choices.push((file.to_owned(), value.to_string()));
        self
    }

    pub fn optional(mut self, is_default: bool) -> Self {
        self.is_default = is_default;
        self
    }
}

/// A limit that this host's control groups cannot enforce.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("config.json: linux.resources.{field} {reason}")]
pub struct LimitError {
    pub(super) field: String,
    pub(super) reason: &'static str,
}

/// What a container's machine, or an engine's processes alone, use of the host beyond what the
/// container may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overhead {
    /// Memory in MiB. The host's limit is this much above the container's.
    pub memory_mib: u64,
    /// CPU time in thousandths of a CPU, for devices. The host's CPU limits do not include it: the
    /// machine's own work counts in them.
    pub cpu_millis: u64,
}

/// The overhead of a container or pod that may use `container_mib` of memory, on an engine whose
/// processes use `engine` for a machine of any size.
///
/// It includes the guest's kernel and agent, see [`sizing::machine_mib`], and page tables on both
/// sides of the virtualization, a 512th of the guest's memory each. The host's page cache of the
/// container's files counts too, but the kernel reclaims it.
pub fn overhead(engine: Overhead, container_mib: u64) -> Overhead {
    let machine_mib = sizing::machine_mib(container_mib);
    Overhead {
        memory_mib: machine_mib - container_mib + engine.memory_mib + machine_mib / 128,
        cpu_millis: engine.cpu_millis,
    }
}

/// An engine for tests.
#[cfg(test)]
pub const ENGINE: Overhead = Overhead {
    memory_mib: 48,
    cpu_millis: 100,
};

/// Memory limits in bytes; -1 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    pub limit: Option<i64>,
    /// Memory and swap together, as version 1 limits them.
    pub memsw: Option<i64>,
    pub reservation: Option<i64>,
}

impl HostMemory {
    /// The limit of swap alone, as version 2 has it. It cannot be computed without a memory limit.
    pub fn swap(&self) -> Option<i64> {
        match (self.limit, self.memsw) {
            (_, Some(..0)) => Some(-1),
            (Some(limit @ 0..), Some(memsw)) => Some(memsw.saturating_sub(limit).max(0)),
            (Some(..0), None) => Some(-1),
            _ => None,
        }
    }
}

/// The memory limits for the processes that run a container's machine.
pub fn memory(memory: &LinuxMemory, engine: Overhead) -> HostMemory {
    let set = |value: Option<i64>| value.filter(|bytes| *bytes != 0);
    let limit = set(memory.limit());
    let sized = limit.and_then(sizing::limit_mib).map(|mib| {
        let bytes = mib.saturating_add(overhead(engine, mib).memory_mib) << 20;
        i64::try_from(bytes).unwrap_or(i64::MAX)
    });
    // The overhead is added to the limits that are relative to memory.limit, too.
    let overhead = match (sized, limit) {
        (Some(sized), Some(limit)) => sized.saturating_sub(limit),
        _ => 0,
    };
    let shifted = |value: i64| match value {
        ..0 => -1,
        value => value.saturating_add(overhead),
    };
    HostMemory {
        limit: limit.map(|_| sized.unwrap_or(-1)),
        memsw: set(memory.swap()).map(shifted),
        reservation: set(memory.reservation()).map(shifted),
    }
}

/// The CPUs and memory nodes that the machine may use; the files are the same in both versions.
pub fn placement(resources: &LinuxResources) -> Vec<Setting> {
    let Some(cpu) = resources.cpu() else {
        return Vec::new();
    };
    [
        ("cpu.cpus", "cpuset.cpus", cpu.cpus()),
        ("cpu.mems", "cpuset.mems", cpu.mems()),
    ]
    .into_iter()
    .filter_map(|(field, file, list)| {
        let list = list.as_ref().filter(|list| !list.trim().is_empty())?;
        Some(Setting::new(field, "cpuset", file, list.trim()))
    })
    .collect()
}

/// The limit of processes and threads; -1 is no limit.
pub fn pids(resources: &LinuxResources) -> Option<i64> {
    let limit = resources.pids().as_ref()?.limit();
    match limit {
        0 => None,
        ..0 => Some(-1),
        limit => Some(limit.max(THREADS)),
    }
}

/// Writes -1 as `max`.
pub fn or_max(limit: i64) -> String {
    match limit {
        ..0 => "max".to_owned(),
        limit => limit.to_string(),
    }
}

/// CPU shares, unless they are 0 or the group is idle: the kernel refuses both at once.
pub fn shares(cpu: &LinuxCpu) -> Option<u64> {
    cpu.shares()
        .filter(|shares| *shares != 0 && cpu.idle() != Some(1))
}

/// A device number as interface files have it, `major:minor`.
pub fn device(major: i64, minor: i64) -> String {
    format!("{major}:{minor}")
}

/// A limit on the rate of one device's I/O.
pub struct Throttle<'a> {
    pub field: &'static str,
    pub v1_file: &'static str,
    /// The key in version 2's io.max.
    pub v2_key: &'static str,
    pub device: &'a LinuxThrottleDevice,
}

pub fn throttles(io: &LinuxBlockIo) -> Vec<Throttle<'_>> {
    let lists = [
        (
            "blockIO.throttleReadBpsDevice",
            "blkio.throttle.read_bps_device",
            "rbps",
            io.throttle_read_bps_device(),
        ),
        (
            "blockIO.throttleWriteBpsDevice",
            "blkio.throttle.write_bps_device",
            "wbps",
            io.throttle_write_bps_device(),
        ),
        (
            "blockIO.throttleReadIOPSDevice",
            "blkio.throttle.read_iops_device",
            "riops",
            io.throttle_read_iops_device(),
        ),
        (
            "blockIO.throttleWriteIOPSDevice",
            "blkio.throttle.write_iops_device",
            "wiops",
            io.throttle_write_iops_device(),
        ),
    ];
    lists
        .into_iter()
        .flat_map(|(field, v1_file, v2_key, devices)| {
            devices.iter().flatten().map(move |device| Throttle {
                field,
                v1_file,
                v2_key,
                device,
            })
        })
        .collect()
}

#[cfg(test)]
impl Setting {
    /// The first choice as `file=value`.
    pub fn first_choice(&self) -> String {
        let (file, value) = &self.choices[0];
        format!("{file}={value}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxMemoryBuilder;

    const MIB: i64 = 1 << 20;

    fn host(limit: i64, swap: i64, reservation: i64) -> HostMemory {
        let config = LinuxMemoryBuilder::default()
            .limit(limit)
            .swap(swap)
            .reservation(reservation)
            .build()
            .unwrap();
        memory(&config, ENGINE)
    }

    #[test]
    fn a_limit_leaves_room_for_the_machine() {
        let host = host(256 * MIB, 512 * MIB, 128 * MIB);
        let limit = (256 + overhead(ENGINE, 256).memory_mib as i64) * MIB;
        assert!(limit > sizing::machine_mib(256) as i64 * MIB);
        assert_eq!(host.limit, Some(limit));
        assert_eq!(host.memsw, Some(limit + 256 * MIB), "the same swap");
        assert_eq!(host.reservation, Some(limit - 128 * MIB));
    }

    #[test]
    fn no_limit_stays_none() {
        let none = HostMemory::default();
        assert_eq!(host(0, 0, 0), none);
        let lifted = host(-1, -1, 0);
        assert_eq!((lifted.limit, lifted.memsw), (Some(-1), Some(-1)));
        assert_eq!(host(i64::MAX & !4095, 0, 0).limit, Some(-1));
    }

    proptest::proptest! {
        #[test]
        fn the_hosts_limits_are_never_below_config_jsons(limit in 1_i64..1 << 40, swap: i64) {
            let host = host(limit, swap, limit);
            proptest::prop_assert!(host.limit.unwrap() >= limit);
            proptest::prop_assert!(swap <= 0 || host.memsw.unwrap() >= swap);
        }
    }
}
