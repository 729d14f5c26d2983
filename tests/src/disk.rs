//! Image files with file systems, made without mounting them. They need e2fsprogs, erofs-utils and
//! xfsprogs; a test without its tool is skipped.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::Finished;
use crate::command::eventually;

/// An image of `size` bytes in `dir` with a file system that holds the files of `content`, if it
/// is given. None if the program that makes it is missing, which is printed.
pub fn image(dir: &Path, kind: &str, size: u64, content: Option<&Path>) -> Option<PathBuf> {
    image_with(dir, kind, size, content, &[])
}

/// The same, with options of the program that makes it.
pub fn image_with(
    dir: &Path,
    kind: &str,
    size: u64,
    content: Option<&Path>,
    options: &[&str],
) -> Option<PathBuf> {
    let path = dir.join(format!("{kind}.img"));
    File::create(&path).unwrap().set_len(size).unwrap();
    let mut make = Command::new(format!("mkfs.{kind}"));
    make.args(options);
    match (kind, content) {
        ("erofs", _) => make.arg(&path).arg(content.unwrap()),
        (_, None) => make.arg("-q").arg(&path),
        ("ext4", Some(content)) => make.args(["-q", "-d"]).arg(content).arg(&path),
        (kind, Some(_)) => panic!("{kind} cannot be made of files"),
    };
    let made = make.stdout(Stdio::null()).stderr(Stdio::null()).status();
    let Ok(status) = made else {
        println!("skipped: mkfs.{kind} is missing; scripts/setup test installs it");
        return None;
    };
    assert!(status.success(), "{make:?}");
    Some(path)
}

/// A loop device of the host on an image. Dropping it detaches it.
pub struct LoopDevice {
    path: PathBuf,
    image: PathBuf,
    _dir: Option<TempDir>,
}

impl LoopDevice {
    /// A device of `size` bytes on an image of its own, whose content begins so, with logical
    /// blocks of this size. None if the host has none, which is printed.
    pub fn new(content: &str, size: u64, block_size: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let image = File::create(&path).unwrap();
        image.set_len(size).unwrap();
        image.write_all_at(content.as_bytes(), 0).unwrap();
        Self::attach(&path, block_size, Some(dir))
    }

    /// A device on this image, with blocks of 512 bytes.
    pub fn on(image: &Path) -> Option<Self> {
        Self::attach(image, 512, None)
    }

    fn attach(image: &Path, block_size: u32, dir: Option<TempDir>) -> Option<Self> {
        // It may be built in or loaded already.
        let _ = Command::new("modprobe").arg("loop").output();
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--sector-size", &block_size.to_string()]);
        let output = losetup.arg(image).output().unwrap();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            println!("skipped: {}", said.trim());
            return None;
        }
        let path = String::from_utf8(output.stdout).unwrap();
        Some(Self {
            path: path.trim().into(),
            image: image.to_owned(),
            _dir: dir,
        })
    }

    /// The image file.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Its path on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its major and minor number.
    pub fn number(&self) -> (u32, u32) {
        let number = self.path.metadata().unwrap().rdev();
        (rustix::fs::major(number), rustix::fs::minor(number))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if self.path.exists() {
            let mut losetup = Command::new("losetup");
            let _ = losetup.arg("--detach").arg(&self.path).status();
        }
    }
}

/// A disk of the host in memory that can be pulled out (scsi_debug).
pub struct PulledDisk(PathBuf);

impl PulledDisk {
    /// One with the content of this image, of whole MiB. None if the host has none, which is
    /// printed.
    pub fn with(image: &Path) -> Option<Self> {
        let size = format!("dev_size_mb={}", image.metadata().unwrap().len() >> 20);
        // No udev loads the driver of its disk.
        let _ = Command::new("modprobe").arg("sd_mod").output();
        let mut load = Command::new("modprobe");
        let output = load.args(["scsi_debug", &size]).output().unwrap();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            println!("skipped: {}", said.trim());
            return None;
        }
        let mut name = None;
        eventually("the disk is there", || {
            name = Self::name();
            name.is_some()
        });
        let this = Self(Path::new("/dev").join(name.unwrap()));
        eventually("the disk has a node", || this.0.exists());
        std::fs::copy(image, &this.0).unwrap();
        Some(this)
    }

    /// The name of the only disk of its maker.
    fn name() -> Option<OsString> {
        let disks = std::fs::read_dir("/sys/block").unwrap().flatten();
        let mut names = disks.map(|disk| disk.file_name());
        names.find(|name| {
            let model = Path::new("/sys/block").join(name).join("device/model");
            std::fs::read_to_string(model).is_ok_and(|model| model.trim() == "scsi_debug")
        })
    }

    /// Its path on the host.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Takes it out, as one that is unplugged.
    pub fn pull(&self) {
        let name = self.0.file_name().unwrap();
        let delete = Path::new("/sys/block").join(name).join("device/delete");
        std::fs::write(delete, "1").unwrap();
    }
}

impl Drop for PulledDisk {
    fn drop(&mut self) {
        let mut unload = Command::new("modprobe");
        let _ = unload.args(["--remove", "scsi_debug"]).status();
    }
}

/// A tmpfs of the host that can get full. Dropping it unmounts it.
pub struct SmallTmpfs(TempDir);

impl SmallTmpfs {
    /// One of this many bytes.
    pub fn new(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = CString::new(format!("size={bytes}")).unwrap();
        mount(
            "rvm-test",
            dir.path(),
            "tmpfs",
            MountFlags::empty(),
            &*options,
        )
        .unwrap();
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

/// A script that fills a directory until nothing more can be written, for [`Filled`].
pub fn fill(dir: &str) -> String {
    format!(
        "df -k {dir} | tail -n 1 | awk '{{ print $2, $3, $4 }}'; \
         dd if=/dev/zero of={dir}/file bs=64k 2>&1 | sed -n 's/.*: //p'; \
         df -k {dir} | tail -n 1 | awk '{{ print $2, $3, $4 }}'; stat -c %s {dir}/file; \
         rm {dir}/file; echo again > {dir}/file && cat {dir}/file"
    )
}

/// What a container found that filled a directory.
pub struct Filled {
    /// Kilobytes as df shows them, before and after: in all, used, and left.
    pub empty: [u64; 3],
    pub full: [u64; 3],
    /// What dd said.
    pub reason: String,
    /// The size of the file.
    pub bytes: u64,
}

impl Filled {
    /// Fails the test if the directory could not be written any more.
    pub fn parse(finished: &Finished) -> Self {
        let lines: Vec<&str> = finished.stdout.lines().collect();
        let [empty, reason, full, bytes, "again"] = lines[..] else {
            panic!("{finished:?}");
        };
        let numbers = |line: &str| -> [u64; 3] {
            let numbers = line
                .split_whitespace()
                .map(|number| number.parse().unwrap());
            numbers.collect::<Vec<_>>().try_into().unwrap()
        };
        Self {
            empty: numbers(empty),
            full: numbers(full),
            reason: reason.to_owned(),
            bytes: bytes.parse().unwrap(),
        }
    }
}

/// What a file of an ext4 image holds.
pub fn read_ext4(image: &Path, path: &str) -> String {
    let mut debugfs = Command::new("debugfs");
    debugfs.args(["-R", &format!("cat {path}")]).arg(image);
    String::from_utf8(debugfs.output().unwrap().stdout).unwrap()
}

/// Fails the test if an ext4 image is damaged or its journal holds what is not in its place yet.
pub fn assert_ext4_is_clean(image: &Path) {
    let mut check = Command::new("e2fsck");
    let output = check.args(["-n", "-f"]).arg(image).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("recover"), "{said}");
}
