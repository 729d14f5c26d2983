//! Limits in the files of control groups version 2; see admin-guide/cgroup-v2.rst of the kernel's
//! documentation. Pure. The formulas are runc's, so that tools of the host see the same numbers.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxResources, LinuxThrottleDevice};

use super::limits::{self, LimitError, Overhead, Setting};

/// The kernel's own period, in microseconds.
pub const CPU_PERIOD: u64 = 100_000;

/// Everything but where the machine may be placed.
pub fn settings(resources: &LinuxResources, engine: Overhead) -> Result<Vec<Setting>, LimitError> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.memory() {
        if memory.swappiness().is_some() {
            return Err(LimitError {
                field: "memory.swappiness".to_owned(),
                reason: "is nothing that the host's control groups, of version 2, can set",
            });
        }
        add_memory(&limits::memory(memory, engine), &mut settings);
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
    for (file, value) in resources.unified().iter().flatten() {
        if super::is_hosts(file) {
            let lines = value.lines().filter(|line| !line.is_empty());
            settings.extend(lines.map(|line| Setting::new("unified", "", file, line)));
        }
    }
    Ok(settings)
}

fn add_memory(host: &limits::HostMemory, settings: &mut Vec<Setting>) {
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
}

fn add_cpu(cpu: &LinuxCpu, settings: &mut Vec<Setting>) {
    let mut add = |field, file: &str, value: String, is_default: bool| {
        settings.push(Setting::new(field, "cpu", file, value).optional(is_default));
    };
    if let Some(idle) = cpu.idle() {
        add("cpu.idle", "cpu.idle", idle.to_string(), idle == 0);
    }
    if let Some(shares) = cpu
        .shares()
        .filter(|shares| *shares != 0 && cpu.idle() != Some(1))
    {
        add(
            "cpu.shares",
            "cpu.weight",
            weight(shares).to_string(),
            false,
        );
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
}

/// Version 1's 2 to 262144 on version 2's 1 to 10000.
pub fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn add_block_io(io: &LinuxBlockIo, settings: &mut Vec<Setting>) {
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
            let device = format!("{}:{}", device.major(), device.minor());
            add("blockIO.weightDevice", device, weight);
        }
    }
    let throttles: [(_, _, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        (
            "blockIO.throttleReadBpsDevice",
            "rbps",
            io.throttle_read_bps_device(),
        ),
        (
            "blockIO.throttleWriteBpsDevice",
            "wbps",
            io.throttle_write_bps_device(),
        ),
        (
            "blockIO.throttleReadIOPSDevice",
            "riops",
            io.throttle_read_iops_device(),
        ),
        (
            "blockIO.throttleWriteIOPSDevice",
            "wiops",
            io.throttle_write_iops_device(),
        ),
    ];
    for (field, key, devices) in throttles {
        for device in devices.iter().flatten() {
            let rate = limits::rate(device.rate());
            let line = format!("{}:{} {key}={rate}", device.major(), device.minor());
            settings.push(Setting::new(field, "io", "io.max", line));
        }
    }
}

/// blkio's 10 to 1000 on io.weight's 1 to 10000.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
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
        let error = settings(&resources, ENGINE).unwrap_err();
        assert!(error.to_string().contains("memory.swappiness"), "{error}");
    }
}
