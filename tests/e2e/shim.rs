//! The shim's services, called as containerd calls them, by a client in the tests.

#[path = "shim/checkpoint.rs"]
mod checkpoint;

use std::fs;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::sandbox_api;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageFull};
use rvm_tests::command::eventually;
use rvm_tests::cri::api as cri;
use rvm_tests::network::Network;
use rvm_tests::shim::{Shim, limit};
use rvm_tests::{Bundle, command};
use serde_json::{Value, json};

/// Runs until SIGTERM.
const WAITS: &str = "while :; do sleep 0.2; done";

/// The error of a call for an unknown id.
fn is_not_found<T>(answer: &ttrpc::Result<T>) -> bool {
    matches!(answer, Err(ttrpc::Error::RpcStatus(status))
        if status.code() == ttrpc::Code::NOT_FOUND)
}

/// A pod's configuration as containerd sends it, with cgroups in the test's world.
fn sandbox_request(bundle: &Path, network: &Network) -> sandbox_api::CreateSandboxRequest {
    let mut config = cri::PodSandboxConfig::new();
    config.hostname = "web".to_owned();
    let linux = config.linux.mut_or_insert_default();
    linux.cgroup_parent = command::world().unwrap();
    let options = Any {
        type_url: "runtime.v1.PodSandboxConfig".to_owned(),
        value: config.write_to_bytes().unwrap(),
        ..Default::default()
    };
    sandbox_api::CreateSandboxRequest {
        sandbox_id: "pod".to_owned(),
        bundle_path: bundle.display().to_string(),
        options: Some(options).into(),
        netns_path: network.path(),
        ..Default::default()
    }
}

/// A container of the pod whose first container has this pid.
fn member(script: &str, pid: u32, network: &Network) -> Bundle {
    Bundle::shell(script).with(|config| {
        config["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "pod",
        });
        config.as_object_mut().unwrap().remove("hostname");
        config["linux"]["namespaces"] = json!([
            { "type": "pid" }, { "type": "mount" }, { "type": "cgroup" },
            { "type": "network", "path": network.path() },
            { "type": "ipc", "path": format!("/proc/{pid}/ns/ipc") },
            { "type": "uts", "path": format!("/proc/{pid}/ns/uts") },
        ]);
    })
}

fn create(shim: &Shim, id: &str, bundle: &Bundle) {
    let request = api::CreateTaskRequest {
        id: id.to_owned(),
        bundle: bundle.write().display().to_string(),
        ..Default::default()
    };
    shim.ok(shim.tasks.create(limit(), &request));
}

/// Starts a container's init process, or an added one.
fn start(shim: &Shim, id: &str, exec_id: &str) {
    let request = api::StartRequest {
        id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        ..Default::default()
    };
    shim.ok(shim.tasks.start(limit(), &request));
}

/// Adds a process and starts it.
fn exec(shim: &Shim, id: &str, exec_id: &str, script: &str) {
    let process = json!({ "user": { "uid": 0, "gid": 0 }, "cwd": "/",
        "args": ["/bin/busybox", "sh", "-c", script], "env": ["PATH=/bin"] });
    let request = api::ExecProcessRequest {
        id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        spec: Some(json_any(&process)).into(),
        ..Default::default()
    };
    shim.ok(shim.tasks.exec(limit(), &request));
    start(shim, id, exec_id);
}

fn json_any(value: &Value) -> Any {
    Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
        value: value.to_string().into_bytes(),
        ..Default::default()
    }
}

/// Waits for a process; returns its exit code.
fn wait(shim: &Shim, id: &str, exec_id: &str) -> u32 {
    let request = api::WaitRequest {
        id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        ..Default::default()
    };
    shim.ok(shim.tasks.wait(limit(), &request)).exit_status
}

/// Kills a container's init process; returns its exit code.
fn kill(shim: &Shim, id: &str) -> u32 {
    let request = api::KillRequest {
        id: id.to_owned(),
        signal: 9,
        ..Default::default()
    };
    shim.ok(shim.tasks.kill(limit(), &request));
    wait(shim, id, "")
}

fn delete(shim: &Shim, id: &str, exec_id: &str) {
    let request = api::DeleteRequest {
        id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        ..Default::default()
    };
    shim.ok(shim.tasks.delete(limit(), &request));
}

fn status(shim: &Shim) -> sandbox_api::SandboxStatusResponse {
    let request = sandbox_api::SandboxStatusRequest {
        sandbox_id: "pod".to_owned(),
        verbose: true,
        ..Default::default()
    };
    shim.ok(shim.sandboxes.sandbox_status(limit(), &request))
}

fn ping(shim: &Shim, id: &str) -> ttrpc::Result<sandbox_api::PingResponse> {
    let request = sandbox_api::PingRequest {
        sandbox_id: id.to_owned(),
        ..Default::default()
    };
    shim.call(shim.sandboxes.ping_sandbox(limit(), &request))
}

fn metrics(shim: &Shim, id: &str) -> ttrpc::Result<sandbox_api::SandboxMetricsResponse> {
    let request = sandbox_api::SandboxMetricsRequest {
        sandbox_id: id.to_owned(),
        ..Default::default()
    };
    shim.call(shim.sandboxes.sandbox_metrics(limit(), &request))
}

/// Starts the sandbox; returns its pid.
fn start_sandbox(shim: &Shim) -> u32 {
    let request = sandbox_api::StartSandboxRequest {
        sandbox_id: "pod".to_owned(),
        ..Default::default()
    };
    shim.ok(shim.sandboxes.start_sandbox(limit(), &request)).pid
}

#[test]
fn the_sandbox_api_leads_a_pod_with_its_memory_through_its_life() {
    let bundle = tempfile::tempdir().unwrap();
    let network = Network::new();
    let shim = Shim::start("pod", bundle.path());
    assert!(is_not_found(&ping(&shim, "pod")));
    let request = sandbox_request(bundle.path(), &network);
    shim.ok(shim.sandboxes.create_sandbox(limit(), &request));
    let platform = sandbox_api::PlatformRequest::default();
    let platform = shim
        .ok(shim.sandboxes.platform(limit(), &platform))
        .platform;
    assert_eq!((&*platform.os, &*platform.architecture), ("linux", "amd64"));
    assert_eq!(status(&shim).state, "SANDBOX_NOTREADY");
    assert!(is_not_found(&ping(&shim, "pod")), "there is no machine yet");

    let pid = start_sandbox(&shim);
    let ready = status(&shim);
    assert_eq!((&*ready.state, ready.pid), ("SANDBOX_READY", pid));
    assert!(ready.info.contains_key("rvmVersion"), "{ready:?}");
    ping(&shim, "pod").unwrap();
    let told = metrics(&shim, "pod").unwrap().metrics.unwrap();
    assert_eq!(told.id, "pod");
    let cost = Metrics::parse_from_bytes(&told.data.value).unwrap();
    assert!(cost.memory.usage > 4 << 20, "that of the machine: {cost:?}");
    assert!(cost.cpu.usage_usec > 10_000, "{cost:?}");
    assert!(is_not_found(&ping(&shim, "other")) && is_not_found(&metrics(&shim, "other")));

    containers_share_memory(&shim, pid, &network);

    let stop = sandbox_api::StopSandboxRequest {
        sandbox_id: "pod".to_owned(),
        ..Default::default()
    };
    shim.ok(shim.sandboxes.stop_sandbox(limit(), &stop));
    let wait = sandbox_api::WaitSandboxRequest {
        sandbox_id: "pod".to_owned(),
        ..Default::default()
    };
    let ended = shim.ok(shim.sandboxes.wait_sandbox(limit(), &wait));
    assert_eq!(
        (ended.exit_status, &*status(&shim).state),
        (137, "SANDBOX_NOTREADY")
    );
    assert!(ping(&shim, "pod").is_err(), "the machine is gone");
    let shutdown = sandbox_api::ShutdownSandboxRequest {
        sandbox_id: "pod".to_owned(),
        ..Default::default()
    };
    shim.ok(shim.sandboxes.shutdown_sandbox(limit(), &shutdown));
    drop(shim);
    assert_eq!(command::mentions("/proc/self/mountinfo", bundle.path()), 0);
}

/// Asserts that containers share /dev/shm, and that it has 64 MiB.
fn containers_share_memory(shim: &Shim, pid: u32, network: &Network) {
    // A shared file system may report other block sizes.
    let size = "set -- $(stat -f -c '%b %s' /dev/shm); echo $(($1 * $2 >> 20)) >/dev/shm/size";
    let one = member(
        &format!("{size}; echo full >/dev/shm/file; {WAITS}"),
        pid,
        network,
    );
    let wait_for = "while ! grep -q full /dev/shm/file; do sleep 0.1; done; \
                    grep -qx '6[34]' /dev/shm/size || exit 8; hostname | grep -qx web && exit 7";
    let two = member(wait_for, pid, network);
    for (id, bundle) in [("one", &one), ("two", &two)] {
        create(shim, id, bundle);
        start(shim, id, "");
    }
    assert_eq!(wait(shim, "two", ""), 7);
    delete(shim, "two", "");
    assert_eq!(kill(shim, "one"), 137);
    delete(shim, "one", "");
}

/// The last event of this type.
fn last<T: MessageFull>(shim: &Shim) -> T {
    let name = T::descriptor().full_name().to_owned();
    let told = shim.events();
    let mut found = told
        .iter()
        .filter(|envelope| envelope.event.type_url == name);
    T::parse_from_bytes(&found.next_back().unwrap().event.value).unwrap()
}

/// The events of a container with two added processes, one of which is killed for lack of memory.
const WANTED: [&str; 13] = [
    "create",
    "start",
    "exec-added",
    "exec-started",
    "exit",
    "paused",
    "resumed",
    "exec-added",
    "exec-started",
    "oom",
    "exit",
    "exit",
    "delete",
];

#[test]
fn every_event_is_told_in_order_although_containerd_was_cut_off_in_between() {
    let bundle = Bundle::shell(WAITS).with(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 32 << 20 });
    });
    fs::create_dir(bundle.rootfs("go")).unwrap();
    let bundle_dir = bundle.write().to_owned();
    let shim = Shim::start("box", &bundle_dir);
    create(&shim, "box", &bundle);
    start(&shim, "box", "");
    exec(&shim, "box", "one", "exit 4");
    assert_eq!(wait(&shim, "box", "one"), 4);
    eventually("the exit is told", || shim.topics().len() == 5);
    assert_eq!(last::<events::TaskExit>(&shim).exit_status, 4);

    shim.cut();
    let request = api::PauseRequest {
        id: "box".to_owned(),
        ..Default::default()
    };
    shim.ok(shim.tasks.pause(limit(), &request));
    let request = api::ResumeRequest {
        id: "box".to_owned(),
        ..Default::default()
    };
    shim.ok(shim.tasks.resume(limit(), &request));
    // It keeps the last line, which never ends, and is killed.
    exec(&shim, "box", "two", "tail /dev/zero");
    assert_eq!(wait(&shim, "box", "two"), 137);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(shim.topics().len(), 5, "nobody listens");
    shim.listen();
    eventually("what was missed is told", || shim.topics().len() >= 11);

    shim.cut();
    assert_eq!(kill(&shim, "box"), 137);
    delete(&shim, "box", "");
    // The last events wait for containerd too.
    shim.ok(shim
        .tasks
        .shutdown(limit(), &api::ShutdownRequest::default()));
    shim.listen();
    eventually("the rest is told", || shim.topics().len() >= 13);
    assert_eq!(shim.topics(), WANTED.map(|topic| format!("/tasks/{topic}")));
    assert_eq!(last::<events::TaskOOM>(&shim).container_id, "box");
    let exit = last::<events::TaskExit>(&shim);
    assert_eq!((&*exit.id, exit.exit_status), ("box", 137));
    assert_eq!(last::<events::TaskDelete>(&shim).exit_status, 137);
}

#[test]
fn a_terminal_needs_no_standard_error_and_a_size_needs_no_terminal() {
    let bundle = Bundle::shell(WAITS);
    let shim = Shim::start("box", bundle.write());
    create(&shim, "box", &bundle);
    start(&shim, "box", "");
    let resize = |exec_id: &str| {
        let request = api::ResizePtyRequest {
            id: "box".to_owned(),
            exec_id: exec_id.to_owned(),
            height: 33,
            width: 77,
            ..Default::default()
        };
        shim.call(shim.tasks.resize_pty(limit(), &request))
    };
    resize("").unwrap();
    let process = json!({ "terminal": true, "user": { "uid": 0, "gid": 0 }, "cwd": "/",
        "args": ["/bin/busybox", "sh", "-c", "until stty size | grep '33 77'; do sleep 0.1; done"],
        "env": ["PATH=/bin"] });
    // containerd's own client names a FIFO for standard error that it does not make.
    let request = api::ExecProcessRequest {
        id: "box".to_owned(),
        exec_id: "one".to_owned(),
        terminal: true,
        stderr: "/nonexistent/fifo".to_owned(),
        spec: Some(json_any(&process)).into(),
        ..Default::default()
    };
    shim.ok(shim.tasks.exec(limit(), &request));
    resize("one").unwrap();
    start(&shim, "box", "one");
    resize("one").unwrap();
    assert_eq!(wait(&shim, "box", "one"), 0);
    assert_eq!(code(resize("one")), ttrpc::Code::FAILED_PRECONDITION);
    delete(&shim, "box", "one");
    assert_eq!(kill(&shim, "box"), 137);
    delete(&shim, "box", "");
    shim.ok(shim
        .tasks
        .shutdown(limit(), &api::ShutdownRequest::default()));
}

/// The code of a call that must fail.
fn code<T>(answer: ttrpc::Result<T>) -> ttrpc::Code {
    match answer {
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        Err(error) => panic!("a failure without a code: {error}"),
        Ok(_) => panic!("the call did not fail"),
    }
}

#[test]
fn failures_have_the_codes_that_containerd_acts_on() {
    let bundle = Bundle::shell(WAITS);
    let bundle_dir = bundle.write().to_owned();
    let shim = Shim::start("box", &bundle_dir);
    let create_request = api::CreateTaskRequest {
        id: "box".to_owned(),
        bundle: bundle_dir.display().to_string(),
        ..Default::default()
    };
    let start_request = api::StartRequest {
        id: "box".to_owned(),
        ..Default::default()
    };
    let kill_request = |exec_id: &str| api::KillRequest {
        id: "box".to_owned(),
        exec_id: exec_id.to_owned(),
        signal: 9,
        ..Default::default()
    };
    let delete_request = api::DeleteRequest {
        id: "box".to_owned(),
        ..Default::default()
    };
    let stats_request = api::StatsRequest {
        id: "box".to_owned(),
        ..Default::default()
    };
    shim.ok(shim.tasks.create(limit(), &create_request));
    shim.ok(shim.tasks.start(limit(), &start_request));
    let again = shim.call(shim.tasks.create(limit(), &create_request));
    assert_eq!(code(again), ttrpc::Code::ALREADY_EXISTS);
    let again = shim.call(shim.tasks.start(limit(), &start_request));
    assert_eq!(code(again), ttrpc::Code::FAILED_PRECONDITION);
    let running = shim.call(shim.tasks.delete(limit(), &delete_request));
    assert_eq!(code(running), ttrpc::Code::FAILED_PRECONDITION);
    let none = shim.call(shim.tasks.kill(limit(), &kill_request("none")));
    assert_eq!(code(none), ttrpc::Code::NOT_FOUND);
    let without_a_place = api::CheckpointTaskRequest {
        id: "box".to_owned(),
        ..Default::default()
    };
    let refused = shim.call(shim.tasks.checkpoint(limit(), &without_a_place));
    assert_eq!(code(refused), ttrpc::Code::INVALID_ARGUMENT);

    assert_eq!(kill(&shim, "box"), 137);
    let again = shim.call(shim.tasks.kill(limit(), &kill_request("")));
    assert_eq!(code(again), ttrpc::Code::NOT_FOUND);
    let stats = shim.call(shim.tasks.stats(limit(), &stats_request));
    assert_eq!(code(stats), ttrpc::Code::NOT_FOUND);
    shim.ok(shim.tasks.delete(limit(), &delete_request));
    let again = shim.call(shim.tasks.delete(limit(), &delete_request));
    assert_eq!(code(again), ttrpc::Code::NOT_FOUND);
    shim.ok(shim
        .tasks
        .shutdown(limit(), &api::ShutdownRequest::default()));
}
