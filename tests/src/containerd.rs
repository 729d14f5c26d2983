//! containerd in a world of its own: root, state, socket and namespace belong to this test alone.
//! Its shim is the one under test.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::command::{self, Finished, Rvm, eventually};
use crate::{disk, image, leftovers};

/// containerd's name for the runtime.
pub const RUNTIME: &str = "io.containerd.rvm.v2";

/// Where shims keep the state of containers.
pub(crate) const STATE: &str = "/run/containerd/rvm";

/// containerd with an image of busybox. Dropping it fails the test if anything that was started
/// with it is still there.
pub struct Containerd {
    world: Rvm,
    namespace: String,
    daemon: Mutex<Option<Child>>,
}

/// Events, as `ctr events` prints them.
pub struct Events {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Default for Containerd {
    fn default() -> Self {
        Self::new()
    }
}

impl Containerd {
    /// Starts containerd and imports the image.
    pub fn new() -> Self {
        Self::with_image(Rvm::new())
    }

    /// The same in a world that the test has made. ctr puts a container's cgroup below one with the
    /// namespace's name, so the namespace has the name of the world's cgroups.
    pub fn with_image(world: Rvm) -> Self {
        let world = world.configured(&format!("engine = \"{}\"", crate::engine()));
        let namespace = world.cgroups_name().to_owned();
        let containerd = Self::start_in(world, namespace, "");
        containerd.import(image::NAME, &["sh"]);
        containerd
    }

    /// Adds these lines to containerd's configuration. Without any, CRI is off.
    pub fn start_in(world: Rvm, namespace: String, lines: &str) -> Self {
        let snapshots = snapshotter_lines(&world, &snapshotter());
        Self::start_with(world, namespace, lines, &snapshots)
    }

    /// The same with this snapshotter, and lines of its configuration.
    pub fn with_snapshotter(world: Rvm, name: &str, lines: &str) -> Self {
        let namespace = world.cgroups_name().to_owned();
        let snapshots = snapshotter_lines(&world, name) + lines;
        Self::start_with(world, namespace, "", &snapshots)
    }

    fn start_with(world: Rvm, namespace: String, lines: &str, snapshots: &str) -> Self {
        let containerd = Self {
            world,
            namespace,
            daemon: Mutex::default(),
        };
        containerd.write_config(lines, snapshots);
        containerd.start();
        containerd
    }

    /// Imports an image of busybox with this default command.
    pub fn import(&self, name: &str, program: &[&str]) {
        self.import_for(&snapshotter(), name, &image::config(program));
    }

    /// The same for another snapshotter, with the image's configuration.
    pub fn import_for(&self, snapshotter: &str, name: &str, config: &Value) {
        let image = image::write(&self.world.path(""), name, config);
        let image = image.to_str().unwrap();
        let mut args = vec!["image", "import", "--snapshotter", snapshotter];
        // The daemon's own import unpacks only for the snapshotter in its configuration.
        if major_version() > 1 {
            args.push("--local");
        }
        args.push(image);
        self.ok(&args);
    }

    fn write_config(&self, lines: &str, snapshots: &str) {
        let path = |name| self.world.path(name).display().to_string();
        let (version, disabled) = match (major_version(), lines) {
            (1, "") => (2, "\"io.containerd.grpc.v1.cri\""),
            (1, _) => (2, ""),
            (_, "") => (
                3,
                "\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \
                 \"io.containerd.cri.v1.runtime\"",
            ),
            (..) => (3, ""),
        };
        let config = format!(
            "version = {version}\nroot = \"{}\"\nstate = \"{}\"\n\
             disabled_plugins = [{disabled}]\n\
             [grpc]\naddress = \"{}\"\n[debug]\nlevel = \"debug\"\n{lines}{snapshots}",
            path("root"),
            path("run"),
            path("sock")
        );
        fs::write(self.world.path("containerd.toml"), config).unwrap();
    }

    pub fn world(&self) -> &Rvm {
        &self.world
    }

    /// The namespace of this test's containers.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// containerd's socket for shims.
    pub fn ttrpc_socket(&self) -> PathBuf {
        self.world.path("sock.ttrpc")
    }

    /// Starts the daemon, and waits until it answers.
    pub fn start(&self) {
        self.spawn();
        self.wait_until_it_answers();
    }

    fn wait_until_it_answers(&self) {
        eventually("containerd answers", || self.ctr(&["version"]).code == 0);
    }

    /// Starts the daemon, where shims reach it only after events are listened for.
    pub fn start_with_events(&self) -> Events {
        let (socket, aside) = (self.ttrpc_socket(), self.world.path("aside"));
        // A killed daemon leaves it.
        let _ = fs::remove_file(&socket);
        self.spawn();
        // The daemon sets the owner last, right after this mode.
        eventually("containerd listens to shims", || {
            fs::metadata(&socket).is_ok_and(|found| found.mode() & 0o777 == 0o660)
        });
        fs::rename(&socket, &aside).unwrap();
        self.wait_until_it_answers();
        let events = self.events();
        fs::rename(&aside, &socket).unwrap();
        events
    }

    fn spawn(&self) {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.world.path("containerd.log"))
            .unwrap();
        let mut daemon = Command::new(program("containerd"));
        let dist = fs::canonicalize(self.world.dist()).unwrap();
        let path = std::env::var("PATH").unwrap();
        daemon
            .arg("--config")
            .arg(self.world.path("containerd.toml"))
            .env("PATH", format!("{}/bin:{path}", dist.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.world.adopt(&mut daemon);
        let daemon = daemon.spawn().expect("the tests need containerd");
        *self.daemon.lock().unwrap() = Some(daemon);
    }

    /// Its shims survive.
    pub fn kill(&self) {
        if let Some(mut daemon) = self.daemon.lock().unwrap().take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    /// ctr with these arguments, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("ctr"));
        command
            .arg("--address")
            .arg(self.world.path("sock"))
            .args(["--namespace", &self.namespace])
            .args(args)
            .stdin(Stdio::null());
        self.world.adopt(&mut command);
        command
    }

    pub fn ctr(&self, args: &[&str]) -> Finished {
        command::finish(self.command(args))
    }

    /// Fails the test unless the command succeeds; returns its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let finished = self.ctr(args);
        assert_eq!(finished.code, 0, "ctr {args:?}: {}", finished.stderr);
        finished.stdout
    }

    /// `ctr run` with these options and a shell command.
    pub fn run_command(&self, options: &[&str], id: &str, script: &str) -> Command {
        let mut command = self.command(&["run", "--runtime", RUNTIME]);
        command
            .args(["--snapshotter", &snapshotter()])
            .arg("--runtime-config-path")
            .arg(self.world.path("config.toml"))
            .args(options)
            .args([image::NAME, id, "sh", "-c", script]);
        command
    }

    pub fn run(&self, options: &[&str], id: &str, script: &str) -> Finished {
        let options = [&["--rm"], options].concat();
        command::finish(self.run_command(&options, id, script))
    }

    /// Starts a container in the background. ctr gives it FIFOs that nobody reads.
    pub fn start_container(&self, options: &[&str], id: &str, script: &str) {
        let options = [&["--detach"], options].concat();
        let mut run = self.run_command(&options, id, script);
        let log = self.world.path("run.log");
        run.stdout(Stdio::null())
            .stderr(File::create(&log).unwrap());
        let output = command::wait(run.spawn().unwrap());
        let text = || fs::read_to_string(&log).unwrap();
        assert!(output.status.success(), "{}", text());
    }

    /// The status and pid of a container, as `ctr task list` prints them.
    pub fn task(&self, id: &str) -> Option<(String, i32)> {
        let list = self.ok(&["task", "list"]);
        let line = list
            .lines()
            .find(|line| line.split_whitespace().next() == Some(id))?;
        let fields: Vec<&str> = line.split_whitespace().collect();
        Some((fields[2].to_owned(), fields[1].parse().unwrap()))
    }

    /// Waits until the list shows this status.
    pub fn wait_for_status(&self, id: &str, status: &str) {
        let is = || self.task(id).is_some_and(|(now, _)| now == status);
        eventually(&format!("{id} is {status}"), is);
    }

    /// Kills a container, and removes it.
    pub fn remove(&self, id: &str) {
        if self.task(id).is_some_and(|(status, _)| status != "STOPPED") {
            self.ok(&["task", "kill", "--signal", "KILL", id]);
            self.wait_for_status(id, "STOPPED");
        }
        self.ctr(&["task", "delete", id]);
        self.ok(&["container", "delete", id]);
    }

    /// Runs a process in a container.
    pub fn exec(&self, id: &str, exec_id: &str, script: &str) -> Finished {
        let args = ["task", "exec", "--exec-id", exec_id, id, "sh", "-c", script];
        self.ctr(&args)
    }

    /// Events from now on.
    pub fn events(&self) -> Events {
        let mut command = self.command(&["events"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let events = Events { child, lines };
        // It is subscribed once it has received an event.
        let mut count = 0;
        eventually("events are told", || {
            count += 1;
            let label = format!("rvm-test-{count}");
            self.ok(&["namespace", "create", &label]);
            self.ok(&["namespace", "remove", &label]);
            events
                .lines
                .recv_timeout(Duration::from_millis(100))
                .is_ok()
        });
        events
    }

    /// The pids of running shims.
    pub fn shims(&self) -> Vec<i32> {
        let is_shim = |pid: &i32| {
            let line = crate::leaks::command_line(*pid);
            line.starts_with("containerd-shim-rvm-v2")
        };
        self.world.processes().into_iter().filter(is_shim).collect()
    }

    /// The sockets of shims, as the bundles name them.
    pub fn shim_sockets(&self) -> BTreeSet<PathBuf> {
        let parts = ["runtime.v2.task", "sandbox.controller.v1.shim"];
        let dirs = parts.map(|part| format!("run/io.containerd.{part}/{}", self.namespace));
        let bundles = dirs
            .iter()
            .flat_map(|dir| fs::read_dir(self.world.path(dir)));
        let address = |bundle: fs::DirEntry| fs::read_to_string(bundle.path().join("address")).ok();
        let addresses = bundles.flatten().flatten().filter_map(address);
        addresses
            .map(|address| address.trim_start_matches("unix://").into())
            .collect()
    }

    /// The log of the daemon and its shims.
    pub fn log(&self) -> String {
        fs::read_to_string(self.world.path("containerd.log")).unwrap_or_default()
    }

    /// Where the shims keep the state of its containers.
    pub fn state(&self) -> PathBuf {
        state_of(&self.namespace)
    }
}

/// Where shims keep the state of a namespace's containers.
pub(crate) fn state_of(namespace: &str) -> PathBuf {
    Path::new(STATE).join(namespace)
}

/// A program of the containerd below `$RVM_TEST_CONTAINERD`, or of the system's.
pub fn program(name: &str) -> PathBuf {
    match std::env::var_os("RVM_TEST_CONTAINERD") {
        Some(root) => Path::new(&root).join("usr/bin").join(name),
        None => name.into(),
    }
}

/// containerd's snapshotter for the tests' images: `$RVM_TEST_SNAPSHOTTER`, or `native`.
pub fn snapshotter() -> String {
    std::env::var("RVM_TEST_SNAPSHOTTER").unwrap_or_else(|_| "native".to_owned())
}

/// What a snapshotter needs in containerd's configuration.
fn snapshotter_lines(world: &Rvm, name: &str) -> String {
    match name {
        "blockfile" => {
            let scratch = disk::image(&world.path(""), "ext4", SCRATCH_BYTES, None);
            let scratch = scratch.expect("the tests of this snapshotter need e2fsprogs");
            format!(
                "[plugins.\"io.containerd.snapshotter.v1.blockfile\"]\n\
                 scratch_file = \"{}\"\nfs_type = \"ext4\"\nmount_options = []\n",
                scratch.display()
            )
        }
        _ => String::new(),
    }
}

/// The size of a snapshot of the blockfile snapshotter.
const SCRATCH_BYTES: u64 = 64 << 20;

/// containerd's major version.
pub fn major_version() -> u32 {
    static VERSION: OnceLock<u32> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let output = Command::new(program("containerd"))
            .arg("--version")
            .output();
        let text = String::from_utf8(output.expect("the tests need containerd").stdout).unwrap();
        // Name, source, version, commit.
        let version = text.split_whitespace().nth(2).unwrap();
        let number = version.trim_start_matches('v').split('.').next().unwrap();
        number.parse().unwrap_or_else(|_| panic!("{text}"))
    })
}

impl Events {
    /// Topics and contents of task events, up to the first with this topic.
    pub fn until(&self, topic: &str) -> Vec<String> {
        let mut told = Vec::new();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            let Ok(line) = self.lines.recv_timeout(Duration::from_secs(60)) else {
                break;
            };
            // Date, time, zone twice, namespace, topic, contents.
            let mut fields = line.splitn(7, ' ').skip(5);
            let (of, contents) = (fields.next().unwrap(), fields.next().unwrap_or_default());
            if of.starts_with("/tasks/") {
                told.push(format!("{of} {contents}"));
                if of == topic {
                    return told;
                }
            }
        }
        panic!("no {topic}, only {told:#?}");
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containerd's log:\n{}", self.log());
            self.kill();
            self.world.kill_all();
            for socket in self.shim_sockets() {
                let _ = fs::remove_file(socket);
            }
            leftovers::delete_containers(&self.state(), &self.world.path(""));
        } else {
            eventually("the shims have ended", || self.shims().is_empty());
            self.kill();
            let left: Vec<_> = fs::read_dir(self.state()).into_iter().flatten().collect();
            let is_own = self.namespace.starts_with("rvm-test");
            assert!(left.is_empty() || !is_own, "left behind: {left:?}");
        }
        // Layers that the daemon mounts once for all containers.
        let snapshots = "root/io.containerd.snapshotter.v1.erofs";
        crate::leaks::unmount_below(&self.world.path(snapshots));
        // The namespace of CRI is shared with others.
        let _ = fs::remove_dir(self.state());
    }
}
