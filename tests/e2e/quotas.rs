//! Directories of the host that may hold only so much: df in the container is true, and what has no
//! room says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};
use rvm_tests::disk::{self, Filled, LoopDevice, SmallTmpfs};
use rvm_tests::{Bundle, Finished, Rvm, bind};

const MIB: u64 = 1 << 20;

/// ENOSPC.
const FULL: &str = "No space left on device";

/// Kinds of file systems with quotas of projects, and what is said where a project has no room:
/// XFS says ENOSPC, ext4 EDQUOT.
const KINDS: [(&str, &str); 2] = [("xfs", FULL), ("ext4", "Disk quota exceeded")];

/// Fails unless a container found what a directory of `limit` bytes has room for.
fn assert_holds(limit: u64, reason: &str, finished: &Finished) {
    let filled = Filled::parse(finished);
    assert_eq!(filled.reason, reason, "{finished:?}");
    assert_eq!(filled.empty[0], limit >> 10, "{finished:?}");
    assert_eq!(filled.full[0], limit >> 10, "{finished:?}");
    assert!(filled.empty[2] > filled.full[2], "{finished:?}");
    // The last write of dd may have found less room than it asked for.
    assert!(filled.full[2] < 64, "{finished:?}");
    let grown = (filled.full[1] - filled.empty[1]) << 10;
    let bytes = filled.bytes;
    assert!((bytes..bytes + (64 << 10)).contains(&grown), "{finished:?}");
}

/// As kubelet makes an emptyDir of the medium Memory that has a sizeLimit.
#[test]
fn a_tmpfs_of_the_host_has_its_size_in_a_volume() {
    let tmpfs = SmallTmpfs::new(8 * MIB);
    let bundle = Bundle::shell(&disk::fill("/data"));
    let bundle = bundle.mount(bind(tmpfs.path(), "/data", &["rbind"]));
    assert_holds(8 * MIB, FULL, &Rvm::new().run(&bundle, "box"));
    let left: Vec<_> = fs::read_dir(tmpfs.path()).unwrap().collect();
    assert_eq!(left.len(), 1);
}

/// A file system of the host with quotas of projects.
struct Quotas {
    dir: tempfile::TempDir,
    _device: LoopDevice,
}

impl Quotas {
    /// None if the host's kernel or a program lacks what it takes, which is printed.
    fn new(kind: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options: &[_] = match kind {
            "ext4" => &["-O", "quota,project", "-E", "quotatype=prjquota"],
            _ => &[],
        };
        let image = disk::image_with(dir.path(), kind, 300 * MIB, None, options)?;
        let device = LoopDevice::on(&image)?;
        let path = device.path().to_owned();
        let this = Self {
            dir,
            _device: device,
        };
        fs::create_dir(this.path("")).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", kind, "-o", "prjquota"]).arg(path);
        let output = mount.arg(this.path("")).output().unwrap();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            println!("skipped: {}", said.trim());
            return None;
        }
        Some(this)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("mounted").join(name)
    }

    /// A directory for so many bytes, as Docker makes for `--storage-opt size=`.
    fn directory(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        let project = format!("project -s -p {} 7", path.display());
        let limit = format!("limit -p bhard={bytes} 7");
        let mut quota = Command::new("xfs_quota");
        // -f: also on other file systems than XFS.
        quota.args(["-x", "-f", "-c", &project, "-c", &limit]);
        let output = quota.arg(self.path("")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        path
    }
}

impl Drop for Quotas {
    fn drop(&mut self) {
        let _ = unmount(self.path(""), UnmountFlags::DETACH);
    }
}

#[test]
fn a_directory_with_a_quota_has_its_size_in_a_volume() {
    for (kind, reason) in KINDS {
        let Some(quotas) = Quotas::new(kind) else {
            continue;
        };
        let volume = quotas.directory("volume", 8 * MIB);
        let bundle = Bundle::shell(&disk::fill("/data"));
        let bundle = bundle.mount(bind(&volume, "/data", &["rbind"]));
        assert_holds(8 * MIB, reason, &Rvm::new().run(&bundle, "box"));
    }
}

/// An overlay of the host, unmounted when it is dropped.
struct Overlay<'a>(&'a Path);

impl Drop for Overlay<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

/// As Docker makes a root with `--storage-opt size=`.
#[test]
fn an_upper_layer_with_a_quota_has_its_size_in_a_root() {
    for (kind, reason) in KINDS {
        upper_layer(kind, reason);
    }
}

fn upper_layer(kind: &str, reason: &str) {
    let Some(quotas) = Quotas::new(kind) else {
        return;
    };
    let layer = quotas.directory("layer", 16 * MIB);
    let [upper, work] = ["diff", "work"].map(|name| layer.join(name));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let bundle = Bundle::shell(&disk::fill("/tmp"));
    let root = bundle.rootfs("");
    let lower = bundle.path().join("lower");
    fs::rename(&root, &lower).unwrap();
    fs::create_dir(&root).unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let mut mount = Command::new("mount");
    mount.args(["-t", "overlay", "-o", &options, "overlay"]);
    assert!(mount.arg(&root).status().unwrap().success());
    let overlay = Overlay(&root);
    let finished = Rvm::new().run(&bundle, "box");
    assert_holds(16 * MIB, reason, &finished);
    assert!(upper.join("tmp/file").exists());
    drop(overlay);
}

/// The file server has let go of a file that was removed before it serves what comes after.
#[test]
fn what_a_removed_file_took_can_be_used_at_once() {
    let tmpfs = SmallTmpfs::new(8 * MIB);
    let script = "cd /data; for round in $(seq 20); do \
                  dd if=/dev/zero of=file bs=64k 2>/dev/null; rm file; \
                  dd if=/dev/zero of=new bs=64k count=100 2>/dev/null || echo $round; rm new; done";
    let bundle = Bundle::shell(script).mount(bind(tmpfs.path(), "/data", &["rbind"]));
    let finished = Rvm::new().run(&bundle, "box");
    assert_eq!(finished.stdout, "", "{}", finished.stderr);
}
