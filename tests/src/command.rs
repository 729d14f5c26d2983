//! The rvm command in a world of its own: a state root, cgroups and a network namespace that only
//! this test uses.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cgroups::Cgroups;
use crate::leftovers;
use crate::memory::Memory;
use crate::network::Network;

/// The longest time of a command. A guest boots in seconds even on a software CPU; this limit is
/// for one that never does.
const LIMIT: Duration = Duration::from_secs(240);

/// rvm with a state root of its own. Dropping it fails the test if anything that was started with
/// it is still there.
pub struct Rvm {
    dir: tempfile::TempDir,
    cgroups: Cgroups,
    network: Arc<Network>,
    engine: String,
    config: String,
    dist: PathBuf,
    variables: Mutex<BTreeMap<&'static str, String>>,
}

thread_local! {
    /// The cgroup directory of the containers in this thread's newest world.
    static WORLD: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The directory for cgroups of the test's containers, as config.json names it.
pub fn world() -> Option<String> {
    WORLD.with_borrow(Clone::clone)
}

/// The output and the exit code of a command.
#[derive(Debug)]
pub struct Finished {
    /// -n after signal n.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Default for Rvm {
    fn default() -> Self {
        Self::new()
    }
}

impl Rvm {
    /// Starts with an empty state root.
    pub fn new() -> Self {
        leftovers::remove();
        let name = tempfile::Builder::new()
            .prefix(&leftovers::prefix())
            .tempdir();
        let rvm = Self {
            dir: name.unwrap(),
            cgroups: Cgroups::new(),
            network: Arc::new(Network::new()),
            engine: crate::engine(),
            config: String::new(),
            dist: crate::dist(),
            variables: Mutex::default(),
        };
        WORLD.set(Some(rvm.cgroups.path()));
        rvm.write_config();
        rvm
    }

    /// Uses this engine instead of the one under test.
    pub fn on_engine(mut self, engine: &str) -> Self {
        engine.clone_into(&mut self.engine);
        self
    }

    /// Takes the binaries of another installation than the one that is tested.
    pub fn installed_in(mut self, dist: &Path) -> Self {
        dist.clone_into(&mut self.dist);
        self.write_config();
        self
    }

    /// The installation whose binaries are run.
    pub fn dist(&self) -> &Path {
        &self.dist
    }

    /// Adds lines to rvm's configuration.
    pub fn configured(mut self, lines: &str) -> Self {
        self.config += lines;
        self.config.push('\n');
        self.write_config();
        self
    }

    /// Writes the configuration, with what `$RVM_TEST_TEMPLATES` says where the test says nothing
    /// of templates.
    fn write_config(&self) {
        let mut config = self.config.clone();
        let is_tested = self.dist == crate::dist();
        if let Some(templates) = crate::templates()
            && is_tested
            && !config.contains("templates")
        {
            config += &format!("\ntemplates = {templates:?}\n");
        }
        fs::write(self.dir.path().join("config.toml"), config).unwrap();
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The name, below each hierarchy's root, of the directory for the cgroups of containers.
    pub fn cgroups_name(&self) -> &str {
        self.cgroups.name()
    }

    /// A path in a temporary directory of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// rvm with these arguments, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.dist.join("bin/rvm"));
        command
            .arg("--root")
            .arg(self.root())
            .args(["--engine", &self.engine]);
        command
            .arg("--config")
            .arg(self.dir.path().join("config.toml"));
        command.args(args).stdin(Stdio::null());
        self.adopt(&mut command);
        command
    }

    /// Gives the commands of this world a variable of the environment from now on, or no more.
    pub fn set_variable(&self, name: &'static str, value: Option<&str>) {
        let mut variables = self.variables.lock().unwrap();
        match value {
            Some(value) => _ = variables.insert(name, value.to_owned()),
            None => _ = variables.remove(name),
        }
    }

    /// Makes a command run in this world.
    pub fn adopt(&self, command: &mut Command) {
        command.envs(&*self.variables.lock().unwrap());
        let procs = File::options()
            .write(true)
            .open(self.cgroups.procs())
            .unwrap();
        let network = Arc::clone(&self.network);
        #[expect(unsafe_code, reason = "pre_exec")]
        // SAFETY: the closure makes two system calls and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                (&procs).write_all(b"0")?;
                network.enter()
            })
        };
    }

    /// Runs rvm to its end.
    pub fn call(&self, args: &[&str]) -> Finished {
        finish(self.command(args))
    }

    /// Fails the test unless the command succeeds; returns its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let finished = self.call(args);
        assert_eq!(finished.code, 0, "rvm {args:?}: {}", finished.stderr);
        finished.stdout
    }

    /// Runs a container in the foreground.
    pub fn run(&self, bundle: &crate::Bundle, id: &str) -> Finished {
        self.call(&["run", "--bundle", bundle.write().to_str().unwrap(), id])
    }

    /// Starts a container in the foreground, with pipes for its input and output.
    pub fn spawn_piped(&self, bundle: &crate::Bundle, id: &str) -> Child {
        let mut run = self.command(&["run", "--bundle"]);
        run.arg(bundle.write()).arg(id);
        let piped = run.stdin(Stdio::piped()).stdout(Stdio::piped());
        piped.spawn().unwrap()
    }

    /// Creates a container. Its output goes to a file, which its monitor keeps open: a pipe would
    /// not end before the container does.
    pub fn create(&self, bundle: &crate::Bundle, id: &str) {
        let log = self.path("create.log");
        let mut command = self.command(&["create", "--bundle"]);
        command.arg(bundle.write()).arg(id).stdout(Stdio::null());
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        let output = wait(child);
        assert!(
            output.status.success(),
            "{}",
            fs::read_to_string(&log).unwrap()
        );
    }

    /// The output of `rvm state`.
    pub fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.ok(&["state", id])).unwrap()
    }

    pub fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap().to_owned()
    }

    /// Waits until `rvm state` reports this status.
    pub fn wait_for_status(&self, id: &str, status: &str) {
        eventually(&format!("{id} is {status}"), || self.status(id) == status);
    }

    /// The processes in this world.
    pub fn processes(&self) -> Vec<i32> {
        self.cgroups.members()
    }

    /// Watches the memory of this installation's processes in this world from now on.
    pub fn watch_memory(&self) -> Memory {
        Memory::watch(self.cgroups.unified_world(), &self.dist)
    }

    /// Kills all processes in this world at once.
    pub fn kill_all(&self) {
        self.cgroups.kill();
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The cgroup of the commands, in which no container is.
    pub fn commands_group(&self) -> PathBuf {
        let procs = self.cgroups.procs();
        procs.parent().unwrap().to_owned()
    }

    /// What is there of containers that were started with this.
    pub fn left(&self) -> BTreeSet<String> {
        crate::leaks::find(self.dir.path(), &self.root(), &self.cgroups, &self.network)
    }

    /// Fails if anything that was started with this is left.
    pub fn assert_nothing_left(&self) {
        // A killed process may need a moment to disappear.
        let start = Instant::now();
        while !self.left().is_empty() && start.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let left = self.left();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

impl Drop for Rvm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.cgroups.kill();
            crate::leaks::unmount_below(self.dir.path());
        } else {
            self.assert_nothing_left();
        }
    }
}

/// Runs a command to its end, with its output captured.
pub fn finish(mut command: Command) -> Finished {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    wait(command.spawn().unwrap()).into()
}

/// Waits for a child to end, up to the time limit.
pub fn wait(child: Child) -> Output {
    wait_within(LIMIT, child)
}

/// Waits for a child to end, which is killed after this time.
pub fn wait_within(limit: Duration, child: Child) -> Output {
    let pid = child.id();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if is_done.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            signal(pid.cast_signed(), libc::SIGKILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(done);
    guard.join().unwrap();
    output
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let status = output.status;
        Self {
            code: status.code().unwrap_or_else(|| -status.signal().unwrap()),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

#[expect(unsafe_code, reason = "kill")]
pub fn signal(pid: i32, signal: i32) {
    assert!(pid > 1, "not a process: {pid}");
    // SAFETY: kill touches no memory.
    unsafe { libc::kill(pid, signal) };
}

/// Waits until a condition holds, up to the time limit.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < LIMIT, "it never happened that {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The number of lines in a file of /proc that contain a path.
pub fn mentions(table: &str, path: &Path) -> usize {
    let text = fs::read_to_string(table).unwrap();
    text.lines()
        .filter(|line| line.contains(path.to_str().unwrap()))
        .count()
}
