//! Containers whose files were written by another version of rvm.
//!
//! The files in `layout-1` are those of the layout before files had versions, as it was written;
//! the processes that they name are put in by the tests.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use rvm_protocol::agent::{
    Agent, Empty, PauseContainerRequest, RemoveContainerRequest, SignalProcessRequest, create_agent,
};
use rvm_sandbox::host::process::ProcessId;
use serde_json::Value;
use ttrpc::r#async::{Server, TtrpcContext};

const POD: &str = include_str!("layout-1/pod.state.json");
const POD_SANDBOX: &str = include_str!("layout-1/pod.sandbox.json");
const WEB: &str = include_str!("layout-1/web.state.json");

/// A state root, and a process that its files name as monitor and as machine.
struct World {
    dir: tempfile::TempDir,
    process: Child,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let process = Command::new("sleep").arg("600").spawn().unwrap();
        Self { dir, process }
    }

    /// A pod and a container in it, of layout 1.
    fn with_pod() -> Self {
        let world = Self::new();
        world.write("pod", "state.json", POD, "monitor");
        world.write("pod", "sandbox.json", POD_SANDBOX, "machine");
        world.write("web", "state.json", WEB, "monitor");
        world
    }

    fn path(&self, id: &str, name: &str) -> PathBuf {
        self.dir.path().join(id).join(name)
    }

    /// Writes a file, with the process in the place of the one in `field`.
    fn write(&self, id: &str, name: &str, text: &str, field: &str) {
        let mut file: Value = serde_json::from_str(text).unwrap();
        let process = ProcessId::of(self.process.id() as i32).unwrap();
        let process = serde_json::to_value(process).unwrap();
        match &mut file[field] {
            Value::Array(list) => *list = vec![process],
            other => *other = process,
        }
        fs::create_dir_all(self.dir.path().join(id)).unwrap();
        fs::write(self.path(id, name), file.to_string()).unwrap();
    }

    fn read(&self, id: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(id, "state.json")).unwrap()).unwrap()
    }

    /// Runs a verb; returns its output, or what it has to say about its failure.
    fn rvm(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rvm"));
        command.arg("--root").arg(self.dir.path()).args(arguments);
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap() + &stderr),
            false => Err(stderr),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What an agent was asked for.
#[derive(Clone, Default)]
struct FakeAgent(Arc<Mutex<Vec<String>>>);

impl FakeAgent {
    fn note(&self, what: String) -> ttrpc::Result<Empty> {
        self.0.lock().unwrap().push(what);
        Ok(Empty::new())
    }

    /// Serves at the socket of a sandbox while the returned value lives.
    fn serve(&self, socket: &Path) -> tokio::runtime::Runtime {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let address = format!("unix://{}", socket.display());
        let service = create_agent(Arc::new(self.clone()));
        runtime.spawn(async move {
            let server = Server::new().bind(&address).unwrap();
            let mut server = server.register_service(service);
            server.start().await.unwrap();
            std::future::pending::<()>().await;
        });
        while !socket.exists() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        runtime
    }
}

#[async_trait]
impl Agent for FakeAgent {
    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> ttrpc::Result<Empty> {
        self.note(format!(
            "signal {} {}",
            request.container_id, request.signal
        ))
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: PauseContainerRequest,
    ) -> ttrpc::Result<Empty> {
        self.note(format!("pause {}", request.container_id))
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: RemoveContainerRequest,
    ) -> ttrpc::Result<Empty> {
        self.note(format!("remove {}", request.container_id))
    }
}

#[test]
fn containers_of_the_previous_layout_are_listed_signalled_and_deleted() {
    let mut world = World::with_pod();
    let agent = FakeAgent::default();
    let _serving = agent.serve(&world.path("pod", "agent.sock"));

    assert_eq!(world.rvm(&["list", "-q"]).unwrap(), "pod\nweb\n");
    let state: Value = serde_json::from_str(&world.rvm(&["state", "web"]).unwrap()).unwrap();
    assert_eq!(
        (&state["status"], &state["pid"]),
        (&"running".into(), &4712.into())
    );

    world.rvm(&["kill", "web", "USR1"]).unwrap();
    world.rvm(&["pause", "web"]).unwrap();
    let mut expected: Value = serde_json::from_str(WEB).unwrap();
    expected["status"] = "paused".into();
    expected["monitor"] = world.read("web")["monitor"].clone();
    assert_eq!(
        world.read("web"),
        expected,
        "an rvm of this layout reads it again"
    );

    // The container has the pod's monitor, which goes on for the others.
    world.rvm(&["delete", "--force", "web"]).unwrap();
    let asked = ["signal web 10", "pause web", "remove web"];
    assert_eq!(*agent.0.lock().unwrap(), asked);
    assert!(world.process.try_wait().unwrap().is_none());
    world.rvm(&["delete", "--force", "pod"]).unwrap();
    assert_eq!(world.process.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert_eq!(fs::read_dir(world.dir.path()).unwrap().count(), 0);
}

#[test]
fn the_machine_of_a_pod_of_the_previous_layout_ends_with_it() {
    let mut world = World::new();
    world.write("pod", "sandbox.json", POD_SANDBOX, "machine");
    fs::write(world.path("pod", "state.json"), POD).unwrap();
    assert_eq!(world.rvm(&["list", "-q"]).unwrap(), "pod\n");
    world.rvm(&["delete", "pod"]).unwrap();
    assert_eq!(world.process.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert!(!world.dir.path().join("pod").exists());
}

/// A state of a layout to come, which still has most of the fields of today's.
fn newer(text: &str) -> String {
    let mut file: Value = serde_json::from_str(text).unwrap();
    file["version"] = 3.into();
    file["snapshots"] = serde_json::json!([{ "path": "/snapshot" }]);
    file.to_string()
}

#[test]
fn what_a_newer_rvm_has_written_is_left_to_it() {
    let world = World::with_pod();
    world.write("web", "state.json", &newer(WEB), "monitor");
    let words = "web/state.json was written by a newer rvm (layout 3; this one knows up to 2): use \
                 that rvm";
    let list = world.rvm(&["list", "-q"]).unwrap();
    assert!(list.starts_with("pod\n") && list.contains(words), "{list}");
    for verb in ["state", "kill", "pause", "delete"] {
        let refused = world.rvm(&[verb, "web"]).unwrap_err();
        assert!(refused.contains(words), "{verb}: {refused}");
        assert_eq!(refused.lines().count(), 1, "{refused}");
    }
}

#[test]
fn what_a_newer_rvm_has_written_is_deleted_by_force_as_far_as_it_is_understood() {
    let mut world = World::new();
    world.write("pod", "state.json", &newer(POD), "monitor");
    world.write("pod", "sandbox.json", &newer(POD_SANDBOX), "machine");
    world.rvm(&["delete", "--force", "pod"]).unwrap();
    assert_eq!(world.process.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert!(!world.dir.path().join("pod").exists());

    let world = World::new();
    fs::create_dir(world.dir.path().join("pod")).unwrap();
    fs::write(world.path("pod", "state.json"), r#"{"version":3}"#).unwrap();
    let refused = world.rvm(&["delete", "--force", "pod"]).unwrap_err();
    assert!(refused.contains("written by a newer rvm"), "{refused}");
    assert!(world.path("pod", "state.json").exists());
}
