//! Any process of a sandbox may be killed at any moment: the others end, and nothing stays behind.
//!
//! Every case starts a container, waits until the start has come to a stage, kills one process, and
//! asserts that all others end by themselves, that `rvm delete --force` succeeds, twice, and that
//! nothing of the container is left on the host.

use std::fs::{self, File};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rvm_tests::{Bundle, Rvm, command, leaks, network};
use serde_json::{Value, json};

/// How far a start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// The container has its directory.
    Prepared,
    /// What the guest can see of the host is being mounted.
    Sharing,
    /// The machine's processes are being started.
    Starting,
    /// The guest's kernel runs.
    Booting,
    /// The agent makes the container.
    Creating,
    /// The container waits for its start.
    Created,
    /// The program runs.
    Running,
}

use Stage::{Booting, Created, Creating, Prepared, Running, Sharing, Starting};

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// The command that was called: `rvm create`, or `rvm run`, which is the monitor too.
    Caller,
    /// What `rvm create` leaves behind.
    Monitor,
    /// A process that runs the machine: its command line has one of these in it.
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

/// How long the rest may take to end. It takes a fraction of a second where nothing else runs.
const LIMIT: Duration = Duration::from_secs(5);

/// A container on its way.
struct Start {
    rvm: Rvm,
    bundle: Bundle,
    verb: &'static str,
    caller: Child,
}

impl Start {
    fn new(verb: &'static str, stage: Stage) -> Self {
        let rvm = Rvm::new();
        let bundle = Bundle::new(&["sleep", "1000"]).with(|config| {
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
            verb,
        }
    }

    /// Waits until the start has come to this stage.
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
            Booting => fs::metadata(dir.join("console.log")).is_ok_and(|log| log.len() > 0),
            // The listening socket, and one that was accepted.
            Creating => {
                let sockets = self.rvm.network().inside(network::sockets);
                let streams = sockets
                    .iter()
                    .filter(|name| name.ends_with("/streams.sock"));
                streams.count() > 1
            }
            Created => self.status().as_deref() == Some("created"),
            Running => self.status().as_deref() == Some("running"),
        }
    }

    /// What the container's state says.
    fn status(&self) -> Option<String> {
        let text = fs::read_to_string(self.rvm.root().join("box/state.json")).ok()?;
        let state: Value = serde_json::from_str(&text).unwrap();
        Some(state["status"].as_str().unwrap().to_owned())
    }

    /// The process with one of these in its command line. Of several the oldest: the others are about
    /// to execute something else.
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
        loop {
            let rest = self.rvm.processes();
            if rest.is_empty() {
                return start.elapsed();
            }
            let names: Vec<_> = rest.into_iter().map(leaks::command_line).collect();
            assert!(start.elapsed() < LIMIT, "still there: {names:#?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.rvm.path("stderr")).unwrap()
    }
}

/// Makes the sharing take its time.
fn share_much(config: &mut Value) {
    let mounts = config["mounts"].as_array_mut().unwrap();
    mounts.extend((0..300).map(|index| {
        json!({ "destination": format!("/tmp/{index}"), "type": "bind", "source": "/usr",
                "options": ["bind"] })
    }));
}

/// Field 22 of /proc/pid/stat.
fn start_time(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let field = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19));
    field
        .and_then(|field| field.parse().ok())
        .unwrap_or(u64::MAX)
}

/// One case: kills the victim at the stage, and looks at what becomes of the rest.
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
    for _ in 0..2 {
        rvm.ok(&["delete", "--force", "box"]);
    }
    rvm.assert_nothing_left();
    assert!(
        start.bundle.path().join("config.json").exists(),
        "the bundle is the user's"
    );
}

/// Whoever called rvm hears what has happened.
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

/// Moments between the stages, counted from one of them.
fn moments() -> impl Iterator<Item = Duration> {
    let count = std::env::var("RVM_TEST_MOMENTS")
        .ok()
        .and_then(|text| text.parse().ok());
    (0..count.unwrap_or(20)).map(|index: u64| Duration::from_micros(1250 * (index % 20)))
}

/// The machine's processes enter their jails at these moments, and the monitor may die before they
/// can be told of its death.
#[test]
fn when_the_monitor_is_killed_at_any_moment_nothing_stays() {
    for moment in moments() {
        let mut start = Start::new("run", Prepared);
        start.reach(Starting);
        std::thread::sleep(moment);
        start.kill(Victim::Caller);
        start.wait_for_the_rest();
        start.caller.wait().unwrap();
        start.rvm.ok(&["delete", "--force", "box"]);
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
        start.rvm.ok(&["delete", "--force", "box"]);
        start.rvm.assert_nothing_left();
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
        assert!(!start.caller.wait().unwrap().success());
    }
}
