//! Podman: a command and no daemon.

use std::fs;

use super::world::World;
use super::{Engine, IMAGE, Runtime, image, root, runtime, shared};

/// The image of a pod's first container, which only waits.
const PAUSE: &str = "localhost/rvm-pause:latest";

/// Podman for this program.
pub fn podman() -> &'static Engine {
    shared(start)
}

fn start() -> Engine {
    let world = World::new(root().as_deref());
    let dir = world.dir().to_owned();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    fs::write(path("rvm.toml"), "").unwrap();
    // Every container inherits this process's limits, which may exceed what a container may set:
    // runc then fails.
    let config = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n\
                  [engine]\nevents_logger = \"file\"\n\
                  infra_image = \"localhost/rvm-pause:latest\"\n";
    fs::write(path("containers.conf"), config).unwrap();
    let mut base: Vec<String> = [
        "podman",
        "--cgroup-manager=cgroupfs",
        "--storage-driver=overlay",
    ]
    .map(str::to_owned)
    .to_vec();
    for (option, name) in [
        ("root", "root"),
        ("runroot", "runroot"),
        ("tmpdir", "tmp"),
        ("network-config-dir", "networks"),
    ] {
        fs::create_dir(path(name)).unwrap();
        base.push(format!("--{option}={}", path(name)));
    }
    match runtime() {
        Runtime::Runc => base.push("--runtime=runc".to_owned()),
        Runtime::Rvm => {
            let rvm = crate::dist().canonicalize().unwrap().join("bin/rvm");
            base.push(format!("--runtime={}", rvm.display()));
            base.push(format!("--runtime-flag=engine={}", crate::engine()));
            base.push(format!("--runtime-flag=config={}", path("rvm.toml")));
        }
    }
    let engine = Engine {
        per_container: vec![format!("--cgroup-parent={}", world.cgroup())],
        world,
        base,
        env: vec![
            ("CONTAINERS_CONF".to_owned(), path("containers.conf")),
            // Podman 5 prints a warning on such a host, into the standard error that tests compare.
            ("PODMAN_IGNORE_CGROUPSV1_WARNING".to_owned(), "1".to_owned()),
        ],
        daemon: None,
    };
    let archive = image::archive(&dir);
    let archive = archive.to_str().unwrap();
    for (program, image) in [(r#"["sh"]"#, IMAGE), (r#"["sleep", "1000000"]"#, PAUSE)] {
        let changes = [
            "--change",
            &format!("CMD {program}"),
            "--change",
            "ENV PATH=/bin",
        ];
        engine.ok(&[&["import", "--quiet"], &changes[..], &[archive, image]].concat());
    }
    engine
}
