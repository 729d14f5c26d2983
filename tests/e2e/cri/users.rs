//! Pods with users of their own (`hostUsers: false`).

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};

use rvm_tests::containerd::major_version;
use rvm_tests::cri::{Cri, Sandboxer, api, sandboxer};

/// The host's number of the pods' root.
const ROOT: u32 = 100_000;

fn map() -> api::IDMapping {
    api::IDMapping {
        host_id: ROOT,
        container_id: 0,
        length: 65_536,
        ..Default::default()
    }
}

fn own_users(options: &mut api::NamespaceOption) {
    let users = options.userns_options.mut_or_insert_default();
    users.mode = api::NamespaceMode::POD.into();
    users.uids.push(map());
    users.gids.push(map());
}

#[test]
fn a_pod_may_have_users_of_its_own() {
    if major_version() < 2 {
        println!("skipped: only containerd 2 makes such pods");
        return;
    }
    let cri = Cri::with("", "overlayfs");
    let status: api::StatusResponse = cri.ok("Status", &api::StatusRequest::new());
    let mut handlers = status.runtime_handlers.iter();
    let rvm = handlers
        .find(|handler| handler.name == "rvm-by-path")
        .unwrap();
    assert!(rvm.features.user_namespaces, "{rvm:?}");
    assert!(rvm.features.recursive_read_only_mounts, "{rvm:?}");
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("file"), "").unwrap();
    chown(volume.path(), Some(0), Some(0)).unwrap();
    let mut config = cri.pod_config("users");
    let linux = config.linux.mut_or_insert_default();
    let security = linux.security_context.mut_or_insert_default();
    own_users(security.namespace_options.mut_or_insert_default());
    // containerd makes a sandbox through the shim of the runtime's type, whatever the path is.
    let runtime = match sandboxer() {
        Sandboxer::Cri => "rvm-by-path",
        Sandboxer::Shim => "rvm",
    };
    let pod = cri.run_pod_by(runtime, config).unwrap();
    let box_ = pod.start("box", super::WAITS, |config| {
        own_users(super::processes_of(config));
        super::mount(config, volume.path(), "/v", false);
        let volume = config.mounts.last_mut().unwrap();
        volume.uidMappings.push(map());
        volume.gidMappings.push(map());
    });
    let users = box_.shell("id -u; stat -c %u:%g /bin/busybox /v/file; touch /made /v/made");
    assert_eq!(users, "0\n0:0\n0:0\n");
    let map = box_.shell("cat /proc/self/uid_map");
    let map: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(map, ["0", "100000", "65536"]);
    let made = fs::metadata(volume.path().join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0), "its owner on the host");
    box_.stop(0);
    box_.remove();
    pod.remove();
}
