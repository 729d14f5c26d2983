//! containerd with rvm's shim, driven through the container runtime interface, as kubelet does.

#[path = "cri/death.rs"]
mod death;
#[path = "cri/devices.rs"]
mod devices;
#[path = "cri/images.rs"]
mod images;
#[path = "cri/limits.rs"]
mod limits;
#[path = "cri/users.rs"]
mod users;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rvm_tests::command::eventually;
use rvm_tests::cri::{Container, Cri, Pod, Projected, SUBNET, Sandboxer, api, sandboxer};

/// Runs until SIGTERM, and then ends at once.
const WAITS: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// A program for containers.
const INSIDE: &str = env!("CARGO_BIN_EXE_rvm-inside");

/// Adds a volume to a container.
fn mount(config: &mut api::ContainerConfig, host: &Path, container: &str, readonly: bool) {
    let mut mount = api::Mount::new();
    mount.host_path = host.display().to_string();
    mount.container_path = container.to_owned();
    mount.readonly = readonly;
    config.mounts.push(mount);
}

/// A tmpfs, as kubelet makes it for an emptyDir in memory.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: PathBuf) -> Self {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("rvm-test", &path, "tmpfs", flags, None).unwrap();
        Self(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// The namespace options of a container.
fn processes_of(config: &mut api::ContainerConfig) -> &mut api::NamespaceOption {
    config
        .linux
        .mut_or_insert_default()
        .security_context
        .mut_or_insert_default()
        .namespace_options
        .mut_or_insert_default()
}

#[test]
fn containers_of_a_pod_share_network_names_and_volumes_but_not_processes() {
    let cri = Cri::new();
    let volumes = tempfile::tempdir().unwrap();
    let path = |name: &str| volumes.path().join(name);
    for name in ["disk", "memory", "sub/inner"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    let memory = Tmpfs::mount(path("memory"));
    fs::write(path("hosts"), "127.0.0.1 localhost\n10.1.2.3 other\n").unwrap();
    fs::write(path("termination"), "").unwrap();
    fs::write(path("sub/inner/file"), "by its subpath\n").unwrap();

    let pod = cri.pod("web", |config| {
        let dns = config.dns_config.mut_or_insert_default();
        dns.servers.push("10.96.0.10".to_owned());
        dns.searches.push("default.svc".to_owned());
        dns.options.push("ndots:5".to_owned());
    });
    assert_eq!(
        pod.status().state,
        api::PodSandboxState::SANDBOX_READY.into()
    );
    let address = pod.status().network.ip.clone();
    assert!(address.starts_with(SUBNET), "{address}");

    let volumes_of = |config: &mut api::ContainerConfig| {
        mount(config, &path("disk"), "/disk", false);
        mount(config, &path("memory"), "/memory", false);
        mount(config, Path::new(INSIDE), "/inside", true);
        mount(config, &path("hosts"), "/etc/hosts", false);
        mount(config, &path("termination"), "/dev/termination-log", false);
        mount(config, &path("sub/inner"), "/sub", true);
    };
    let one = pod.start("one", WAITS, volumes_of);
    let two = pod.start("two", WAITS, volumes_of);
    assert_eq!(cri.containerd().shims().len(), 1);
    assert_network_and_names_are_shared(&one, &two, &address);
    assert_volumes_are_shared(&one, &two);
    assert_eq!(
        fs::read_to_string(path("termination")).unwrap(),
        "the end\n"
    );
    pod.remove();
    drop(memory);
}

fn assert_network_and_names_are_shared(one: &Container<'_>, two: &Container<'_>, address: &str) {
    let namespaces = "for n in net ipc uts; do readlink /proc/self/ns/$n; done; hostname";
    assert_eq!(one.shell(namespaces), two.shell(namespaces));
    assert!(one.shell("hostname").contains("web"));
    assert_ne!(
        one.shell("readlink /proc/self/ns/pid"),
        two.shell("readlink /proc/self/ns/pid")
    );
    let ours = one.shell("busybox ip -4 addr show eth0");
    assert!(ours.contains(address), "{ours}");
    let names = one.shell("cat /etc/resolv.conf");
    for line in ["nameserver 10.96.0.10", "search default.svc", "ndots:5"] {
        assert!(names.contains(line), "{names}");
    }
    assert!(two.shell("cat /etc/hosts").contains("10.1.2.3 other"));
}

/// The first also writes its termination message.
fn assert_volumes_are_shared(one: &Container<'_>, two: &Container<'_>) {
    one.shell("echo from one > /disk/file; echo the end > /dev/termination-log");
    assert_eq!(two.shell("cat /disk/file"), "from one\n");
    one.shell("echo fast > /memory/file");
    assert_eq!(two.shell("cat /memory/file"), "fast\n");
    let shared = "mkfifo /disk/fifo; cat /disk/fifo > /disk/passed & sleep 0.1";
    one.shell(&format!(
        "busybox {shared}; echo through > /disk/fifo; wait"
    ));
    assert_eq!(two.shell("cat /disk/passed"), "through\n");
    for socket in ["/disk/socket", "/memory/socket"] {
        one.shell(&format!(
            "/inside listen {socket} >/dev/null 2>&1 </dev/null &"
        ));
        // The socket exists before anybody listens.
        let connect = || two.exec(&format!("/inside connect {socket}"));
        eventually("it listens", || connect().stdout == "hello\n");
    }
    two.shell("echo shared > /dev/shm/file");
    assert_eq!(one.shell("cat /dev/shm/file"), "shared\n");
    assert_eq!(two.shell("cat /sub/file"), "by its subpath\n");
    assert_ne!(two.exec("echo > /sub/file").code, 0, "it is read-only");
}

#[test]
fn streams_of_a_container_and_of_programs_in_it_reach_the_client() {
    let cri = Cri::new();
    let pod = cri.pod("streams", |_| {});
    let script = "echo out; echo err >&2; printf part; while read line; do echo got $line; done";
    let box_ = pod.start("box", script, |config| config.stdin = true);
    let done = box_.exec("echo out; echo err >&2; exit 7");
    let parts = (done.code, &*done.stdout, &*done.stderr);
    assert_eq!(parts, (7, "out\n", "err\n"));

    let mut exec = box_.stream("read a; echo got $a; echo no >&2; exit 5", false);
    exec.write(b"this\n");
    let (out, err, code) = exec.finish();
    assert_eq!((&*out, &*err, code), ("got this\n", "no\n", 5));

    let mut terminal = box_.stream("read a; stty size; exit 3", true);
    terminal.resize(77, 33);
    std::thread::sleep(Duration::from_millis(500));
    terminal.write(b"go\r");
    terminal.wait_for("33 77");
    assert_eq!(terminal.finish().2, 3);

    let mut attached = box_.attach(true);
    attached.write(b"one\ntwo\n");
    attached.wait_for("got two");
    drop(attached);
    eventually("the log has it all", || box_.log_lines().len() >= 4);
    let line = |stream: &str, text: &str| (stream.to_owned(), "F".to_owned(), text.to_owned());
    let log = box_.log_lines();
    for wanted in [
        line("stdout", "out"),
        line("stderr", "err"),
        line("stdout", "partgot one"),
        line("stdout", "got two"),
    ] {
        assert!(log.contains(&wanted), "{wanted:?} is not in {log:?}");
    }
    pod.remove();
}

#[test]
fn a_pod_in_the_nodes_network_is_refused_in_the_words_of_pods() {
    if sandboxer() == Sandboxer::Shim {
        println!("skipped: containerd 2.1 panics before it calls the shim");
        return;
    }
    let cri = Cri::new();
    let mut config = cri.pod_config("node");
    let linux = config.linux.mut_or_insert_default();
    let context = linux.security_context.mut_or_insert_default();
    let namespaces = context.namespace_options.mut_or_insert_default();
    namespaces.network = api::NamespaceMode::NODE.into();
    let Err(refused) = cri.run_pod(config) else {
        panic!("a machine cannot be in the node's network");
    };
    assert!(refused.message.contains("hostNetwork"), "{refused:?}");
    assert!(!refused.message.contains("--network"), "{refused:?}");
}

#[test]
fn ports_of_a_pod_are_forwarded() {
    let cri = Cri::new();
    let pod = cri.pod("ports", |_| {});
    let serve = |port: u16| {
        format!(
            "mkdir /{port}; echo from {port} >/{port}/file; busybox httpd -p 127.0.0.1:{port} -h /{port}"
        )
    };
    let script = format!("{}; {}; {WAITS}", serve(8001), serve(8002));
    let box_ = pod.start("box", &script, |_| {});
    eventually("it listens", || {
        box_.shell("cat /proc/net/tcp")
            .matches("0100007F:1F4")
            .count()
            == 2
    });
    for port in [8001, 8002, 8001] {
        let mut stream = pod.forward(port);
        stream.write(b"GET /file HTTP/1.0\r\n\r\n");
        let wanted = format!("from {port}");
        let answer = stream.read_port(&wanted);
        assert!(answer.contains(&wanted), "{answer:?}");
    }
    let nobody = pod.forward(8003).read_port("answer");
    assert!(!nobody.contains("answer"), "{nobody}");
    pod.remove();
}

/// Whether a container sees a process with this name.
fn sees(container: &Container<'_>, name: &str) -> bool {
    container.shell("ps").contains(name)
}

#[test]
fn processes_are_shared_where_the_pod_or_a_debugging_container_says_so() {
    let cri = Cri::new();
    let shared = |config: &mut api::PodSandboxConfig| {
        config
            .linux
            .mut_or_insert_default()
            .security_context
            .mut_or_insert_default()
            .namespace_options
            .mut_or_insert_default()
            .pid = api::NamespaceMode::POD.into();
    };
    let pod_wide = |config: &mut api::ContainerConfig| {
        processes_of(config).pid = api::NamespaceMode::POD.into();
    };
    let pod = cri.pod("shared", shared);
    let one = pod.start("one", "sleep 1001", pod_wide);
    let two = pod.start("two", "sleep 1002", pod_wide);
    // A container that has started may be about to execute its program.
    eventually("each sees the other's process", || {
        sees(&one, "sleep 1002") && sees(&two, "sleep 1001")
    });
    pod.remove();

    let pod = cri.pod("apart", |config| {
        let namespaces = config
            .linux
            .mut_or_insert_default()
            .security_context
            .mut_or_insert_default()
            .namespace_options
            .mut_or_insert_default();
        namespaces.pid = api::NamespaceMode::CONTAINER.into();
    });
    let one = pod.start("one", "sleep 1001", |_| {});
    let two = pod.start("two", "sleep 1002", |_| {});
    assert!(!sees(&one, "sleep 1002") && !sees(&two, "sleep 1001"));
    let debug = pod.start("debug", WAITS, |config| {
        let processes = processes_of(config);
        processes.pid = api::NamespaceMode::TARGET.into();
        processes.target_id.clone_from(&one.id);
    });
    eventually("a debugging container sees its target", || {
        sees(&debug, "sleep 1001")
    });
    assert!(!sees(&debug, "sleep 1002"));
    pod.remove();
}

fn files(count: usize, text: &str) -> Vec<(String, String)> {
    (0..count)
        .map(|number| (format!("key{number}"), format!("{text} {number}\n")))
        .collect()
}

/// A container with a volume at /config.
fn with_volume<'a>(pod: &Pod<'a>, volume: &Projected) -> Container<'a> {
    pod.start("box", WAITS, |config| {
        mount(config, volume.path(), "/config", true);
        mount(config, Path::new(INSIDE), "/inside", true);
    })
}

#[test]
fn an_update_of_a_volume_with_a_thousand_files_is_told_and_seen_within_a_second() {
    let cri = Cri::new();
    let mut volume = Projected::new(&files(1000, "old"));
    let pod = cri.pod("volumes", |_| {});
    let box_ = with_volume(&pod, &volume);
    assert_eq!(box_.shell("cat /config/key999"), "old 999\n");
    assert_eq!(box_.shell("ls /config | wc -l"), "1000\n");
    let mut watch = box_.stream("/inside watch /config", false);
    watch.wait_for("ready");
    // A busy host may be late once.
    let mut told = Duration::MAX;
    for round in 0..3 {
        let exchanged = volume.write(&files(1000, &format!("new{round}")));
        watch.wait_for("event ..data\n");
        told = told.min(exchanged.elapsed());
        let wanted = format!("new{round} 999\nnew{round} 0\n");
        assert_eq!(box_.shell("cat /config/key999 /config/key0"), wanted);
        if told < Duration::from_secs(1) {
            break;
        }
        watch.forget();
    }
    assert!(told < Duration::from_secs(1), "{told:?}");
    println!("the update was told after {told:?}");
    assert_ne!(box_.exec("echo > /config/key0").code, 0, "it is read-only");
    pod.remove();
}

/// A configuration of a small pod.
fn small(cri: &Cri, name: &str) -> api::PodSandboxConfig {
    let mut config = cri.pod_config(name);
    let linux = config.linux.mut_or_insert_default();
    let together = linux.resources.mut_or_insert_default();
    together.memory_limit_in_bytes = 32 << 20;
    together.cpu_quota = 100_000;
    together.cpu_period = 100_000;
    config
}

#[test]
fn twenty_pods_run_side_by_side_and_leave_nothing() {
    const PODS: usize = 20;
    // Starting all at once takes long on a software CPU.
    let cri = Cri::configured("start_timeout_seconds = 200");
    let start = Instant::now();
    let live = |(number, config): (usize, api::PodSandboxConfig)| {
        let pod = cri.run_pod(config).unwrap();
        let box_ = pod.start("box", WAITS, |_| {});
        assert_eq!(box_.shell(&format!("echo {number}")), format!("{number}\n"));
        pod
    };
    let configs = (0..PODS).map(|number| (number, small(&cri, &format!("pod{number}"))));
    let pods: Vec<Pod<'_>> = std::thread::scope(|scope| {
        let spawn = |config| scope.spawn(|| live(config));
        let threads: Vec<_> = configs.map(spawn).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().unwrap();
        threads.into_iter().map(join).collect()
    });
    let up = start.elapsed();
    assert_eq!(cri.containerd().shims().len(), PODS);
    let addresses: std::collections::BTreeSet<String> = pods
        .iter()
        .map(|pod| pod.status().network.ip.clone())
        .collect();
    assert_eq!(addresses.len(), PODS);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for pod in pods {
            scope.spawn(move || pod.remove());
        }
    });
    println!(
        "{PODS} pods were up after {up:.1?} and gone after {:.1?} more",
        start.elapsed()
    );
}

/// The pid of a process that runs a pod's machine.
fn machine(cri: &Cri) -> i32 {
    machines(cri)[0]
}

/// All processes that run machines.
fn machines(cri: &Cri) -> Vec<i32> {
    let mut processes = cri.world().processes();
    processes.retain(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.starts_with("qemu") || name.starts_with("rvm-vmm")
    });
    processes
}
