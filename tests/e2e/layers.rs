//! Layers of images, which the guest uses where the host has them: erofs images that are mapped
//! into its address space.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rvm_tests::command::wait;
use rvm_tests::{Bundle, Rvm, disk, engine};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// The size of a layer's file, [`FILE`].
const FILE_BYTES: usize = 24 << 20;

const FILE: &str = "large";

const INSIDE: &str = env!("CARGO_BIN_EXE_rvm-inside");

fn has_none() -> bool {
    let has_none = engine() != "kvm";
    if has_none {
        println!("skipped: the qemu engine maps no layers");
    }
    has_none
}

/// An erofs image of a directory with [`FILE`], without data beside the metadata, as containerd
/// makes them.
fn layer(dir: &Path) -> Option<PathBuf> {
    let content = dir.join("content");
    fs::create_dir(&content).unwrap();
    let bytes: Vec<u8> = (0..FILE_BYTES as u32 / 4)
        .flat_map(u32::to_le_bytes)
        .collect();
    fs::write(content.join(FILE), bytes).unwrap();
    disk::image_with(dir, "erofs", 0, Some(&content), &["-Enoinline_data"])
}

fn volume(image: &Path) -> Value {
    json!({ "destination": "/layer", "type": "erofs", "source": image, "options": ["ro"] })
}

/// Prints how the layer is mounted, and how many KiB the guest's page cache has more after the file
/// was read.
const READ: &str = "grep -o 'dax=[a-z]*' /proc/mounts; cached() { awk '/^Cached/ { print $2 }' \
                    /proc/meminfo; }; before=$(cached); busybox sha256sum /layer/large >/sum; \
                    echo $(($(cached) - before))";

/// Whether the layer was mapped, and what the guest's page cache has of the file, in MiB.
fn read(rvm: &Rvm, image: &Path) -> (bool, u64) {
    let bundle = Bundle::shell(READ).mount(volume(image));
    let finished = rvm.run(&bundle, "box");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let cached = finished.stdout.lines().last().unwrap();
    let cached: i64 = cached.parse().unwrap();
    let mapped = finished.stdout.contains("dax=always");
    (mapped, cached.unsigned_abs() >> 10)
}

#[test]
fn the_guest_keeps_no_copy_of_a_layer_that_is_mapped() {
    if has_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(image) = layer(dir.path()) else {
        return;
    };
    let (mapped, cached) = read(&Rvm::new(), &image);
    assert!(mapped && cached < 4, "{cached} MiB");
    for no in ["map_layers = false", "disk_rate = \"operations=100000/1\""] {
        let (mapped, cached) = read(&Rvm::new().configured(no), &image);
        assert!(!mapped && cached > 20, "{no}: {cached} MiB");
    }
}

#[test]
fn a_program_is_executed_where_it_is() {
    if has_none() {
        return;
    }
    let bundle = Bundle::shell("grep -q ' / erofs .*dax=always' /proc/mounts && echo hello");
    let root = bundle.rootfs("");
    let options = ["-Enoinline_data"];
    let Some(image) = disk::image_with(bundle.path(), "erofs", 0, Some(&root), &options) else {
        return;
    };
    let bundle = bundle.with(|config| config["root"]["path"] = json!(image));
    let finished = Rvm::new().run(&bundle, "box");
    assert_eq!(finished.stdout, "hello\n", "{}", finished.stderr);
}

#[test]
fn direct_io_from_a_layer_reaches_files_and_disks() {
    let dir = tempfile::tempdir().unwrap();
    let (Some(image), Some(disk)) = (
        layer(dir.path()),
        disk::image(dir.path(), "ext4", 16 * MIB, None),
    ) else {
        return;
    };
    let script = "for to in /disk/file /file; do /inside direct /layer/large $to && \
                  busybox cmp -n 65536 /layer/large $to && echo same; done; \
                  echo goes on >/shared";
    let bundle = Bundle::shell(script)
        .mount(volume(&image))
        .mount(json!({ "destination": "/disk", "type": "ext4", "source": disk }));
    fs::copy(INSIDE, bundle.rootfs("inside")).unwrap();
    let finished = Rvm::new().run(&bundle, "box");
    assert_eq!(finished.stdout, "same\nsame\n", "{}", finished.stderr);
    let shared = fs::read_to_string(bundle.rootfs("shared")).unwrap();
    assert_eq!(shared, "goes on\n");
}

#[test]
fn a_layer_that_is_cut_ends_its_machine_with_the_reason() {
    if has_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(image) = layer(dir.path()) else {
        return;
    };
    let script = "echo up; until [ -e /go ]; do sleep 0.1; done; busybox sha256sum /layer/large; \
                  sleep 100";
    let bundle = Bundle::shell(script).mount(volume(&image));
    let rvm = Rvm::new();
    let mut run = rvm.command(&["run", "--bundle"]);
    run.arg(bundle.write()).arg("box");
    let mut running = run
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let up = running.stdout.as_mut().unwrap().read_exact(&mut [0; 3]);
    up.unwrap();
    let file = File::options().write(true).open(&image).unwrap();
    file.set_len(MIB).unwrap();
    fs::write(bundle.rootfs("go"), "").unwrap();
    let output = wait(running);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("such as a layer, was cut"), "{said}");
    assert!(!output.status.success());
}

#[test]
fn a_block_behind_the_layers_end_is_an_io_error() {
    let dir = tempfile::tempdir().unwrap();
    let Some(image) = layer(dir.path()) else {
        return;
    };
    // The image's end, and with it the file's blocks, is missing: its metadata comes first.
    let file = File::options().write(true).open(&image).unwrap();
    file.set_len(8 * MIB).unwrap();
    let script = "busybox dd if=/layer/large of=/copy bs=4096 skip=5000 count=1 2>&1; echo goes on";
    let bundle = Bundle::shell(script).mount(volume(&image));
    let finished = Rvm::new().run(&bundle, "box");
    assert!(
        finished.stdout.contains("Input/output error"),
        "{}",
        finished.stdout
    );
    assert!(
        finished.stdout.ends_with("goes on\n"),
        "{}",
        finished.stdout
    );
}
