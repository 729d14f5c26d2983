//! A container's statistics in the shape of `runc events`: with the names of cgroup version 1, and
//! the numbers that runc puts there for version 2.

use std::collections::{BTreeMap, HashMap};

use rvm_protocol::agent::{self as api, StatsResponse};
use serde::Serialize;

/// The object in the `data` field of an event of type `stats`.
#[derive(Debug, Serialize)]
pub struct Stats {
    cpu: Cpu,
    cpuset: CpuSet,
    memory: Memory,
    pids: Pids,
    blkio: Blkio,
    hugetlb: BTreeMap<String, HugeTlb>,
    intel_rdt: Empty,
    network_interfaces: Option<Vec<NetworkInterface>>,
}

#[derive(Debug, Default, Serialize)]
struct Empty {}

#[derive(Debug, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

/// In nanoseconds.
#[derive(Debug, Serialize)]
struct CpuUsage {
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
    kernel: u64,
    user: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_time: u64,
}

/// Version 2 has none of these numbers.
#[derive(Debug, Default, Serialize)]
struct CpuSet {
    cpu_exclusive: u64,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

#[derive(Debug, Default, Serialize)]
struct MemoryEntry {
    limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Serialize)]
struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    cache: u64,
    usage: MemoryEntry,
    swap: MemoryEntry,
    kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

#[derive(Debug, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    limit: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Blkio {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_bytes_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_serviced_recursive: Vec<BlkioEntry>,
}

#[derive(Debug, Serialize)]
struct BlkioEntry {
    #[serde(skip_serializing_if = "is_zero")]
    major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    minor: u64,
    op: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    value: u64,
}

#[derive(Debug, Serialize)]
struct HugeTlb {
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    failcnt: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkInterface {
    name: String,
    rx_bytes: u64,
    rx_packets: u64,
    rx_errors: u64,
    rx_dropped: u64,
    tx_bytes: u64,
    tx_packets: u64,
    tx_errors: u64,
    tx_dropped: u64,
}

#[derive(Debug, Serialize)]
struct Psi {
    some: PsiLine,
    full: PsiLine,
}

#[derive(Debug, Serialize)]
struct PsiLine {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    total: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl From<&StatsResponse> for Stats {
    fn from(stats: &StatsResponse) -> Self {
        Self {
            cpu: cpu(&stats.cpu),
            cpuset: CpuSet::default(),
            memory: memory(&stats.memory),
            pids: Pids {
                current: stats.pids.current,
                // runc has 0 for no limit here.
                limit: match stats.pids.max {
                    u64::MAX => 0,
                    limit => limit,
                },
            },
            blkio: blkio(&stats.io),
            hugetlb: stats
                .hugetlb
                .iter()
                .map(|pages| {
                    let entry = HugeTlb {
                        usage: pages.current,
                        failcnt: pages.events_max,
                    };
                    (pages.page_size.clone(), entry)
                })
                .collect(),
            intel_rdt: Empty {},
            network_interfaces: interfaces(&stats.net_dev),
        }
    }
}

/// The counters of every interface but loopback, from the table of /proc/net/dev, see proc(5).
/// `None` if there is no interface, as with runc.
fn interfaces(table: &str) -> Option<Vec<NetworkInterface>> {
    // The first two lines are headings.
    let all = table.lines().skip(2).filter_map(interface);
    let list: Vec<_> = all.filter(|interface| interface.name != "lo").collect();
    (!list.is_empty()).then_some(list)
}

fn interface(line: &str) -> Option<NetworkInterface> {
    let (name, numbers) = line.split_once(':')?;
    let numbers = numbers.split_whitespace();
    let numbers: Vec<u64> = numbers.map_while(|it| it.parse().ok()).collect();
    // Eight columns each for receiving and sending, of which runc has the first four.
    let (&[rx_bytes, rx_packets, rx_errors, rx_dropped, ..], sent) = numbers.split_at_checked(8)?
    else {
        return None;
    };
    let &[tx_bytes, tx_packets, tx_errors, tx_dropped, ..] = sent else {
        return None;
    };
    Some(NetworkInterface {
        name: name.trim().to_owned(),
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
    })
}

fn cpu(cpu: &api::CpuStats) -> Cpu {
    let ns = |usec: u64| usec.saturating_mul(1000);
    Cpu {
        usage: CpuUsage {
            total: ns(cpu.usage_usec),
            kernel: ns(cpu.system_usec),
            user: ns(cpu.user_usec),
        },
        throttling: Throttling {
            periods: cpu.nr_periods,
            throttled_periods: cpu.nr_throttled,
            throttled_time: ns(cpu.throttled_usec),
        },
        psi: cpu.pressure.as_ref().map(psi),
    }
}

fn memory(memory: &api::MemoryStats) -> Memory {
    let raw: &HashMap<String, u64> = &memory.stat;
    Memory {
        cache: raw.get("file").copied().unwrap_or(0),
        usage: MemoryEntry {
            limit: memory.max,
            usage: memory.current,
            max: memory.peak,
            failcnt: 0,
        },
        // Version 1 counts memory and swap together.
        swap: MemoryEntry {
            limit: match memory.swap_max {
                u64::MAX => u64::MAX,
                limit => limit.saturating_add(memory.max),
            },
            usage: memory.swap_current.saturating_add(memory.current),
            max: 0,
            failcnt: 0,
        },
        kernel: MemoryEntry::default(),
        kernel_tcp: MemoryEntry::default(),
        raw: raw
            .iter()
            .map(|(name, value)| (name.clone(), *value))
            .collect(),
        psi: memory.pressure.as_ref().map(psi),
    }
}

fn blkio(devices: &[api::IoStats]) -> Blkio {
    let mut blkio = Blkio::default();
    for device in devices {
        let entry = |op, value| BlkioEntry {
            major: device.major,
            minor: device.minor,
            op,
            value,
        };
        let bytes = [entry("Read", device.rbytes), entry("Write", device.wbytes)];
        blkio.io_service_bytes_recursive.extend(bytes);
        let requests = [entry("Read", device.rios), entry("Write", device.wios)];
        blkio.io_serviced_recursive.extend(requests);
    }
    blkio
}

fn psi(pressure: &api::Pressure) -> Psi {
    let line = |line: &api::PressureLine| PsiLine {
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
        total: line.total_usec,
    };
    Psi {
        some: line(&pressure.some),
        full: line(&pressure.full),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_shape_is_runcs() {
        let mut response = StatsResponse::new();
        let cpu = response.cpu.mut_or_insert_default();
        (cpu.usage_usec, cpu.user_usec) = (3, 2);
        let memory = response.memory.mut_or_insert_default();
        (memory.current, memory.max, memory.swap_max) = (10, 100, 5);
        memory.stat.insert("file".to_owned(), 4);
        let pids = response.pids.mut_or_insert_default();
        (pids.current, pids.max) = (1, u64::MAX);
        response.io.push(api::IoStats {
            major: 8,
            rbytes: 512,
            ..Default::default()
        });
        let seen = serde_json::to_value(Stats::from(&response)).unwrap();
        assert_eq!(
            seen["cpu"],
            json!({ "usage": { "total": 3000, "kernel": 0, "user": 2000 }, "throttling": {} })
        );
        let memory = json!({
            "cache": 4, "raw": { "file": 4 },
            "usage": { "limit": 100, "usage": 10, "failcnt": 0 },
            "swap": { "limit": 105, "usage": 10, "failcnt": 0 },
            "kernel": { "limit": 0, "failcnt": 0 }, "kernelTCP": { "limit": 0, "failcnt": 0 },
        });
        assert_eq!(seen["memory"], memory);
        assert_eq!(seen["pids"], json!({ "current": 1 }));
        assert_eq!(
            seen["blkio"]["ioServiceBytesRecursive"][0],
            json!({ "major": 8, "op": "Read", "value": 512 })
        );
        assert_eq!(seen["hugetlb"], json!({}));
        assert_eq!(seen["network_interfaces"], json!(null));
    }

    #[test]
    fn interfaces_are_listed_as_by_runc_without_loopback() {
        let table = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 1500000    1000    1    2    3     4          5         6    70000     800    7    8    9    10      11         12
  eth1: 1 2 3
";
        let expected = json!([{
            "Name": "eth0",
            "RxBytes": 1_500_000, "RxPackets": 1000, "RxErrors": 1, "RxDropped": 2,
            "TxBytes": 70_000, "TxPackets": 800, "TxErrors": 7, "TxDropped": 8,
        }]);
        assert_eq!(serde_json::to_value(interfaces(table)).unwrap(), expected);
        assert!(interfaces("").is_none());
    }
}
