//! Damaged file systems: each of many images with other damage ends in an error of its container or
//! in its success, and the other containers of the machine go on. With `RVM_TEST_LONG` in the
//! environment there are more.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rvm_tests::pod::{POD, member, sandbox};
use rvm_tests::{Bundle, Finished, Rvm, disk, engine, long};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// How many images of a kind are damaged, and how many of them a machine gets one after the other.
/// The kernel that reads them is the same on both engines, and takes an hour for all of them in the
/// nested machine.
const ALL: u64 = 500;
const ALL_NESTED: u64 = 100;
const FEW: u64 = 20;
const BATCH: u64 = 50;

const SECTOR: usize = 512;

/// xorshift64, so that an image can be damaged in the same way again.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Below a bound.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A sound image, and where it holds something, which is little but metadata.
struct Sound {
    path: PathBuf,
    sectors: Vec<u64>,
}

/// What fills an image: a tree with names, links and little content.
const FILL: &str = "cd /data; for d in $(seq 20); do mkdir -p $d/a/b; \
                    for f in $(seq 12); do echo $f >$d/a/$f; done; ln -s ../a $d/a/b/link; done; \
                    mknod fifo p; seq 9000 >long; echo content >file";

impl Sound {
    /// None if the program that makes it is missing, which is printed.
    fn new(dir: &Path, kind: &'static str, options: &[&str]) -> Option<Self> {
        let (size, content) = match kind {
            "erofs" => (0, Some(erofs_content(dir))),
            "xfs" => (300 * MIB, None),
            _ => (8 * MIB, None),
        };
        let path = disk::image_with(dir, kind, size, content.as_deref(), options)?;
        if content.is_none() {
            let rvm = Rvm::new();
            let filled = rvm.run(&with_disk(Bundle::shell(FILL), kind, &path), "fill");
            assert_eq!(filled.code, 0, "{kind}: {}", filled.stderr);
        }
        let bytes = fs::read(&path).unwrap();
        let sectors = bytes.chunks(SECTOR).enumerate();
        let used = sectors.filter(|(_, sector)| sector.iter().any(|byte| *byte != 0));
        let sectors = used.map(|(number, _)| (number * SECTOR) as u64).collect();
        Some(Self { path, sectors })
    }

    /// Makes a copy and damages it, in the super block or anywhere.
    fn damage(&self, seed: u64, copy: &Path) {
        let mut cp = Command::new("cp");
        let copied = cp.arg("--sparse=always").arg(&self.path).arg(copy).status();
        assert!(copied.unwrap().success());
        let mut random = Random::new(seed);
        let file = File::options().read(true).write(true).open(copy).unwrap();
        // The super blocks are in the first sectors that are used.
        let some = if random.below(3) == 0 {
            4
        } else {
            self.sectors.len()
        };
        for _ in 0..1_u64 << random.below(7) {
            let sector = self.sectors[random.below(some as u64) as usize];
            let offset = sector + random.below(SECTOR as u64 - 8);
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, offset).unwrap();
            match random.below(4) {
                0 => bytes[0] ^= 1 << random.below(8),
                1 => bytes[..2].fill(random.below(256) as u8),
                2 => bytes[..4].fill(0xff),
                _ => bytes = random.below(u64::MAX).to_le_bytes(),
            }
            file.write_all_at(&bytes, offset).unwrap();
        }
    }
}

/// The tree that the others are filled with.
fn erofs_content(dir: &Path) -> PathBuf {
    let content = dir.join("content");
    for name in 0..20 {
        let sub = content.join(name.to_string());
        fs::create_dir_all(sub.join("a/b")).unwrap();
        for file in 0..12 {
            fs::write(sub.join(format!("a/{file}")), file.to_string()).unwrap();
        }
        std::os::unix::fs::symlink("../a", sub.join("a/b/link")).unwrap();
    }
    fs::write(content.join("long"), "line\n".repeat(9000)).unwrap();
    fs::write(content.join("file"), "content\n").unwrap();
    content
}

fn with_disk(bundle: Bundle, kind: &str, image: &Path) -> Bundle {
    bundle.mount(json!({ "destination": "/data", "type": kind, "source": image }))
}

/// Reads and writes whatever there is.
const USE: &str = "cd /data; timeout 10 ls -laR . ; timeout 10 cat file long 1/a/*; \
                   echo new >new; timeout 10 rm -r 2 3; mkdir -p 4/new; echo more >>long; sync; \
                   df .; exit 0";

/// Fails unless a container on a damaged disk has ended as one may: by itself, or with an error
/// that says why.
fn assert_allowed(what: &str, finished: &Finished) {
    let refused = finished.stderr.contains("cannot mount the file system");
    assert!(finished.code == 0 || refused, "{what}: {finished:#?}");
}

/// Damages images of a kind in a row of ways; a machine gets a batch of them, and survives it.
fn every_damage_is_an_error_of_its_container(kind: &'static str, options: &[&str], seeds: u64) {
    let dir = tempfile::tempdir().unwrap();
    let Some(sound) = Sound::new(dir.path(), kind, options) else {
        return;
    };
    let seeds: Vec<u64> = (0..seeds).collect();
    for batch in seeds.chunks(BATCH as usize) {
        let rvm = Rvm::new();
        let pod = sandbox(&rvm);
        for seed in batch {
            let damaged = dir.path().join("damaged");
            sound.damage(*seed, &damaged);
            let bundle = with_disk(member(&rvm, USE, POD), kind, &damaged);
            let finished = rvm.run(&bundle, &format!("box-{seed}"));
            assert_allowed(&format!("{kind} {options:?}, seed {seed}"), &finished);
        }
        let bundle = with_disk(member(&rvm, "cat /data/file", POD), kind, &sound.path);
        let finished = rvm.run(&bundle, "box");
        assert_eq!(finished.stdout, "content\n", "{kind}: {}", finished.stderr);
        rvm.ok(&["delete", "--force", "pod"]);
        drop(pod);
    }
}

/// Half of them have no checksums of metadata, so that damage gets further.
fn every_damage(kind: &'static str, without_checksums: &[&str]) {
    let count = match (long(), engine().as_str()) {
        (true, "kvm") => ALL_NESTED,
        (true, _) => ALL,
        (false, _) => FEW,
    };
    every_damage_is_an_error_of_its_container(kind, &[], count / 2);
    every_damage_is_an_error_of_its_container(kind, without_checksums, count / 2);
}

#[test]
fn every_damage_to_ext4_is_an_error_of_its_container_alone() {
    every_damage("ext4", &["-O", "^metadata_csum"]);
}

#[test]
fn every_damage_to_xfs_is_an_error_of_its_container_alone() {
    every_damage("xfs", &["-m", "crc=0"]);
}

#[test]
fn every_damage_to_erofs_is_an_error_of_its_container_alone() {
    every_damage("erofs", &["-zlz4", "-Enosbcrc"]);
}
