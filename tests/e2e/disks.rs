//! Disks: block devices and image files with file systems, which the guest mounts.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

use rvm_tests::command::{self, Finished, eventually};
use rvm_tests::disk::Filled;
use rvm_tests::{Bundle, Rvm, disk};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn mount(kind: &str, source: &Path, options: &[&str]) -> Value {
    json!({ "destination": "/data", "type": kind, "source": source, "options": options })
}

/// A bundle whose root is an image of the files of its directory.
fn on_disk(bundle: Bundle, kind: &str) -> Option<Bundle> {
    let root = bundle.rootfs("");
    let image = disk::image(bundle.path(), kind, 64 * MIB, Some(&root))?;
    Some(bundle.with(|config| config["root"]["path"] = json!(image)))
}

#[test]
fn a_disk_keeps_what_a_container_writes_and_is_clean_afterwards() {
    let rvm = Rvm::new();
    for (kind, size) in [("ext4", 16 * MIB), ("xfs", 300 * MIB)] {
        let dir = tempfile::tempdir().unwrap();
        let Some(image) = disk::image(dir.path(), kind, size, None) else {
            return;
        };
        let script = "echo kept > /data/file; mkdir /data/dir; cat /data/file; \
                      grep ' /data ' /proc/mounts";
        let bundle = Bundle::shell(script).mount(mount(kind, &image, &["loop", "noexec"]));
        let finished = rvm.run(&bundle, "box");
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        assert!(finished.stdout.starts_with("kept\n"), "{}", finished.stdout);
        assert!(finished.stdout.contains(kind), "{}", finished.stdout);
        assert!(finished.stdout.contains("noexec"), "{}", finished.stdout);
        if kind == "ext4" {
            assert_eq!(disk::read_ext4(&image, "/file"), "kept\n");
            disk::assert_ext4_is_clean(&image);
        }
        let again = Bundle::shell("cat /data/file").mount(mount(kind, &image, &["ro"]));
        assert_eq!(rvm.run(&again, "box").stdout, "kept\n");
    }
}

#[test]
fn a_disk_that_is_read_only_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let Some(image) = disk::image(dir.path(), "ext4", 16 * MIB, None) else {
        return;
    };
    let before = fs::read(&image).unwrap();
    let bundle = Bundle::shell("touch /data/file").mount(mount("ext4", &image, &["ro"]));
    let finished = Rvm::new().run(&bundle, "box");
    assert!(finished.stderr.contains("Read-only"), "{}", finished.stderr);
    assert!(before == fs::read(&image).unwrap());
}

#[test]
fn the_root_can_be_a_disk() {
    let rvm = Rvm::new();
    for (kind, written) in [("ext4", true), ("erofs", false)] {
        let script = "grep ' / ' /proc/mounts; touch /new && echo written; ls /bin/busybox";
        let Some(bundle) = on_disk(Bundle::shell(script), kind) else {
            return;
        };
        let finished = rvm.run(&bundle, "box");
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        assert!(finished.stdout.contains(kind), "{}", finished.stdout);
        assert_eq!(finished.stdout.contains("written"), written, "{kind}");
        assert!(!bundle.rootfs("new").exists());
    }
}

#[test]
fn a_disk_is_written_by_one_container_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let Some(image) = disk::image(dir.path(), "ext4", 16 * MIB, None) else {
        return;
    };
    let rvm = Rvm::new();
    let bundle = Bundle::shell("sleep 1000").mount(mount("ext4", &image, &[]));
    rvm.create(&bundle, "one");
    let finished = rvm.run(&bundle, "two");
    assert!(
        finished.stderr.contains("in use by another container"),
        "{}",
        finished.stderr
    );
    rvm.ok(&["delete", "--force", "one"]);
    let bundle = Bundle::shell("true").mount(mount("ext4", &image, &[]));
    assert_eq!(rvm.run(&bundle, "two").code, 0);
}

#[test]
fn a_disk_that_is_truncated_under_the_machine_fails_its_own_requests_alone() {
    let dir = tempfile::tempdir().unwrap();
    let Some(image) = disk::image(dir.path(), "ext4", 64 * MIB, None) else {
        return;
    };
    let rvm = Rvm::new();
    let script = "echo ready > /tmp/ready; until [ -e /tmp/go ]; do sleep 0.1; done; \
                  dd if=/dev/zero of=/data/file bs=1M count=40 2>/dev/null; sync; \
                  ls /data/other 2>/dev/null; cat /tmp/ready; exit 7";
    let bundle = Bundle::shell(script).mount(mount("ext4", &image, &[]));
    let mut run = rvm.command(&["run", "--bundle", bundle.write().to_str().unwrap(), "box"]);
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    eventually("the container runs", || bundle.rootfs("tmp/ready").exists());
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(MIB)
        .unwrap();
    fs::write(bundle.rootfs("tmp/go"), "").unwrap();
    let finished = Finished::from(command::wait(run.unwrap()));
    assert_eq!(finished.code, 7, "{finished:?}");
    assert!(finished.stdout.contains("ready"), "{finished:?}");
}

/// Damages images in many ways: a container either starts or is refused with a reason, and the
/// next one, with a sound image, runs.
#[test]
fn a_damaged_image_is_an_error_of_its_container_alone() {
    let rvm = Rvm::new();
    let content = tempfile::tempdir().unwrap();
    fs::write(content.path().join("file"), "content").unwrap();
    for (kind, size) in [("ext4", 8 * MIB), ("erofs", 0), ("xfs", 300 * MIB)] {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for round in 0..3 {
            // A copy would not have the holes of the original.
            let dir = tempfile::tempdir().unwrap();
            let files = (kind != "xfs").then(|| content.path());
            let Some(damaged) = disk::image(dir.path(), kind, size, files) else {
                return;
            };
            let file = File::options().write(true).open(&damaged).unwrap();
            let length = file.metadata().unwrap().len().min(MIB);
            for _ in 0..256 {
                file.write_all_at(&random().to_le_bytes(), random() % length)
                    .unwrap();
            }
            if round == 0 {
                file.write_all_at(&[0xff; 4096], 0).unwrap();
            }
            let bundle = Bundle::shell("ls -laR /data > /dev/null; cat /data/file; exit 0");
            let finished = rvm.run(&bundle.mount(mount(kind, &damaged, &[])), "box");
            let refused = finished.stderr.contains("cannot mount the file system");
            assert!(finished.code == 0 || refused, "{kind}: {finished:?}");
            assert!(round > 0 || refused, "{kind}: {finished:?}");
        }
    }
}

#[test]
fn a_full_disk_says_so_and_df_is_true() {
    let dir = tempfile::tempdir().unwrap();
    let Some(image) = disk::image(dir.path(), "ext4", 16 * MIB, None) else {
        return;
    };
    let bundle = Bundle::shell(&disk::fill("/data")).mount(mount("ext4", &image, &[]));
    let filled = Filled::parse(&Rvm::new().run(&bundle, "box"));
    let Filled {
        empty, full, bytes, ..
    } = filled;
    assert_eq!(filled.reason, "No space left on device");
    assert!((12 << 10..16 << 10).contains(&empty[0]), "{empty:?}");
    assert_eq!((full[0], full[2]), (empty[0], 0));
    // What is used beside the file are the blocks that say where the file's are.
    let grown = (full[1] - empty[1]) << 10;
    assert!((bytes..bytes + (64 << 10)).contains(&grown), "{grown}");
    // Root may use what is reserved, too.
    assert!(bytes >= empty[2] << 10, "{bytes}");
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = Bundle::shell("true").mount(mount("ext4", dir.path(), &[]));
    let finished = Rvm::new().run(&bundle, "box");
    let words = format!(
        "{} is neither a block device nor an image file",
        dir.path().display()
    );
    assert!(finished.stderr.contains("mounts["), "{}", finished.stderr);
    assert!(finished.stderr.contains(&words), "{}", finished.stderr);
}
