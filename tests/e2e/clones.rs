//! Machines that were restored from one template, or booted, one after another: none has anything
//! secret or identifying in common with another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

use rvm_tests::command::finish;
use rvm_tests::network::Network;
use rvm_tests::{Bundle, Rvm};
use serde_json::json;

const INSIDE: &str = env!("CARGO_BIN_EXE_rvm-inside");

/// How many machines are compared.
const CLONES: u8 = 3;

/// What no two programs have in common, in one machine or in two.
const OF_A_PROGRAM: [&str; 8] = [
    "uuid",
    "urandom",
    "getrandom",
    "at_random",
    "program",
    "heap",
    "stack",
    "vdso",
];

/// What no two machines have in common.
const OF_A_MACHINE: [&str; 3] = ["boot_id", "mac.eth0", "fsid"];

/// The keyrings that the kernel makes for root when it boots: the user's, which is empty, the
/// session's, with the user's in it, and one that names both. Their numbers are a template's.
const KEYRINGS_OF_ROOT: [&str; 3] = [
    "keyring .user_reg: 2",
    "keyring _uid.0: empty",
    "keyring _uid_ses.0: 1",
];

/// How far a guest's clock may be from the host's, and its clocks since the boot from one another.
const EXACT: Duration = Duration::from_secs(1);

/// How long a guest can have run when its container's program starts: a boot on a software CPU
/// under load, and the start of a container.
const UPTIME: Duration = Duration::from_secs(180);

/// What the two programs of a container said of themselves, by name.
struct Clone {
    programs: [BTreeMap<String, String>; 2],
    /// The host's clock before the start and after the end.
    from: Duration,
    to: Duration,
}

/// rvm with templates of its own, where the engine has some.
fn rvm() -> Rvm {
    let rvm = Rvm::new();
    let dir = rvm.path("templates");
    rvm.configured(&format!("templates = \"auto\"\ntemplate_dir = {dir:?}"))
}

fn now() -> Duration {
    UNIX_EPOCH.elapsed().unwrap()
}

impl Clone {
    /// Runs the container of this number to its end.
    fn new(rvm: &Rvm, number: u8) -> Self {
        // Templates are of machines with one card.
        let (network, peer) = (Network::new(), Network::new());
        peer.ip("link add out0 type veth peer name in0");
        peer.ip(&format!("link set in0 netns {} name eth0", network.path()));
        network.ip(&format!("link set eth0 address {} up", mac(number)));
        let script = "inside identity -; echo child; inside identity -; \
                      echo fsid $(stat -f -c %i /dev); echo hostname $(hostname)";
        let bundle = Bundle::shell(script).with(|config| {
            config["hostname"] = json!(format!("clone{number}"));
            for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
                if namespace["type"] == "network" {
                    namespace["path"] = json!(network.path());
                }
            }
        });
        std::fs::copy(INSIDE, bundle.rootfs("bin/inside")).unwrap();
        let from = now();
        let mut command = rvm.command(&["run", "--timings", "--bundle"]);
        command.arg(bundle.write()).arg(format!("clone{number}"));
        let finished = finish(command);
        let to = now();
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        let restored = finished.stderr.contains("restore the template");
        assert_eq!(
            restored,
            rvm_tests::engine() == "kvm",
            "{}",
            finished.stderr
        );
        let (init, child) = finished.stdout.split_once("child\n").unwrap();
        let values = |text: &str| {
            let lines = text.lines().filter_map(|line| line.split_once(' '));
            lines
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect()
        };
        println!("{number}:\n{}", finished.stdout);
        Self {
            programs: [values(init), values(child)],
            from,
            to,
        }
    }

    /// What it can see in /proc/keys: serial numbers by type and description.
    fn keys(&self) -> BTreeMap<&str, &str> {
        let values = self.programs[0].iter();
        values
            .filter_map(|(name, key)| Some((key.as_str(), name.strip_prefix("key.")?)))
            .collect()
    }

    /// A clock of the guest, at its first program's start.
    fn clock(&self, name: &str) -> Duration {
        Duration::from_nanos(self.programs[0][name].parse().unwrap())
    }
}

/// The MAC address of a clone's network card.
fn mac(number: u8) -> String {
    format!("02:00:00:00:00:{number:02x}")
}

#[test]
fn no_two_machines_have_anything_secret_or_identifying_in_common() {
    let rvm = rvm();
    let clones: Vec<_> = (1..=CLONES)
        .map(|number| Clone::new(&rvm, number))
        .collect();
    let programs = || clones.iter().flat_map(|clone| &clone.programs);
    for name in OF_A_PROGRAM {
        let values: BTreeSet<_> = programs().map(|program| &program[name]).collect();
        assert_eq!(values.len(), 2 * clones.len(), "{name}: {values:?}");
    }
    for name in OF_A_MACHINE {
        let values: BTreeSet<_> = clones
            .iter()
            .map(|clone| &clone.programs[1][name])
            .collect();
        assert_eq!(values.len(), clones.len(), "{name}: {values:?}");
    }
    let mut sessions = BTreeSet::new();
    for (clone, number) in clones.iter().zip(1..) {
        let keys = clone.keys();
        let session = format!("keyring _ses.clone{number}: empty");
        sessions.insert(keys[session.as_str()].to_owned());
        let names: Vec<_> = keys.into_keys().collect();
        let mut expected = KEYRINGS_OF_ROOT.to_vec();
        expected.push(&session);
        expected.sort_unstable();
        assert_eq!(names, expected);
        let [init, child] = &clone.programs;
        assert_eq!(init["boot_id"], child["boot_id"]);
        assert_eq!(init["mac.eth0"], mac(number));
        assert_eq!(child["hostname"], format!("clone{number}"));
    }
    assert_eq!(sessions.len(), clones.len(), "{sessions:?}");
}

#[test]
fn the_clocks_of_a_machine_are_right_when_its_container_starts() {
    let rvm = rvm();
    // A template is older than the start of the last machine takes: a clock that went on from the
    // template's would be behind the start.
    for number in 1..=CLONES {
        let clone = Clone::new(&rvm, number);
        let real = clone.clock("real");
        assert!(real + EXACT > clone.from, "{real:?} < {:?}", clone.from);
        assert!(real < clone.to + EXACT, "{real:?} > {:?}", clone.to);
        let [monotonic, boot] = ["monotonic", "boot"].map(|name| clone.clock(name));
        assert!(boot < UPTIME, "{boot:?}");
        assert!(boot.abs_diff(monotonic) < EXACT, "{boot:?} {monotonic:?}");
    }
}
