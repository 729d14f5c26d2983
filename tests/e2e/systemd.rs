//! The systemd driver, on a systemd with cgroup v2. There is one where tests/nested/systemd has
//! booted it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rvm_tests::command::{eventually, wait};
use rvm_tests::{Bundle, Rvm};
use serde_json::{Value, json};

const UNIT: &str = "rvm-box.scope";
const GROUP: &str = "/sys/fs/cgroup/machines.slice/machines-test.slice/rvm-box.scope";

/// Held by the running test: there is one systemd, and one test stops the bus.
struct Alone(#[expect(dead_code, reason = "held")] std::sync::MutexGuard<'static, ()>);

impl Drop for Alone {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = Command::new("systemctl").args(["stop", UNIT]).status();
        }
    }
}

fn systemd() -> Option<Alone> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    if !Path::new("/run/systemd/private").exists() {
        println!("skipped: there is no systemd here; tests/nested/systemd boots one");
        return None;
    }
    let one = ONE.lock();
    Some(Alone(
        one.unwrap_or_else(std::sync::PoisonError::into_inner),
    ))
}

fn systemctl(args: &[&str]) -> String {
    let output = Command::new("systemctl").args(args).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "systemctl {args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn properties() -> BTreeMap<String, String> {
    let text = systemctl(&["show", UNIT]);
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn file(name: &str) -> String {
    let path = format!("{GROUP}/{name}");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.trim().to_owned()
}

fn bundle(resources: Value) -> Bundle {
    Bundle::new(&["sleep", "1000"]).with(|config| {
        config["linux"]["cgroupsPath"] = json!("machines-test.slice:rvm:box");
        config["linux"]["resources"] = resources;
    })
}

fn create(rvm: &Rvm, bundle: &Bundle) {
    let dir = bundle.write().to_str().unwrap();
    let mut command = rvm.command(&["--systemd-cgroup", "create", "--bundle", dir, "box"]);
    let log = rvm.path("create.log");
    command.stdout(Stdio::null());
    command.stderr(fs::File::create(&log).unwrap());
    let output = wait(command.spawn().unwrap());
    let said = fs::read_to_string(&log).unwrap();
    assert!(output.status.success(), "{said}");
}

fn assert_no_scope_left() {
    assert_eq!(properties()["LoadState"], "not-found");
    assert!(!Path::new(GROUP).exists());
}

/// Asserts that systemd and the files of the cgroup have the same values.
fn assert_limits(memory: u64, quota: &str) {
    let known = properties();
    assert_eq!(known["MemoryMax"], memory.to_string());
    assert_eq!(file("memory.max"), memory.to_string());
    assert_eq!(known["CPUQuotaPerSecUSec"], quota);
    assert_eq!(known["CPUWeight"], "39");
    assert_eq!(file("cpu.weight"), "39");
    assert_eq!(known["TasksMax"], file("pids.max"));
    assert_eq!(known["MemorySwapMax"], "0");
    assert_eq!(
        (known["AllowedCPUs"].as_str(), file("cpuset.cpus")),
        ("1", "1".to_owned())
    );
    assert_eq!(file("cpuset.mems"), "0");
}

#[test]
fn a_container_is_in_a_scope_that_knows_its_limits() {
    let Some(_alone) = systemd() else { return };
    let rvm = Rvm::new();
    let bundle = bundle(json!({
        "memory": { "limit": 256 << 20, "reservation": 128 << 20, "swap": 256 << 20 },
        "cpu": { "shares": 1024, "quota": 40_000, "period": 50_000, "cpus": "1", "mems": "0" },
        "pids": { "limit": 100 },
    }));
    create(&rvm, &bundle);
    let known = properties();
    assert_eq!(known["ActiveState"], "active");
    assert_eq!(known["Slice"], "machines-test.slice");
    assert_eq!(known["Delegate"], "yes");
    assert_eq!(known["CollectMode"], "inactive");
    let own = format!("/sys/fs/cgroup{}", known["ControlGroup"]);
    assert_eq!(own, GROUP);
    let monitor = rvm.state("box")["pid"].to_string();
    let members = file("cgroup.procs");
    assert!(members.lines().any(|pid| *pid == monitor), "{members}");
    assert!(members.lines().count() > 1, "the machine is there too");

    let memory: u64 = file("memory.max").parse().unwrap();
    assert!(memory > 256 << 20);
    assert_limits(memory, "800ms");
    assert_eq!(known["MemoryLow"], file("memory.low"));
    // systemd writes its own values.
    systemctl(&["daemon-reload"]);
    assert_limits(memory, "800ms");
    assert_eq!(file("cpu.max"), "40000 50000");

    rvm.ok(&["start", "box"]);
    rvm.ok(&[
        "update",
        "--memory",
        "320m",
        "--memory-swap",
        "320m",
        "--cpu-quota",
        "15000",
        "box",
    ]);
    let more: u64 = file("memory.max").parse().unwrap();
    assert!(more > memory);
    assert_limits(more, "300ms");
    systemctl(&["daemon-reload"]);
    assert_limits(more, "300ms");
    rvm.ok(&["delete", "--force", "box"]);
    assert_no_scope_left();
}

#[test]
fn a_scope_that_systemd_stops_ends_the_container() {
    let Some(_alone) = systemd() else { return };
    let rvm = Rvm::new();
    // Its init process is asked to end, and does.
    let program = "trap 'exit 0' TERM; while :; do sleep 0.2; done";
    let willing = bundle(json!({})).with(|config| {
        config["process"]["args"] = json!(["sh", "-c", program]);
    });
    create(&rvm, &willing);
    rvm.ok(&["start", "box"]);
    systemctl(&["stop", UNIT]);
    rvm.wait_for_status("box", "stopped");
    rvm.ok(&["delete", "box"]);
    eventually("the scope is gone", || !Path::new(GROUP).exists());
    assert_no_scope_left();
    // Its name is free again.
    create(&rvm, &bundle(json!({})));
    rvm.ok(&["delete", "--force", "box"]);
    assert_no_scope_left();
}

#[test]
fn without_a_bus_systemd_is_asked_directly() {
    let Some(_alone) = systemd() else { return };
    let rvm = Rvm::new();
    systemctl(&["stop", "dbus.socket", "dbus.service"]);
    create(&rvm, &bundle(json!({ "pids": { "limit": 7 } })));
    assert_eq!(properties()["TasksMax"], file("pids.max"));
    rvm.ok(&["delete", "--force", "box"]);
    assert_no_scope_left();
    systemctl(&["start", "dbus.socket"]);
}
