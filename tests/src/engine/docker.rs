//! Docker: a daemon.

use std::fs::{self, File};
use std::process::Child;
use std::sync::Mutex;

use serde_json::json;

use super::world::World;
use super::{Engine, IMAGE, Runtime, image, root, runtime, shared};
use crate::command::eventually;

/// The daemon of this test program.
pub fn docker() -> &'static Engine {
    shared(|| start(false))
}

/// The daemon of this test program, where the daemon may end and containers go on.
pub fn docker_with_live_restore() -> &'static Engine {
    shared(|| start(true))
}

fn start(live_restore: bool) -> Engine {
    let world = World::new(root().as_deref());
    let dir = world.dir().to_owned();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let socket = format!("unix://{}", path("sock"));
    fs::write(path("rvm.toml"), "").unwrap();
    let name = match runtime() {
        Runtime::Rvm => "rvm",
        Runtime::Runc => "runc",
    };
    let rvm = crate::dist().canonicalize().unwrap().join("bin/rvm");
    let config = json!({
        "data-root": path("data"),
        "exec-root": path("exec"),
        "pidfile": path("pid"),
        "hosts": [socket],
        "storage-driver": "overlay2",
        "cgroup-parent": world.cgroup(),
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "live-restore": live_restore,
        // It has the checkpoints.
        "experimental": true,
        "default-runtime": name,
        "runtimes": { "rvm": {
            "path": rvm,
            "runtimeArgs": ["--engine", crate::engine(), "--config", path("rvm.toml")],
        } },
    });
    fs::write(path("daemon.json"), config.to_string()).unwrap();
    let daemon = spawn(&world);
    let engine = Engine {
        world,
        // Not a newer installation earlier in the search path.
        base: vec!["/usr/bin/docker".to_owned(), "--host".to_owned(), socket],
        per_container: Vec::new(),
        env: vec![("DOCKER_CONFIG".to_owned(), path("client"))],
        daemon: Some(Mutex::new(daemon)),
    };
    eventually("dockerd answers", || engine.call(&["version"]).code == 0);
    let archive = image::archive(&dir);
    let archive = archive.to_str().unwrap();
    engine.ok(&[
        "import",
        "--change",
        "CMD [\"sh\"]",
        "--change",
        "ENV PATH=/bin",
        archive,
        IMAGE,
    ]);
    engine
}

fn spawn(world: &World) -> Child {
    let path = |name: &str| world.dir().join(name);
    let mut daemon = world.command("dockerd");
    daemon.arg("--config-file").arg(path("daemon.json"));
    let log = File::options().create(true).append(true).open(path("log"));
    let log = log.unwrap();
    daemon.stdout(log.try_clone().unwrap()).stderr(log);
    daemon.spawn().unwrap()
}

/// Ends a daemon, and starts it anew after `meanwhile`.
pub fn restart(engine: &Engine, meanwhile: impl FnOnce()) {
    let mut daemon = engine.daemon.as_ref().unwrap().lock().unwrap();
    end(&engine.world, &mut daemon);
    meanwhile();
    *daemon = spawn(&engine.world);
    eventually("dockerd answers", || engine.call(&["version"]).code == 0);
}

/// Asks a daemon to end, and waits.
pub(super) fn end(world: &World, daemon: &mut Child) {
    let pid = fs::read_to_string(world.dir().join("pid")).unwrap();
    let mut kill = world.command("kill");
    assert!(kill.arg(pid.trim()).status().unwrap().success());
    daemon.wait().unwrap();
}
