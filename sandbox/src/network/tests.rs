//! Each test has its own namespaces and interfaces, which ip(8) sets up.

use super::*;
use rvm_protocol::agent::ConfigureNetworkRequest;
use std::fs::File;
use std::io::{Read, Write};
use std::process::Command;

/// A sandbox's namespace, and the namespace of its interfaces' peers.
struct World {
    inside: Network,
    peer: Namespace,
}

impl World {
    fn new() -> Self {
        Self {
            inside: Network::open(&NamespaceSource::New).unwrap(),
            peer: Namespace::create_or_open(&NamespaceSource::New).unwrap(),
        }
    }

    fn with_link(name: &str) -> Self {
        let world = Self::new();
        world.add_link(name);
        world
    }

    /// Adds an interface whose other end has its name and the address 10.0.0.1.
    fn add_link(&self, name: &str) {
        self.ip(&format!("link add {name} type veth peer name out"));
        // An open file of the namespace; the ip command inherits no other.
        let peer = format!("/proc/{}/fd/{}", std::process::id(), raw(&self.peer));
        let name_peer = |path: &str| self.ip(&format!("link set out netns {path} name {name}"));
        name_peer(&peer);
        self.ip(&format!("link set {name} up"));
        ip(&self.peer, &format!("link set {name} up"));
        ip(&self.peer, &format!("addr add 10.0.0.1/24 dev {name}"));
    }

    fn ip(&self, arguments: &str) -> String {
        ip(&self.inside.namespace, arguments)
    }

    fn scan(&mut self) -> Inventory {
        self.inside.scan().unwrap()
    }

    fn request(&mut self) -> ConfigureNetworkRequest {
        self.scan().request(|_| Some([2; 6]))
    }
}

fn raw(fd: &impl AsFd) -> i32 {
    use std::os::fd::AsRawFd;
    fd.as_fd().as_raw_fd()
}

/// Runs ip(8) in a namespace.
fn ip(namespace: &Namespace, arguments: &str) -> String {
    run("ip", namespace, arguments)
}

/// Runs tc(8) in a namespace.
fn tc(namespace: &Namespace, arguments: &str) -> String {
    run("tc", namespace, arguments)
}

fn run(program: &str, namespace: &Namespace, arguments: &str) -> String {
    let mut command = Command::new(program);
    command.args(arguments.split(' '));
    let output = namespace.within(|| command.output()).unwrap().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn devices(list: &[rvm_protocol::agent::NetworkObject]) -> Vec<&str> {
    list.iter().map(|object| object.device.as_str()).collect()
}

const LIMITS: NicLimits = NicLimits { max: 3, idle: 0 };

#[test]
fn an_empty_namespace_has_nothing_for_the_guest() {
    let request = World::new().request();
    assert_eq!(request, ConfigureNetworkRequest::default());
}

#[test]
fn an_interface_is_found_with_name_address_size_and_settings() {
    let mut world = World::with_link("eth7");
    world.ip("link set eth7 mtu 1400 address 02:00:00:00:00:77");
    world
        .inside
        .namespace
        .within(|| std::fs::write("/proc/sys/net/ipv6/conf/eth7/accept_ra", "0").unwrap())
        .unwrap();
    let request = world.request();
    let [interface] = &request.interfaces[..] else {
        panic!("{request:?}")
    };
    assert_eq!((interface.name.as_str(), interface.mtu), ("eth7", 1400));
    assert_eq!(interface.mac, [2, 0, 0, 0, 0, 0x77]);
    assert_eq!(interface.card, [2; 6]);
    assert_ne!(interface.flags & libc::IFF_UP as u32, 0);
    let accept_ra = |setting: &&rvm_protocol::agent::InterfaceSetting| setting.name == "accept_ra";
    let setting = interface.settings.iter().find(accept_ra).unwrap();
    assert_eq!((setting.family.as_str(), setting.value), ("ipv6", 0));
}

#[test]
fn addresses_routes_rules_and_neighbours_are_found_and_the_kernels_own_are_not() {
    let mut world = World::with_link("eth0");
    for command in [
        "addr add 10.0.0.2/24 dev eth0",
        "addr add fd00::2/64 dev eth0 nodad",
        "route add default via 10.0.0.1",
        "route add 10.9.0.0/16 dev eth0 src 10.0.0.2 table 77",
        "route add blackhole 10.8.0.0/16",
        "-6 route add default via fd00::1 metric 5",
        "rule add from 10.0.0.2 lookup 77 priority 100",
        "-6 rule add fwmark 3 lookup 77",
        "neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev eth0",
    ] {
        world.ip(command);
    }
    let request = world.request();
    assert_eq!(request.rules.len(), 2);
    assert_eq!(devices(&request.neighbours), ["eth0"]);
    assert_eq!(request.routes.len(), 4, "{:?}", request.routes);
    let gateways: Vec<bool> = request.routes.iter().map(translate::has_gateway).collect();
    assert!(gateways.is_sorted(), "the routes to gateways come first");
    // The interface has given itself a third, from its MAC address.
    assert_eq!(devices(&request.addresses), ["eth0"; 3]);
}

#[test]
fn an_address_whose_network_route_was_removed_says_so() {
    let mut world = World::with_link("eth0");
    world.ip("link set eth0 addrgenmode none");
    world.ip("addr add 10.0.0.2/24 dev eth0");
    let with = world.request().addresses;
    world.ip("route del 10.0.0.0/24 dev eth0");
    let without = world.request().addresses;
    assert_eq!(with.len(), without.len());
    assert_ne!(with, without);
}

#[test]
fn the_request_omits_everything_of_an_interface_without_a_nic() {
    let mut world = World::with_link("eth0");
    world.ip("addr add 10.0.0.2/24 dev eth0");
    world.ip("route add default via 10.0.0.1");
    let request = world.scan().request(|_| None);
    assert_eq!(request, ConfigureNetworkRequest::default());
}

#[test]
fn ports_and_interfaces_without_ethernet_are_skipped_with_the_reason() {
    let mut world = World::with_link("eth0");
    world.ip("link add br0 type bridge");
    world.ip("link set eth0 master br0");
    world.ip("tuntap add tun5 mode tun");
    let found = world.scan();
    let names: Vec<&str> = found.links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["br0"]);
    assert!(
        found
            .skipped
            .contains(&("eth0".to_owned(), "it is a port of another interface"))
    );
    assert!(
        found
            .skipped
            .contains(&("tun5".to_owned(), "it is no Ethernet interface"))
    );
}

/// Sends an ARP request for 10.0.0.1 over the TAP; the reply comes from the other namespace.
fn ask(tap: &mut File, mac: Mac) -> Vec<u8> {
    let mut packet = vec![0; 12];
    packet.extend([0xff; 6]);
    packet.extend(mac);
    packet.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    packet.extend(mac);
    packet.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
    tap.write_all(&packet).unwrap();
    let mut answer = [0; 2000];
    loop {
        // Other packets may come first: the other namespace talks IPv6.
        match tap.read(&mut answer) {
            Ok(length) if answer[24..26] == [8, 6] && answer[32..34] == [0, 2] => {
                return answer[12..length].to_vec();
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn packets_pass_between_the_interface_and_the_nic_in_both_directions() {
    let mut world = World::with_link("eth0");
    let found = world.scan();
    let mut nics = world.inside.initial_nics(&found, LIMITS).unwrap();
    let mac = found.links[0].mac;
    assert_eq!(nics[0].mac, mac);
    let answer = ask(&mut nics[0].tap, mac);
    assert_eq!(
        (&answer[..6], &answer[28..32]),
        (&mac[..], &[10, 0, 0, 1][..])
    );
}

#[test]
fn the_hosts_own_network_does_not_answer_in_the_guests_place() {
    let mut world = World::with_link("eth0");
    world.ip("addr add 10.0.0.2/24 dev eth0");
    let ping = || {
        let mut ping = Command::new("busybox");
        ping.args(["ping", "-c", "1", "-W", "1", "10.0.0.2"]);
        ping.output().unwrap().status.success()
    };
    assert!(world.peer.within(ping).unwrap());
    let found = world.scan();
    let _nics = world.inside.initial_nics(&found, LIMITS).unwrap();
    assert!(!world.peer.within(ping).unwrap());
    // The host answers again when the sandbox is gone.
    let peer = world.peer;
    let namespace = world
        .inside
        .namespace
        .within(Namespace::own)
        .unwrap()
        .unwrap();
    drop(world.inside);
    assert!(peer.within(ping).unwrap());
    assert!(!tc(&namespace, "qdisc show dev eth0").contains("ingress"));
}

/// Sends a query to a DNS server at 10.0.0.1 from a host port in the sandbox's namespace. False if
/// no reply arrives.
fn ask_name_server(world: &World, port: u16, limit: Duration) -> bool {
    use std::net::UdpSocket;
    // Another test's child may hold an earlier server's socket until it executes its program.
    let server = loop {
        let bound = world.peer.within(|| UdpSocket::bind("10.0.0.1:53"));
        match bound.unwrap() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => std::thread::yield_now(),
            bound => break bound.unwrap(),
        }
    };
    let address = format!("10.0.0.2:{port}");
    let client = world.inside.namespace.within(|| UdpSocket::bind(address));
    let client = client.unwrap().unwrap();
    server.set_read_timeout(Some(limit)).unwrap();
    client.set_read_timeout(Some(limit)).unwrap();
    client.send_to(b"question", "10.0.0.1:53").unwrap();
    let own = client.local_addr().unwrap();
    let mut buffer = [0; 100];
    // Earlier questions have waited until the server's address was known.
    while let Ok((_, from)) = server.recv_from(&mut buffer) {
        server.send_to(b"answer", from).unwrap();
        if from == own {
            return client.recv(&mut buffer).is_ok();
        }
    }
    false
}

#[test]
fn the_host_gets_dns_replies_only_when_they_are_passed_to_it() {
    let mut world = World::with_link("eth0");
    world.ip("addr add 10.0.0.2/24 dev eth0");
    let found = world.scan();
    let mut nics = world.inside.initial_nics(&found, LIMITS).unwrap();
    // The kernel looks for a neighbour once a second.
    let (short, long) = (Duration::from_millis(500), Duration::from_secs(10));
    assert!(!ask_name_server(&world, 0, short));
    world.inside.pass_host_dns().unwrap();
    assert!(ask_name_server(&world, 0, long));
    assert!(!ask_name_server(&world, 40_000, short), "the guest's port");
    // Neighbours answer the guest as before.
    ask(&mut nics[0].tap, found.links[0].mac);
    let namespace = world.inside.namespace().unwrap();
    drop(world.inside);
    assert!(!tc(&namespace, "qdisc show dev eth0").contains("ingress"));
}

#[test]
fn an_interface_belongs_to_one_sandbox() {
    let mut world = World::with_link("eth0");
    let found = world.scan();
    let _nics = world.inside.initial_nics(&found, LIMITS).unwrap();
    let path = format!("/proc/self/fd/{}", raw(&world.inside.namespace));
    let mut other = Network::open(&NamespaceSource::Path(path.into())).unwrap();
    let error = other.initial_nics(&found, LIMITS).unwrap_err().to_string();
    assert!(error.contains("eth0") && error.contains("pod"), "{error}");
}

#[test]
fn an_interface_of_a_dead_sandbox_can_be_served_again() {
    let mut world = World::with_link("eth0");
    let found = world.scan();
    let nics = world.inside.initial_nics(&found, LIMITS).unwrap();
    // The kernel closes a killed process's descriptors and does nothing else.
    world.inside.nics.clear();
    drop(nics);
    // Another test's child may hold them until it executes its program.
    let again = || world.inside.initial_nics(&found, LIMITS).ok();
    let mut nics = std::iter::repeat_with(again).flatten().next().unwrap();
    ask(&mut nics[0].tap, found.links[0].mac);
}

#[test]
fn restore_undoes_the_changes_of_a_dead_sandbox_and_no_others() {
    let mut world = World::with_link("eth0");
    world.add_link("eth1");
    tc(&world.inside.namespace, "qdisc add dev eth1 ingress");
    let found = world.scan();
    let nics = world.inside.initial_nics(&found, LIMITS).unwrap();
    let path = format!("/proc/self/fd/{}", raw(&world.inside.namespace));
    let ingress = |name| {
        let line = format!("filter show dev {name} ingress");
        tc(&world.inside.namespace, &line)
    };
    restore(Path::new(&path)).unwrap();
    assert!(ingress("eth0").contains("mirred"), "its sandbox is there");
    world.inside.nics.clear();
    drop(nics);
    // Another test's child may hold the TAPs until it executes its program.
    while ingress("eth0").contains("mirred") {
        restore(Path::new(&path)).unwrap();
    }
    assert_eq!(ingress("eth1"), "");
}

#[test]
fn saved_nics_serve_the_interfaces_of_their_names_then_others_and_are_idle_else() {
    let mut world = World::with_link("eth0");
    world.add_link("net7");
    let found = world.scan();
    let saved = [("gone", 1), ("eth0", 2), ("gone too", 3)].map(|(link, last)| SavedCard {
        mac: [2, 0, 0, 0, 0, last],
        link: Some(link.to_owned()),
    });
    let nics = world.inside.saved_nics(&found, &saved).unwrap();
    let macs = |nics: &[SavedCard]| nics.iter().map(|nic| nic.mac[5]).collect::<Vec<_>>();
    assert_eq!(
        nics.iter().map(|nic| nic.mac[5]).collect::<Vec<_>>(),
        macs(&saved)
    );
    let cards = world.inside.cards();
    let links: Vec<_> = cards.iter().map(|card| card.link.as_deref()).collect();
    assert_eq!(links, [Some("net7"), Some("eth0"), None]);
    assert_eq!(world.inside.idle_nics(), [saved[2].mac]);
    assert!(world.inside.unserved(&found).is_empty());
}

#[test]
fn an_idle_nic_serves_a_later_interface_and_is_idle_again_when_that_goes() {
    let mut world = World::new();
    let found = world.scan();
    let limits = NicLimits { max: 3, idle: 1 };
    let mut nics = world.inside.initial_nics(&found, limits).unwrap();
    assert_eq!(world.inside.idle_nics(), [nics[0].mac]);
    for name in ["eth0", "eth1"] {
        world.add_link(name);
        let found = world.scan();
        let link = world.inside.unserved(&found)[0].clone();
        assert_eq!(link.name, name);
        assert!(world.inside.reuse_idle_nic(&link).unwrap());
        assert!(
            !world.inside.reuse_idle_nic(&link).unwrap(),
            "there is one only"
        );
        ask(&mut nics[0].tap, link.mac);
        world.ip(&format!("link del {name}"));
        let found = world.scan();
        world.inside.sync(&found).unwrap();
        assert_eq!(world.inside.idle_nics(), [nics[0].mac]);
    }
}

#[test]
fn nics_have_different_addresses_even_if_interfaces_share_one() {
    let mut world = World::new();
    for name in ["eth0", "eth1"] {
        world.add_link(name);
        world.ip(&format!("link set {name} address 02:00:00:00:00:01"));
    }
    let found = world.scan();
    let nics = world.inside.initial_nics(&found, LIMITS).unwrap();
    assert_ne!(nics[0].mac, nics[1].mac);
    assert_eq!(found.links[0].mac, found.links[1].mac);
}

#[test]
fn more_interfaces_than_a_machine_has_room_for_are_refused() {
    let mut world = World::new();
    for number in 0..4 {
        world.add_link(&format!("eth{number}"));
    }
    let found = world.scan();
    let error = world.inside.initial_nics(&found, LIMITS).unwrap_err();
    assert!(error.to_string().contains("room for 3"), "{error}");
}

#[test]
fn changes_are_noticed_and_quiet_is_not() {
    let world = World::with_link("eth0");
    let drain = || netlink::drain(world.inside.notifications.as_fd()).unwrap();
    drain();
    assert!(!drain());
    for change in [
        "addr add 10.0.0.2/24 dev eth0",
        "route add default via 10.0.0.1",
        "-6 rule add fwmark 3 lookup 77",
        "link set eth0 mtu 1300",
    ] {
        world.ip(change);
        assert!(drain(), "{change}");
    }
}
