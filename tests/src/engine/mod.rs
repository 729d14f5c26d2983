//! Container engines, each in a world of its own, with rvm as their runtime.
//!
//! An engine is started when a test first wants it and serves all tests of the program. When the
//! program ends, the engine does, and whatever it or its containers left behind fails the program.
//!
//! `$RVM_TEST_RUNTIME` set to `runc` tests the tests: the engine then runs its containers with
//! runc. `$RVM_TEST_ENGINE_ROOT` names another system's root, made by scripts/engines, to run the
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

/// The image that containers are made of.
pub const IMAGE: &str = "localhost/rvm-test:latest";

/// What containers are run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// What is tested.
    Rvm,
    /// What it is compared with.
    Runc,
}

/// The runtime that is tested.
pub fn runtime() -> Runtime {
    match std::env::var("RVM_TEST_RUNTIME").as_deref() {
        Ok("runc") => Runtime::Runc,
        Err(_) | Ok("rvm") => Runtime::Rvm,
        other => panic!("RVM_TEST_RUNTIME is {other:?}; it may be rvm or runc"),
    }
}

/// Where the engine is installed, if not on this system.
fn root() -> Option<PathBuf> {
    let root = std::env::var_os("RVM_TEST_ENGINE_ROOT").filter(|root| !root.is_empty());
    root.map(PathBuf::from)
}

/// An engine that runs.
pub struct Engine {
    world: World,
    /// Its command and the options that every call has.
    base: Vec<String>,
    /// Options for every container.
    per_container: Vec<String>,
    /// The environment of every call.
    env: Vec<(String, String)>,
    /// What serves the command, if it needs somebody to.
    daemon: Option<Mutex<Child>>,
}

/// A container, removed by force in the end.
pub struct Container<'a> {
    engine: &'a Engine,
    /// Its name.
    pub name: String,
}

impl Engine {
    /// A call of the engine's command, nothing yet run.
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

    /// A call that must succeed; returns its standard output.
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

    /// The same, nothing yet run.
    pub fn run_command(&self, options: &[&str], args: &[&str]) -> Command {
        let mut command = self.command(&["run", "--rm"]);
        command
            .args(&self.per_container)
            .args(options)
            .arg(IMAGE)
            .args(args);
        command
    }

    /// `run --rm` of a shell command that must succeed; returns what it printed.
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

    /// Makes a container that is not started.
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

    /// A name for a container that a test makes in its own way.
    pub fn name(&self) -> Container<'_> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("box{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Container { engine: self, name }
    }

    /// Where the engine lives.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// What went wrong last in the engine's eyes, for those who look for a reason.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.world.dir().join("log")).unwrap_or_default();
        let is_bad = |line: &&str| line.contains("level=error") || line.contains("level=warning");
        let lines: Vec<&str> = text.lines().filter(is_bad).collect();
        format!(
            "\nlog:\n{}",
            lines[lines.len().saturating_sub(4)..].join("\n")
        )
    }

    /// Ends the engine; returns what it leaves behind.
    fn end(&self) -> Vec<String> {
        let list = self.call(&["ps", "--all", "--quiet"]).stdout;
        let mut remove = vec!["rm", "--force", "--volumes"];
        remove.extend(list.split_whitespace());
        if remove.len() > 3 {
            self.call(&remove);
        }
        if let Some(daemon) = &self.daemon {
            docker::stop(&self.world, daemon.lock().unwrap());
        }
        let left = self.world.leaks();
        self.world.end();
        left
    }
}

impl<'a> Container<'a> {
    /// One that has its name from elsewhere.
    pub fn of(engine: &'a Engine, name: String) -> Self {
        Self { engine, name }
    }

    /// A call of the engine with a verb, options, and this container's name behind them.
    pub fn ok(&self, args: &[&str]) -> String {
        self.engine.ok(&[args, &[&self.name]].concat())
    }

    /// The same, whatever it ends with.
    pub fn call(&self, args: &[&str]) -> Finished {
        self.engine.call(&[args, &[&self.name]].concat())
    }

    /// Runs a program in it.
    pub fn exec(&self, options: &[&str], args: &[&str]) -> Finished {
        self.engine
            .call(&[&["exec"], options, &[&self.name], args].concat())
    }

    /// Runs a shell command in it that must succeed; returns what it printed.
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

    /// The engine's command about it, at a terminal of 30 rows and 90 columns.
    pub fn at_terminal(&self, args: &[&str]) -> Session {
        Session::spawn(self.engine.command(args), 30, 90)
    }

    /// A value of `inspect`, found by a template.
    pub fn inspect(&self, template: &str) -> String {
        let template = format!("{{{{{template}}}}}");
        self.ok(&["inspect", "--format", &template])
            .trim()
            .to_owned()
    }

    /// All of `inspect`.
    pub fn inspect_all(&self) -> Value {
        let list: Value = serde_json::from_str(&self.ok(&["inspect"])).unwrap();
        list[0].clone()
    }

    /// Its status, as `ps` would show it.
    pub fn status(&self) -> String {
        self.inspect(".State.Status")
    }

    /// Waits until its status is this one.
    pub fn wait_for_status(&self, status: &str) {
        eventually(&format!("{} is {status}", self.name), || {
            self.status() == status
        });
    }

    /// Waits until it has written a text.
    pub fn wait_for_log(&self, text: &str) {
        eventually(&format!("{} says {text:?}", self.name), || {
            self.logs().contains(text)
        });
    }

    /// What it has written so far.
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

/// The engine of this program, once there is one.
static ENGINE: OnceLock<Engine> = OnceLock::new();

/// The engine of this program; `make` starts it.
fn shared(make: fn() -> Engine) -> &'static Engine {
    ENGINE.get_or_init(|| {
        at_exit();
        make()
    })
}

#[expect(unsafe_code, reason = "atexit")]
fn at_exit() {
    // SAFETY: the function takes nothing and is there as long as the program.
    let result = unsafe { libc::atexit(end_shared) };
    assert_eq!(result, 0);
}

#[expect(unsafe_code, reason = "_exit")]
extern "C" fn end_shared() {
    let Some(engine) = ENGINE.get() else { return };
    // A panic must not leave this function.
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
    // SAFETY: it ends the process, which has nothing more to do.
    unsafe { libc::_exit(101) };
}
