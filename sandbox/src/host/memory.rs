//! The host's memory, from /proc/meminfo.

/// MemAvailable and SwapFree of /proc/meminfo, in MiB.
pub fn available_memory_mib() -> Option<u64> {
    meminfo_mib(["MemAvailable:", "SwapFree:"])
}

/// All of the host's memory, in MiB.
pub fn total_memory_mib() -> Option<u64> {
    meminfo_mib(["MemTotal:"])
}

/// The sum of these lines of /proc/meminfo.
fn meminfo_mib<const N: usize>(names: [&str; N]) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_end_matches("kB").trim().parse().ok()
    };
    let sum: Option<u64> = names.into_iter().map(kib).sum();
    Some(sum? >> 10)
}
