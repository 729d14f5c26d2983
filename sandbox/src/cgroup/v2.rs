//! Limits in the interface files of control groups version 2; see admin-guide/cgroup-v2.rst of the
//! kernel's documentation. Pure. The formulas are runc's, so that tools of the host see the same
//! numbers.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu};

use super::limits::{self, HostMemory, LimitError, Setting};

/// The kernel's default period in microseconds.
pub const CPU_PERIOD: u64 = 100_000;

pub fn memory(host: &HostMemory, swappiness: Option<u64>) -> Result<Vec<Setting>, LimitError> {
    if swappiness.is_some() {
        return Err(LimitError {
            field: "memory.swappiness".to_owned(),
            reason: "is nothing that the host's control groups, of version 2, can set",
        });
    }
    let mut settings = Vec::new();
    let mut add = |field, file: &str, limit: i64, is_default: bool| {
        let setting = Setting::new(field, "memory", file, limits::or_max(limit));
        settings.push(setting.optional(is_default));
    };
    if let Some(swap) = host.swap() {
        // A kernel without swap has no such file, and no swap to limit.
        add("memory.swap", "memory.swap.max", swap, true);
    }
    if let Some(limit) = host.limit {
        add("memory.limit", "memory.max", limit, limit < 0);
    }
    if let Some(reservation) = host.reservation {
        add("memory.reservation", "memory.low", reservation, false);
    }
    Ok(settings)
}

pub fn cpu(cpu: &LinuxCpu) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut add = |field, file: &str, value: String, is_default: bool| {
        settings.push(Setting::new(field, "cpu", file, value).optional(is_default));
    };
    if let Some(idle) = cpu.idle() {
        add("cpu.idle", "cpu.idle", idle.to_string(), idle == 0);
    }
    if let Some(shares) = limits::shares(cpu) {
        let weight = weight(shares).to_string();
        add("cpu.shares", "cpu.weight", weight, false);
    }
    let quota = cpu.quota().filter(|us| *us != 0);
    let period = cpu.period().filter(|us| *us != 0);
    if quota.is_some() || period.is_some() {
        let limit = limits::or_max(quota.unwrap_or(-1));
        let is_default = limit == "max";
        let value = format!("{limit} {}", period.unwrap_or(CPU_PERIOD));
        add("cpu.quota", "cpu.max", value, is_default);
    }
    if let Some(burst) = cpu.burst() {
        add("cpu.burst", "cpu.max.burst", burst.to_string(), burst == 0);
    }
    settings
}

/// Maps version 1's shares, 2 to 262144, to version 2's weights, 1 to 10000.
pub fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

pub fn block_io(io: &LinuxBlockIo) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut add = |field, prefix: String, weight: u16| {
        settings.push(
            Setting::new(field, "io", "io.bfq.weight", format!("{prefix} {weight}"))
                .or("io.weight", format!("{prefix} {}", io_weight(weight))),
        );
    };
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        add("blockIO.weight", "default".to_owned(), weight);
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            let number = limits::device(device.major(), device.minor());
            add("blockIO.weightDevice", number, weight);
        }
    }
    for throttle in limits::throttles(io) {
        let (device, key) = (throttle.device, throttle.v2_key);
        let rate = match device.rate() {
            // 0 lifts the limit.
            0 => "max".to_owned(),
            rate => rate.to_string(),
        };
        let number = limits::device(device.major(), device.minor());
        let line = format!("{number} {key}={rate}");
        settings.push(Setting::new(throttle.field, "io", "io.max", line));
    }
    settings
}

/// A file of `unified`, a line at a time: the kernel takes one device per write.
pub fn unified(file: &str, value: &str) -> Vec<Setting> {
    let lines = value.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| Setting::new("unified", "", file, line))
        .collect()
}

/// Maps blkio's weights, 10 to 1000, to io.weight's, 1 to 10000.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
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
        let settings = settings(Version::Two, &resources, ENGINE).unwrap();
        settings.iter().map(Setting::first_choice).collect()
    }

    #[test]
    fn the_numbers_are_runcs() {
        let cpu = json!({ "cpu": { "shares": 1024, "quota": 25000, "burst": 1000 } });
        assert_eq!(
            written(cpu),
            [
                "cpu.weight=39",
                "cpu.max=25000 100000",
                "cpu.max.burst=1000"
            ]
        );
        assert_eq!((weight(2), weight(262_144)), (1, 10_000));
        let io = json!({ "blockIO": {
            "weight": 500,
            "throttleWriteBpsDevice": [{ "major": 8, "minor": 0, "rate": 0 }],
        } });
        assert_eq!(
            written(io),
            ["io.bfq.weight=default 500", "io.max=8:0 wbps=max"]
        );
        assert_eq!((io_weight(10), io_weight(1000)), (1, 10_000));
    }

    #[test]
    fn swap_is_what_is_left_beside_memory() {
        let memory = json!({ "memory": { "limit": 100 << 20, "swap": 300 << 20 } });
        let swap = format!("memory.swap.max={}", 200 << 20);
        assert_eq!(written(memory)[0], swap);
        let memory = json!({ "memory": { "limit": -1 } });
        assert_eq!(written(memory), ["memory.swap.max=max", "memory.max=max"]);
    }

    #[test]
    fn only_what_is_about_the_host_is_taken_from_unified() {
        let unified = json!({ "unified": {
            "io.max": "8:0 rbps=1\n8:16 rbps=2\n", "memory.high": "1", "hugetlb.2MB.max": "0",
        } });
        assert_eq!(
            written(unified),
            ["io.max=8:0 rbps=1", "io.max=8:16 rbps=2"]
        );
    }

    #[test]
    fn swappiness_is_refused_by_name() {
        let resources = serde_json::from_value(json!({ "memory": { "swappiness": 0 } })).unwrap();
        let error = settings(Version::Two, &resources, ENGINE).unwrap_err();
        assert!(error.to_string().contains("memory.swappiness"), "{error}");
    }
}
