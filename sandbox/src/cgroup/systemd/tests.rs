use oci_spec::runtime::{LinuxCpuBuilder, LinuxPidsBuilder, LinuxResourcesBuilder};

use super::super::limits::ENGINE;
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
fn limits_are_properties_of_each_version() {
    let two = properties(Version::Two, &resources(15_000), ENGINE);
    assert_eq!(number(&two, "CPUWeight"), Some(39));
    assert_eq!(number(&two, "CPUQuotaPerSecUSec"), Some(150_000));
    assert_eq!(number(&two, "TasksMax"), Some(INFINITY));
    let one = properties(Version::One, &resources(-1), ENGINE);
    assert_eq!(number(&one, "CPUShares"), Some(1024));
    assert_eq!(number(&one, "CPUQuotaPerSecUSec"), Some(INFINITY));
}

#[test]
fn a_quota_is_rounded_up_to_whole_percents() {
    assert_eq!(quota_per_second(1, None), 10_000);
    assert_eq!(quota_per_second(12_345, Some(100_000)), 130_000);
    assert_eq!(quota_per_second(i64::MAX, Some(1)), INFINITY);
}

#[test]
fn cpus_are_bits() {
    assert_eq!(bitmask("0-2,9"), Some(vec![0b111, 0b10]));
    assert_eq!(bitmask(" 7 "), Some(vec![0x80]));
    for list in ["", "a", "3-", "0-100000"] {
        assert_eq!(bitmask(list), None, "{list}");
    }
}

#[test]
fn version_two_sets_every_property_that_a_reload_would_reset() {
    let resources: LinuxResources = serde_json::from_value(serde_json::json!({
        "memory": { "limit": 64 << 20, "swap": 96 << 20 },
        "cpu": { "quota": 5_000, "period": 50_000, "cpus": "1" },
    }))
    .unwrap();
    let two = properties(Version::Two, &resources, ENGINE);
    assert_eq!(number(&two, "MemorySwapMax"), Some(32 << 20));
    assert_eq!(number(&two, "CPUQuotaPeriodUSec"), Some(50_000));
    assert!(two.contains(&("AllowedCPUs", Value::Bytes(vec![2]))));
    let one = properties(Version::One, &resources, ENGINE);
    let names: Vec<_> = one.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["MemoryLimit", "CPUQuotaPerSecUSec"]);
}

#[test]
fn the_connection_is_set_up_in_one_message() {
    use std::io::{Read as _, Write as _};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("private");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 256];
        let count = stream.read(&mut bytes).unwrap();
        stream
            .write_all(b"OK 5af8b441c03443f899fc5652d883d79a\r\n")
            .unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    });
    let connected = Bus::connect_to(&path, true);
    assert!(connected.is_ok());
    let uid = rustix::process::getuid().as_raw().to_string();
    let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
    let expected = format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n");
    assert_eq!(server.join().unwrap(), expected);
}
