//! Limits in the interface files of control groups version 1; see admin-guide/cgroup-v1 of the
//! kernel's documentation. Pure.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu};

use super::limits::{self, HostMemory, LimitError, Setting};

pub fn memory(host: &HostMemory, swappiness: Option<u64>) -> Vec<Setting> {
    let setting = |field, file, value| Setting::new(field, "memory", file, value);
    let mut settings = Vec::new();
    if let Some(limit) = host.limit {
        settings.push(setting("memory.limit", "memory.limit_in_bytes", limit));
    }
    if let Some(memsw) = host.memsw {
        // Absent where the host does not account for swap.
        let file = "memory.memsw.limit_in_bytes";
        settings.push(setting("memory.swap", file, memsw).optional(true));
    }
    if let Some(reservation) = host.reservation {
        let file = "memory.soft_limit_in_bytes";
        settings.push(setting("memory.reservation", file, reservation));
    }
    if let Some(swappiness) = swappiness {
        let (field, file) = ("memory.swappiness", "memory.swappiness");
        settings.push(Setting::new(field, "memory", file, swappiness));
    }
    settings
}

pub fn cpu(cpu: &LinuxCpu) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut add = |field, file: &str, value: String| {
        settings.push(Setting::new(field, "cpu", file, value));
    };
    if let Some(idle) = cpu.idle() {
        add("cpu.idle", "cpu.idle", idle.to_string());
    }
    if let Some(shares) = limits::shares(cpu) {
        add("cpu.shares", "cpu.shares", shares.to_string());
    }
    if let Some(period) = cpu.period().filter(|us| *us != 0) {
        add("cpu.period", "cpu.cfs_period_us", period.to_string());
    }
    if let Some(quota) = cpu.quota().filter(|us| *us != 0) {
        add("cpu.quota", "cpu.cfs_quota_us", quota.to_string());
    }
    if let Some(burst) = cpu.burst() {
        let setting = Setting::new("cpu.burst", "cpu", "cpu.cfs_burst_us", burst);
        settings.push(setting.optional(burst == 0));
    }
    settings
}

pub fn block_io(io: &LinuxBlockIo) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        settings.push(
            Setting::new("blockIO.weight", "blkio", "blkio.bfq.weight", weight)
                .or("blkio.weight", weight),
        );
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            let number = limits::device(device.major(), device.minor());
            let line = format!("{number} {weight}");
            let file = "blkio.bfq.weight_device";
            settings.push(
                Setting::new("blockIO.weightDevice", "blkio", file, &line)
                    .or("blkio.weight_device", &line),
            );
        }
    }
    for throttle in limits::throttles(io) {
        let device = throttle.device;
        let number = limits::device(device.major(), device.minor());
        let line = format!("{number} {}", device.rate());
        settings.push(Setting::new(
            throttle.field,
            "blkio",
            throttle.v1_file,
            line,
        ));
    }
    settings
}

/// Refuses a file of `unified` that only version 2 has.
pub fn no_unified(file: &str) -> LimitError {
    LimitError {
        field: format!("unified[{file:?}]"),
        reason: "is about the host, whose control groups are of version 1",
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::ENGINE;
    use super::*;
    use crate::cgroup::hierarchy::Version;
    use crate::cgroup::settings::settings;
    use serde_json::{Value, json};

    fn written(resources: Value) -> Vec<String> {
        let resources = serde_json::from_value(resources).unwrap();
        let settings = settings(Version::One, &resources, ENGINE).unwrap();
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
        let error = settings(Version::One, &resources, ENGINE).unwrap_err();
        assert!(error.to_string().contains("unified[\"io.max\"]"), "{error}");
    }
}
