//! The part of `linux.resources` that the guest enforces. Pure.
//!
//! The guest enforces memory, swap, processes, CPU time, huge pages, devices, and the limits of I/O
//! on its disks. CPUs and memory nodes, other block I/O and swappiness are the host's alone. The
//! host enforces the limits on the machine as well; see [`crate::cgroup`].

use oci_spec::runtime::LinuxResources;

use crate::cgroup::is_host_file;

/// The limits of I/O by device, which the guest has for its disks.
const IO_MAX: &str = "io.max";

/// Removes the limits that only the host enforces.
pub fn for_guest(resources: &mut LinuxResources) {
    if let Some(cpu) = resources.cpu_mut() {
        // The machine has as many vCPUs as these CPUs, and its cgroup keeps it on them.
        cpu.set_cpus(None);
        cpu.set_mems(None);
    }
    if let Some(memory) = resources.memory_mut() {
        memory.set_swappiness(None);
        let kernel = memory.kernel().or(memory.kernel_tcp());
        if kernel.is_some_and(|bytes| bytes > 0) {
            tracing::warn!("linux.resources.memory.kernel and kernelTCP are ignored, as by runc");
        }
        memory.set_kernel(None);
        memory.set_kernel_tcp(None);
    }
    // The host does the I/O of the guest's files. The agent knows which throttled devices are disks
    // of the container.
    if let Some(io) = resources.block_io_mut() {
        io.set_weight(None);
        io.set_leaf_weight(None);
        io.set_weight_device(None);
    }
    resources.set_network(None);
    resources.set_rdma(None);
    if let Some(unified) = resources.unified_mut() {
        unified.retain(|file, _| !is_host_file(file) || file == IO_MAX);
    }
}

/// Warns if the limits leave room for swap: the guest has none.
pub fn warn_about_swap(resources: &LinuxResources) {
    if allows_swap(resources) {
        tracing::warn!(
            "linux.resources.memory.swap is above memory.limit, but a guest has no swap: the \
             container gets no more than memory.limit"
        );
    }
}

/// Whether memory is limited, and memory and swap together less so.
fn allows_swap(resources: &LinuxResources) -> bool {
    let Some(memory) = resources.memory() else {
        return false;
    };
    match (memory.limit(), memory.swap()) {
        (Some(limit @ 1..), Some(swap)) => swap < 0 || swap > limit,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn swap_is_room_beyond_a_limit_of_memory() {
        let allows = |memory| {
            let resources = json!({ "memory": memory });
            allows_swap(&serde_json::from_value(resources).unwrap())
        };
        assert!(allows(json!({ "limit": 64, "swap": 65 })));
        assert!(allows(json!({ "limit": 64, "swap": -1 })));
        assert!(!allows(json!({ "limit": 64, "swap": 64 })));
        assert!(!allows(json!({ "limit": 64, "swap": 0 })));
        assert!(!allows(json!({ "limit": 64 })));
        assert!(!allows(json!({ "limit": -1, "swap": -1 })));
        assert!(!allows_swap(&LinuxResources::default()));
    }

    #[test]
    fn only_the_hosts_limits_are_removed() {
        let mut resources: LinuxResources = serde_json::from_value(json!({
            "cpu": { "cpus": "2-3", "mems": "0", "quota": 1000 },
            "memory": { "limit": 1, "swappiness": 10, "kernel": 5 },
            "blockIO": {
                "weight": 100, "weightDevice": [{ "major": 8, "minor": 0, "weight": 10 }],
                "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 9 }],
            },
            "network": { "classID": 0 },
            "pids": { "limit": 7 },
            "unified": { "memory.high": "1", "io.max": "8:0 rbps=1", "io.weight": "10",
                "cpuset.cpus": "1" },
        }))
        .unwrap();
        for_guest(&mut resources);
        let left = serde_json::to_value(&resources).unwrap();
        assert_eq!(
            left,
            json!({
                "cpu": { "quota": 1000 }, "memory": { "limit": 1 }, "pids": { "limit": 7 },
                "blockIO": {
                    "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 9 }],
                },
                "unified": { "memory.high": "1", "io.max": "8:0 rbps=1" },
            })
        );
    }
}
