//! Container engines with rvm as their runtime, each in a world of its own.
//!
//! The first test that needs an engine starts it, and it serves all tests of the program. When the
//! program ends, the engine ends too. If it or its containers left anything, the program fails.
//!
//! `$RVM_TEST_RUNTIME` set to `runc` tests the tests: the engine then runs containers with runc.
//! `$RVM_TEST_ENGINE_ROOT` names the root of another system, made by scripts/engines, to run the
//! engine from.

pub mod docker;
pub mod image;
pub mod podman;
pub mod session;
pub mod world;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use serde_json::Value;

use crate::command::{self, Finished, eventually};
use session::Session;
use world::World;

/// The image of containers.
pub const IMAGE: &str = "localhost/rvm-test:latest";

/// The runtime of containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// The runtime under test.
    Rvm,
    /// The reference.
    Runc,
}

pub fn runtime() -> Runtime {
    match std::env::var("RVM_TEST_RUNTIME").as_deref() {
        Ok("runc") => Runtime::Runc,
        Err(_) | Ok("rvm") => Runtime::Rvm,
        other => panic!("RVM_TEST_RUNTIME is {other:?}; it may be rvm or runc"),
    }
}

/// The root of the system that the engine is installed in, if it is not this one.
fn root() -> Option<PathBuf> {
    let root = std::env::var_os("RVM_TEST_ENGINE_ROOT").filter(|root| !root.is_empty());
    root.map(PathBuf::from)
}

/// A running engine.
pub struct Engine {
    world: World,
    /// The command, and options of every call.
    base: Vec<String>,
    /// Options for every container.
    per_container: Vec<String>,
    env: Vec<(String, String)>,
    /// The daemon, if the engine has one.
    daemon: Option<Mutex<Child>>,
}

/// A container, removed by force when dropped.
pub struct Container<'a> {
    engine: &'a Engine,
    pub name: String,
}

impl Engine {
    /// A call of the engine's command, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.world.command(&self.base[0]);
        command.args(&self.base[1..]).envs(self.env.iter().cloned());
        command.args(args);
        command
    }

    /// Calls the engine's command.
    pub fn call(&self, args: &[&str]) -> Finished {
        command::finish(self.command(args))
    }

    /// Fails the test unless the call succeeds; returns its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let finished = self.call(args);
        assert_eq!(
            finished.code,
            0,
            "{args:?}: {}{}",
            finished.stderr,
            self.log()
        );
        finished.stdout
    }

    /// `run --rm` with these options, the image, and these arguments.
    pub fn run(&self, options: &[&str], args: &[&str]) -> Finished {
        command::finish(self.run_command(options, args))
    }

    /// The same, not yet started.
    pub fn run_command(&self, options: &[&str], args: &[&str]) -> Command {
        let mut command = self.command(&["run", "--rm"]);
        command
            .args(&self.per_container)
            .args(options)
            .arg(IMAGE)
            .args(args);
        command
    }

    /// `run --rm` of a shell command that must succeed; returns its output.
    pub fn shell(&self, options: &[&str], script: &str) -> String {
        let finished = self.run(options, &["sh", "-c", script]);
        assert_eq!(
            finished.code,
            0,
            "{script:?}: {}{}",
            finished.stderr,
            self.log()
        );
        finished.stdout
    }

    /// Starts a container in the background.
    pub fn start(&self, options: &[&str], args: &[&str]) -> Container<'_> {
        self.started("run", &["--detach"], options, args)
    }

    /// Creates a container without starting it.
    pub fn create(&self, options: &[&str], args: &[&str]) -> Container<'_> {
        self.started("create", &[], options, args)
    }

    fn started(&self, verb: &str, more: &[&str], options: &[&str], args: &[&str]) -> Container<'_> {
        let container = self.name();
        let mut call = vec![verb, "--name", &container.name];
        call.extend(more);
        call.extend(self.per_container.iter().map(String::as_str));
        call.extend(options);
        call.push(IMAGE);
        call.extend(args);
        self.ok(&call);
        container
    }

    /// A name for a container that a test creates by itself.
    pub fn name(&self) -> Container<'_> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("box{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Container { engine: self, name }
    }

    /// The world of the engine.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The end of the engine's log, to explain a failure.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.world.dir().join("log")).unwrap_or_default();
        let is_bad = |line: &&str| line.contains("level=error") || line.contains("level=warning");
        let lines: Vec<&str> = text.lines().filter(is_bad).collect();
        format!(
            "\nlog:\n{}",
            lines[lines.len().saturating_sub(4)..].join("\n")
        )
    }

    /// Ends the engine; returns what it left.
    fn end(&self) -> Vec<String> {
        let list = self.call(&["ps", "--all", "--quiet"]).stdout;
        let mut remove = vec!["rm", "--force", "--volumes"];
        remove.extend(list.split_whitespace());
        if remove.len() > 3 {
            self.call(&remove);
        }
        if let Some(daemon) = &self.daemon {
            docker::end(&self.world, &mut daemon.lock().unwrap());
        }
        let left = self.world.leaks();
        self.world.end();
        left
    }
}

impl<'a> Container<'a> {
    /// A container with a given name.
    pub fn of(engine: &'a Engine, name: String) -> Self {
        Self { engine, name }
    }

    /// Calls the engine with a verb, options, and this container's name.
    pub fn ok(&self, args: &[&str]) -> String {
        self.engine.ok(&[args, &[&self.name]].concat())
    }

    /// The same, with any exit code.
    pub fn call(&self, args: &[&str]) -> Finished {
        self.engine.call(&[args, &[&self.name]].concat())
    }

    pub fn exec(&self, options: &[&str], args: &[&str]) -> Finished {
        self.engine
            .call(&[&["exec"], options, &[&self.name], args].concat())
    }

    /// Runs a shell command in the container, which must succeed; returns its output.
    pub fn shell(&self, script: &str) -> String {
        let finished = self.exec(&[], &["sh", "-c", script]);
        assert_eq!(
            finished.code,
            0,
            "{script:?}: {}{}",
            finished.stderr,
            self.engine.log()
        );
        finished.stdout
    }

    /// Calls the engine with this container's name at a terminal of 30 rows and 90 columns.
    pub fn at_terminal(&self, args: &[&str]) -> Session {
        Session::spawn(self.engine.command(args), 30, 90)
    }

    /// A value of `inspect`, by a Go template.
    pub fn inspect(&self, template: &str) -> String {
        let template = format!("{{{{{template}}}}}");
        self.ok(&["inspect", "--format", &template])
            .trim()
            .to_owned()
    }

    pub fn inspect_all(&self) -> Value {
        let list: Value = serde_json::from_str(&self.ok(&["inspect"])).unwrap();
        list[0].clone()
    }

    /// As `ps` shows it.
    pub fn status(&self) -> String {
        self.inspect(".State.Status")
    }

    pub fn wait_for_status(&self, status: &str) {
        eventually(&format!("{} is {status}", self.name), || {
            self.status() == status
        });
    }

    /// Waits until the container's log contains a text.
    pub fn wait_for_log(&self, text: &str) {
        eventually(&format!("{} says {text:?}", self.name), || {
            self.logs().contains(text)
        });
    }

    /// The container's log.
    pub fn logs(&self) -> String {
        let finished = self.call(&["logs"]);
        finished.stdout + &finished.stderr
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let mut command = self
            .engine
            .command(&["rm", "--force", "--volumes", &self.name]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let _ = command.status();
    }
}

/// The engine of this test program, once started.
static ENGINE: OnceLock<Engine> = OnceLock::new();

/// The engine of this test program; `make` starts it at the first call.
fn shared(make: fn() -> Engine) -> &'static Engine {
    ENGINE.get_or_init(|| {
        at_exit();
        make()
    })
}

#[expect(unsafe_code, reason = "atexit")]
fn at_exit() {
    // SAFETY: the function takes no argument and lives as long as the program.
    let result = unsafe { libc::atexit(end_shared) };
    assert_eq!(result, 0);
}

#[expect(unsafe_code, reason = "_exit")]
extern "C" fn end_shared() {
    let Some(engine) = ENGINE.get() else { return };
    // A panic must not cross into C.
    let left = std::panic::catch_unwind(|| engine.end());
    let mut message = String::new();
    match left {
        Ok(left) if left.is_empty() => return,
        Ok(left) => left.iter().for_each(|line| {
            let _ = writeln!(message, "  {line}");
        }),
        Err(_) => message += "  (the engine could not be stopped)\n",
    }
    eprintln!("left behind by the engine or its containers:\n{message}");
    // SAFETY: it ends the process, which has nothing left to do.
    unsafe { libc::_exit(101) };
}
