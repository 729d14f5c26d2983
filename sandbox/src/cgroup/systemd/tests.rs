use oci_spec::runtime::{LinuxCpuBuilder, LinuxPidsBuilder, LinuxResourcesBuilder};

use super::*;

fn resources(quota: i64) -> LinuxResources {
    let cpu = LinuxCpuBuilder::default().quota(quota).shares(1024_u64);
    LinuxResourcesBuilder::default()
        .cpu(cpu.build().unwrap())
        .pids(LinuxPidsBuilder::default().limit(-1).build().unwrap())
        .build()
        .unwrap()
}

fn number(properties: &[(&str, Value)], name: &str) -> Option<u64> {
    let found = properties.iter().find(|(other, _)| *other == name);
    match found {
        Some((_, Value::Number(number))) => Some(*number),
        _ => None,
    }
}

#[test]
fn limits_are_told_in_the_terms_of_each_version() {
    let two = properties(Version::Two, &resources(15_000), EngineKind::Kvm);
    assert_eq!(number(&two, "CPUWeight"), Some(39));
    assert_eq!(number(&two, "CPUQuotaPerSecUSec"), Some(150_000));
    assert_eq!(number(&two, "TasksMax"), Some(INFINITY));
    let one = properties(Version::One, &resources(-1), EngineKind::Kvm);
    assert_eq!(number(&one, "CPUShares"), Some(1024));
    assert_eq!(number(&one, "CPUQuotaPerSecUSec"), Some(INFINITY));
}

#[test]
fn a_quota_is_rounded_up_to_whole_percents() {
    assert_eq!(per_second(1, None), 10_000);
    assert_eq!(per_second(12_345, Some(100_000)), 130_000);
    assert_eq!(per_second(i64::MAX, Some(1)), INFINITY);
}
