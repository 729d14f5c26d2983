//! What config.json's limits of a container are for the processes that run its machine. Pure.
//!
//! Inside the machine the guest's kernel enforces the limits as they are written. On the host the
//! machine as a whole is held to the same, plus what it takes to run a machine:
//!
//! | | on the host |
//! |---|---|
//! | memory.limit | [`overhead`] more |
//! | memory.swap | as far above the host's limit of memory as above config.json's |
//! | memory.reservation | as far below it |
//! | cpu, blockIO | as written: the machine's own work counts |
//! | pids.limit | [`THREADS`] more |

use oci_spec::runtime::{LinuxMemory, LinuxResources};

use crate::sizing;

/// Threads of the processes that run a machine and of its monitor: a vCPU each, and those of devices
/// and of QEMU's.
pub const THREADS: i64 = 512;

/// A value for an interface file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The field below `linux.resources` that asks for it.
    pub field: &'static str,
    /// The controller, which with version 1 says where the file is.
    pub controller: &'static str,
    /// Files and values, of which the first whose file exists is taken.
    pub choices: Vec<(String, String)>,
    /// Without such a file things are as they should be anyway.
    pub is_default: bool,
}

impl Setting {
    /// For one file.
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

    /// Likewise, or for another.
    pub fn or(mut self, file: &str, value: impl ToString) -> Self {
        self.choices.push((file.to_owned(), value.to_string()));
        self
    }

    /// No harm is done if the host has no such file.
    pub fn optional(mut self, is_default: bool) -> Self {
        self.is_default = is_default;
        self
    }
}

/// A limit that this host has nothing for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("config.json: linux.resources.{field} {reason}")]
pub struct LimitError {
    /// The field.
    pub field: String,
    /// Why not.
    pub reason: &'static str,
}

/// What a machine, or an engine's processes alone, take of the host beyond what the container may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overhead {
    /// Memory, in MiB. The host's limit is this much above the container's.
    pub memory_mib: u64,
    /// CPU time, in thousandths of a CPU: what to set aside for devices. The host's limits of CPU
    /// time leave it out, as the machine's own work counts in them.
    pub cpu_millis: u64,
}

/// The overhead of a container, or of a pod, that may use `container_mib` of memory, on an engine
/// whose processes take `engine` for a machine of any size.
///
/// The guest's kernel and agent are in it, see [`sizing::machine_mib`], and page tables on both sides of
/// the virtualization, a 512th of the guest's memory each. What the host caches of the container's
/// files is counted too, but gives way.
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

/// Limits of memory in bytes; -1 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// Of memory.
    pub limit: Option<i64>,
    /// Of memory and swap together.
    pub both: Option<i64>,
    /// What is kept for it where memory is short.
    pub reservation: Option<i64>,
}

impl HostMemory {
    /// Of swap alone, as version 2 limits it. Without a limit of memory none can be told from that of
    /// both together.
    pub fn swap(&self) -> Option<i64> {
        match (self.limit, self.both) {
            (_, Some(..0)) => Some(-1),
            (Some(limit @ 0..), Some(both)) => Some(both.saturating_sub(limit).max(0)),
            (Some(..0), None) => Some(-1),
            _ => None,
        }
    }
}

/// The limits of memory for the processes that run a container's machine.
pub fn memory(memory: &LinuxMemory, engine: Overhead) -> HostMemory {
    let set = |value: Option<i64>| value.filter(|bytes| *bytes != 0);
    let limit = set(memory.limit());
    let sized = limit.and_then(sizing::limit_mib).map(|mib| {
        let bytes = mib.saturating_add(overhead(engine, mib).memory_mib) << 20;
        i64::try_from(bytes).unwrap_or(i64::MAX)
    });
    // What is added to the limit is added to what is measured by it.
    let more = match (sized, limit) {
        (Some(sized), Some(limit)) => sized.saturating_sub(limit),
        _ => 0,
    };
    let shifted = |value: i64| match value {
        ..0 => -1,
        value => value.saturating_add(more),
    };
    HostMemory {
        limit: limit.map(|_| sized.unwrap_or(-1)),
        both: set(memory.swap()).map(shifted),
        reservation: set(memory.reservation()).map(shifted),
    }
}

/// Where the machine may run and take its memory; the files are the same in both versions.
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

/// The limit of processes and threads.
pub fn pids(resources: &LinuxResources) -> Option<i64> {
    let limit = resources.pids().as_ref()?.limit();
    match limit {
        0 => None,
        ..0 => Some(-1),
        limit => Some(limit.saturating_add(THREADS)),
    }
}

/// `-1` as version 2 writes it.
pub fn or_max(limit: i64) -> String {
    match limit {
        ..0 => "max".to_owned(),
        limit => limit.to_string(),
    }
}

/// A rate of blockIO as version 2 writes it, where 0 lifts the limit.
pub fn rate(rate: u64) -> String {
    match rate {
        0 => "max".to_owned(),
        rate => rate.to_string(),
    }
}

#[cfg(test)]
impl Setting {
    /// What is written first, as `file=value`.
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
        assert_eq!(host.both, Some(limit + 256 * MIB), "the same swap");
        assert_eq!(host.reservation, Some(limit - 128 * MIB));
    }

    #[test]
    fn no_limit_stays_none() {
        let none = HostMemory::default();
        assert_eq!(host(0, 0, 0), none);
        let lifted = host(-1, -1, 0);
        assert_eq!((lifted.limit, lifted.both), (Some(-1), Some(-1)));
        assert_eq!(host(i64::MAX & !4095, 0, 0).limit, Some(-1));
    }

    proptest::proptest! {
        #[test]
        fn the_hosts_limits_are_never_below_config_jsons(limit in 1_i64..1 << 40, swap: i64) {
            let host = host(limit, swap, limit);
            proptest::prop_assert!(host.limit.unwrap() >= limit);
            proptest::prop_assert!(swap <= 0 || host.both.unwrap() >= swap);
        }
    }
}
