//! A container's statistics as containerd's message for cgroup version 2, the version in the guest.
//! containerd decodes it since 1.4, whatever version its host has.

use std::collections::HashMap;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats,
    PidsStat,
};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use rvm_protocol::agent as api;

/// The name by which containerd knows the message's type.
const TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// Encodes the agent's statistics.
pub fn encode(stats: &api::StatsResponse) -> Any {
    Any {
        type_url: TYPE.to_owned(),
        // Encoding fails only if a required field is missing, and the message has none.
        value: metrics(stats).write_to_bytes().unwrap_or_default(),
        ..Default::default()
    }
}

fn metrics(stats: &api::StatsResponse) -> Metrics {
    Metrics {
        pids: Some(PidsStat {
            current: stats.pids.current,
            limit: stats.pids.max,
            ..Default::default()
        })
        .into(),
        cpu: Some(cpu(&stats.cpu)).into(),
        memory: Some(memory(&stats.memory)).into(),
        memory_events: Some(memory_events(&stats.memory)).into(),
        io: Some(IOStat {
            usage: stats.io.iter().map(io).collect(),
            ..Default::default()
        })
        .into(),
        hugetlb: stats.hugetlb.iter().map(hugetlb).collect(),
        ..Default::default()
    }
}

fn cpu(stats: &api::CpuStats) -> CPUStat {
    CPUStat {
        usage_usec: stats.usage_usec,
        user_usec: stats.user_usec,
        system_usec: stats.system_usec,
        nr_periods: stats.nr_periods,
        nr_throttled: stats.nr_throttled,
        throttled_usec: stats.throttled_usec,
        psi: stats.pressure.as_ref().map(pressure).into(),
        ..Default::default()
    }
}

fn memory(stats: &api::MemoryStats) -> MemoryStat {
    let stat = |name: &str| lookup(&stats.stat, name);
    MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        workingset_refault: stat("workingset_refault_anon") + stat("workingset_refault_file"),
        workingset_activate: stat("workingset_activate_anon") + stat("workingset_activate_file"),
        workingset_nodereclaim: stat("workingset_nodereclaim"),
        pgrefill: stat("pgrefill"),
        pgscan: stat("pgscan"),
        pgsteal: stat("pgsteal"),
        pgactivate: stat("pgactivate"),
        pgdeactivate: stat("pgdeactivate"),
        pglazyfree: stat("pglazyfree"),
        pglazyfreed: stat("pglazyfreed"),
        thp_fault_alloc: stat("thp_fault_alloc"),
        thp_collapse_alloc: stat("thp_collapse_alloc"),
        usage: stats.current,
        usage_limit: stats.max,
        swap_usage: stats.swap_current,
        swap_limit: stats.swap_max,
        max_usage: stats.peak,
        swap_max_usage: stats.swap_peak,
        psi: stats.pressure.as_ref().map(pressure).into(),
        ..Default::default()
    }
}

fn lookup(stat: &HashMap<String, u64>, name: &str) -> u64 {
    // A hostile guest may report any number; the sum of two must not overflow.
    stat.get(name).copied().unwrap_or(0).min(u64::MAX / 2)
}

fn memory_events(stats: &api::MemoryStats) -> MemoryEvents {
    MemoryEvents {
        low: stats.events_low,
        high: stats.events_high,
        max: stats.events_max,
        oom: stats.events_oom,
        oom_kill: stats.events_oom_kill,
        ..Default::default()
    }
}

fn io(stats: &api::IoStats) -> IOEntry {
    IOEntry {
        major: stats.major,
        minor: stats.minor,
        rbytes: stats.rbytes,
        wbytes: stats.wbytes,
        rios: stats.rios,
        wios: stats.wios,
        ..Default::default()
    }
}

fn hugetlb(stats: &api::HugetlbStats) -> HugeTlbStat {
    HugeTlbStat {
        current: stats.current,
        max: stats.max,
        pagesize: stats.page_size.clone(),
        failcnt: stats.events_max,
        ..Default::default()
    }
}

fn pressure(stats: &api::Pressure) -> PSIStats {
    let data = |line: &api::PressureLine| PSIData {
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
        total: line.total_usec,
        ..Default::default()
    };
    PSIStats {
        some: stats.some.as_ref().map(data).into(),
        full: stats.full.as_ref().map(data).into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_reports_is_what_containerd_reads() {
        let mut stats = api::StatsResponse::new();
        stats.cpu.mut_or_insert_default().usage_usec = 5;
        let memory = stats.memory.mut_or_insert_default();
        memory.current = 4096;
        memory.stat.insert("inactive_file".to_owned(), 7);
        stats.pids.mut_or_insert_default().current = 3;
        let any = encode(&stats);
        assert_eq!(any.type_url, TYPE);
        let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((metrics.cpu.usage_usec, metrics.pids.current), (5, 3));
        assert_eq!(
            (metrics.memory.usage, metrics.memory.inactive_file),
            (4096, 7)
        );
    }
}
