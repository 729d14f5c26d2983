//! The shim without containerd: started by its command line, driven through its ttrpc services,
//! with a socket for its events that tests can close.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::{Empty, ForwardRequest};
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, Events, TaskClient, create_events};
use protobuf::well_known_types::any::Any;
use protobuf::{CodedOutputStream, Message};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use ttrpc::r#async::transport::Socket;
use ttrpc::r#async::{Server, TtrpcContext};
use ttrpc::context::{self, Context};

use crate::command::{self, Finished, Rvm, eventually};
use crate::{containerd, leaks, leftovers};

/// The longest time of a call. Creating a container boots a machine.
const LIMIT: Duration = Duration::from_secs(240);

/// A shim, and the socket that it sends events to. Dropping it fails the test if anything is left.
pub struct Shim {
    /// The client of the task service.
    pub tasks: TaskClient,
    pub sandboxes: SandboxClient,
    world: Rvm,
    namespace: String,
    address: PathBuf,
    heard: Arc<Heard>,
    server: Mutex<Option<Server>>,
    runtime: Runtime,
}

/// The events received.
#[derive(Default)]
struct Heard(Mutex<Vec<Envelope>>);

#[async_trait]
impl Events for Heard {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        self.0.lock().unwrap().push(request.envelope.unwrap());
        Ok(Empty::default())
    }
}

impl Shim {
    /// Starts a shim for a container or a sandbox whose bundle exists.
    pub fn start(id: &str, bundle: &Path) -> Self {
        let configuration = format!("engine = \"{}\"", crate::engine());
        Self::start_in(Rvm::new().configured(&configuration), id, bundle)
    }

    /// Starts a shim in a world whose configuration names the engine.
    pub fn start_in(world: Rvm, id: &str, bundle: &Path) -> Self {
        Self::try_start_in(world, id, bundle)
            .unwrap_or_else(|unstarted| panic!("{:?}", unstarted.finished))
    }

    /// The same, where it may fail.
    pub fn try_start_in(world: Rvm, id: &str, bundle: &Path) -> Result<Self, Box<Unstarted>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("{}shim-{count}", leftovers::prefix());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let finished = launch(&world, &namespace, id, bundle);
        let address = PathBuf::from(finished.stdout.trim_start_matches("unix://"));
        let connected = runtime.block_on(UnixStream::connect(&address));
        let Ok(stream) = connected else {
            return Err(Box::new(Unstarted {
                world,
                namespace,
                finished,
            }));
        };
        let client = runtime.block_on(async { Client::new(Socket::new(stream)) });
        let shim = Self {
            tasks: TaskClient::new(client.clone()),
            sandboxes: SandboxClient::new(client),
            world,
            namespace,
            address,
            heard: Arc::default(),
            server: Mutex::default(),
            runtime,
        };
        shim.listen();
        Ok(shim)
    }

    pub fn world(&self) -> &Rvm {
        &self.world
    }

    /// The state root of the shim's containers, for `rvm --root`.
    pub fn state_root(&self) -> PathBuf {
        containerd::state_of(&self.namespace)
    }

    pub fn call<T>(&self, call: impl Future<Output = ttrpc::Result<T>>) -> ttrpc::Result<T> {
        self.runtime.block_on(call)
    }

    /// Waits for the answer of a call that must succeed.
    pub fn ok<T>(&self, call: impl Future<Output = ttrpc::Result<T>>) -> T {
        self.call(call).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Receives events from now on.
    pub fn listen(&self) {
        let address = format!("unix://{}", events_socket(&self.world).display());
        let heard = self.heard.clone();
        let service = create_events(heard);
        let server = self.runtime.block_on(async {
            let mut server = Server::new().bind(&address)?.register_service(service);
            server.start().await.map(|()| server)
        });
        *self.server.lock().unwrap() = Some(server.unwrap());
    }

    /// Cleans up as containerd does after a shim that it has given up.
    pub fn give_up(&self, bundle: &Path) -> Finished {
        for pid in self.processes() {
            command::signal(pid, libc::SIGKILL);
        }
        eventually("the shim has ended", || self.processes().is_empty());
        clean_up(&self.world, &self.namespace, bundle)
    }

    fn processes(&self) -> Vec<i32> {
        let mut processes = self.world.processes();
        processes.retain(|pid| leaks::command_line(*pid).contains("containerd-shim"));
        processes
    }

    /// Cuts the connection for events and accepts no other.
    pub fn cut(&self) {
        if let Some(mut server) = self.server.lock().unwrap().take() {
            self.runtime.block_on(server.shutdown()).unwrap();
        }
        fs::remove_file(events_socket(&self.world)).unwrap();
    }

    pub fn events(&self) -> Vec<Envelope> {
        self.heard.0.lock().unwrap().clone()
    }

    pub fn topics(&self) -> Vec<String> {
        let topic = |envelope: Envelope| envelope.topic;
        self.events().into_iter().map(topic).collect()
    }
}

/// How long a call may take.
pub fn limit() -> Context {
    context::with_duration(LIMIT)
}

fn program() -> PathBuf {
    fs::canonicalize(crate::dist().join("bin/containerd-shim-rvm-v2")).unwrap()
}

fn events_socket(world: &Rvm) -> PathBuf {
    world.path("events.sock")
}

/// A shim that did not start, or not for long.
pub struct Unstarted {
    pub world: Rvm,
    namespace: String,
    pub finished: Finished,
}

impl Unstarted {
    /// See [`Shim::give_up`].
    pub fn clean_up(&self, bundle: &Path) -> Finished {
        let finished = clean_up(&self.world, &self.namespace, bundle);
        // It is there unless another container is.
        let _ = fs::remove_dir(containerd::state_of(&self.namespace));
        finished
    }
}

fn clean_up(world: &Rvm, namespace: &str, bundle: &Path) -> Finished {
    let mut delete = Command::new(program());
    delete
        .args(["-namespace", namespace, "-id", "box"])
        .args(["-address", "/nonexistent", "-bundle"])
        .arg(bundle)
        .arg("delete")
        .current_dir(bundle);
    world.adopt(&mut delete);
    command::finish(delete)
}

/// Runs the program as containerd does, which prints the path of the socket.
fn launch(world: &Rvm, namespace: &str, id: &str, bundle: &Path) -> Finished {
    let options = world.path("options");
    fs::write(&options, runtime_options(&world.path("config.toml"))).unwrap();
    let mut start = Command::new(program());
    start
        .args([
            "-namespace",
            namespace,
            "-id",
            id,
            "-address",
            "/nonexistent",
        ])
        .args(["-debug", "start"])
        .current_dir(bundle)
        .env("TTRPC_ADDRESS", events_socket(world))
        .stdin(fs::File::open(&options).unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    world.adopt(&mut start);
    Finished::from(command::wait(start.spawn().unwrap()))
}

/// `runtimeoptions.v1.Options` with the path of rvm's configuration only.
fn runtime_options(config: &Path) -> Vec<u8> {
    const CONFIG_PATH: u32 = 2;
    let mut value = Vec::new();
    let mut out = CodedOutputStream::vec(&mut value);
    out.write_string(CONFIG_PATH, config.to_str().unwrap())
        .unwrap();
    out.flush().unwrap();
    drop(out);
    let any = Any {
        type_url: "runtimeoptions.v1.Options".to_owned(),
        value,
        ..Default::default()
    };
    any.write_to_bytes().unwrap()
}

impl Drop for Shim {
    fn drop(&mut self) {
        let state = self.state_root();
        if std::thread::panicking() {
            self.world.kill_all();
            let _ = fs::remove_file(&self.address);
            leftovers::delete_containers(&state, Path::new("/"));
            return;
        }
        eventually("the shim has ended", || self.processes().is_empty());
        let left: Vec<_> = fs::read_dir(&state).into_iter().flatten().collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        assert!(!self.address.exists(), "{}", self.address.display());
        let _ = fs::remove_dir(state);
    }
}
