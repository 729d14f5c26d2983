use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResourcesBuilder,
};

use super::limits::ENGINE;
use super::*;

/// Groups on this host for one test.
struct Group(Cgroup);

impl Group {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = format!("/rvm-unit-{}-{count}", std::process::id());
        let found = Cgroup::find(Driver::Cgroupfs, Some(Path::new(&path)), "unused");
        Self(found.unwrap())
    }

    fn read(&self, controller: &str, file: &str) -> String {
        let path = self.0.dir(controller).unwrap().join(file);
        let text = std::fs::read_to_string(&path);
        text.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .trim()
            .to_owned()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.0.remove().unwrap();
        for dir in &self.0.dirs {
            assert!(!dir.path.exists(), "{}", dir.path.display());
        }
    }
}

fn sleeper() -> Child {
    Command::new("sleep").arg("1000").spawn().unwrap()
}

fn limits() -> LinuxResources {
    let memory = LinuxMemoryBuilder::default().limit(256_i64 << 20);
    let cpu = LinuxCpuBuilder::default()
        .quota(50_000)
        .period(100_000_u64)
        .shares(1024_u64)
        .cpus("0");
    LinuxResourcesBuilder::default()
        .memory(memory.build().unwrap())
        .cpu(cpu.build().unwrap())
        .pids(LinuxPidsBuilder::default().limit(100).build().unwrap())
        .build()
        .unwrap()
}

#[test]
fn processes_have_limits_and_end_with_the_groups() {
    let group = Group::new();
    let mut child = sleeper();
    let resources = limits();
    let pid = child.id().cast_signed();
    group.0.create(&[pid], Some(&resources)).unwrap();
    group.0.limit(&resources, ENGINE).unwrap();
    for dir in &group.0.dirs {
        assert!(files::processes(&dir.path).unwrap().contains(&pid));
    }
    assert_eq!(group.read("cpuset", "cpuset.cpus"), "0");
    assert_eq!(group.read("pids", "pids.max"), limits::THREADS.to_string());
    let memory = limits::memory(resources.memory().as_ref().unwrap(), ENGINE);
    let expected = memory.limit.unwrap().to_string();
    match group.0.version {
        Version::One => {
            assert_eq!(group.read("memory", "memory.limit_in_bytes"), expected);
            assert_eq!(group.read("cpu", "cpu.cfs_quota_us"), "50000");
            assert_eq!(group.read("cpu", "cpu.shares"), "1024");
        }
        Version::Two => {
            assert_eq!(group.read("memory", "memory.max"), expected);
            assert_eq!(group.read("cpu", "cpu.max"), "50000 100000");
            assert_eq!(group.read("cpu", "cpu.weight"), "39");
        }
    }
    let stats = group.0.stats();
    assert_eq!(stats.memory.max.to_string(), expected);
    assert_eq!(stats.pids.current, 1);
    drop(group);
    assert!(!child.wait().unwrap().success(), "it was killed");
}

#[test]
fn limits_change_up_and_down_and_are_lifted() {
    let group = Group::new();
    group.0.create(&[], None).unwrap();
    let with = |limit: i64| {
        let memory = LinuxMemoryBuilder::default().limit(limit).swap(limit);
        LinuxResourcesBuilder::default()
            .memory(memory.build().unwrap())
            .build()
            .unwrap()
    };
    for mib in [64_i64, 256, 128] {
        group.0.update(&with(mib << 20), ENGINE).unwrap();
        assert!(group.0.stats().memory.max >= (mib << 20) as u64);
    }
    group.0.update(&with(-1), ENGINE).unwrap();
    assert_eq!(group.0.stats().memory.max, u64::MAX);
}

#[test]
fn processes_in_a_group_that_a_container_shares_outlive_it() {
    let group = Group::new();
    let (mut other, mut own) = (sleeper(), sleeper());
    let pid = |child: &Child| child.id().cast_signed();
    group.0.create(&[pid(&other)], None).unwrap();
    group.0.create(&[pid(&own)], None).unwrap();
    own.kill().unwrap();
    own.wait().unwrap();
    group.0.remove().unwrap();
    assert_eq!(group.0.processes().unwrap(), BTreeSet::from([pid(&other)]));
    other.kill().unwrap();
    other.wait().unwrap();
    drop(group);
}

#[test]
fn a_frozen_group_is_refused() {
    let group = Group::new();
    group.0.create(&[], None).unwrap();
    let (file, frozen, thawed) = match group.0.version {
        Version::One => ("freezer.state", "FROZEN", "THAWED"),
        Version::Two => ("cgroup.freeze", "1", "0"),
    };
    let file = group.0.dir("freezer").unwrap().join(file);
    std::fs::write(&file, frozen).unwrap();
    let path = group.0.dirs[0].path.strip_prefix(&group.0.dirs[0].mount);
    let path = Path::new("/").join(path.unwrap());
    let error = Cgroup::find(Driver::Cgroupfs, Some(&path), "x").unwrap_err();
    assert!(error.to_string().contains("unexpectedly frozen"), "{error}");
    std::fs::write(&file, thawed).unwrap();
}

#[test]
fn groups_below_are_removed_too_and_removing_twice_is_no_error() {
    let group = Group::new();
    let mut child = sleeper();
    group.0.create(&[], None).unwrap();
    for dir in &group.0.dirs {
        let mut below = dir.clone();
        below.path = below.path.join("a/b");
        files::create(group.0.version, &below).unwrap();
        let procs = below.path.join("cgroup.procs");
        std::fs::write(procs, child.id().to_string()).unwrap();
    }
    group.0.remove().unwrap();
    group.0.remove().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_limit_that_the_host_cannot_set_names_its_field() {
    let group = Group::new();
    group.0.create(&[], None).unwrap();
    let cpu = LinuxCpuBuilder::default().cpus("4095").build().unwrap();
    let resources = LinuxResourcesBuilder::default().cpu(cpu).build().unwrap();
    let error = group.0.update(&resources, ENGINE).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("linux.resources.cpu.cpus") && error.contains("\"4095\""),
        "{error}"
    );
}

#[test]
fn a_serialized_cgroup_is_read_again() {
    let group = Group::new();
    let text = serde_json::to_string(&group.0).unwrap();
    assert_eq!(serde_json::from_str::<Cgroup>(&text).unwrap(), group.0);
}
