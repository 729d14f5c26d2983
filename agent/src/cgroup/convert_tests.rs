use super::*;

fn convert(json: &str) -> Result<Vec<(String, String)>, ResourceError> {
    let resources: LinuxResources = serde_json::from_str(json).unwrap();
    let settings = to_settings(&resources)?;
    Ok(settings
        .into_iter()
        .map(|s| (s.files[0].to_owned(), s.value))
        .collect())
}

fn settings(json: &str) -> Vec<(String, String)> {
    convert(json).unwrap()
}

fn error(json: &str) -> String {
    convert(json).unwrap_err().to_string()
}

fn pair(file: &str, value: &str) -> (String, String) {
    (file.to_owned(), value.to_owned())
}

#[test]
fn shares_become_a_weight_by_runcs_formula() {
    assert_eq!(shares_to_weight(2), 1);
    assert_eq!(shares_to_weight(1024), 39);
    assert_eq!(shares_to_weight(262_144), 10_000);
    assert_eq!(shares_to_weight(1), 1);
    assert_eq!(shares_to_weight(u64::MAX), 10_000);
}

#[test]
fn quota_and_period_become_one_line() {
    assert_eq!(
        settings(r#"{"cpu":{"quota":50000,"period":200000}}"#),
        [pair("cpu.max", "50000 200000")]
    );
    assert_eq!(
        settings(r#"{"cpu":{"quota":50000}}"#),
        [pair("cpu.max", "50000 100000")]
    );
    assert_eq!(
        settings(r#"{"cpu":{"quota":-1}}"#),
        [pair("cpu.max", "max 100000")]
    );
    assert_eq!(
        settings(r#"{"cpu":{"period":20000}}"#),
        [pair("cpu.max", "max 20000")]
    );
}

#[test]
fn an_idle_group_gets_no_weight() {
    let set = settings(r#"{"cpu":{"idle":1,"shares":512,"burst":1000}}"#);
    assert_eq!(set, [pair("cpu.idle", "1"), pair("cpu.max.burst", "1000")]);
}

#[test]
fn swap_is_what_exceeds_memory() {
    assert_eq!(
        settings(r#"{"memory":{"limit":1000,"swap":1500,"reservation":800}}"#),
        [
            pair("memory.swap.max", "500"),
            pair("memory.max", "1000"),
            pair("memory.low", "800")
        ]
    );
    assert_eq!(
        settings(r#"{"memory":{"limit":1000,"swap":-1}}"#),
        [pair("memory.swap.max", "max"), pair("memory.max", "1000")]
    );
    assert_eq!(
        settings(r#"{"memory":{"limit":-1}}"#),
        [pair("memory.swap.max", "max"), pair("memory.max", "max")]
    );
    assert_eq!(settings(r#"{"memory":{"limit":0,"swap":0}}"#), []);
}

#[test]
fn swap_below_memory_is_refused() {
    assert_eq!(
        error(r#"{"memory":{"limit":1000,"swap":500}}"#),
        "config.json: linux.resources.memory.swap: is less than memory.limit"
    );
    assert_eq!(
        error(r#"{"memory":{"swap":500}}"#),
        "config.json: linux.resources.memory.swap: a swap limit needs a memory limit"
    );
}

#[test]
fn what_only_cgroup_v1_has_is_refused_by_name() {
    for (json, field) in [
        (r#"{"memory":{"swappiness":60}}"#, "memory.swappiness"),
        (
            r#"{"memory":{"disableOOMKiller":true}}"#,
            "memory.disableOOMKiller",
        ),
        (r#"{"cpu":{"realtimeRuntime":1000}}"#, "cpu.realtimeRuntime"),
        (r#"{"network":{"classID":1}}"#, "network"),
    ] {
        let text = format!("config.json: linux.resources.{field} is not supported in the guest");
        assert_eq!(error(json), text);
    }
    assert_eq!(settings(r#"{"memory":{"disableOOMKiller":false}}"#), []);
}

#[test]
fn a_pids_limit_of_zero_is_none_and_below_is_unlimited() {
    assert_eq!(settings(r#"{"pids":{"limit":0}}"#), []);
    assert_eq!(
        settings(r#"{"pids":{"limit":-1}}"#),
        [pair("pids.max", "max")]
    );
    assert_eq!(
        settings(r#"{"pids":{"limit":100}}"#),
        [pair("pids.max", "100")]
    );
}

#[test]
fn block_io_is_converted() {
    let set = settings(
        r#"{"blockIO":{"weight":500,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":600}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":30}]}}"#,
    );
    assert_eq!(
        set,
        [
            pair("io.weight", "default 4950"),
            pair("io.max", "8:0 rbps=600"),
            pair("io.max", "8:16 wiops=30"),
        ]
    );
    assert!(error(r#"{"blockIO":{"weight":5}}"#).contains("between 10 and 1000"));
}

#[test]
fn huge_pages_are_limited_and_reserved() {
    assert_eq!(
        settings(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4096}]}"#),
        [
            pair("hugetlb.2MB.max", "4096"),
            pair("hugetlb.2MB.rsvd.max", "4096")
        ]
    );
}

#[test]
fn a_unified_key_is_a_file_name() {
    assert!(check_unified_name("memory.high").is_ok());
    for name in ["", "memory", "../memory.max", "a/b.c", ".."] {
        assert!(check_unified_name(name).is_err(), "{name}");
    }
}
