//! Rate limits of a machine's devices, by annotations and by rvm's configuration.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rvm_tests::network::Network;
use rvm_tests::{Bundle, Rvm, disk, engine};
use serde_json::json;

fn annotated(bundle: Bundle, name: &str, rate: &str) -> Bundle {
    bundle.with(|config| config["annotations"] = json!({ name: rate }))
}

/// How long a container runs that must succeed.
fn duration(rvm: &Rvm, bundle: &Bundle, output: &str) -> Duration {
    let started = Instant::now();
    let finished = rvm.run(bundle, "box");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert_eq!(finished.stdout, output);
    started.elapsed()
}

#[test]
fn a_rate_that_the_engine_does_not_limit_or_nobody_understands_is_refused_by_name() {
    let rvm = Rvm::new().on_engine("qemu");
    for (name, rate, words) in [
        (
            "org.rvm.net-tx-rate",
            "bytes=1000/10",
            "annotations[\"org.rvm.net-tx-rate\"] limits a rate, which this engine cannot do",
        ),
        (
            "org.rvm.disk-rate",
            "slow",
            "annotations[\"org.rvm.disk-rate\"] \"slow\" is no rate",
        ),
    ] {
        let bundle = annotated(Bundle::shell("true"), name, rate);
        let finished = rvm.run(&bundle, "box");
        assert_eq!(finished.code, 1);
        assert!(finished.stderr.contains(words), "{}", finished.stderr);
        rvm.assert_nothing_left();
    }
    let rvm = rvm.configured("net_rx_rate = \"operations=1/1\"");
    let finished = rvm.run(&Bundle::shell("true"), "box");
    let words = "net_rx_rate of rvm's configuration limits a rate";
    assert!(finished.stderr.contains(words), "{}", finished.stderr);
    let bundle = annotated(Bundle::shell("true"), "org.rvm.net-rx-rate", "off");
    assert_eq!(rvm.run(&bundle, "box").code, 0);
}

#[test]
fn a_disk_is_read_at_its_rate() {
    if engine() != "kvm" {
        return println!("skipped: the qemu engine limits no rates");
    }
    let dir = tempfile::tempdir().unwrap();
    let content = dir.path().join("content");
    fs::create_dir(&content).unwrap();
    fs::write(content.join("file"), vec![7; 8 << 20]).unwrap();
    let Some(image) = disk::image(dir.path(), "ext4", 32 << 20, Some(&content)) else {
        return;
    };
    let bundle = || {
        Bundle::shell("wc -c </data/file").mount(json!({
            "destination": "/data", "type": "ext4", "source": image, "options": ["ro"],
        }))
    };
    let rvm = Rvm::new().configured("disk_rate = \"bytes=1048576/1000\"");
    let limited = duration(&rvm, &bundle(), "8388608\n");
    let off = annotated(bundle(), "org.rvm.disk-rate", "off");
    let free = duration(&rvm, &off, "8388608\n");
    // 8 MiB, of which the bucket has 1 MiB at the start.
    assert!(
        limited > free + Duration::from_secs(5),
        "{limited:?} {free:?}"
    );
}

#[test]
fn a_card_sends_at_its_rate() {
    if engine() != "kvm" {
        return println!("skipped: the qemu engine limits no rates");
    }
    let (inside, peer) = (Network::new(), Network::new());
    let path = inside.path();
    peer.ip("link add out type veth peer name in");
    peer.ip(&format!("link set in netns {path} name eth0"));
    peer.ip("addr add 10.0.1.1/24 dev out");
    peer.ip("link set out address 02:00:00:00:01:01 up");
    // Who asks for an address waits three seconds for the answer, and packets queue for longer.
    peer.ip("neigh add 10.0.1.2 lladdr 02:00:00:00:01:02 dev out nud permanent");
    for line in [
        "addr add 10.0.1.2/24 dev eth0",
        "link set eth0 address 02:00:00:00:01:02 up",
        "neigh add 10.0.1.1 lladdr 02:00:00:00:01:01 dev eth0 nud permanent",
    ] {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={path}")).arg("ip");
        assert!(command.args(line.split(' ')).status().unwrap().success());
    }
    let script = "for n in 1 2 3 4 5 6 7 8; do \
                  busybox ping -c 1 -W 20 10.0.1.1 >/dev/null || exit 1; done; echo sent";
    let bundle = || {
        let bundle = Bundle::shell(script).capabilities(&["CAP_NET_RAW"]);
        bundle.with(|config| {
            for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
                if namespace["type"] == "network" {
                    namespace["path"] = json!(path);
                }
            }
        })
    };
    let rvm = Rvm::new();
    let free = duration(&rvm, &bundle(), "sent\n");
    // The bucket has one packet at the start.
    let slow = annotated(bundle(), "org.rvm.net-tx-rate", "operations=1/1000");
    let limited = duration(&rvm, &slow, "sent\n");
    assert!(
        limited > free + Duration::from_secs(5),
        "{limited:?} {free:?}"
    );
}
