//! Statistics from the files of a cgroup v2 group, see the kernel's admin-guide/cgroup-v2.rst: the
//! agent reads a container's, and the host those of the processes that run the machine.

use std::collections::HashMap;

use crate::agent as api;

/// The sizes of huge pages on x86-64, by the names of their files.
const PAGE_SIZES: [&str; 2] = ["2MB", "1GB"];

/// Reads the statistics from the files of a group. A file that cannot be read counts as 0: the
/// kernel may lack the controller, and the group may be gone.
pub fn read(file: &dyn Fn(&str) -> Option<String>) -> api::StatsResponse {
    let files = Files(file);
    api::StatsResponse {
        cpu: Some(cpu(&files)).into(),
        memory: Some(memory(&files)).into(),
        pids: Some(api::PidsStats {
            current: files.number("pids.current"),
            max: files.number("pids.max"),
            ..Default::default()
        })
        .into(),
        io: files.text("io.stat").lines().filter_map(io).collect(),
        hugetlb: PAGE_SIZES
            .iter()
            .filter_map(|size| hugetlb(&files, size))
            .collect(),
        ..Default::default()
    }
}

struct Files<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Files<'_> {
    fn text(&self, file: &str) -> String {
        (self.0)(file).unwrap_or_default()
    }

    fn number(&self, file: &str) -> u64 {
        number(&self.text(file))
    }

    fn table(&self, file: &str) -> HashMap<String, u64> {
        table(&self.text(file))
    }

    fn pressure(&self, file: &str) -> Option<api::Pressure> {
        pressure(&(self.0)(file)?)
    }
}

/// Parses an interface file with one number; "max" is the largest.
pub fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        digits => digits.parse().unwrap_or(0),
    }
}

/// Lines of a name and a number.
pub fn table(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, value)| (name.to_owned(), number(value)))
        .collect()
}

fn cpu(files: &Files<'_>) -> api::CpuStats {
    let stat = files.table("cpu.stat");
    let get = |name: &str| stat.get(name).copied().unwrap_or(0);
    api::CpuStats {
        usage_usec: get("usage_usec"),
        user_usec: get("user_usec"),
        system_usec: get("system_usec"),
        nr_periods: get("nr_periods"),
        nr_throttled: get("nr_throttled"),
        throttled_usec: get("throttled_usec"),
        pressure: files.pressure("cpu.pressure").into(),
        ..Default::default()
    }
}

fn memory(files: &Files<'_>) -> api::MemoryStats {
    let events = files.table("memory.events");
    let event = |name: &str| events.get(name).copied().unwrap_or(0);
    api::MemoryStats {
        current: files.number("memory.current"),
        max: files.number("memory.max"),
        peak: files.number("memory.peak"),
        swap_current: files.number("memory.swap.current"),
        swap_max: files.number("memory.swap.max"),
        swap_peak: files.number("memory.swap.peak"),
        events_low: event("low"),
        events_high: event("high"),
        events_max: event("max"),
        events_oom: event("oom"),
        events_oom_kill: event("oom_kill"),
        stat: files.table("memory.stat"),
        pressure: files.pressure("memory.pressure").into(),
        ..Default::default()
    }
}

/// A line such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn io(line: &str) -> Option<api::IoStats> {
    let mut words = line.split(' ');
    let (major, minor) = words.next()?.split_once(':')?;
    let mut stats = api::IoStats {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..Default::default()
    };
    for (name, value) in words.filter_map(|word| word.split_once('=')) {
        let value = number(value);
        match name {
            "rbytes" => stats.rbytes = value,
            "wbytes" => stats.wbytes = value,
            "rios" => stats.rios = value,
            "wios" => stats.wios = value,
            "dbytes" => stats.dbytes = value,
            "dios" => stats.dios = value,
            _ => {}
        }
    }
    Some(stats)
}

fn hugetlb(files: &Files<'_>, size: &str) -> Option<api::HugetlbStats> {
    let current = (files.0)(&format!("hugetlb.{size}.current"))?;
    let events = files.table(&format!("hugetlb.{size}.events"));
    Some(api::HugetlbStats {
        page_size: size.to_owned(),
        current: number(&current),
        max: files.number(&format!("hugetlb.{size}.max")),
        events_max: events.get("max").copied().unwrap_or(0),
        ..Default::default()
    })
}

/// Lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn pressure(text: &str) -> Option<api::Pressure> {
    let mut pressure = api::Pressure::default();
    for line in text.lines() {
        let (kind, values) = line.split_once(' ')?;
        let mut parsed = api::PressureLine::default();
        for (name, value) in values.split(' ').filter_map(|word| word.split_once('=')) {
            match name {
                "avg10" => parsed.avg10 = value.parse().ok()?,
                "avg60" => parsed.avg60 = value.parse().ok()?,
                "avg300" => parsed.avg300 = value.parse().ok()?,
                "total" => parsed.total_usec = value.parse().ok()?,
                _ => {}
            }
        }
        match kind {
            "some" => pressure.some = Some(parsed).into(),
            "full" => pressure.full = Some(parsed).into(),
            _ => {}
        }
    }
    Some(pressure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_the_greatest_number() {
        assert_eq!(number("max\n"), u64::MAX);
        assert_eq!(number("4096\n"), 4096);
        assert_eq!(number(""), 0);
    }

    #[test]
    fn an_io_line_names_its_device() {
        let line = io("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6").unwrap();
        assert_eq!((line.major, line.minor), (8, 16));
        assert_eq!((line.rbytes, line.wios, line.dios), (1, 4, 6));
        assert!(io("").is_none());
    }

    #[test]
    fn pressure_has_two_lines() {
        let text = "some avg10=1.50 avg60=0.20 avg300=0.00 total=7\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=3\n";
        let pressure = pressure(text).unwrap();
        assert_eq!((pressure.some.avg10, pressure.some.total_usec), (1.5, 7));
        assert_eq!(pressure.full.total_usec, 3);
    }
}
