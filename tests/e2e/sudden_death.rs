//! Any process of a sandbox may be killed at any time: the others end, and nothing is left.
//!
//! Every case starts a container, waits until the start has reached a stage, kills one process, and
//! asserts that all others end by themselves, that `rvm delete --force` succeeds, twice, and that
//! nothing of the container is left on the host.

use std::fs::{self, File};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rvm_tests::network::{self, Network};
use rvm_tests::{Bundle, Rvm, command, leaks};
use serde_json::{Value, json};

/// A stage of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// The container's directory exists.
    Prepared,
    /// Shared files are being mounted.
    Sharing,
    /// The machine's processes are being started.
    Starting,
    /// The guest's kernel runs.
    Booting,
    /// The agent creates the container.
    Creating,
    /// The container waits for its start.
    Created,
    /// The program runs.
    Running,
}

use Stage::{Booting, Created, Creating, Prepared, Running, Sharing, Starting};

/// The process that is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// The command: `rvm create`, or `rvm run`, which is also the monitor.
    Caller,
    /// The monitor that `rvm create` starts.
    Monitor,
    /// A process that runs the machine. Its command line contains one of these.
    Machine(&'static [&'static str]),
}

/// The processes that run the machine.
fn machine() -> Vec<Victim> {
    let processes: &[&[&str]] = match rvm_tests::engine().as_str() {
        "qemu" => &[&["rvm-vmm backend"], &["rvm-vmm qemu", "qemu-system"]],
        _ => &[&["rvm-vmm machine"]],
    };
    processes.iter().copied().map(Victim::Machine).collect()
}

/// The longest time for the others to end. On an idle host it takes a fraction of a second.
const LIMIT: Duration = Duration::from_secs(5);

/// A container that is being started.
struct Start {
    rvm: Rvm,
    bundle: Bundle,
    network: EngineNetwork,
    verb: &'static str,
    caller: Child,
}

/// A network namespace as an engine makes it for a container, with an interface.
struct EngineNetwork {
    inside: Network,
    /// The namespace with the other end of the veth pair.
    _peer: Network,
    before: String,
}

impl EngineNetwork {
    fn new() -> Self {
        let (inside, peer) = (Network::new(), Network::new());
        peer.ip("link add out type veth peer name in");
        peer.ip(&format!("link set in netns {} name eth0", inside.path()));
        peer.ip("link set out up");
        inside.ip("addr add 10.0.0.2/24 dev eth0");
        inside.ip("link set eth0 up");
        Self {
            before: Self::look(&inside),
            inside,
            _peer: peer,
        }
    }

    /// What rvm may change: links, and rules that redirect packets.
    fn look(inside: &Network) -> String {
        let rules = inside.tc("qdisc show") + &inside.tc("filter show dev eth0 ingress");
        inside.foreign().join("\n") + "\n" + &rules
    }

    fn assert_as_before(&self) {
        let start = Instant::now();
        loop {
            let now = Self::look(&self.inside);
            if now == self.before {
                return;
            }
            let time_left = start.elapsed() < LIMIT;
            assert!(
                time_left,
                "the namespace was: {} and is: {now}",
                self.before
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Start {
    fn new(verb: &'static str, stage: Stage) -> Self {
        let rvm = Rvm::new();
        let network = EngineNetwork::new();
        let bundle = Bundle::new(&["sleep", "1000"]).with(|config| {
            for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
                if namespace["type"] == "network" {
                    namespace["path"] = json!(network.inside.path());
                }
            }
            if stage == Sharing {
                share_much(config);
            }
        });
        let mut caller = rvm.command(&[verb, "--bundle"]);
        caller.arg(bundle.write()).arg("box").stdout(Stdio::null());
        caller.stderr(File::create(rvm.path("stderr")).unwrap());
        Self {
            caller: caller.spawn().unwrap(),
            rvm,
            bundle,
            network,
            verb,
        }
    }

    /// Waits until the start has reached this stage.
    fn reach(&mut self, stage: Stage) {
        if self.verb == "create" && stage >= Created {
            assert!(self.caller.wait().unwrap().success(), "{}", self.stderr());
        }
        if self.verb == "create" && stage == Running {
            self.rvm.ok(&["start", "box"]);
        }
        let start = Instant::now();
        while !self.is_at(stage) {
            let time_left = start.elapsed() < Duration::from_secs(120);
            assert!(
                time_left,
                "{} never came to {stage:?}: {}",
                self.verb,
                self.stderr()
            );
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn is_at(&self, stage: Stage) -> bool {
        let dir = self.rvm.root().join("box");
        match stage {
            Prepared => dir.join("state.json").exists(),
            Sharing => dir.join("shared/box/mounts").exists(),
            Starting => self.find(&["rvm-vmm"]).is_some(),
            // By then the program that runs the machine has been loaded.
            Booting => {
                let machine = self.find(&["rvm-vmm machine", "qemu-system"]);
                machine.is_some_and(|pid| cpu_time(pid) >= Duration::from_millis(50))
            }
            // The listening socket, and an accepted one. The monitor is in the namespace.
            Creating => {
                let sockets = self.network.inside.inside(network::sockets);
                let streams = sockets
                    .iter()
                    .filter(|name| name.ends_with("/streams.sock"));
                streams.count() > 1
            }
            Created => self.status().as_deref() == Some("created"),
            Running => self.status().as_deref() == Some("running"),
        }
    }

    /// The status in the container's state.
    fn status(&self) -> Option<String> {
        let text = fs::read_to_string(self.rvm.root().join("box/state.json")).ok()?;
        let state: Value = serde_json::from_str(&text).unwrap();
        Some(state["status"].as_str().unwrap().to_owned())
    }

    /// The process with one of these in its command line. Of several, the oldest: the others are
    /// about to execute something else.
    fn find(&self, parts: &[&str]) -> Option<i32> {
        let mut matching = self.rvm.processes();
        matching.retain(|pid| {
            let line = leaks::command_line(*pid);
            parts.iter().any(|part| line.contains(part))
        });
        matching.into_iter().min_by_key(|pid| start_time(*pid))
    }

    fn kill(&self, victim: Victim) {
        let caller = self.caller.id().cast_signed();
        let start = Instant::now();
        let pid = loop {
            let found = match victim {
                Victim::Caller => Some(caller),
                Victim::Monitor => self.find(&[" monitor "]).filter(|pid| *pid != caller),
                Victim::Machine(names) => self.find(names),
            };
            match found {
                Some(pid) => break pid,
                None => assert!(start.elapsed() < LIMIT, "there is no {victim:?}"),
            }
        };
        command::signal(pid, libc::SIGKILL);
    }

    /// Waits until no process of the container is left; returns how long that took.
    fn wait_for_the_rest(&self) -> Duration {
        let start = Instant::now();
        let mut looks = 0;
        loop {
            let rest = self.rvm.processes();
            if rest.is_empty() {
                // A process that moves to another cgroup during the scan is missed.
                looks += 1;
                if looks == 3 {
                    return start.elapsed();
                }
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            looks = 0;
            let names: Vec<_> = rest.into_iter().map(leaks::command_line).collect();
            assert!(start.elapsed() < LIMIT, "still there: {names:#?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Deletes the container, which must succeed in every state, and repeatedly.
    fn delete(&self) {
        for _ in 0..2 {
            self.rvm.ok(&["delete", "--force", "box"]);
        }
        self.rvm.assert_nothing_left();
        self.network.assert_as_before();
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.rvm.path("stderr")).unwrap()
    }
}

/// Makes sharing files take long.
fn share_much(config: &mut Value) {
    let mounts = config["mounts"].as_array_mut().unwrap();
    mounts.extend((0..300).map(|index| {
        json!({ "destination": format!("/tmp/{index}"), "type": "bind", "source": "/usr",
                "options": ["bind"] })
    }));
}

/// The start time of a process, in clock ticks after boot.
fn start_time(pid: i32) -> u64 {
    stat(pid, 22).unwrap_or(u64::MAX)
}

/// The CPU time of a process.
fn cpu_time(pid: i32) -> Duration {
    // User and system time, in clock ticks of 10 ms.
    let ticks = stat(pid, 14).unwrap_or(0) + stat(pid, 15).unwrap_or(0);
    Duration::from_millis(10 * ticks)
}

/// A field of /proc/pid/stat by its number in proc(5). The second field, which may hold anything,
/// ends with the last parenthesis.
fn stat(pid: i32, number: usize) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number - 3)?.parse().ok()
}

/// One case: kills the victim at the stage, and checks what happens to the rest.
fn kill_at(verb: &'static str, victim: Victim, stage: Stage) {
    let mut start = Start::new(verb, stage);
    start.reach(stage);
    start.kill(victim);
    let took = start.wait_for_the_rest();
    println!("{verb}, {victim:?} killed at {stage:?}: the rest was gone after {took:?}");

    let status = start.caller.wait().unwrap();
    check_caller(&start, victim, stage, status);
    let rvm = &start.rvm;
    if victim == Victim::Caller || stage >= Created && verb == "create" {
        assert_eq!(rvm.status("box"), "stopped");
    }
    start.delete();
    assert!(
        start.bundle.path().join("config.json").exists(),
        "the bundle is the user's"
    );
}

/// Asserts that the caller of rvm learns what happened.
fn check_caller(start: &Start, victim: Victim, stage: Stage, status: ExitStatus) {
    let stderr = start.stderr();
    if victim == Victim::Caller || start.verb == "create" && stage >= Created {
        return;
    }
    if stage == Running {
        assert_eq!(status.code(), Some(137), "{stderr}");
        assert!(
            stderr.contains("the sandbox ended unexpectedly: "),
            "{stderr}"
        );
        assert!(stderr.contains("was killed by signal 9"), "{stderr}");
        return;
    }
    assert_eq!(status.code(), Some(1), "{stderr}");
    let failed = format!("rvm {} failed: ", start.verb);
    assert!(stderr.contains(&failed), "{stderr}");
    assert!(!start.rvm.root().join("box").exists(), "it has cleaned up");
}

#[test]
fn when_rvm_create_is_killed_nothing_stays() {
    for stage in [Prepared, Sharing, Starting, Booting, Creating] {
        kill_at("create", Victim::Caller, stage);
    }
}

#[test]
fn when_the_monitor_is_killed_nothing_stays() {
    for stage in [
        Prepared, Sharing, Starting, Booting, Creating, Created, Running,
    ] {
        kill_at("create", Victim::Monitor, stage);
    }
}

#[test]
fn when_rvm_run_is_killed_nothing_stays() {
    for stage in [Prepared, Sharing, Starting, Booting, Creating, Running] {
        kill_at("run", Victim::Caller, stage);
    }
}

#[test]
fn when_a_process_of_the_machine_is_killed_nothing_stays() {
    for victim in machine() {
        for stage in [Starting, Booting, Creating, Created, Running] {
            kill_at("create", victim, stage);
        }
    }
}

#[test]
fn when_a_process_of_the_machine_is_killed_rvm_run_says_so() {
    for victim in machine() {
        for stage in [Starting, Booting, Running] {
            kill_at("run", victim, stage);
        }
    }
}

#[test]
fn when_all_are_killed_at_once_a_deletion_leaves_nothing() {
    for stage in [Sharing, Booting, Running] {
        let mut start = Start::new("create", stage);
        start.reach(stage);
        start.rvm.kill_all();
        start.caller.wait().unwrap();
        start.wait_for_the_rest();
        assert_eq!(start.rvm.status("box"), "stopped");
        start.delete();
    }
}

/// Delays after a stage.
fn moments() -> impl Iterator<Item = Duration> {
    let count = std::env::var("RVM_TEST_MOMENTS")
        .ok()
        .and_then(|text| text.parse().ok());
    (0..count.unwrap_or(20)).map(|index: u64| Duration::from_micros(1250 * (index % 20)))
}

/// At these times the machine's processes enter their jails, and the monitor may die before they
/// can be notified of its death.
#[test]
fn when_the_monitor_is_killed_at_any_moment_nothing_stays() {
    for moment in moments() {
        let mut start = Start::new("run", Prepared);
        start.reach(Starting);
        std::thread::sleep(moment);
        start.kill(Victim::Caller);
        start.wait_for_the_rest();
        start.caller.wait().unwrap();
        start.delete();
    }
}

#[test]
fn a_container_deleted_at_any_moment_of_its_creation_is_gone() {
    for moment in moments() {
        let mut start = Start::new("create", Prepared);
        start.reach(Prepared);
        std::thread::sleep(moment);
        start.rvm.ok(&["delete", "--force", "box"]);
        start.wait_for_the_rest();
        start.delete();
        assert!(!start.caller.wait().unwrap().success());
    }
}

#[test]
fn a_deletion_that_is_killed_is_finished_by_the_next() {
    for delay in [1, 3, 9] {
        let mut start = Start::new("create", Created);
        start.reach(Created);
        let mut delete = start.rvm.command(&["delete", "--force", "box"]);
        let mut delete = delete.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        command::signal(delete.id().cast_signed(), libc::SIGKILL);
        delete.wait().unwrap();
        start.delete();
    }
}

#[test]
fn deletions_at_the_same_time_all_succeed() {
    let mut start = Start::new("create", Running);
    start.reach(Running);
    let deletions: Vec<Child> = (0..4)
        .map(|_| {
            start
                .rvm
                .command(&["delete", "--force", "box"])
                .spawn()
                .unwrap()
        })
        .collect();
    for deletion in deletions {
        assert!(command::wait(deletion).status.success());
    }
}

#[test]
fn a_container_deleted_while_it_is_created_is_gone() {
    for stage in [Sharing, Starting, Booting, Creating] {
        let mut start = Start::new("create", stage);
        start.reach(stage);
        start.rvm.ok(&["delete", "--force", "box"]);
        start.wait_for_the_rest();
        start.delete();
        assert!(!start.caller.wait().unwrap().success());
    }
}
