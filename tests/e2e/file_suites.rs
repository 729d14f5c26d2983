//! Programs that others wrote to find faults of file systems: stress-ng's stressors of files, which
//! verify what they do, and fio, which compares what it reads with checksums of what it wrote. They
//! run in a container, on its root, in a volume, and on a disk. All of it passes on runc, on the
//! same file system.
//!
//! `RVM_TEST_FILE_PROGRAMS` names the directory that `scripts/engines files` prints. With
//! `RVM_TEST_LONG` in the environment all of it runs, which takes minutes, else a slice.

use std::fs;
use std::path::PathBuf;

use rvm_tests::bundle::DOCKER_CAPABILITIES;
use rvm_tests::{Bundle, Finished, Rvm, bind, disk, engine, is_in_memory, long};
use serde_json::json;

/// Where the programs work, in the container.
const PLACE: &str = "/place";

/// Stressors and their options. Left out of those that stress-ng counts among a file system's: what
/// says nothing about one (`eventfd`, `ioprio`, `procfs`, `statmount`, and `io`, which is sync(2)
/// of the whole machine), what a container may not do (`binderfs`, `bind-mount`, `fanotify`), and
/// `verity`, which ext4 has not by default.
const STRESSORS: &[&str] = &[
    "access",
    "acl",
    "aio",
    "aiol",
    "chattr",
    "chdir",
    "chmod",
    "chown",
    "copy-file --copy-file-bytes 128m",
    "dentry --dentries 256",
    "dir --dir-dirs 512",
    "dirdeep --dirdeep-inodes 512",
    "dirmany",
    "dnotify",
    "dup",
    "fallocate --fallocate-bytes 16m",
    "fcntl",
    "fd-fork",
    "fd-race",
    "fiemap --fiemap-bytes 4m",
    "file-ioctl",
    "filename",
    "filerace",
    "flock",
    "fpunch --fpunch-bytes 8m",
    "fsize",
    "fstat",
    "getdent",
    "handle",
    "hdd --hdd-bytes 8m --hdd-opts direct,rd-rnd,wr-rnd",
    "hdd --hdd-bytes 8m --hdd-opts fsync,wr-seq,rd-seq,utimes,iovec",
    "inode-flags",
    "inotify",
    "io-uring",
    "iomix --iomix-bytes 4m",
    "lease",
    "link",
    "locka",
    "lockf",
    "lockmix",
    "lockofd",
    "metamix --metamix-bytes 1m",
    "mknod",
    "mmap --mmap-file --mmap-bytes 8m",
    "msync --msync-bytes 4m",
    "open",
    "pseek",
    "readahead --readahead-bytes 8m",
    "rename",
    "revio --revio-bytes 4m",
    "seek --seek-size 4m",
    "sendfile",
    "splice",
    "symlink",
    "sync-file --sync-file-bytes 4m",
    "touch",
    "umask",
    "unlink",
    "utime",
    "xattr",
];

/// Those that do not run on shared files, as docs/shared-files.md says.
const NOT_SHARED: &[&str] = &["fiemap --fiemap-bytes 4m"];

/// Those that a tmpfs fails, on runc too: `fpunch` takes FALLOC_FL_ZERO_RANGE for granted, and what
/// `sync-file` allocates, a GiB, is more memory than the container may have.
const NOT_IN_MEMORY: &[&str] = &["fpunch --fpunch-bytes 8m", "sync-file --sync-file-bytes 4m"];

/// Those that take minutes in the nested machine: when their time is over, they look up 49,000
/// names, of which each is a message.
const NOT_NESTED: &[&str] = &["link", "symlink"];

/// Those of the slice.
const FEW: &[&str] = &[
    "fcntl",
    "lockf",
    "rename",
    "mmap --mmap-file --mmap-bytes 1m",
    "xattr",
];

/// The seconds after which a stressor hangs.
const HANGS: u32 = 100;

/// Jobs of fio, one after the other. Each reads and compares what it wrote once it is done.
const JOBS: &[(&str, &str)] = &[
    ("sequential", "rw=write bs=128k ioengine=psync"),
    ("random", "rw=randwrite bs=4k ioengine=psync"),
    ("mixed", "rw=randrw bsrange=512-64k ioengine=psync"),
    ("vectors", "rw=randwrite bs=16k ioengine=pvsync2 numjobs=2"),
    ("jobs", "rw=randwrite bs=8k ioengine=psync numjobs=4"),
    (
        "direct",
        "rw=randwrite bs=4k direct=1 ioengine=libaio iodepth=8",
    ),
    (
        "direct-sequential",
        "rw=write bs=256k direct=1 ioengine=psync",
    ),
    ("aio", "rw=randrw bs=16k ioengine=libaio iodepth=4"),
    (
        "posix-aio",
        "rw=randwrite bs=8k ioengine=posixaio iodepth=4",
    ),
    ("uring", "rw=randwrite bs=4k ioengine=io_uring iodepth=8"),
    ("mmap", "rw=randwrite bs=4k ioengine=mmap"),
    ("mmap-mixed", "rw=randrw bs=8k ioengine=mmap numjobs=2"),
    ("splice", "rw=write bs=64k ioengine=splice"),
    ("fsync", "rw=randwrite bs=4k fsync=8 ioengine=psync size=1m"),
    (
        "synchronous",
        "rw=write bs=4k sync=1 ioengine=psync size=512k",
    ),
    (
        "fallocated",
        "rw=randwrite bs=4k fallocate=keep ioengine=psync",
    ),
    (
        "backlog",
        "rw=randwrite bs=4k verify_backlog=32 ioengine=psync",
    ),
];

/// Those of the slice.
const FEW_JOBS: &[&str] = &["random", "direct", "mmap"];

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Root,
    Volume,
    Disk,
}

/// A place of files, and what shows it to containers.
struct World {
    rvm: Rvm,
    place: Place,
    programs: PathBuf,
}

impl World {
    /// None without the programs, or without what makes a disk, which is printed.
    fn new(place: Place) -> Option<Self> {
        let Some(programs) = std::env::var_os("RVM_TEST_FILE_PROGRAMS") else {
            println!("skipped: RVM_TEST_FILE_PROGRAMS names no programs");
            return None;
        };
        let rvm = Rvm::new();
        match place {
            Place::Root => {}
            Place::Volume => fs::create_dir(rvm.path("place")).unwrap(),
            Place::Disk => {
                disk::image(&rvm.path(""), "ext4", 512 << 20, None)?;
            }
        }
        Some(Self {
            rvm,
            place,
            programs: programs.into(),
        })
    }

    /// A container with what Docker gives, and with 512 MiB.
    fn bundle(&self, script: &str) -> Bundle {
        let bundle = Bundle::shell(script).capabilities(DOCKER_CAPABILITIES);
        let mut bundle = bundle.with(|config| {
            config["linux"]["resources"]["memory"] = json!({ "limit": 512 << 20 });
        });
        for name in ["lib", "lib64", "usr"] {
            let source = self.programs.join(name);
            bundle = bundle.mount(bind(&source, &format!("/{name}"), &["rbind", "ro"]));
        }
        fs::create_dir(bundle.rootfs("place")).unwrap();
        match self.place {
            Place::Root => bundle,
            Place::Volume => bundle.mount(bind(&self.rvm.path("place"), PLACE, &["rbind"])),
            Place::Disk => bundle.mount(json!({
                "destination": PLACE, "type": "ext4", "source": self.rvm.path("ext4.img"),
            })),
        }
    }

    fn run(&self, bundle: &Bundle) -> Finished {
        self.rvm.run(bundle, "box")
    }
}

/// Runs a stressor for a second or two; it is killed if it hangs. One that fails, that did not run
/// or that leaves a file says so with its output.
fn stress(world: &World, stressor: &str) {
    let seconds = if long() { 2 } else { 1 };
    let (name, options) = stressor.split_once(' ').unwrap_or((stressor, ""));
    let script = format!(
        "cd {PLACE}; mkdir t; said=$(timeout -s KILL {HANGS} stress-ng --temp-path {PLACE}/t --verify \
         --timeout {seconds}s --{name} 2 {options} 2>&1); code=$?\n\
         [ $code = 0 ] && echo \"$said\" | grep -q 'passed: 2: {name} ' && rmdir t || \
         {{ echo \"exit code $code: $said\"; ls -A t; rm -rf t; }}\n"
    );
    let finished = world.run(&world.bundle(&script));
    let nothing = finished.stdout.is_empty() && finished.stderr.is_empty();
    assert!(nothing && finished.code == 0, "{stressor}: {finished:#?}");
}

fn stressors_find_nothing(place: Place) {
    let Some(world) = World::new(place) else {
        return;
    };
    let mut left_out = Vec::new();
    if place != Place::Disk {
        left_out.extend(NOT_SHARED);
        if is_in_memory(&world.rvm.path("")) {
            left_out.extend(NOT_IN_MEMORY);
        }
        if engine() == "kvm" {
            left_out.extend(NOT_NESTED);
        }
    }
    for stressor in if long() { STRESSORS } else { FEW } {
        if !left_out.contains(stressor) {
            stress(&world, stressor);
        }
    }
}

#[test]
fn stressors_of_files_find_nothing_on_a_root() {
    stressors_find_nothing(Place::Root);
}

#[test]
fn stressors_of_files_find_nothing_in_a_volume() {
    stressors_find_nothing(Place::Volume);
}

#[test]
fn stressors_of_files_find_nothing_on_a_disk() {
    stressors_find_nothing(Place::Disk);
}

/// fio's file of jobs.
fn jobs() -> String {
    let size = if long() { "4m" } else { "512k" };
    let mut text = format!(
        "[global]\ndirectory={PLACE}\nsize={size}\nverify=crc32c\nverify_fatal=1\n\
         fallocate=none\nthread\nstonewall\n"
    );
    let wanted = |name| long() || FEW_JOBS.contains(&name);
    for (name, options) in JOBS.iter().filter(|(name, _)| wanted(name)) {
        text += &format!("[{name}]\n{}\n", options.replace(' ', "\n"));
    }
    text
}

/// What was written is compared by the container that wrote it, and by another that comes after it
/// and knows nothing of the files.
fn fio_reads_what_it_wrote(place: Place) {
    let Some(world) = World::new(place) else {
        return;
    };
    let bundle = world.bundle("fio --output-format=terse $(cat /options) /jobs >/said");
    fs::write(bundle.rootfs("jobs"), jobs()).unwrap();
    for options in ["", "--verify_only"] {
        fs::write(bundle.rootfs("options"), options).unwrap();
        let finished = world.run(&bundle);
        assert_eq!(finished.code, 0, "{finished:#?}");
        let said = fs::read_to_string(bundle.rootfs("said")).unwrap();
        let ended = said.lines().filter(|line| line.starts_with("3;fio-"));
        assert!(
            ended.count() >= jobs().matches("ioengine=").count(),
            "{said}"
        );
    }
}

#[test]
fn fio_reads_what_it_wrote_on_a_root() {
    fio_reads_what_it_wrote(Place::Root);
}

#[test]
fn fio_reads_what_it_wrote_in_a_volume() {
    fio_reads_what_it_wrote(Place::Volume);
}

#[test]
fn fio_reads_what_it_wrote_on_a_disk() {
    fio_reads_what_it_wrote(Place::Disk);
}
