//! Templates: machines of the kvm engine are restored from one that has booted.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::Duration;

use rvm_tests::command::{eventually, signal};
use rvm_tests::network::Network;
use rvm_tests::{Bundle, Finished, Rvm, dist};
use serde_json::{Value, json};

/// The stages of a start, in the output of --timings.
const MADE: &str = "make the template";
const RESTORED: &str = "restore the template";
const BOOTED: &str = "load the kernel";

/// A world with templates; none on an engine without any.
struct World {
    rvm: Rvm,
    dir: PathBuf,
}

impl World {
    fn new() -> Option<Self> {
        if rvm_tests::engine() != "kvm" {
            println!("skipped: the engine has no templates");
            return None;
        }
        let rvm = Rvm::new();
        let dir = rvm.path("templates");
        let place = format!("templates = \"auto\"\ntemplate_dir = \"{}\"", dir.display());
        let rvm = rvm.configured(&place);
        Some(Self { rvm, dir })
    }

    fn configured(mut self, lines: &str) -> Self {
        self.rvm = self.rvm.configured(lines);
        self
    }

    /// The templates, those used last first.
    fn list(&self) -> Vec<Value> {
        let text = self.rvm.ok(&["template", "list", "--format", "json"]);
        serde_json::from_str(&text).unwrap()
    }

    fn ids(&self) -> Vec<String> {
        let list = self.list();
        let ids = list.iter().map(|it| it["id"].as_str().unwrap().to_owned());
        ids.collect()
    }

    /// Has all templates be last used an hour earlier.
    fn age(&self) {
        for id in self.ids() {
            let dir = File::open(self.dir.join(id)).unwrap();
            let used = dir.metadata().unwrap().modified().unwrap();
            dir.set_modified(used - Duration::from_secs(3600)).unwrap();
        }
    }

    /// A file of the only template.
    fn file(&self, name: &str) -> PathBuf {
        let ids = self.ids();
        assert_eq!(ids.len(), 1);
        self.dir.join(&ids[0]).join(name)
    }

    /// Runs a container that must succeed. Returns what its start consisted of, and what else was
    /// said.
    fn run(&self, bundle: &Bundle) -> String {
        said(&self.start(bundle, "box"))
    }

    fn start(&self, bundle: &Bundle, id: &str) -> Finished {
        let bundle = bundle.write().to_str().unwrap();
        self.rvm.call(&["run", "--timings", "--bundle", bundle, id])
    }
}

fn hello() -> Bundle {
    Bundle::shell("echo hello")
}

/// A container with this limit of memory.
fn with_memory(bundle: Bundle, mib: u64) -> Bundle {
    bundle.with(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": mib << 20 });
    })
}

#[track_caller]
fn said(finished: &Finished) -> String {
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert_eq!(finished.stdout, "hello\n");
    finished.stderr.clone()
}

/// Whether a start consisted of these stages, and of none of the others, without another word.
#[track_caller]
fn assert_stages(said: &str, stages: &[&str]) {
    for stage in [MADE, RESTORED, BOOTED] {
        assert_eq!(said.contains(stage), stages.contains(&stage), "{said}");
    }
    assert!(!said.contains("warning"), "{said}");
}

#[test]
fn the_first_start_of_a_kind_makes_the_template_and_the_others_are_restored_from_it() {
    let Some(world) = World::new() else { return };
    assert_stages(&world.run(&hello()), &[MADE, RESTORED]);
    let listed = world.list();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["current"], true);
    assert!(
        listed[0]["bytes"].as_u64().unwrap() > 10 << 20,
        "{listed:?}"
    );
    assert_stages(&world.run(&hello()), &[RESTORED]);
    assert_stages(&world.run(&hello()), &[RESTORED]);

    let id = &world.ids()[0];
    let table = world.rvm.ok(&["template", "list"]);
    assert!(table.contains(id) && table.contains("current"), "{table}");
    world.rvm.ok(&["template", "remove", id]);
    let again = world.rvm.call(&["template", "remove", id]);
    assert!(again.code == 1 && again.stderr.contains(id), "{again:?}");
    assert_eq!(world.ids(), [""; 0]);
    assert_stages(&world.run(&hello()), &[MADE, RESTORED]);
}

#[test]
fn what_was_asked_for_is_made_beforehand_for_that_size() {
    let Some(world) = World::new() else { return };
    let create = ["template", "create", "--memory", "64m", "--vcpus", "1"];
    let made = world.rvm.ok(&create);
    assert!(made.contains(&world.ids()[0]), "{made}");
    let again = world.rvm.ok(&create);
    assert!(again.contains("already"), "{again}");
    let bundle = with_memory(hello(), 64).with(|config| {
        config["linux"]["resources"]["cpu"] = json!({ "quota": 100_000, "period": 100_000 });
    });
    assert_stages(&world.run(&bundle), &[RESTORED]);
    world.rvm.ok(&["template", "remove", "--all"]);
    assert_eq!(world.ids(), [""; 0]);
}

#[test]
fn with_templates_off_machines_boot_and_none_is_made() {
    let Some(world) = World::new() else { return };
    world.run(&hello());
    let off = Rvm::new();
    let place = world.dir.display();
    let off = off.configured(&format!("templates = \"off\"\ntemplate_dir = \"{place}\""));
    let bundle = hello();
    let path = bundle.write().to_str().unwrap();
    let finished = off.call(&["run", "--timings", "--bundle", path, "box"]);
    assert_stages(&said(&finished), &[BOOTED]);
}

#[test]
fn the_qemu_engine_says_that_it_has_none_where_somebody_asks() {
    let rvm = Rvm::new()
        .on_engine("qemu")
        .configured("templates = \"auto\"");
    for args in [
        &["template", "list"][..],
        &["template", "create"],
        &["template", "remove", "--all"],
    ] {
        let finished = rvm.call(args);
        assert_eq!(finished.code, 1, "{args:?}");
        let message = finished.stderr;
        assert!(
            message.contains("qemu engine have no templates"),
            "{message}"
        );
    }
    if rvm_tests::engine() == "qemu" {
        assert_eq!(said(&rvm.run(&hello(), "box")), "");
    }
}

#[test]
fn a_damaged_template_is_told_once_and_made_anew() {
    let Some(world) = World::new() else { return };
    world.run(&hello());
    for name in ["state", "memory"] {
        world.rvm.ok(&["template", "remove", "--all"]);
        world.run(&hello());
        let file = File::options().write(true).open(world.file(name)).unwrap();
        match name {
            "state" => file.write_all_at(b"damage", 1000).unwrap(),
            _ => file.set_len(4096).unwrap(),
        }
        let told = world.run(&hello());
        assert!(told.contains(BOOTED) && !told.contains(RESTORED), "{told}");
        let warnings = told.lines().filter(|line| line.contains("warning"));
        assert_eq!(warnings.count(), 1, "{name}: {told}");
        assert_eq!(world.ids(), [""; 0]);
        assert_stages(&world.run(&hello()), &[MADE, RESTORED]);
    }
}

#[test]
fn one_that_is_removed_while_machines_use_it_stays_theirs() {
    let Some(world) = World::new() else { return };
    world.run(&hello());
    let bundle = Bundle::new(&["sleep", "1000"]);
    world.rvm.create(&bundle, "user");
    world.rvm.ok(&["start", "user"]);
    world.rvm.ok(&["template", "remove", "--all"]);
    // Programs and memory that the guest has not touched yet.
    let script = "dd if=/dev/zero bs=16M count=1 2>/dev/null | md5sum; ls -R / | wc -l";
    for _ in 0..3 {
        let output = world.rvm.ok(&["exec", "user", "sh", "-c", script]);
        assert!(
            output.starts_with("2c7ab85a893283e98c931e9511add182"),
            "{output}"
        );
    }
    assert_stages(&world.run(&hello()), &[MADE, RESTORED]);
    world.rvm.ok(&["delete", "--force", "user"]);
}

#[test]
fn of_starts_at_once_one_makes_the_template() {
    let Some(world) = World::new() else { return };
    let starts: Vec<String> = std::thread::scope(|scope| {
        let start = |id: &'static str| {
            let world = &world;
            scope.spawn(move || said(&world.start(&hello(), id)))
        };
        let starts = ["one", "two", "three"].map(start);
        starts.map(|start| start.join().unwrap()).into()
    });
    let makers = starts.iter().filter(|said| said.contains(MADE)).count();
    assert_eq!(makers, 1, "{starts:#?}");
    assert_eq!(world.ids().len(), 1);
}

#[test]
fn each_size_has_its_own_and_those_not_used_for_longest_go() {
    let Some(world) = World::new() else { return };
    let world = world.configured("max_templates = 2");
    let size = |mib| with_memory(hello(), mib);
    assert_stages(&world.run(&size(64)), &[MADE, RESTORED]);
    assert_stages(&world.run(&size(96)), &[MADE, RESTORED]);
    assert_stages(&world.run(&size(64)), &[RESTORED]);
    assert_stages(&world.run(&size(128)), &[BOOTED]);
    world.age();
    assert_stages(&world.run(&size(128)), &[MADE, RESTORED]);
    assert_eq!(world.ids().len(), 2);
    world.age();
    assert_stages(&world.run(&size(64)), &[RESTORED]);
    assert_stages(&world.run(&size(96)), &[MADE, RESTORED]);
}

#[test]
fn a_maker_that_is_killed_leaves_nothing_for_long() {
    let Some(world) = World::new() else { return };
    let bundle = hello();
    let mut start = world.rvm.spawn_piped(&bundle, "killed");
    let draft = || -> Option<PathBuf> {
        let entries = fs::read_dir(&world.dir).ok()?;
        let mut paths = entries.map(|entry| entry.unwrap().path());
        paths.find(|path| path.extension().is_some_and(|it| it == "new"))
    };
    eventually("a template is being made", || {
        draft().is_some_and(|draft| draft.join("memory").exists())
    });
    signal(start.id().cast_signed(), libc::SIGKILL);
    start.wait().unwrap();
    eventually("its machine is gone", || world.rvm.processes().is_empty());
    assert!(
        draft().is_some(),
        "the killed one was faster than this test"
    );
    world.rvm.ok(&["delete", "--force", "killed"]);
    assert_stages(&world.run(&bundle), &[MADE, RESTORED]);
    assert_eq!(draft(), None);
}

#[test]
fn a_start_that_is_interrupted_while_it_makes_one_ends_at_once() {
    let Some(world) = World::new() else { return };
    let bundle = hello();
    let start = world.rvm.spawn_piped(&bundle, "box");
    eventually("a template is being made", || {
        fs::read_dir(&world.dir).is_ok_and(|entries| entries.count() > 1)
    });
    signal(start.id().cast_signed(), libc::SIGTERM);
    let output = rvm_tests::command::wait(start);
    assert_ne!(output.status.code(), Some(0));
    assert_eq!(world.ids(), [""; 0]);
    let left = fs::read_dir(&world.dir).unwrap().count();
    assert_eq!(left, 1, "the lock alone");
}

/// A container in the network namespace with so many interfaces, which tells them.
fn with_cards(network: &Network, peer: &Network, cards: usize) -> Bundle {
    for card in 0..cards {
        peer.ip(&format!("link add out{card} type veth peer name in{card}"));
        let place = network.path();
        peer.ip(&format!("link set in{card} netns {place} name eth{card}"));
        network.ip(&format!("link set eth{card} up"));
    }
    let script = "ls /sys/class/net | grep -c eth >&2; echo hello";
    Bundle::shell(script).with(|config| {
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                namespace["path"] = json!(network.path());
            }
        }
    })
}

#[test]
fn one_template_is_for_no_network_card_and_for_one_and_what_it_does_not_fit_boots() {
    let Some(world) = World::new() else { return };
    assert_stages(&world.run(&hello()), &[MADE, RESTORED]);
    for (cards, stage) in [(1, RESTORED), (2, BOOTED)] {
        let (network, peer) = (Network::new(), Network::new());
        let told = world.run(&with_cards(&network, &peer, cards));
        assert_stages(&told, &[stage]);
        assert!(told.starts_with(&format!("{cards}\n")), "{told}");
    }
    let bundle = hello().with(|config| {
        config["ociVersion"] = json!("1.3.0");
        config["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_LOCAL" });
    });
    assert_stages(&world.run(&bundle), &[BOOTED]);
    assert_eq!(world.ids().len(), 1);
}

#[test]
fn where_none_can_be_made_that_is_told_once_and_machines_boot() {
    let Some(world) = World::new() else { return };
    let vmm = world.rvm.path("rvm-vmm");
    let real = dist().canonicalize().unwrap().join("libexec/rvm/rvm-vmm");
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = template ]; then echo ERROR not here >&2; exit 3; fi\n\
         exec {} \"$@\"\n",
        real.display()
    );
    fs::write(&vmm, script).unwrap();
    fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755)).unwrap();
    let world = world.configured(&format!("vmm = \"{}\"", vmm.display()));
    let told = world.run(&hello());
    assert!(told.contains(BOOTED) && told.contains("not here"), "{told}");
    assert_stages(&world.run(&hello()), &[BOOTED]);
    let asked = world.rvm.call(&["template", "create"]);
    assert!(
        asked.code == 1 && asked.stderr.contains("not here"),
        "{asked:?}"
    );
}

#[test]
fn what_others_can_write_is_not_restored() {
    let Some(world) = World::new() else { return };
    world.run(&hello());
    let anybody = fs::Permissions::from_mode(0o666);
    fs::set_permissions(world.file("memory"), anybody).unwrap();
    assert_stages(&world.run(&hello()), &[MADE, RESTORED]);
    let mode = fs::metadata(world.file("memory")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

#[test]
fn a_container_is_not_charged_for_the_template_that_its_start_made() {
    let Some(world) = World::new() else { return };
    let bundle = Bundle::new(&["sleep", "1000"]);
    world.rvm.create(&bundle, "box");
    assert_eq!(world.ids().len(), 1);
    let pid = world.rvm.state("box")["pid"].as_i64().unwrap();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let stat = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let mount = match fields.next()? {
            "" => "/sys/fs/cgroup",
            "memory" => "/sys/fs/cgroup/memory",
            _ => return None,
        };
        let path = format!("{mount}{}/memory.stat", fields.next()?);
        fs::read_to_string(path).ok()
    });
    let stat = stat.unwrap();
    let shmem = stat.lines().find_map(|line| line.strip_prefix("shmem "));
    let shmem: u64 = shmem.unwrap().parse().unwrap();
    assert!(shmem < 4 << 20, "{shmem} bytes of files in memory");
    world.rvm.ok(&["delete", "--force", "box"]);
}
