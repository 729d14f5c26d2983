//! Limits in the files of control groups version 1; see admin-guide/cgroup-v1 of the kernel's
//! documentation. Pure.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxResources, LinuxThrottleDevice};

use super::limits::{self, LimitError, Overhead, Setting};

/// Everything but where the machine may be placed.
pub fn settings(resources: &LinuxResources, engine: Overhead) -> Result<Vec<Setting>, LimitError> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.memory() {
        let host = limits::memory(memory, engine);
        let file = |name: &str| format!("memory.{name}");
        if let Some(limit) = host.limit {
            let file = file("limit_in_bytes");
            settings.push(Setting::new("memory.limit", "memory", &file, limit));
        }
        if let Some(both) = host.both {
            // Absent where the host does not account for swap.
            let file = file("memsw.limit_in_bytes");
            settings.push(Setting::new("memory.swap", "memory", &file, both).optional(true));
        }
        if let Some(reservation) = host.reservation {
            let file = file("soft_limit_in_bytes");
            settings.push(Setting::new(
                "memory.reservation",
                "memory",
                &file,
                reservation,
            ));
        }
        if let Some(swappiness) = memory.swappiness() {
            let file = file("swappiness");
            settings.push(Setting::new(
                "memory.swappiness",
                "memory",
                &file,
                swappiness,
            ));
        }
    }
    if let Some(cpu) = resources.cpu() {
        add_cpu(cpu, &mut settings);
    }
    if let Some(limit) = limits::pids(resources) {
        settings.push(Setting::new(
            "pids.limit",
            "pids",
            "pids.max",
            limits::or_max(limit),
        ));
    }
    if let Some(io) = resources.block_io() {
        add_block_io(io, &mut settings);
    }
    for file in resources.unified().iter().flatten().map(|(file, _)| file) {
        if super::is_hosts(file) {
            return Err(LimitError {
                field: format!("unified[{file:?}]"),
                reason: "is about the host, whose control groups are of version 1",
            });
        }
    }
    Ok(settings)
}

fn add_cpu(cpu: &LinuxCpu, settings: &mut Vec<Setting>) {
    let mut add = |field, file: &str, value: String| {
        settings.push(Setting::new(field, "cpu", file, value));
    };
    if let Some(idle) = cpu.idle() {
        add("cpu.idle", "cpu.idle", idle.to_string());
    }
    // The kernel refuses shares while idle is 1.
    if let Some(shares) = cpu
        .shares()
        .filter(|shares| *shares != 0 && cpu.idle() != Some(1))
    {
        add("cpu.shares", "cpu.shares", shares.to_string());
    }
    if let Some(period) = cpu.period().filter(|us| *us != 0) {
        add("cpu.period", "cpu.cfs_period_us", period.to_string());
    }
    if let Some(quota) = cpu.quota().filter(|us| *us != 0) {
        add("cpu.quota", "cpu.cfs_quota_us", quota.to_string());
    }
    if let Some(burst) = cpu.burst() {
        settings
            .push(Setting::new("cpu.burst", "cpu", "cpu.cfs_burst_us", burst).optional(burst == 0));
    }
}

fn add_block_io(io: &LinuxBlockIo, settings: &mut Vec<Setting>) {
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        settings.push(
            Setting::new("blockIO.weight", "blkio", "blkio.bfq.weight", weight)
                .or("blkio.weight", weight),
        );
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            let line = format!("{}:{} {weight}", device.major(), device.minor());
            let file = "blkio.bfq.weight_device";
            settings.push(
                Setting::new("blockIO.weightDevice", "blkio", file, &line)
                    .or("blkio.weight_device", &line),
            );
        }
    }
    let throttles: [(_, _, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        (
            "blockIO.throttleReadBpsDevice",
            "blkio.throttle.read_bps_device",
            io.throttle_read_bps_device(),
        ),
        (
            "blockIO.throttleWriteBpsDevice",
            "blkio.throttle.write_bps_device",
            io.throttle_write_bps_device(),
        ),
        (
            "blockIO.throttleReadIOPSDevice",
            "blkio.throttle.read_iops_device",
            io.throttle_read_iops_device(),
        ),
        (
            "blockIO.throttleWriteIOPSDevice",
            "blkio.throttle.write_iops_device",
            io.throttle_write_iops_device(),
        ),
    ];
    for (field, file, devices) in throttles {
        for device in devices.iter().flatten() {
            let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            settings.push(Setting::new(field, "blkio", file, line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::ENGINE;
    use super::*;
    use serde_json::{Value, json};

    fn written(resources: Value) -> Vec<String> {
        let resources = serde_json::from_value(resources).unwrap();
        let settings = settings(&resources, ENGINE).unwrap();
        settings.iter().map(Setting::first_choice).collect()
    }

    #[test]
    fn values_are_written_as_config_json_has_them() {
        let cpu = json!({ "cpu": { "shares": 512, "quota": -1, "period": 50000, "burst": 1000 } });
        assert_eq!(
            written(cpu),
            [
                "cpu.shares=512",
                "cpu.cfs_period_us=50000",
                "cpu.cfs_quota_us=-1",
                "cpu.cfs_burst_us=1000"
            ]
        );
        let io = json!({ "blockIO": {
            "weight": 300,
            "weightDevice": [{ "major": 8, "minor": 0, "weight": 500 }],
            "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 1000 }],
            "throttleWriteIOPSDevice": [{ "major": 8, "minor": 16, "rate": 0 }],
        } });
        assert_eq!(
            written(io),
            [
                "blkio.bfq.weight=300",
                "blkio.bfq.weight_device=8:0 500",
                "blkio.throttle.read_bps_device=8:0 1000",
                "blkio.throttle.write_iops_device=8:16 0",
            ]
        );
    }

    #[test]
    fn shares_and_idle_exclude_each_other() {
        let cpu = json!({ "cpu": { "shares": 512, "idle": 1 } });
        assert_eq!(written(cpu), ["cpu.idle=1"]);
    }

    #[test]
    fn a_file_of_the_hosts_version_two_is_refused_by_name() {
        let resources = json!({ "unified": { "io.max": "8:0 rbps=1", "memory.high": "1" } });
        let resources = serde_json::from_value(resources).unwrap();
        let error = settings(&resources, ENGINE).unwrap_err();
        assert!(error.to_string().contains("unified[\"io.max\"]"), "{error}");
    }
}
