//! The systemd driver: a container's group is a scope, which systemd creates in a slice.
//!
//! rvm writes the limits to the group's files with either driver. With this one it sets them as
//! properties of the unit too, because systemd writes its properties to the files on every reload.

mod bus;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "serves tests and a fuzzer alone")]
pub mod hostile;
mod wire;

use std::path::Path;

use oci_spec::runtime::{LinuxCpu, LinuxResources};

pub use bus::SystemdError;
use bus::{Bus, Object};
use wire::{Body, Value};

use super::hierarchy::Version;
use super::{CgroupError, Overhead, limits, v2};

const MANAGER: Object = Object {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// A directory that a host has if systemd has booted it; see sd_booted(3).
const BOOTED: &str = "/run/systemd/system";

/// The highest CPU number that a kernel can have (`CONFIG_NR_CPUS`).
const MAX_CPU: usize = 8191;

/// "No limit" in a unit's properties.
const INFINITY: u64 = u64::MAX;

/// Starts the scope `unit` in `slice` with `processes` in it, of which there must be one.
pub fn start(slice: &str, unit: &str, processes: &[i32]) -> Result<(), CgroupError> {
    let pids = processes.iter().map(|pid| pid.unsigned_abs()).collect();
    let properties = [
        ("Description", Value::Text(format!("rvm container {unit}"))),
        ("Slice", Value::Text(slice.to_owned())),
        ("PIDs", Value::Numbers(pids)),
        // systemd leaves the groups below the scope alone.
        ("Delegate", Value::Flag(true)),
        ("MemoryAccounting", Value::Flag(true)),
        ("CPUAccounting", Value::Flag(true)),
        ("TasksAccounting", Value::Flag(true)),
        // A container does not end with a change of the system's target.
        ("DefaultDependencies", Value::Flag(false)),
    ];
    let body = Body::default()
        .text(unit)
        .text("replace")
        .properties(&properties)
        .empty_aux_units();
    request("to start", unit, || {
        let mut bus = Bus::connect()?;
        match job(&mut bus, "StartTransientUnit", &body) {
            // A failed unit keeps its name until it is reset.
            Err(SystemdError::Refused { name, .. }) if name == UNIT_EXISTS => {
                bus.call(&MANAGER, "ResetFailedUnit", &Body::default().text(unit))?;
                job(&mut bus, "StartTransientUnit", &body)
            }
            result => result,
        }
    })
}

/// Sets the limits as properties of a scope, until the host reboots.
pub fn set_limits(
    unit: &str,
    version: Version,
    resources: &LinuxResources,
    engine: Overhead,
) -> Result<(), CgroupError> {
    let properties = properties(version, resources, engine);
    if properties.is_empty() {
        return Ok(());
    }
    let is_runtime = true;
    let body = Body::default()
        .text(unit)
        .flag(is_runtime)
        .properties(&properties);
    request("to limit", unit, || {
        Bus::connect()?
            .call(&MANAGER, "SetUnitProperties", &body)
            .map(drop)
    })
}

/// Stops a scope. A scope that does not exist is no error, and none does without systemd.
pub fn stop(unit: &str) -> Result<(), CgroupError> {
    let body = Body::default().text(unit);
    request("to stop", unit, || {
        let mut bus = match Bus::connect() {
            Err(SystemdError::Connect { .. }) if !Path::new(BOOTED).is_dir() => return Ok(()),
            bus => bus?,
        };
        match job(&mut bus, "StopUnit", &body.clone().text("replace")) {
            Err(SystemdError::Refused { name, .. }) if name == NO_SUCH_UNIT => return Ok(()),
            result => result?,
        }
        match bus.call(&MANAGER, "ResetFailedUnit", &body) {
            // The unit has not failed, and systemd has forgotten it.
            Err(SystemdError::Refused { .. }) => Ok(()),
            result => result.map(drop),
        }
    })
}

fn request(
    action: &'static str,
    unit: &str,
    ask: impl FnOnce() -> Result<(), SystemdError>,
) -> Result<(), CgroupError> {
    ask().map_err(|source| CgroupError::Systemd {
        action,
        unit: unit.to_owned(),
        source,
    })
}

/// Calls a method that starts a job, and waits for the job's end.
fn job(bus: &mut Bus, member: &str, body: &Body) -> Result<(), SystemdError> {
    bus.add_match(&MANAGER, "JobRemoved")?;
    bus.call(&MANAGER, "Subscribe", &Body::default())
        .or_else(|error| match error {
            // A bus connection subscribes once.
            SystemdError::Refused { name, .. } if name.ends_with(".AlreadySubscribed") => {
                Ok(wire::Message::default())
            }
            other => Err(other),
        })?;
    let answer = bus.call(&MANAGER, member, body)?;
    let wanted = answer.texts("o").ok_or(SystemdError::Malformed)?;
    loop {
        let signal = bus.signal()?;
        if signal.member != "JobRemoved" {
            continue;
        }
        let values = signal.texts("uoss").ok_or(SystemdError::Malformed)?;
        if let [_, job, _, result] = &values[..]
            && *job == wanted[0]
        {
            return match result.as_str() {
                "done" => Ok(()),
                result => Err(SystemdError::Job(result.to_owned())),
            };
        }
    }
}

/// The limits as properties of a unit; see systemd.resource-control(5).
fn properties(
    version: Version,
    resources: &LinuxResources,
    engine: Overhead,
) -> Vec<(&'static str, Value)> {
    let mut properties = Vec::new();
    let or_infinity = |limit: i64| Value::Number(u64::try_from(limit).unwrap_or(INFINITY));
    if let Some(memory) = resources.memory() {
        let memory = limits::memory(memory, engine);
        let known = match version {
            Version::One => vec![("MemoryLimit", memory.limit)],
            Version::Two => vec![
                ("MemoryMax", memory.limit),
                ("MemorySwapMax", memory.swap()),
                ("MemoryLow", memory.reservation),
            ],
        };
        let set = known
            .into_iter()
            .filter_map(|(name, limit)| Some((name, limit?)));
        properties.extend(set.map(|(name, limit)| (name, or_infinity(limit))));
    }
    if let Some(cpu) = resources.cpu() {
        add_cpu(version, cpu, &mut properties);
    }
    if let Some(limit) = limits::pids(resources) {
        properties.push(("TasksMax", or_infinity(limit)));
    }
    properties
}

fn add_cpu(version: Version, cpu: &LinuxCpu, properties: &mut Vec<(&'static str, Value)>) {
    let mut add = |name, value| properties.push((name, value));
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        match version {
            Version::One => add("CPUShares", Value::Number(shares)),
            Version::Two => add("CPUWeight", Value::Number(v2::weight(shares))),
        }
    }
    if let Some(quota) = cpu.quota().filter(|us| *us != 0) {
        let per_second = quota_per_second(quota, cpu.period());
        add("CPUQuotaPerSecUSec", Value::Number(per_second));
    }
    if version == Version::One {
        // systemd has no properties for the following with version 1.
        return;
    }
    if let Some(period) = cpu.period().filter(|us| *us != 0) {
        add("CPUQuotaPeriodUSec", Value::Number(period));
    }
    for (name, list) in [
        ("AllowedCPUs", cpu.cpus()),
        ("AllowedMemoryNodes", cpu.mems()),
    ] {
        // The kernel has refused malformed lists already.
        if let Some(bits) = list.as_deref().and_then(bitmask) {
            add(name, Value::Bytes(bits));
        }
    }
}

/// A list such as `0-2,7` in systemd's form: a bit for each number, the lowest first.
fn bitmask(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for range in list
        .split(',')
        .map(str::trim)
        .filter(|range| !range.is_empty())
    {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last > MAX_CPU {
            return None;
        }
        for number in first..=last {
            bits.resize(bits.len().max(number / 8 + 1), 0);
            bits[number / 8] |= 1 << (number % 8);
        }
    }
    Some(bits).filter(|bits| !bits.is_empty())
}

/// The quota in microseconds per second, rounded up to whole percents of a CPU as systemd does.
fn quota_per_second(quota: i64, period: Option<u64>) -> u64 {
    const PERCENT: u64 = 10_000;
    let Ok(quota) = u64::try_from(quota) else {
        return INFINITY;
    };
    let period = period.filter(|us| *us != 0).unwrap_or(v2::CPU_PERIOD);
    let per_second = u128::from(quota) * 1_000_000 / u128::from(period);
    u64::try_from(per_second)
        .ok()
        .and_then(|us| us.max(1).checked_next_multiple_of(PERCENT))
        .unwrap_or(INFINITY)
}

#[cfg(test)]
mod tests;
