//! containerd as Kubernetes drives it: a client of the container runtime interface, with pods and
//! containers. The daemon, its CNI configuration and the pods' network belong to the test.

mod grpc;
#[allow(missing_docs, unused_qualifications, clippy::all)]
pub mod api {
    //! The messages of `proto/cri.proto`.
    include!(concat!(env!("OUT_DIR"), "/cri/mod.rs"));
    pub use cri::*;
}
mod pod;
mod stream;
mod volume;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use protobuf::Message;
use serde_json::json;

use crate::containerd::{self, Containerd};
use crate::{Rvm, image};
pub use grpc::{Channel, Status};
pub use pod::{Container, Pod};
pub use stream::Stream;
pub use volume::Projected;

/// containerd's namespace for CRI's containers.
const NAMESPACE: &str = "k8s.io";

/// The image of a pod's first container, where there is one.
const PAUSE: &str = "docker.io/library/rvm-pause:latest";

/// The bridge of the pods.
const BRIDGE: &str = "pods0";

/// The first three numbers of pod addresses; the bridge has the first address.
pub const SUBNET: &str = "10.88.7";

/// The daemon, and a connection to it. Dropping it fails the test if anything that it ran is left.
pub struct Cri {
    channel: Mutex<Arc<Channel>>,
    containerd: Containerd,
    /// The ids of all pods and containers.
    made: Mutex<BTreeSet<String>>,
}

impl Default for Cri {
    fn default() -> Self {
        Self::new()
    }
}

impl Cri {
    /// Starts containerd, with its images.
    pub fn new() -> Self {
        Self::configured("")
    }

    /// The same, with lines for rvm's configuration.
    pub fn configured(lines: &str) -> Self {
        Self::with(lines, &containerd::snapshotter())
    }

    /// The same, with this snapshotter of containerd.
    pub fn with(lines: &str, snapshotter: &str) -> Self {
        let world = Rvm::new()
            .configured(&format!("engine = \"{}\"", crate::engine()))
            .configured(lines);
        world.network().ip("link set lo up");
        write_network(&world);
        let config = config(&world, snapshotter);
        let containerd = Containerd::start_in(world, NAMESPACE.to_owned(), &config);
        containerd.import_for(snapshotter, image::NAME, &image::config(&["sh"]));
        let pause = image::config(&["sleep", "1000000"]);
        containerd.import_for(snapshotter, PAUSE, &pause);
        let channel = Channel::connect(&containerd.world().path("sock")).unwrap();
        let cri = Self {
            channel: Mutex::new(Arc::new(channel)),
            containerd,
            made: Mutex::default(),
        };
        cri.wait_until_ready();
        cri
    }

    /// Its network plugin reads the configuration some time later.
    fn wait_until_ready(&self) {
        crate::command::eventually("the network is ready", || {
            let status = self.call("Status", &api::StatusRequest::new());
            status.is_ok_and(|status: api::StatusResponse| {
                status.status.conditions.iter().all(|one| one.status)
            })
        });
    }

    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    pub fn world(&self) -> &Rvm {
        self.containerd.world()
    }

    /// What it ran survives.
    pub fn kill(&self) {
        self.containerd.kill();
    }

    /// Kills the daemon and everything that it ran.
    pub fn kill_all(&self) {
        self.world().kill_all();
        self.containerd.kill();
    }

    /// Starts the daemon again.
    pub fn start(&self) {
        self.containerd.start();
        *self.channel.lock().unwrap() =
            Arc::new(Channel::connect(&self.world().path("sock")).unwrap());
        self.wait_until_ready();
    }

    pub fn call<A: Message>(&self, method: &str, request: &impl Message) -> Result<A, Status> {
        let channel = self.channel.lock().unwrap().clone();
        channel.call("runtime.v1.RuntimeService", method, request)
    }

    /// Calls a method that must succeed.
    pub fn ok<A: Message>(&self, method: &str, request: &impl Message) -> A {
        self.call(method, request)
            .unwrap_or_else(|status| panic!("{method}: {status:?}"))
    }

    fn remember(&self, id: &str) {
        self.made.lock().unwrap().insert(id.to_owned());
    }

    /// What the test's containers left on the host.
    fn leaks(&self) -> Vec<String> {
        let made = self.made.lock().unwrap();
        let dirs = [containerd::state_of(NAMESPACE), "/var/lib/cni".into()];
        let mut left: Vec<String> = dirs
            .iter()
            .flat_map(|dir| names_below(dir))
            .filter(|name| made.iter().any(|id| name.contains(id)))
            .collect();
        left.extend(names_below(&self.world().path("run/netns")));
        left
    }
}

impl Drop for Cri {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody removes what is not below the world's directory.
            for path in self.leaks() {
                let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
            }
        } else {
            let start = Instant::now();
            while !self.leaks().is_empty() && start.elapsed() < Duration::from_secs(2) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let left = self.leaks();
            assert!(left.is_empty(), "left behind: {left:?}");
        }
        let links = self.world().network().ip("link show");
        if links.contains(BRIDGE) {
            self.world().network().ip(&format!("link delete {BRIDGE}"));
        }
    }
}

/// The names of files below a directory.
fn names_below(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| {
            let mut names = match entry.file_type() {
                Ok(kind) if kind.is_dir() => names_below(&entry.path()),
                _ => Vec::new(),
            };
            names.push(entry.path().display().to_string());
            names
        })
        .collect()
}

/// A bridge in the world.
fn write_network(world: &Rvm) {
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": format!("{SUBNET}.0/24") }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
                "dataDir": world.path("addresses"),
            },
        }],
    });
    let dir = world.path("cni");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("pods.conflist"), config.to_string()).unwrap();
}

/// containerd's configuration of CRI, by its major version.
fn config(world: &Rvm, snapshotter: &str) -> String {
    let path = |name: &str| world.path(name).display().to_string();
    let stream = "stream_server_address = \"127.0.0.1\"\nstream_server_port = \"0\"\n";
    let old = "io.containerd.grpc.v1.cri";
    let of_version_one = format!("snapshotter = \"{snapshotter}\"\n");
    let (images, plugin, snapshotter, programs) = match containerd::major_version() {
        1 => (
            format!("[plugins.\"{old}\"]\nsandbox_image = \"{PAUSE}\"\n{stream}"),
            format!("plugins.\"{old}\""),
            of_version_one.as_str(),
            "bin_dir = \"/usr/lib/cni\"",
        ),
        _ => (
            format!(
                "[plugins.\"io.containerd.cri.v1.images\"]\nsnapshotter = \"{snapshotter}\"\n\
                 [plugins.\"io.containerd.cri.v1.images\".pinned_images]\n\
                 sandbox = \"{PAUSE}\"\n[plugins.\"{old}\"]\n{stream}\
                 [plugins.\"io.containerd.cri.v1.runtime\"]\n"
            ),
            "plugins.\"io.containerd.cri.v1.runtime\"".to_owned(),
            "",
            "bin_dirs = [\"/usr/lib/cni\"]",
        ),
    };
    let runtime = format!("{plugin}.containerd.runtimes.rvm");
    // On a host that forbids lowering OOM scores, runc could run no pod.
    let mut text = format!(
        "{images}netns_mounts_under_state_dir = true\nrestrict_oom_score_adj = true\n\
         [{plugin}.cni]\n{programs}\nconf_dir = \"{}\"\n\
         [{plugin}.containerd]\n{snapshotter}default_runtime_name = \"rvm\"\n\
         [{plugin}.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
         [{runtime}]\nruntime_type = \"{}\"\npod_annotations = [\"*\"]\n\
         privileged_without_host_devices = true\n",
        path("cni"),
        containerd::RUNTIME,
    );
    match sandboxer() {
        Sandboxer::Cri => {
            let config = path("config.toml");
            text += &format!("[{runtime}.options]\nConfigPath = \"{config}\"\n");
        }
        // containerd 2.0 to 2.2 cannot start a container of such a sandbox with options that are
        // not runc's (containerd pull request 12986).
        Sandboxer::Shim => text += "sandboxer = \"shim\"\n",
    }
    if containerd::major_version() > 1 {
        text += &by_path(world, &plugin);
    }
    text
}

/// A runtime `rvm-by-path`, whose features kubelet learns: containerd asks this type alone.
fn by_path(world: &Rvm, plugin: &str) -> String {
    let dist = fs::canonicalize(world.dist()).unwrap();
    let shim = dist.join("bin/containerd-shim-rvm-v2");
    let sandboxer = match sandboxer() {
        Sandboxer::Cri => "podsandbox",
        Sandboxer::Shim => "shim",
    };
    format!(
        "[{plugin}.containerd.runtimes.rvm-by-path]\nruntime_type = \"io.containerd.runc.v2\"\n\
         runtime_path = \"{}\"\nsandboxer = \"{sandboxer}\"\n",
        shim.display()
    )
}

/// What makes the sandboxes of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandboxer {
    /// containerd's CRI makes it of a container. The default.
    Cri,
    /// The shim, through the sandbox API of containerd 2.
    Shim,
}

/// The choice in `$RVM_TEST_SANDBOXER`.
pub fn sandboxer() -> Sandboxer {
    match std::env::var("RVM_TEST_SANDBOXER").as_deref() {
        Err(_) | Ok("podsandbox") => Sandboxer::Cri,
        Ok("shim") => Sandboxer::Shim,
        other => panic!("RVM_TEST_SANDBOXER is {other:?}; it may be podsandbox or shim"),
    }
}
