//! Networks of containers.

use std::process::Stdio;

use rvm_tests::command::{self, eventually};
use rvm_tests::engine::{Runtime, runtime};

use crate::engine;

/// A network of the engine, removed when dropped.
struct Network(String);

impl Network {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(options: &[&str]) -> Self {
        let name = engine().name().name.clone() + "-net";
        engine().ok(&[&["network", "create"], options, &[&name]].concat());
        Self(name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        engine().call(&["network", "rm", &self.0]);
    }
}

/// Serves a page on port 80.
const SERVER: &[&str] = &["httpd", "-f", "-h", "/var/www"];

#[test]
fn without_a_network_there_is_loopback_alone() {
    let links = engine().shell(
        &["--network", "none"],
        "ls /sys/class/net; ip addr show lo | grep -q 'inet 127.0.0.1' && echo up",
    );
    assert_eq!(links, "lo\nup\n");
}

#[test]
fn the_interface_is_as_the_engine_says() {
    let container = engine().start(&[], &["sleep", "1000"]);
    let all = container.inspect_all();
    let settings = &all["NetworkSettings"];
    let text = container.shell("ip addr show eth0; ip route");
    for field in ["IPAddress", "MacAddress"] {
        let value = settings[field].as_str().unwrap();
        assert!(text.contains(value), "{field} {value}: {text}");
    }
    let gateway = settings["Gateway"].as_str().unwrap();
    assert!(text.contains(&format!("default via {gateway}")), "{text}");
}

#[test]
fn containers_of_a_network_find_each_other_by_name() {
    let network = Network::new();
    let server = engine().start(&["--network", &network.0], SERVER);
    let url = format!("http://{}/", server.name);
    let fetch = format!(
        "i=0; until wget -q -O - {url}; do i=$((i+1)); [ $i -lt 20 ] || exit 1; sleep 0.5; done"
    );
    assert_eq!(
        engine().shell(&["--network", &network.0], &fetch),
        "a page\n"
    );
}

/// Whether a machine that runs gets network cards.
fn has_hotplug() -> bool {
    runtime() == Runtime::Runc || rvm_tests::engine() == "kvm"
}

#[test]
fn a_network_that_a_running_machine_cannot_join_is_refused_aloud() {
    if has_hotplug() {
        return println!("skipped: a machine of the kvm engine joins networks while it runs");
    }
    // Podman's server of names stays after a failure, with any runtime.
    let options: &[&str] = if crate::IS_PODMAN {
        &["--disable-dns"]
    } else {
        &[]
    };
    let networks: Vec<Network> = (0..4).map(|_| Network::with(options)).collect();
    let container = engine().start(&["--network", &networks[0].0], SERVER);
    // A machine whose network came after its start has a spare card.
    let mut joined = 1;
    let refused = loop {
        let network = &networks[joined].0;
        let connected = engine().call(&["network", "connect", network, &container.name]);
        if connected.code != 0 {
            break connected.stderr;
        }
        joined += 1;
        eventually("the machine has what was not refused", || {
            let links = container.shell("ls /sys/class/net");
            links.matches("eth").count() == joined
        });
    };
    println!("after {joined}: {refused}");
    // What Docker had moved in goes again.
    eventually("the machine has no more", || {
        let links = container.shell("ls /sys/class/net");
        links.matches("eth").count() == joined
    });
}

#[test]
fn a_network_is_joined_and_left_while_the_container_runs() {
    if !has_hotplug() {
        return println!("skipped: a machine of the qemu engine joins none while it runs");
    }
    let network = Network::new();
    let container = engine().start(&["--network", &network.0], SERVER);
    let other = Network::new();
    engine().ok(&["network", "connect", &other.0, &container.name]);
    let has = |link: &str| {
        container
            .exec(&[], &["ip", "addr", "show", link])
            .stdout
            .contains("inet ")
    };
    eventually("the second interface is there", || has("eth1"));
    engine().ok(&["network", "disconnect", &other.0, &container.name]);
    eventually("the second interface is gone", || !has("eth1"));
    assert!(has("eth0"));
}

#[test]
fn a_published_port_is_reached_from_the_host() {
    let server = engine().start(&["--publish", "127.0.0.1:18080:80"], SERVER);
    assert!(engine().ok(&["port", &server.name]).contains("18080"));
    let fetch = || {
        let mut client = engine().world().command("busybox");
        client.args(["wget", "-q", "-O", "-", "http://127.0.0.1:18080/"]);
        client.stderr(Stdio::null());
        command::finish(client).stdout
    };
    eventually("the page is served", || fetch() == "a page\n");
}
