//! Roots on disks under the shim, called as containerd calls it with the mounts of its erofs,
//! blockfile and devmapper snapshotters.

use std::fs;
use std::path::Path;

use containerd_shim_protos::api;
use rvm_tests::command::Rvm;
use rvm_tests::containerd::{self, Containerd, RUNTIME};
use rvm_tests::device_mapper::ThinPool;
use rvm_tests::shim::{Shim, limit};
use rvm_tests::{Bundle, disk, image};
use serde_json::json;

const MIB: u64 = 1 << 20;

fn mount(kind: &str, source: &Path, options: &[&str]) -> api::Mount {
    api::Mount {
        type_: kind.to_owned(),
        source: source.display().to_string(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    }
}

/// The erofs snapshotter's overlay of the mounts 1 and 2 with the upper directory in mount 0.
fn overlay() -> api::Mount {
    let options = [
        "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
        "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
        "workdir={{ mount 0 }}/work",
        "upperdir={{ mount 0 }}/upper",
        "lowerdir={{ overlay 1 2 }}",
    ];
    mount("format/mkdir/overlay", Path::new("overlay"), &options)
}

fn create(shim: &Shim, bundle: &Bundle, rootfs: Vec<api::Mount>) -> ttrpc::Result<()> {
    let request = api::CreateTaskRequest {
        id: "box".to_owned(),
        bundle: bundle.write().display().to_string(),
        rootfs,
        ..Default::default()
    };
    shim.call(shim.tasks.create(limit(), &request)).map(|_| ())
}

/// Starts the container that was created; returns its exit code.
fn finish(shim: &Shim) -> u32 {
    let start = api::StartRequest {
        id: "box".to_owned(),
        ..Default::default()
    };
    shim.ok(shim.tasks.start(limit(), &start));
    let wait = api::WaitRequest {
        id: "box".to_owned(),
        ..Default::default()
    };
    let status = shim.ok(shim.tasks.wait(limit(), &wait)).exit_status;
    let delete = api::DeleteRequest {
        id: "box".to_owned(),
        ..Default::default()
    };
    shim.ok(shim.tasks.delete(limit(), &delete));
    shut_down(shim);
    status
}

fn shut_down(shim: &Shim) {
    let request = api::ShutdownRequest::default();
    shim.ok(shim.tasks.shutdown(limit(), &request));
}

/// An empty directory takes the place of the root: the root is on disks alone.
fn without_root(bundle: &Bundle, dir: &Path) {
    fs::rename(bundle.rootfs(""), dir.join("files")).unwrap();
    fs::create_dir(bundle.rootfs("")).unwrap();
}

#[test]
fn a_snapshot_on_one_disk_is_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = Bundle::shell("grep -q ' / ext4 ' /proc/mounts && echo kept > /new");
    without_root(&bundle, dir.path());
    let files = dir.path().join("files");
    let Some(image) = disk::image(dir.path(), "ext4", 64 * MIB, Some(&files)) else {
        return;
    };
    let shim = Shim::start("box", bundle.write());
    create(&shim, &bundle, vec![mount("ext4", &image, &["loop"])]).unwrap();
    assert_eq!(finish(&shim), 0);
    assert_eq!(disk::read_ext4(&image, "/new"), "kept\n");
    disk::assert_ext4_is_clean(&image);
    assert_eq!(fs::read_dir(bundle.rootfs("")).unwrap().count(), 0);
}

#[test]
fn layers_of_erofs_are_stacked_below_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let script = "grep -q ' / overlay ' /proc/mounts || exit 3; \
                  [ \"$(cat /etc/layer)\" = upper ] || exit 4; rm /etc/lower && echo kept > /etc/new";
    let bundle = Bundle::shell(script);
    fs::write(bundle.rootfs("etc/layer"), "lower\n").unwrap();
    fs::write(bundle.rootfs("etc/lower"), "").unwrap();
    without_root(&bundle, dir.path());
    let [lower, upper] = ["lower", "upper"].map(|name| dir.path().join(name));
    fs::create_dir(&lower).unwrap();
    fs::create_dir_all(upper.join("tree/etc")).unwrap();
    fs::write(upper.join("tree/etc/layer"), "upper\n").unwrap();
    let files = dir.path().join("files");
    let (Some(lower), Some(upper), Some(disk)) = (
        disk::image(&lower, "erofs", 0, Some(&files)),
        disk::image(&upper, "erofs", 0, Some(&upper.join("tree"))),
        disk::image(dir.path(), "ext4", 16 * MIB, None),
    ) else {
        return;
    };
    let before = fs::read(&lower).unwrap();
    let mounts = vec![
        mount("ext4", &disk, &["rw", "loop"]),
        mount("erofs", &upper, &["ro", "loop"]),
        mount("erofs", &lower, &["ro", "loop"]),
        overlay(),
    ];
    let shim = Shim::start("box", bundle.write());
    create(&shim, &bundle, mounts).unwrap();
    assert_eq!(finish(&shim), 0);
    assert_eq!(disk::read_ext4(&disk, "/upper/etc/new"), "kept\n");
    disk::assert_ext4_is_clean(&disk);
    assert!(before == fs::read(&lower).unwrap());
}

#[test]
fn what_cannot_be_honoured_is_refused_before_anything_is_mounted() {
    let bundle = Bundle::shell("true");
    let shim = Shim::start("box", bundle.write());
    let erofs = || {
        mount(
            "erofs",
            Path::new("/nonexistent/layer.erofs"),
            &["ro", "loop"],
        )
    };
    let on_host = [
        "lowerdir={{ mount 0 }}",
        "upperdir=/s/9/fs",
        "workdir=/s/9/work",
    ];
    let on_host = mount("format/overlay", Path::new("overlay"), &on_host);
    let verity = mount("erofs", Path::new("/x"), &["X-containerd.dmverity=/meta"]);
    for (mounts, words) in [
        (vec![erofs(), on_host], "/s/9/fs is a directory of the host"),
        (vec![verity], "X-containerd.dmverity"),
        (vec![erofs()], "/nonexistent/layer.erofs"),
    ] {
        let error = create(&shim, &bundle, mounts).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    shut_down(&shim);
}

/// containerd makes the snapshot, and mounts it while it unpacks the image; the container's own
/// snapshot it hands to the shim.
fn a_snapshot_is_the_root(snapshotter: &str, lines: &str) {
    let world = Rvm::new().configured(&format!("engine = \"{}\"", rvm_tests::engine()));
    let containerd = Containerd::with_snapshotter(world, snapshotter, lines);
    containerd.import_for(snapshotter, image::NAME, &json!({ "Cmd": ["sh"] }));
    let config = containerd.world().path("config.toml");
    let script = "grep -q ' / ext4 ' /proc/mounts && echo written > /new && cat /new";
    let run = containerd.ctr(&[
        "run",
        "--rm",
        "--snapshotter",
        snapshotter,
        "--runtime",
        RUNTIME,
        "--runtime-config-path",
        config.to_str().unwrap(),
        image::NAME,
        "box",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (0, "written\n"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_snapshot_of_containerds_blockfile_snapshotter_is_the_root() {
    if containerd::major_version() < 2 {
        println!("skipped: needs containerd 2 in RVM_TEST_CONTAINERD");
        return;
    }
    a_snapshot_is_the_root("blockfile", "");
}

#[test]
fn a_snapshot_of_containerds_devmapper_snapshotter_is_the_root() {
    if rvm_tests::engine() != "kvm" {
        println!("skipped: machines of this engine have no disks");
        return;
    }
    let Some(pool) = ThinPool::new(256 * MIB) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let lines = format!(
        "[plugins.\"io.containerd.snapshotter.v1.devmapper\"]\n\
         root_path = \"{}\"\npool_name = \"{}\"\nbase_image_size = \"64MB\"\n\
         fs_type = \"ext4\"\n",
        dir.path().display(),
        pool.name()
    );
    a_snapshot_is_the_root("devmapper", &lines);
}
