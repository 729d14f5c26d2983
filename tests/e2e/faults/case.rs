//! One case: a world, a verb that meets a fault, and what must hold then.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rvm_tests::inject::{Counts, Injector, Order};
use rvm_tests::{Rvm, command, leaks};

use super::environments::{Limit, Limits, StateRoot};
use super::scenarios::{Places, Scenario};

/// The longest time of a verb. Killing a container and deleting it wait for a silent guest for
/// some seconds each.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The same where a guest boots on a software CPU.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// What a verb meets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A rule for the points in the code.
    Point(String),
    /// A system call fails.
    Call(Order),
    /// A limit of the verb's processes: RLIMIT_NOFILE.
    Descriptors(u32),
    /// A limit of its cgroup: so many processes, or bytes of memory.
    Group(Limit, u64),
    /// The file system of the state root has no room, until the case is over.
    FullRoot,
    /// The state root cannot be written.
    ReadOnlyRoot,
    /// None: the points that are passed are written to this file.
    Logged(PathBuf),
    /// None: system calls are counted.
    Counted,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Point(rule) => f.write_str(rule),
            Self::Call(order) => {
                let Order {
                    role,
                    call,
                    passage,
                    error,
                } = order;
                let error = std::io::Error::from_raw_os_error(*error);
                write!(f, "{role}: {call} #{passage}: {error}")
            }
            Self::Descriptors(count) => write!(f, "{count} descriptors"),
            Self::Group(kind, limit) => write!(f, "{limit} {kind:?}"),
            Self::FullRoot => f.write_str("a full state root"),
            Self::ReadOnlyRoot => f.write_str("a read-only state root"),
            Self::Logged(_) | Self::Counted => f.write_str("no fault, recorded"),
        }
    }
}

/// rvm with machines that are played by a program.
pub struct World {
    pub rvm: Rvm,
    places: Places,
    root: StateRoot,
    limits: Limits,
    /// The longest time of a verb.
    patience: Duration,
}

/// A world whose machines a program plays; none where there is no device to pass on.
pub fn played() -> Option<Rvm> {
    if !Path::new("/dev/kvm").exists() {
        println!("skipped: there is no /dev/kvm");
        return None;
    }
    let rvm = Rvm::new().on_engine("kvm");
    let program = rvm.path("hostile-honest");
    symlink(env!("CARGO_BIN_EXE_rvm-hostile"), &program).unwrap();
    let config = format!("engine = \"kvm\"\ntemplates = \"off\"\nvmm = {program:?}");
    Some(rvm.configured(&config))
}

/// How a verb ended.
#[derive(Debug)]
pub struct Outcome {
    /// -n after signal n; None if it had to be killed after [`LIMIT`].
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl World {
    pub fn played() -> Option<Self> {
        Some(Self::of(played()?, LIMIT))
    }

    /// With machines of the engine under test.
    pub fn real() -> Option<Self> {
        Some(Self::of(Rvm::new(), BOOT_LIMIT))
    }

    fn of(rvm: Rvm, patience: Duration) -> Self {
        Self {
            places: Places::new(&rvm),
            root: StateRoot::new(&rvm),
            limits: Limits::new(&rvm),
            rvm,
            patience,
        }
    }

    /// Runs a verb without a fault.
    pub fn verb(&self, verb: &str) -> Outcome {
        self.verb_with(verb, |_| ())
    }

    fn verb_with<T>(&self, verb: &str, change: impl FnOnce(&mut Command) -> T) -> Outcome {
        let words = self.places.of(verb);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let errors = self.rvm.path(&format!("{}.stderr", words[0]));
        let mut command = self.rvm.command(&words);
        command
            .stdout(File::create(self.rvm.path("stdout")).unwrap())
            .stderr(File::create(&errors).unwrap());
        let held = change(&mut command);
        // One that cannot be executed has met its fault as well.
        let code = match command.spawn() {
            Ok(mut child) => end(&mut child, self.patience),
            Err(_) => Some(127),
        };
        drop(command);
        let stderr = fs::read(&errors).unwrap();
        let stdout = fs::read(self.rvm.path("stdout")).unwrap();
        drop(held);
        Outcome {
            code,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
        }
    }

    /// Leads a container to the scenario's verb, and that into the fault. Returns what is wrong
    /// then; the world is as before.
    pub fn case(&self, scenario: &Scenario, fault: &Fault) -> Vec<String> {
        self.counted(scenario, fault).0
    }

    /// The same, and what was called.
    pub fn counted(&self, scenario: &Scenario, fault: &Fault) -> (Vec<String>, Counts) {
        let mut wrong = Vec::new();
        for verb in scenario.before {
            if *verb == "WAIT" {
                self.rvm.wait_for_status("box", "stopped");
                continue;
            }
            let outcome = self.verb(verb);
            if outcome.code != Some(0) {
                wrong.push(format!("before: {verb}: {outcome:?}"));
            }
        }
        let (outcome, injector) = self.target(scenario, fault);
        let is_recorded = matches!(fault, Fault::Logged(_) | Fault::Counted);
        if is_recorded && (outcome.code != Some(0)) != scenario.is_refused {
            wrong.push(format!("without a fault: {outcome:?}"));
        }
        let name = scenario.target.split(' ').next().unwrap_or_default();
        wrong.extend(judge(name, &outcome));
        // What goes on lacking something cannot clean up either.
        let is_over = matches!(fault, Fault::Point(_) | Fault::Call(_));
        if outcome.code == Some(1)
            && is_over
            && matches!(name, "create" | "run")
            && self.rvm.root().join("box").exists()
        {
            wrong.push(format!(
                "{name} failed and left its container: {}",
                outcome.stderr
            ));
        }
        if let ("state" | "list", Some(0), Some(status)) = (name, outcome.code, scenario.keeps)
            && !outcome.stdout.contains(status)
        {
            wrong.push(format!("{name} says: {}", outcome.stdout));
        }
        if let Some(status) = scenario.keeps
            && self.status().as_deref() != Some(status)
        {
            let now = self.status();
            wrong.push(format!("the container is {now:?}: {}", outcome.stderr));
        }
        self.goes_on(scenario, &mut wrong);
        self.clean_up(&mut wrong);
        let counts = injector.map(|injector| injector.counts());
        let _ = fs::remove_dir_all(self.rvm.path("image"));
        let _ = fs::remove_file(self.rvm.path("pid"));
        self.root.empty();
        (wrong, counts.unwrap_or_default())
    }

    /// Runs the verb of a scenario into a fault. The injector must live as long as what the verb
    /// has started.
    fn target(&self, scenario: &Scenario, fault: &Fault) -> (Outcome, Option<Injector>) {
        let mut injector = None;
        let outcome = self.verb_with(scenario.target, |command| match fault {
            Fault::Point(rule) => _ = command.env("RVM_FAULTS", rule),
            Fault::Call(order) => {
                injector = Some(Injector::watch(command, Some(order.clone())));
            }
            Fault::Counted => injector = Some(Injector::watch(command, None)),
            Fault::Logged(log) => _ = command.env("RVM_FAULTS_LOG", log),
            Fault::FullRoot => self.root.fill(),
            Fault::ReadOnlyRoot => self.root.set_read_only(true),
            Fault::Descriptors(count) => limit_descriptors(command, *count),
            Fault::Group(kind, limit) => self.limits.enter(command, *kind, *limit),
        });
        match fault {
            Fault::Group(kind, _) => self.limits.lift(*kind),
            Fault::ReadOnlyRoot => self.root.set_read_only(false),
            _ => {}
        }
        (outcome, injector)
    }

    /// The status that `rvm state` tells; None if there is no container.
    pub fn status(&self) -> Option<String> {
        let finished = self.rvm.call(&["state", "box"]);
        let state: serde_json::Value = serde_json::from_str(&finished.stdout).ok()?;
        Some(state["status"].as_str()?.to_owned())
    }

    /// Other verbs answer after the fault.
    fn goes_on(&self, scenario: &Scenario, wrong: &mut Vec<String>) {
        for verb in ["list", "state box"] {
            let outcome = self.verb(verb);
            let is_gone = outcome.stderr.contains("container does not exist");
            if outcome.code != Some(0) && !is_gone {
                wrong.push(format!("{verb}: {outcome:?}"));
            }
        }
        for verb in scenario.after {
            let outcome = self.verb(verb);
            let name = verb.split(' ').next().unwrap_or_default();
            wrong.extend(judge(name, &outcome));
        }
    }

    /// Removes what is there, as an engine would.
    pub fn clean_up(&self, wrong: &mut Vec<String>) {
        for id in ["box", "box", "pod", "pod"] {
            let verb = format!("delete --force {id}");
            let outcome = self.verb(&verb);
            if outcome.code != Some(0) {
                wrong.push(format!("{verb}: {outcome:?}"));
            }
        }
        let start = Instant::now();
        let mut left = self.rvm.left();
        while !left.is_empty() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
            left = self.rvm.left();
        }
        if !left.is_empty() {
            wrong.push(format!("left behind: {left:?}"));
        }
        for monitor in ["create", "run", "exec"] {
            let errors = fs::read(self.rvm.path(&format!("{monitor}.stderr"))).unwrap_or_default();
            wrong.extend(panics(&String::from_utf8_lossy(&errors)));
        }
    }

    /// Takes away what is left after a case that has failed, and the world with it.
    pub fn give_up(self) {
        self.rvm.kill_all();
        leaks::unmount_below(&self.rvm.path(""));
        leaks::unmount_below(self.root.path());
        let _ = fs::remove_dir_all(self.rvm.path(""));
        // Its cgroups and files are removed by the next run.
        std::mem::forget(self);
    }
}

/// A panic of ours. The standard library panics where a thread gets no memory for its signal stack,
/// and where its own sockets fail.
fn panics(stderr: &str) -> Option<String> {
    let is_ours = |line: &&str| line.contains("panicked") && !line.contains("/library/std/src/sys");
    let line = stderr.lines().find(is_ours)?;
    Some(format!("a panic: {line}"))
}

/// What is wrong with the end of a verb.
fn judge(verb: &str, outcome: &Outcome) -> Vec<String> {
    let Outcome { code, stderr, .. } = outcome;
    let mut wrong: Vec<String> = panics(stderr).into_iter().collect();
    match code {
        None => wrong.push(format!("{verb} did not end: {stderr}")),
        // It was killed, or could not be executed, or had no memory to work with.
        Some(0 | -9 | 127 | -6) => {}
        Some(101) if wrong.is_empty() => {}
        Some(_) => {
            // A monitor whose starter has gone tells of that as well.
            let failed = format!("{verb} failed: ");
            let is_told = |line: &&str| line.contains(&failed);
            // One that stands for a process tells how that ended without it.
            let errors = stderr.lines().filter(is_told).count();
            let ended = stderr.lines().any(|line| line.starts_with("rvm: error: "));
            if errors > 1 || errors == 0 && !ended {
                wrong.push(format!("{verb}, no clear error: {outcome:?}"));
            }
        }
    }
    wrong
}

/// Waits for a verb; None if it had to be killed.
fn end(child: &mut Child, patience: Duration) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < patience {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.code().unwrap_or_else(|| -status.signal().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    command::signal(child.id().cast_signed(), libc::SIGKILL);
    child.wait().unwrap();
    None
}

#[expect(unsafe_code, reason = "pre_exec")]
fn limit_descriptors(command: &mut Command, count: u32) {
    let limit = libc::rlimit {
        rlim_cur: count.into(),
        rlim_max: count.into(),
    };
    // SAFETY: the closure makes a system call and allocates nothing.
    unsafe {
        command.pre_exec(
            move || match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            },
        )
    };
}
