//! Connections to outside.

use std::io::Read as _;
use std::net::TcpListener;

use rvm_tests::Bundle;
use rvm_tests::network::Network;
use serde_json::json;

use super::{end, restore, save, start, world};

#[test]
fn the_network_is_the_one_of_the_bundle_now() {
    let Some(rvm) = world() else { return };
    let (first, peer) = network("10.7.1");
    let bundle = Bundle::shell("sleep 1000");
    let image = rvm.path("image");
    let place = |bundle: Bundle, network: &Network| {
        let path = network.path();
        bundle.with(|config| {
            for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
                if namespace["type"] == "network" {
                    namespace["path"] = json!(path);
                }
            }
        })
    };
    let bundle = place(bundle, &first);
    start(&rvm, &bundle, "box");
    let address = |id| rvm.ok(&["exec", id, "busybox", "ip", "addr", "show", "eth0"]);
    assert!(address("box").contains("10.7.1.2"));
    save(&rvm, "box", &image, &[]);
    drop((first, peer));
    let (second, peer) = network("10.7.2");
    let bundle = place(bundle, &second);
    restore(&rvm, &bundle, &image, "box");
    let now = address("box");
    assert!(
        now.contains("10.7.2.2") && !now.contains("10.7.1.2"),
        "{now}"
    );
    assert!(now.contains("02:07:02:00:00:02"), "{now}");
    let listener = peer.inside(|| TcpListener::bind("10.7.2.1:7000").unwrap());
    let reached = std::thread::spawn(move || {
        let mut text = String::new();
        listener
            .accept()
            .unwrap()
            .0
            .read_to_string(&mut text)
            .unwrap();
        text
    });
    let send = "echo from the guest | busybox nc 10.7.2.1 7000";
    rvm.ok(&["exec", "box", "sh", "-c", send]);
    assert_eq!(reached.join().unwrap(), "from the guest\n");
    end(&rvm, "box");
    drop(peer);
}

/// A network with the address .2 on eth0, and the one at the other end, with .1.
fn network(prefix: &str) -> (Network, Network) {
    let (inside, outside) = (Network::new(), Network::new());
    outside.ip("link add out0 type veth peer name in0");
    outside.ip(&format!("link set in0 netns {} name eth0", inside.path()));
    let third = prefix.rsplit('.').next().unwrap();
    outside.ip(&format!("addr add {prefix}.1/24 dev out0"));
    outside.ip("link set out0 up");
    inside.ip(&format!("link set eth0 address 02:07:0{third}:00:00:02 up"));
    inside.ip(&format!("addr add {prefix}.2/24 dev eth0"));
    (inside, outside)
}
