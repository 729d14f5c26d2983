//! What is mounted in a container, in a real guest.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod support;

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use support::{Bundle, message, outcome};

#[tokio::test]
async fn paths_are_masked_and_read_only() {
    let guest = guest_or_skip!();
    let command = "wc -c < /proc/keys; ls /sys/firmware; echo 1 > /proc/sys/kernel/panic; \
                   echo x > /file; touch /dev/shm/ok && echo shm";
    let bundle = Bundle::shell(guest.machine, "masked", command)
        .with(|spec| spec["root"]["readonly"] = json!(true));
    let result = guest.run(&bundle).await.unwrap();
    assert_eq!(result.stdout, "0\nshm\n");
    assert_eq!(
        result.stderr.matches("Read-only file system").count(),
        2,
        "{}",
        result.stderr
    );
}

#[tokio::test]
async fn bind_mounts_go_where_they_belong_and_nowhere_else() {
    let guest = guest_or_skip!();
    let volume = guest.machine.shared_directory().join("volume");
    std::fs::create_dir_all(&volume).unwrap();
    std::fs::write(volume.join("file"), "content").unwrap();
    let source = format!("{}/volume", support::Machine::SHARED);
    let command = "cat /new/dir/file /etc/one; echo x > /new/dir/file; echo y > /rw/made; \
                   cat /tmp/escape/file; mount | grep -c ' /rw '";
    let bundle = Bundle::shell(guest.machine, "bind", command)
        .with_mount(
            json!({ "destination": "/new/dir", "type": "bind", "source": source,
            "options": ["rbind", "ro"] }),
        )
        .with_mount(json!({ "destination": "/etc/one", "type": "bind",
            "source": format!("{source}/file"), "options": ["bind", "rro"] }))
        .with_mount(
            json!({ "destination": "/rw", "type": "none", "source": source,
            "options": ["bind", "rw", "nosuid", "rprivate"] }),
        )
        .with_mount(
            json!({ "destination": "/link/escape", "type": "bind", "source": source,
            "options": ["bind"] }),
        );
    // The image has a link that would lead out of its root.
    std::os::unix::fs::symlink("/../../../../tmp", bundle.rootfs.join("link")).unwrap();
    let result = guest.run(&bundle).await.unwrap();
    assert_eq!(result.stdout, "contentcontentcontent1\n");
    assert!(
        result.stderr.contains("Read-only file system"),
        "{}",
        result.stderr
    );
    assert_eq!(std::fs::read_to_string(volume.join("made")).unwrap(), "y\n");
}

#[tokio::test]
async fn a_mount_inside_proc_is_refused() {
    let guest = guest_or_skip!();
    let bundle = Bundle::new(guest.machine, "inproc", &["true"])
        .with_mount(json!({ "destination": "/proc/self", "type": "tmpfs", "source": "tmpfs" }));
    assert!(
        message(guest.run(&bundle).await)
            .contains("\"/proc/self\" cannot be mounted because it is inside /proc")
    );
}

#[tokio::test]
async fn a_nested_user_namespace_mounts_nothing_past_masked_paths() {
    let guest = guest_or_skip!();
    let mount = "unshare -mrpf mount -t proc proc /tmp && echo proc;
                 unshare -mrn mount -o ro,nosuid,nodev,noexec -t sysfs sysfs /tmp && echo sysfs";
    for (id, masked, expected) in [
        ("past-masks", json!(["/proc/keys", "/sys/firmware"]), ""),
        ("no-masks", json!([]), "proc\nsysfs\n"),
    ] {
        let bundle = Bundle::shell(guest.machine, id, mount).with(|spec| {
            // A container that has CAP_SYS_ADMIN and masks nothing sees the machine's own
            // /proc/meminfo, with no mount on it.
            for set in ["bounding", "effective", "permitted"] {
                spec["process"]["capabilities"][set] = json!(["CAP_SETFCAP", "CAP_SYS_ADMIN"]);
            }
            spec["linux"]["maskedPaths"] = masked;
            spec["linux"]["readonlyPaths"] = json!([]);
        });
        let ended = guest.run(&bundle).await.unwrap();
        assert_eq!(ended.stdout, expected, "{id}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn a_tmpfs_can_start_as_a_copy() {
    let guest = guest_or_skip!();
    let bundle = Bundle::shell(
        guest.machine,
        "copyup",
        "cat /etc/passwd | wc -l; touch /etc/new",
    )
    .with_mount(
        json!({ "destination": "/etc", "type": "tmpfs", "source": "tmpfs",
            "options": ["tmpcopyup", "mode=755"] }),
    );
    assert_eq!(guest.run(&bundle).await.unwrap(), outcome(0, "2\n"));
    assert!(!bundle.rootfs.join("etc/new").exists());
}

#[tokio::test]
async fn a_tmpfs_without_a_mode_has_that_of_the_directory_below_it() {
    let guest = guest_or_skip!();
    let bundle = [
        ("/kept", json!([])),
        ("/set", json!(["mode=444"])),
        ("/made", json!([])),
    ]
    .into_iter()
    .fold(
        Bundle::shell(guest.machine, "modes", "stat -c %a /kept /set /made"),
        |bundle, (at, options)| {
            bundle.with_mount(
                json!({ "destination": at, "type": "tmpfs", "source": "tmpfs",
                    "options": options }),
            )
        },
    );
    for name in ["kept", "set"] {
        let directory = bundle.rootfs.join(name);
        std::fs::create_dir(&directory).unwrap();
        let mode = std::fs::Permissions::from_mode(0o3710);
        std::fs::set_permissions(&directory, mode).unwrap();
    }
    let expected = outcome(0, "3710\n444\n1777\n");
    assert_eq!(guest.run(&bundle).await.unwrap(), expected);
}

#[tokio::test]
async fn ids_of_a_mount_can_be_mapped() {
    let guest = guest_or_skip!();
    let map = serde_json::json!([{ "containerID": 0, "hostID": 1000, "size": 65536 }]);
    let bundle = Bundle::shell(
        guest.machine,
        "idmap",
        "touch /m/f && stat -c '%u %g' /m/f /m",
    )
    .with_mount(
        json!({ "destination": "/m", "type": "tmpfs", "source": "tmpfs",
            "options": ["mode=1777", "idmap"], "uidMappings": map, "gidMappings": map }),
    );
    // The file system's root is 1000 here, and ids below that are nobody's in it.
    let bundle = bundle.with(|spec| spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }));
    assert_eq!(
        guest.run(&bundle).await.unwrap(),
        outcome(0, "1000 1000\n1000 1000\n")
    );
}
