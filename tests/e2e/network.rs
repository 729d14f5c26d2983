//! The network of a container: interfaces that an engine puts into its namespace on the host,
//! before or after the container is created.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use rvm_tests::command::eventually;
use rvm_tests::network::Network;
use rvm_tests::{Bundle, Rvm};
use serde_json::{Value, json};

/// Writes the guest's configuration again and again to files that the host can read.
const WATCH: &str = "while :; do for what in addr route neigh; do \
     busybox ip $what >/tmp/new; mv /tmp/new /tmp/$what; done; sleep 0.1; done";

/// A bundle with this network namespace or a new one, whose program may send any packet.
fn bundle(script: &str, network: Option<&Network>) -> Bundle {
    let capabilities = ["CAP_NET_RAW", "CAP_NET_BIND_SERVICE", "CAP_KILL"];
    let bundle = Bundle::shell(script).capabilities(&capabilities);
    bundle.with(|config| {
        if let Some(network) = network {
            for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
                if namespace["type"] == "network" {
                    namespace["path"] = json!(network.path());
                }
            }
        }
    })
}

/// Makes a veth pair: an interface of this name in the namespace `path`, up, with address
/// 10.0.NUMBER.2, and one in `peer` with 10.0.NUMBER.1.
fn connect(peer: &Network, path: &str, name: &str, number: u8) {
    peer.ip(&format!(
        "link add out{number} type veth peer name in{number}"
    ));
    peer.ip(&format!("link set in{number} netns {path} name {name}"));
    peer.ip(&format!("addr add 10.0.{number}.1/24 dev out{number}"));
    peer.ip(&format!("link set out{number} up"));
    let inside = |line: &str| {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={path}"))
            .arg("ip")
            .args(line.split(' '));
        assert!(command.status().unwrap().success(), "ip {line}");
    };
    inside(&format!("addr add 10.0.{number}.2/24 dev {name}"));
    inside(&format!("link set {name} up"));
}

fn read(bundle: &Bundle, name: &str) -> String {
    std::fs::read_to_string(bundle.rootfs(&format!("tmp/{name}"))).unwrap_or_default()
}

fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn an_interface_of_the_host_is_moved_into_the_machine_under_another_name() {
    let rvm = Rvm::new();
    let host = rvm.network();
    host.ip("link add mine type veth peer name peer");
    host.ip("addr add 10.0.9.2/24 dev mine");
    host.ip("addr add 10.0.9.1/24 dev peer");
    host.ip("link set peer up");
    let script = "busybox ip -4 addr show dev net0; busybox ping -c 1 -W 5 10.0.9.1 >/dev/null && echo reached";
    let asking = |device: &str, name: &str| {
        bundle(script, None).with(|config| {
            config["linux"]["netDevices"] = json!({ device: { "name": name } });
        })
    };
    for (device, name, reason) in [
        (
            "absent",
            "net0",
            "linux.netDevices[\"absent\"] cannot be moved into the container: there is",
        ),
        ("lo", "net0", "it is no Ethernet interface"),
        ("mine", "lo", "has one of that name"),
        (
            "mine",
            "a/b",
            "linux.netDevices[\"mine\"] has no valid name",
        ),
    ] {
        let finished = rvm.run(&asking(device, name), "box");
        assert_eq!(finished.code, 1, "{device}");
        assert!(finished.stderr.contains(reason), "{}", finished.stderr);
        assert!(
            host.ip("link show mine").contains("mine"),
            "it is where it was"
        );
    }
    let finished = rvm.run(&asking("mine", "net%d"), "box");
    assert_eq!(finished.code, 0, "{}{}", finished.stdout, finished.stderr);
    assert_has(&finished.stdout, &["inet 10.0.9.2/24", "reached"]);
}

#[test]
fn a_container_has_what_its_namespace_has_and_leaves_it_as_it_was() {
    let rvm = Rvm::new();
    let (inside, peer) = (Network::new(), Network::new());
    connect(&peer, &inside.path(), "eth0", 1);
    connect(&peer, &inside.path(), "net7", 2);
    peer.ip("addr add 192.0.2.1/32 dev lo");
    peer.ip("link set lo up");
    peer.ip("addr add fd00::1/64 dev out1 nodad");
    for line in [
        "link set net7 mtu 1400 address 02:00:00:00:00:07",
        "addr add fd00::2/64 dev eth0 nodad",
        "addr add 10.0.1.22/24 dev eth0",
        "route add default via 10.0.1.1",
        "-6 route add default via fd00::1 metric 77",
        "route add 172.20.0.0/16 via 10.0.2.1 table 99",
        "route add unreachable 172.21.0.0/16",
        "rule add from 10.0.2.2 lookup 99 priority 1000",
        "neigh add 10.0.2.9 lladdr 02:00:00:00:00:09 dev net7",
    ] {
        inside.ip(line);
    }
    let before = inside.tc("qdisc show");
    let bundle = bundle(
        "busybox ip addr; busybox ip route; busybox ip route show table 99; busybox ip rule; \
         busybox ip -6 route; busybox ip neigh; for to in 10.0.1.1 192.0.2.1 10.0.2.1 fd00::1; \
         do busybox ping -c 1 -W 5 $to >/dev/null && echo $to answers; done",
        Some(&inside),
    );
    let finished = rvm.run(&bundle, "box");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert_has(
        &finished.stdout,
        &[
            " eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500",
            "inet 10.0.1.2/24 scope global eth0",
            "inet 10.0.1.22/24 scope global secondary eth0",
            "inet6 fd00::2/64 scope global",
            " net7: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1400",
            "link/ether 02:00:00:00:00:07",
            "default via 10.0.1.1 dev eth0",
            "172.20.0.0/16 via 10.0.2.1 dev net7",
            "unreachable 172.21.0.0/16",
            "1000:\tfrom 10.0.2.2 lookup 99",
            "default via fd00::1 dev eth0  metric 77",
            "10.0.2.9 dev net7 lladdr 02:00:00:00:00:09",
            "10.0.1.1 answers",
            "192.0.2.1 answers",
            "10.0.2.1 answers",
            "fd00::1 answers",
        ],
    );
    assert_eq!(inside.tc("qdisc show"), before);
    assert!(!inside.ip("link").contains("rvm"), "a TAP is left");
}

#[test]
fn without_interfaces_there_is_loopback_only_and_the_log_says_so() {
    let rvm = Rvm::new();
    let bundle = bundle("ls /sys/class/net; busybox ping -c 1 127.0.0.1", None);
    let path = bundle.write().to_str().unwrap().to_owned();
    let finished = rvm.call(&["--debug", "run", "--bundle", &path, "box"]);
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert!(
        finished.stdout.starts_with("lo\nPING"),
        "{}",
        finished.stdout
    );
    assert_has(&finished.stderr, &["the guest has loopback only"]);
}

#[test]
fn the_hosts_own_network_is_refused_with_advice() {
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["true"]).with(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
    });
    let finished = rvm.run(&bundle, "box");
    assert_eq!(finished.code, 1);
    assert_has(
        &finished.stderr,
        &["config.json", "linux.namespaces", "--network none"],
    );

    let bundle = self::bundle("true", Some(rvm.network()));
    let finished = rvm.run(&bundle, "box");
    assert_eq!(finished.code, 1);
    assert_has(&finished.stderr, &["the host's own", "--network none"]);
}

#[test]
fn what_a_hook_sets_up_in_the_namespace_of_the_reported_pid_is_there() {
    // As dockerd up to 25 does it.
    let rvm = Rvm::new();
    let hook = "read -r state; pid=${state#*\\\"pid\\\":}; pid=${pid%%[,\\}]*}; \
         ip link add out type veth peer name eth0 netns $pid && ip addr add 10.0.1.1/24 dev out && \
         ip link set out up && nsenter --net=/proc/$pid/ns/net ip addr add 10.0.1.2/24 dev eth0 && \
         nsenter --net=/proc/$pid/ns/net ip link set eth0 up";
    let bundle = bundle("busybox ping -c 1 -W 5 10.0.1.1", None).with(|config| {
        config["hooks"] = json!({ "prestart": [{
            "path": "/bin/sh", "args": ["sh", "-c", hook], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        }] });
    });
    let finished = rvm.run(&bundle, "box");
    assert_eq!(finished.code, 0, "{}{}", finished.stdout, finished.stderr);
}

/// Runs a shell's line in a network namespace of the host.
#[track_caller]
fn assert_runs_in(namespace: &str, line: &str) {
    let mut command = Command::new("nsenter");
    command.args([&format!("--net={namespace}"), "sh", "-c", line]);
    assert!(command.status().unwrap().success(), "{line}");
}

/// Whether an address answers in the peer's network.
fn answers_ping(peer: &Network, address: &str) -> bool {
    let mut ping = Command::new("busybox");
    ping.args(["ping", "-c", "1", "-W", "5", address]);
    peer.inside(|| ping.output()).unwrap().status.success()
}

#[test]
fn interfaces_come_change_and_go_while_the_container_is_there() {
    let rvm = Rvm::new();
    let peer = Network::new();
    let bundle = bundle(
        &format!("busybox ping -c 1 -W 5 10.0.1.1 >/tmp/first; {WATCH}"),
        None,
    );
    rvm.create(&bundle, "box");
    // As dockerd from 26 on does it: between create and start.
    let pid = rvm.state("box")["pid"].as_i64().unwrap();
    let namespace = format!("/proc/{pid}/ns/net");
    connect(&peer, &namespace, "eth0", 1);
    rvm.ok(&["start", "box"]);
    eventually("the program has a network from its start", || {
        read(&bundle, "first").contains("1 packets received")
    });

    connect(&peer, &namespace, "eth1", 2);
    eventually("another interface arrives", || {
        read(&bundle, "addr").contains("inet 10.0.2.2/24")
    });
    let inside = |line: &str| assert_runs_in(&namespace, &format!("ip {line}"));
    let setting = "/proc/sys/net/ipv4/conf/eth1/proxy_arp";
    let set = |value: &str| assert_runs_in(&namespace, &format!("echo {value} >{setting}"));
    let is_set = |value: &str| rvm.ok(&["exec", "box", "cat", setting]).trim() == value;
    set("1");
    inside("addr add 10.0.2.33/24 dev eth1");
    inside("route add 172.30.0.0/16 via 10.0.2.1");
    eventually("it gets an address and a route", || {
        read(&bundle, "addr").contains("10.0.2.33/24")
            && read(&bundle, "route").contains("172.30.0.0/16 via 10.0.2.1 dev eth1")
    });
    let ping = |address: &str| answers_ping(&peer, address);
    assert!(ping("10.0.2.33") && ping("10.0.1.2"));
    assert!(is_set("1"));
    set("0");
    inside("route del 172.30.0.0/16");
    eventually("a setting has its default again", || is_set("0"));
    let stats: Value = serde_json::from_str(&rvm.ok(&["events", "--stats", "box"])).unwrap();
    let interfaces = &stats["data"]["network_interfaces"];
    assert_eq!(
        (&interfaces[0]["Name"], &interfaces[1]["Name"]),
        (&json!("eth0"), &json!("eth1"))
    );
    assert!(interfaces[0]["RxBytes"].as_u64() > Some(0), "{stats}");
    inside("link set eth1 name blue");
    eventually("it is renamed and loses the route", || {
        read(&bundle, "addr").contains(" blue: ") && !read(&bundle, "route").contains("172.30")
    });
    assert!(ping("10.0.2.33"));
    inside("link del blue");
    eventually("it goes", || !read(&bundle, "addr").contains("blue"));
    connect(&peer, &namespace, "eth2", 3);
    eventually("and a third comes in its place", || {
        read(&bundle, "addr").contains("10.0.3.2/24")
    });
    assert!(ping("10.0.3.2"));
    rvm.ok(&["delete", "--force", "box"]);
}

#[test]
fn much_data_passes_unchanged_in_both_directions() {
    const BYTES: usize = 8 << 20;
    let rvm = Rvm::new();
    let (inside, peer) = (Network::new(), Network::new());
    connect(&peer, &inside.path(), "eth0", 1);
    let bundle = bundle(
        "busybox nc -l -p 7000 | md5sum >/tmp/sum; head -c 8388608 /dev/zero | \
         tr '\\0' x | busybox nc 10.0.1.1 7001",
        Some(&inside),
    );
    rvm.create(&bundle, "box");
    let listener = peer.inside(|| TcpListener::bind("10.0.1.1:7001")).unwrap();
    rvm.ok(&["start", "box"]);
    let mut stream = None;
    eventually("the container listens", || {
        stream = peer.inside(|| TcpStream::connect("10.0.1.2:7000")).ok();
        stream.is_some()
    });
    let data: Vec<u8> = (0..BYTES).map(|index| ((index * 7) >> 3) as u8).collect();
    let mut stream = stream.unwrap();
    stream.write_all(&data).unwrap();
    drop(stream);
    let mut received = Vec::new();
    listener
        .accept()
        .unwrap()
        .0
        .read_to_end(&mut received)
        .unwrap();
    assert_eq!(received.len(), BYTES);
    assert!(received.iter().all(|byte| *byte == b'x'));
    let mut sum = Command::new("md5sum");
    sum.stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    let mut child = sum.spawn().unwrap();
    child.stdin.take().unwrap().write_all(&data).unwrap();
    let expected = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(read(&bundle, "sum"), expected);
    rvm.wait_for_status("box", "stopped");
    rvm.ok(&["delete", "box"]);
}

#[test]
fn a_namespace_serves_again_after_its_sandbox_was_killed() {
    let rvm = Rvm::new();
    let (inside, peer) = (Network::new(), Network::new());
    connect(&peer, &inside.path(), "eth0", 1);
    let bundle = bundle(WATCH, Some(&inside));
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    for pid in rvm.processes() {
        rvm_tests::command::signal(pid, libc::SIGKILL);
    }
    rvm.ok(&["delete", "--force", "box"]);
    assert!(!inside.tc("qdisc show").contains("ingress"));
    let bundle = self::bundle("busybox ping -c 1 -W 5 10.0.1.1", Some(&inside));
    let finished = rvm.run(&bundle, "box");
    assert_eq!(finished.code, 0, "{}{}", finished.stdout, finished.stderr);
}
