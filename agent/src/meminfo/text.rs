//! The contents of a container's /proc/meminfo. Pure.

use std::collections::HashMap;
use std::fmt::Write as _;

use rvm_protocol::cgroup_stats::{number, table};

/// Lines of meminfo and the fields of memory.stat that they are the sums of, see the kernel's
/// admin-guide/cgroup-v2.rst.
const SUMS: [(&str, &[&str]); 24] = [
    ("Buffers", &[]),
    ("Cached", &["file"]),
    ("SwapCached", &["swapcached"]),
    ("Active", &["active_anon", "active_file"]),
    ("Inactive", &["inactive_anon", "inactive_file"]),
    ("Active(anon)", &["active_anon"]),
    ("Inactive(anon)", &["inactive_anon"]),
    ("Active(file)", &["active_file"]),
    ("Inactive(file)", &["inactive_file"]),
    ("Unevictable", &["unevictable"]),
    ("Dirty", &["file_dirty"]),
    ("Writeback", &["file_writeback"]),
    ("AnonPages", &["anon"]),
    ("Mapped", &["file_mapped"]),
    ("Shmem", &["shmem"]),
    ("KReclaimable", &["slab_reclaimable"]),
    ("Slab", &["slab"]),
    ("SReclaimable", &["slab_reclaimable"]),
    ("SUnreclaim", &["slab_unreclaimable"]),
    ("KernelStack", &["kernel_stack"]),
    ("PageTables", &["pagetables"]),
    ("SecPageTables", &["sec_pagetables"]),
    ("Percpu", &["percpu"]),
    ("AnonHugePages", &["anon_thp"]),
];

/// What can be had back of what is used: the kernel's own estimate leaves some of it out.
const RECLAIMABLE: [&str; 3] = ["inactive_file", "active_file", "slab_reclaimable"];

/// Changes the machine's numbers to those of a group whose files `read` reads, with empty text for
/// a file that is not there. Lines that the group has no numbers for stay the machine's, and all do
/// if the group has no limit below the machine's memory.
pub fn render(machine: &str, read: &dyn Fn(&str) -> String) -> String {
    let limit = read("memory.max");
    let limit = match limit.trim() {
        "" => u64::MAX,
        text => number(text),
    };
    let machines: HashMap<&str, u64> = machine.lines().filter_map(parse).collect();
    let of_machine = |name| machines.get(name).copied().unwrap_or(0);
    if limit >= of_machine("MemTotal") {
        return machine.to_owned();
    }
    let stat = table(&read("memory.stat"));
    let sum = |fields: &[&str]| {
        fields
            .iter()
            .filter_map(|field| stat.get(*field))
            .sum::<u64>()
    };
    let free = limit.saturating_sub(number(&read("memory.current")));
    let available = free.saturating_add(sum(&RECLAIMABLE)).min(limit);
    let swap = number(&read("memory.swap.max")).min(of_machine("SwapTotal"));
    let swap_free = swap.saturating_sub(number(&read("memory.swap.current")));
    let value = |name: &str| match name {
        "MemTotal" => Some(limit),
        "MemFree" => Some(free),
        "MemAvailable" => Some(available.min(of_machine("MemAvailable"))),
        "SwapTotal" => Some(swap),
        "SwapFree" => Some(swap_free.min(of_machine("SwapFree"))),
        _ => {
            let (_, fields) = SUMS.iter().find(|(line, _)| *line == name)?;
            Some(sum(fields))
        }
    };
    let mut text = String::with_capacity(machine.len());
    for line in machine.lines() {
        let name = line.split(':').next().unwrap_or_default();
        let written = match value(name) {
            // The kernel's own columns: the length of the file stays the same.
            Some(bytes) => writeln!(text, "{:<16}{:>8} kB", format!("{name}:"), bytes / 1024),
            None => writeln!(text, "{line}"),
        };
        // A string takes everything.
        let _ = written;
    }
    text
}

/// The name and the bytes of a line that has kilobytes.
fn parse(line: &str) -> Option<(&str, u64)> {
    let (name, value) = line.split_once(':')?;
    let kilobytes: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some((name, kilobytes.saturating_mul(1024)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "\
MemTotal:         110000 kB
MemFree:           60000 kB
MemAvailable:      80000 kB
Buffers:              12 kB
Cached:            20000 kB
SwapTotal:             0 kB
SwapFree:              0 kB
Active(anon):       1000 kB
Slab:               9000 kB
VmallocTotal:   34359738367 kB
HugePages_Total:       0
";

    const MIB: u64 = 1 << 20;

    fn group(limit: &str) -> String {
        let limit = limit.to_owned();
        render(MACHINE, &move |file| match file {
            "memory.max" => limit.clone(),
            "memory.current" => format!("{}\n", 20 * MIB),
            "memory.stat" => format!(
                "anon 1\nfile {}\nactive_file {}\nslab 4096\nslab_reclaimable {}\n",
                8 * MIB,
                4 * MIB,
                2 * MIB
            ),
            "memory.swap.max" => "max\n".to_owned(),
            "memory.swap.current" => "0\n".to_owned(),
            _ => String::new(),
        })
    }

    fn value(text: &str, name: &str) -> u64 {
        text.lines()
            .filter_map(parse)
            .find(|(line, _)| *line == name)
            .unwrap()
            .1
    }

    #[test]
    fn a_container_sees_its_limit_and_its_use() {
        let text = group(&format!("{}\n", 50 * MIB));
        for (name, mib) in [
            ("MemTotal", 50),
            ("MemFree", 30),
            ("MemAvailable", 36),
            ("Cached", 8),
            ("Buffers", 0),
            ("SwapTotal", 0),
        ] {
            assert_eq!(value(&text, name), mib * MIB, "{name}");
        }
        assert_eq!(value(&text, "Slab"), 4096);
    }

    #[test]
    fn lines_columns_and_length_are_the_kernels() {
        let text = group("52428800\n");
        assert_eq!(text.len(), MACHINE.len());
        let names = |text: &str| -> Vec<String> {
            text.lines().map(|line| line[..16].to_owned()).collect()
        };
        assert_eq!(names(&text), names(MACHINE));
        assert!(text.ends_with("VmallocTotal:   34359738367 kB\nHugePages_Total:       0\n"));
    }

    #[test]
    fn without_a_limit_below_the_machines_memory_its_numbers_stay() {
        for limit in ["max\n", "999999999999\n", ""] {
            assert_eq!(group(limit), MACHINE);
        }
    }
}
