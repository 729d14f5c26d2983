//! Translates `linux.resources`, which is in terms of cgroup v1, to settings of cgroup v2.
//!
//! The formulas are runc's (libcontainer/cgroups/utils.go), so that a container sees the same
//! numbers in its cgroup.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources, LinuxThrottleDevice,
};

/// A value for an interface file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Alternatives; the first file that exists is written.
    pub files: &'static [&'static str],
    pub value: String,
    /// Whether the kernel behaves so by default, so that a missing file does no harm.
    pub is_default: bool,
}

/// Why the guest cannot set a limit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// cgroup v2 has no such limit.
    #[error("config.json: linux.resources.{0} is not supported in the guest")]
    Unsupported(&'static str),
    /// The fields contradict each other or are out of range.
    #[error("config.json: linux.resources.{0}")]
    Invalid(String),
}

const CPU_PERIOD: u64 = 100_000;

/// Translates all but devices and `unified`.
pub fn to_settings(resources: &LinuxResources) -> Result<Vec<Setting>, ResourceError> {
    let mut settings = Settings(Vec::new());
    if let Some(cpu) = resources.cpu() {
        add_cpu(cpu, &mut settings)?;
    }
    if let Some(memory) = resources.memory() {
        add_memory(memory, &mut settings)?;
    }
    if let Some(pids) = resources.pids() {
        match pids.limit() {
            0 => {}
            limit => settings.add_limit(&["pids.max"], limit),
        }
    }
    if let Some(block_io) = resources.block_io() {
        add_block_io(block_io, &mut settings)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        add_hugepages(limit, &mut settings)?;
    }
    for (device, limits) in resources.rdma().iter().flatten() {
        let mut line = device.clone();
        for (name, value) in [
            ("hca_handle", limits.hca_handles()),
            ("hca_object", limits.hca_objects()),
        ] {
            let value = value.map_or("max".to_owned(), |value| value.to_string());
            line.push_str(&format!(" {name}={value}"));
        }
        settings.add(&["rdma.max"], line);
    }
    if resources.network().as_ref().is_some_and(|network| {
        network.class_id().is_some_and(|id| id != 0)
            || network
                .priorities()
                .as_ref()
                .is_some_and(|list| !list.is_empty())
    }) {
        return Err(ResourceError::Unsupported("network"));
    }
    Ok(settings.0)
}

/// Whether a key of `unified` is the name of one file.
pub fn check_unified_name(file: &str) -> Result<(), ResourceError> {
    if file.is_empty() || file.contains('/') || !file.contains('.') || file.starts_with('.') {
        return Err(ResourceError::Invalid(format!(
            "unified: {file:?} is not a cgroup v2 file"
        )));
    }
    Ok(())
}

struct Settings(Vec<Setting>);

impl Settings {
    fn add(&mut self, files: &'static [&'static str], value: impl ToString) {
        self.0.push(Setting {
            files,
            value: value.to_string(),
            is_default: false,
        });
    }

    /// Sets `is_default` of the last setting.
    fn last_is_default(&mut self, is_default: bool) {
        if let Some(setting) = self.0.last_mut() {
            setting.is_default = is_default;
        }
    }

    /// A number, where a negative one lifts the limit.
    fn add_limit(&mut self, files: &'static [&'static str], limit: i64) {
        let is_default = limit < 0;
        let value = if is_default {
            "max".to_owned()
        } else {
            limit.to_string()
        };
        self.0.push(Setting {
            files,
            value,
            is_default,
        });
    }
}

fn add_cpu(cpu: &LinuxCpu, settings: &mut Settings) -> Result<(), ResourceError> {
    if cpu.realtime_runtime().is_some_and(|us| us != 0)
        || cpu.realtime_period().is_some_and(|us| us != 0)
    {
        return Err(ResourceError::Unsupported("cpu.realtimeRuntime"));
    }
    // idle before weight, as runc: the kernel refuses a weight while idle is 1.
    if let Some(idle) = cpu.idle() {
        settings.add(&["cpu.idle"], idle);
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0)
        && cpu.idle() != Some(1)
    {
        settings.add(&["cpu.weight"], shares_to_weight(shares));
    }
    let quota = cpu.quota().filter(|us| *us != 0);
    let period = cpu.period().filter(|us| *us != 0);
    if quota.is_some() || period.is_some() {
        let limit = match quota {
            Some(us) if us > 0 => us.to_string(),
            _ => "max".to_owned(),
        };
        let is_default = limit == "max";
        let value = format!("{limit} {}", period.unwrap_or(CPU_PERIOD));
        settings.0.push(Setting {
            files: &["cpu.max"],
            value,
            is_default,
        });
    }
    if let Some(burst) = cpu.burst() {
        settings.add(&["cpu.max.burst"], burst);
        settings.last_is_default(burst == 0);
    }
    for (files, list) in [
        (&["cpuset.cpus"] as &'static [_], cpu.cpus()),
        (&["cpuset.mems"], cpu.mems()),
    ] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            settings.add(files, list);
        }
    }
    Ok(())
}

/// Maps cgroup v1's 2 to 262144 to v2's 1 to 10000.
fn shares_to_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn add_memory(memory: &LinuxMemory, settings: &mut Settings) -> Result<(), ResourceError> {
    if memory.swappiness().is_some() {
        return Err(ResourceError::Unsupported("memory.swappiness"));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(ResourceError::Unsupported("memory.disableOOMKiller"));
    }
    if memory.kernel_tcp().is_some_and(|bytes| bytes > 0) {
        return Err(ResourceError::Unsupported("memory.kernelTCP"));
    }
    let limit = memory.limit().filter(|bytes| *bytes != 0);
    // swap.max before max: otherwise the kernel could kill a group that is swapping in between.
    if let Some(swap) = swap_limit(limit, memory.swap().filter(|bytes| *bytes != 0))? {
        settings.add_limit(&["memory.swap.max"], swap);
        if swap == 0 {
            // A kernel or machine without swap has no such file, and no swap to limit.
            settings.last_is_default(true);
        }
    }
    if let Some(limit) = limit {
        settings.add_limit(&["memory.max"], limit);
    }
    if let Some(reservation) = memory.reservation().filter(|bytes| *bytes != 0) {
        settings.add_limit(&["memory.low"], reservation);
    }
    Ok(())
}

/// v1 limits the sum of memory and swap, v2 swap alone. Negative is unlimited.
fn swap_limit(memory: Option<i64>, both: Option<i64>) -> Result<Option<i64>, ResourceError> {
    let invalid = |text: &str| Err(ResourceError::Invalid(format!("memory.swap: {text}")));
    match (memory, both) {
        // As in v1, lifting the limit of memory lifts that of both.
        (Some(memory), None) if memory < 0 => Ok(Some(-1)),
        (_, None) => Ok(None),
        (_, Some(both)) if both < 0 => Ok(Some(-1)),
        (None, Some(_)) => invalid("a swap limit needs a memory limit"),
        (Some(memory), Some(_)) if memory < 0 => invalid("a swap limit needs a memory limit"),
        (Some(memory), Some(both)) if both < memory => invalid("is less than memory.limit"),
        (Some(memory), Some(both)) => Ok(Some(both - memory)),
    }
}

fn add_block_io(io: &LinuxBlockIo, settings: &mut Settings) -> Result<(), ResourceError> {
    if io.leaf_weight().is_some_and(|weight| weight != 0) {
        return Err(ResourceError::Unsupported("blockIO.leafWeight"));
    }
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        if !(10..=1000).contains(&weight) {
            let text = format!("blockIO.weight: {weight} is not between 10 and 1000");
            return Err(ResourceError::Invalid(text));
        }
        // io.bfq.weight exists where a disk uses that scheduler and takes the value as it is;
        // io.weight takes any value on the wider scale.
        settings.add(&["io.weight"], format!("default {}", block_weight(weight)));
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            let weight = block_weight(weight.clamp(10, 1000));
            let line = format!("{}:{} {weight}", device.major(), device.minor());
            settings.add(&["io.weight"], line);
        }
    }
    let throttles = [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ];
    for (key, devices) in throttles {
        for device in devices.iter().flatten() {
            settings.add(&["io.max"], throttle(key, device));
        }
    }
    Ok(())
}

fn block_weight(weight: u16) -> u64 {
    1 + (u64::from(weight) - 10) * 9999 / 990
}

fn throttle(key: &str, device: &LinuxThrottleDevice) -> String {
    let rate = match device.rate() {
        0 => "max".to_owned(),
        rate => rate.to_string(),
    };
    format!("{}:{} {key}={rate}", device.major(), device.minor())
}

fn add_hugepages(limit: &LinuxHugepageLimit, settings: &mut Settings) -> Result<(), ResourceError> {
    let files: [&'static [&'static str]; 2] = match limit.page_size().as_str() {
        "2MB" => [&["hugetlb.2MB.max"], &["hugetlb.2MB.rsvd.max"]],
        "1GB" => [&["hugetlb.1GB.max"], &["hugetlb.1GB.rsvd.max"]],
        other => {
            let text = format!("hugepageLimits: the guest has no pages of {other}");
            return Err(ResourceError::Invalid(text));
        }
    };
    for file in files {
        settings.add_limit(file, limit.limit());
    }
    Ok(())
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
