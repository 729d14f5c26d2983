//! Disks that fail under a container, of a pod mostly: an error of that container alone. Its
//! neighbours go on, it can be killed and deleted, and the pod takes another.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rvm_tests::command::eventually;
use rvm_tests::device_mapper::MappedDevice;
use rvm_tests::disk::{self, PulledDisk, SmallTmpfs};
use rvm_tests::pod::{POD, member, sandbox};
use rvm_tests::{Bundle, Rvm, bind};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// How long it may take to kill and delete a container on a broken disk. XFS gives up after 10 s.
const REMOVAL: Duration = Duration::from_secs(60);

/// EIO.
const IO_ERROR: &str = "Input/output error";

/// What the disk is to its container.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    Root,
    Volume,
}
use Shape::{Root, Volume};

/// A pod with a container that works on a sound disk, and another on the disk that is to fail.
struct World {
    neighbour: Bundle,
    _sandbox: Bundle,
    // The containers end before their disks go.
    rvm: Rvm,
}

/// Counts on its disk, and says so on its root.
const NEIGHBOUR: &str = "count=0; while :; do count=$((count + 1)); \
                         echo $count | dd of=/data/count conv=fsync 2>/dev/null && \
                         cat /data/count >/tmp/new && mv /tmp/new /tmp/count; sleep 0.1; done";

impl World {
    /// None without the program that makes images.
    fn new() -> Option<Self> {
        let rvm = Rvm::new();
        fs::create_dir(rvm.path("out")).unwrap();
        fs::create_dir(rvm.path("sound")).unwrap();
        let sound = disk::image(&rvm.path("sound"), "ext4", 16 * MIB, None)?;
        let _sandbox = sandbox(&rvm);
        let neighbour = member(&rvm, NEIGHBOUR, POD).mount(volume("ext4", &sound));
        std::os::unix::fs::symlink("busybox", neighbour.rootfs("bin/mv")).unwrap();
        rvm.create(&neighbour, "neighbour");
        rvm.ok(&["start", "neighbour"]);
        let world = Self {
            neighbour,
            _sandbox,
            rvm,
        };
        world.assert_neighbour_goes_on();
        Some(world)
    }

    /// Starts `box` in the pod; see [`start`].
    fn start(&self, shape: Shape, kind: &str, disk: &Path, script: &str) -> Bundle {
        let bundle = |script: &str| member(&self.rvm, script, POD);
        start(&self.rvm, bundle, (shape, kind, disk), script)
    }

    fn said(&self) -> String {
        said(&self.rvm)
    }

    fn assert_neighbour_goes_on(&self) {
        let count = || fs::read_to_string(self.neighbour.rootfs("tmp/count")).unwrap_or_default();
        for _ in 0..2 {
            let before = count();
            eventually("the neighbour goes on", || count() != before);
        }
    }

    /// What the guest's kernel said, for a test that fails.
    fn console(&self) -> String {
        fs::read_to_string(self.rvm.root().join("pod/console.log")).unwrap_or_default()
    }

    /// Kills and deletes the container; the pod goes on and takes another on a sound disk.
    fn remove(self) {
        remove(&self.rvm);
        self.assert_neighbour_goes_on();
        fs::create_dir(self.rvm.path("next")).unwrap();
        let next = disk::image(&self.rvm.path("next"), "ext4", 16 * MIB, None).unwrap();
        let script = "echo next >/data/file && cat /data/file";
        let next = member(&self.rvm, script, POD).mount(volume("ext4", &next));
        let finished = self.rvm.run(&next, "box");
        assert_eq!(finished.stdout, "next\n", "{}", finished.stderr);
        self.rvm.ok(&["delete", "--force", "neighbour"]);
        self.rvm.ok(&["delete", "--force", "pod"]);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the guest's console:\n{}", self.console());
        }
    }
}

/// Starts `box` on a disk, and waits until it is ready for the fault. The script that runs then
/// ends with a line of what it found in `/out/said`.
fn start(
    rvm: &Rvm,
    bundle: impl FnOnce(&str) -> Bundle,
    (shape, kind, disk): (Shape, &str, &Path),
    script: &str,
) -> Bundle {
    // The programs stay in the page cache, and the shell needs none to go on.
    let script = format!(
        "sleep 1000 & cat /bin/busybox >/dev/null; echo >/out/ready; \
         until [ -e /out/go ]; do sleep 0.1; done; {script}; wait"
    );
    let bundle = match shape {
        Root => bundle(&script).with(|config| config["root"]["path"] = json!(disk)),
        Volume => bundle(&script).mount(volume(kind, disk)),
    };
    let bundle = bundle.mount(bind(&rvm.path("out"), "/out", &["bind"]));
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    let ready = rvm.path("out/ready");
    eventually("the container is ready", || ready.exists());
    bundle
}

/// What the container says of the fault.
fn said(rvm: &Rvm) -> String {
    File::create(rvm.path("out/go")).unwrap();
    let said = || fs::read_to_string(rvm.path("out/said")).unwrap_or_default();
    eventually("the container has found out", || said().ends_with("end\n"));
    said()
}

/// Kills and deletes the container.
fn remove(rvm: &Rvm) {
    let start = Instant::now();
    rvm.ok(&["kill", "box", "KILL"]);
    rvm.wait_for_status("box", "stopped");
    rvm.ok(&["delete", "box"]);
    assert!(start.elapsed() < REMOVAL, "it took {:?}", start.elapsed());
}

fn volume(kind: &str, source: &Path) -> serde_json::Value {
    json!({ "destination": "/data", "type": kind, "source": source })
}

/// An image for a shape in `dir`; `big` is a file of 16 MiB in it. None without mkfs.
fn image(dir: &Path, shape: Shape, options: &[&str]) -> Option<PathBuf> {
    let files = dir.join("files");
    match shape {
        Root => {
            let bundle = Bundle::new(&[]);
            fs::create_dir(bundle.rootfs("out")).unwrap();
            fs::rename(bundle.rootfs(""), &files).unwrap();
        }
        Volume => fs::create_dir(&files).unwrap(),
    }
    fs::write(files.join("big"), vec![b'x'; 16 << 20]).unwrap();
    disk::image_with(dir, "ext4", 64 * MIB, Some(&files), options)
}

/// Where the disk is in the container.
fn place(shape: Shape) -> &'static str {
    match shape {
        Root => "",
        Volume => "/data",
    }
}

/// Reads a file, writes another, and tells the errors.
fn read_and_write(shape: Shape, megabytes: u32) -> String {
    let place = place(shape);
    format!(
        "exec 2>/out/said; cat {place}/big >/dev/null; \
         dd if=/dev/zero of={place}/file bs=64k count={} conv=fsync; echo end >&2",
        16 * megabytes
    )
}

#[test]
fn a_disk_that_shrinks_is_an_error_of_its_container_alone() {
    for shape in [Volume, Root] {
        let dir = tempfile::tempdir().unwrap();
        // The author of an image has no say in what its errors do to the machine.
        let Some(image) = image(dir.path(), shape, &["-e", "panic"]) else {
            return;
        };
        let world = World::new().unwrap();
        let _bundle = world.start(shape, "ext4", &image, &read_and_write(shape, 30));
        let file = File::options().write(true).open(&image).unwrap();
        file.set_len(4 * MIB).unwrap();
        let said = world.said();
        let cat = said.lines().find(|line| line.starts_with("cat: "));
        assert!(
            cat.is_some_and(|line| line.ends_with(IO_ERROR)),
            "{shape:?}: {said}"
        );
        world.remove();
    }
}

#[test]
fn a_disk_whose_image_finds_no_room_is_an_error_of_its_container_alone() {
    for shape in [Volume, Root] {
        let tmpfs = SmallTmpfs::new(40 * MIB);
        let dir = tempfile::tempdir().unwrap();
        let Some(image) = image(dir.path(), shape, &["-e", "panic"]) else {
            return;
        };
        let moved = tmpfs.path().join("image");
        let cp = [
            "--sparse=always",
            image.to_str().unwrap(),
            moved.to_str().unwrap(),
        ];
        assert!(Command::new("cp").args(cp).status().unwrap().success());
        let world = World::new().unwrap();
        let _bundle = world.start(shape, "ext4", &moved, &read_and_write(shape, 40));
        let said = world.said();
        assert!(!said.contains("/big"), "{shape:?}: {said}");
        let words = [IO_ERROR, "No space left on device", "Read-only file system"];
        assert!(
            words.iter().any(|words| said.contains(words)),
            "{shape:?}: {said}"
        );
        world.remove();
    }
}

/// The place in an image of XFS of its log: offset and length in bytes.
fn log_of(image: &Path) -> (u64, u64) {
    let mut xfs_db = Command::new("xfs_db");
    let print = "print logstart logblocks agblocks agblklog blocksize";
    let output = xfs_db.args(["-r", "-c", "sb 0", "-c", print]).arg(image);
    let output = String::from_utf8(output.output().unwrap().stdout).unwrap();
    let number = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap();
    let numbers: Vec<u64> = output.lines().map(number).collect();
    let [start, blocks, group_blocks, group_shift, block] = numbers[..] else {
        panic!("{output}");
    };
    let in_group = start & ((1 << group_shift) - 1);
    let start = (start >> group_shift) * group_blocks + in_group;
    (start * block, blocks * block)
}

/// By default XFS tries again for ever to write what is in its log.
#[test]
fn xfs_gives_up_where_its_log_finds_room_and_nothing_else_does() {
    let tmpfs = SmallTmpfs::new(200 * MIB);
    let Some(image) = disk::image(tmpfs.path(), "xfs", 300 * MIB, None) else {
        return;
    };
    let file = File::options().write(true).open(&image).unwrap();
    let (offset, length) = log_of(&image);
    fallocate(&file, FallocateFlags::KEEP_SIZE, offset, length).unwrap();
    let world = World::new().unwrap();
    let script = "exec 2>/out/said; dir=0; while mkdir /data/$dir; do dir=$((dir + 1)); \
                  [ $dir -lt 200 ] || sleep 1; done; echo end >&2";
    let _bundle = world.start(Volume, "xfs", &image, script);
    let mut filler = File::create(tmpfs.path().join("filler")).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
    let said = world.said();
    assert!(said.contains(IO_ERROR), "{said}");
    world.remove();
}

#[test]
fn a_disk_whose_image_is_removed_stays_until_its_container_ends() {
    for shape in [Volume, Root] {
        let dir = tempfile::tempdir().unwrap();
        let Some(image) = image(dir.path(), shape, &[]) else {
            return;
        };
        let world = World::new().unwrap();
        let _bundle = world.start(shape, "ext4", &image, &read_and_write(shape, 4));
        fs::remove_file(&image).unwrap();
        let said = world.said();
        assert!(
            !said.contains("error") && said.contains("64+0 records out"),
            "{shape:?}: {said}"
        );
        world.remove();
    }
}

/// Whether a machine of this engine has a disk of its own in a slot, as only a container in a
/// machine of its own gets from the CLI.
fn has_slots() -> bool {
    let has = rvm_tests::engine() == "kvm";
    if !has {
        println!("skipped: machines of this engine have no disks");
    }
    has
}

/// Runs a container on a device until it has met the `fault`; returns what it found.
fn meets(shape: Shape, kind: &str, device: &Path, fault: impl FnOnce()) -> String {
    let rvm = Rvm::new();
    fs::create_dir(rvm.path("out")).unwrap();
    let script = read_and_write(shape, 4);
    let _bundle = start(&rvm, Bundle::shell, (shape, kind, device), &script);
    fault();
    let said = said(&rvm);
    remove(&rvm);
    said
}

/// An image with a file that no cache has, for a machine that has a disk of its own.
fn fresh(dir: &Path, shape: Shape, kind: &str) -> Option<PathBuf> {
    if !has_slots() {
        return None;
    }
    match kind {
        "ext4" => image(dir, shape, &["-e", "panic"]),
        _ => disk::image(dir, kind, 300 * MIB, None),
    }
}

#[test]
fn a_device_that_errs_is_an_error_and_its_container_can_be_removed() {
    for (shape, kind) in [(Volume, "ext4"), (Root, "ext4"), (Volume, "xfs")] {
        let dir = tempfile::tempdir().unwrap();
        let image = fresh(dir.path(), shape, kind);
        let Some(device) = image.and_then(|image| MappedDevice::new(&image)) else {
            return;
        };
        let said = meets(shape, kind, &device.path(), || device.fail());
        assert!(said.contains(IO_ERROR), "{shape:?}, {kind}: {said}");
    }
}

#[test]
fn a_device_that_only_reads_is_an_error_where_it_is_written_to() {
    for (shape, kind) in [(Volume, "ext4"), (Root, "ext4"), (Volume, "xfs")] {
        let dir = tempfile::tempdir().unwrap();
        let image = fresh(dir.path(), shape, kind);
        let Some(device) = image.and_then(|image| MappedDevice::new(&image)) else {
            return;
        };
        let said = meets(shape, kind, &device.path(), || device.fail_writes());
        // The file that was there is read.
        assert!(kind == "xfs" || !said.contains("/big"), "{shape:?}: {said}");
        let words = [IO_ERROR, "Read-only file system"];
        assert!(
            words.iter().any(|words| said.contains(words)),
            "{shape:?}, {kind}: {said}"
        );
    }
}

#[test]
fn a_device_that_is_pulled_out_is_an_error_and_its_container_can_be_removed() {
    for shape in [Volume, Root] {
        let dir = tempfile::tempdir().unwrap();
        let image = fresh(dir.path(), shape, "ext4");
        let Some(device) = image.and_then(|image| PulledDisk::with(&image)) else {
            return;
        };
        let said = meets(shape, "ext4", device.path(), || device.pull());
        assert!(said.contains(IO_ERROR), "{shape:?}: {said}");
    }
}
