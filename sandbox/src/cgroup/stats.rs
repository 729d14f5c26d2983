//! A container's resource use on the host, in the same message as the agent's statistics of the
//! guest. What the host does not count is 0; "no limit" is `u64::MAX`.

use std::collections::HashMap;

use rvm_protocol::agent as api;
use rvm_protocol::cgroup_stats;

use super::Cgroup;
use super::hierarchy::Version;

/// The unit of version 1's cpuacct.stat is USER_HZ, which is 100 on every architecture with KVM.
const USEC_PER_TICK: u64 = 10_000;

/// Version 1 writes "no limit" as the greatest number of whole pages.
const NO_LIMIT: u64 = 1 << 62;

pub fn read(cgroup: &Cgroup) -> api::StatsResponse {
    let files = Files(cgroup);
    match cgroup.version {
        Version::One => version_one(&files),
        // All controllers are in one group.
        Version::Two => cgroup_stats::read(&|file| files.read("", file)),
    }
}

fn version_one(files: &Files<'_>) -> api::StatsResponse {
    api::StatsResponse {
        cpu: Some(cpu(files)).into(),
        memory: Some(memory(files)).into(),
        pids: Some(api::PidsStats {
            current: files.number("pids", "pids.current"),
            max: files.number("pids", "pids.max"),
            ..Default::default()
        })
        .into(),
        io: io(files),
        ..Default::default()
    }
}

struct Files<'a>(&'a Cgroup);

impl Files<'_> {
    fn read(&self, controller: &str, file: &str) -> Option<String> {
        std::fs::read_to_string(self.0.dir(controller)?.join(file)).ok()
    }

    fn text(&self, controller: &str, file: &str) -> String {
        self.read(controller, file).unwrap_or_default()
    }

    fn number(&self, controller: &str, file: &str) -> u64 {
        number(&self.text(controller, file))
    }

    fn table(&self, controller: &str, file: &str) -> HashMap<String, u64> {
        let table = cgroup_stats::table(&self.text(controller, file)).into_iter();
        table
            .map(|(name, value)| (name, or_no_limit(value)))
            .collect()
    }
}

fn number(text: &str) -> u64 {
    or_no_limit(cgroup_stats::number(text))
}

fn or_no_limit(number: u64) -> u64 {
    match number {
        NO_LIMIT.. => u64::MAX,
        number => number,
    }
}

fn cpu(files: &Files<'_>) -> api::CpuStats {
    let throttling = files.table("cpu", "cpu.stat");
    let ticks = files.table("cpuacct", "cpuacct.stat");
    let get = |table: &HashMap<String, u64>, name: &str| table.get(name).copied().unwrap_or(0);
    api::CpuStats {
        usage_usec: files.number("cpuacct", "cpuacct.usage") / 1000,
        user_usec: get(&ticks, "user").saturating_mul(USEC_PER_TICK),
        system_usec: get(&ticks, "system").saturating_mul(USEC_PER_TICK),
        nr_periods: get(&throttling, "nr_periods"),
        nr_throttled: get(&throttling, "nr_throttled"),
        throttled_usec: get(&throttling, "throttled_time") / 1000,
        ..Default::default()
    }
}

/// Version 1 counts memory and swap together.
fn memory(files: &Files<'_>) -> api::MemoryStats {
    let number = |file: &str| files.number("memory", &format!("memory.{file}"));
    let (current, max) = (number("usage_in_bytes"), number("limit_in_bytes"));
    let memsw = number("memsw.limit_in_bytes");
    api::MemoryStats {
        current,
        max,
        peak: number("max_usage_in_bytes"),
        swap_current: number("memsw.usage_in_bytes").saturating_sub(current),
        swap_max: match memsw {
            u64::MAX => u64::MAX,
            memsw => memsw.saturating_sub(max),
        },
        events_max: number("failcnt"),
        events_oom_kill: files
            .table("memory", "memory.oom_control")
            .get("oom_kill")
            .copied()
            .unwrap_or(0),
        stat: files.table("memory", "memory.stat"),
        ..Default::default()
    }
}

/// Parses lines such as `8:0 Read 4096`; bytes and operations are in separate files.
fn io(files: &Files<'_>) -> Vec<api::IoStats> {
    let mut list: Vec<api::IoStats> = Vec::new();
    let names = ["io_service_bytes_recursive", "io_serviced_recursive"];
    for (is_count, name) in [false, true].into_iter().zip(names) {
        let text = files.text("blkio", &format!("blkio.throttle.{name}"));
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [device, operation, value] = words[..] else {
                continue;
            };
            let Some(new) = of_device(device) else {
                continue;
            };
            let known = |stats: &api::IoStats| (stats.major, stats.minor) == (new.major, new.minor);
            let index = list.iter().position(known).unwrap_or_else(|| {
                list.push(new.clone());
                list.len() - 1
            });
            let (stats, value) = (&mut list[index], number(value));
            match (operation, is_count) {
                ("Read", false) => stats.rbytes = value,
                ("Write", false) => stats.wbytes = value,
                ("Discard", false) => stats.dbytes = value,
                ("Read", true) => stats.rios = value,
                ("Write", true) => stats.wios = value,
                ("Discard", true) => stats.dios = value,
                _ => {}
            }
        }
    }
    list
}

fn of_device(text: &str) -> Option<api::IoStats> {
    let (major, minor) = text.split_once(':')?;
    Some(api::IoStats {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..Default::default()
    })
}
