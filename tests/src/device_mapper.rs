//! Devices of the host's device mapper, made without udev.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::disk::LoopDevice;

/// Runs dmsetup; the device's name follows the arguments.
fn dmsetup(args: &[&str], name: &str) -> Output {
    let (verb, options) = args.split_first().unwrap();
    let mut dmsetup = Command::new("dmsetup");
    dmsetup.arg(verb).args(options).arg(name);
    dmsetup
        .output()
        .expect("scripts/setup test installs dmsetup")
}

/// Makes a device. Prints why it cannot be.
fn create(name: &str, table: &str) -> bool {
    let made = dmsetup(&["create", "--table", table], name);
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr);
        println!("skipped: {}", said.trim());
    }
    made.status.success()
}

fn load(module: &str) {
    // It may be built in or loaded already.
    let _ = Command::new("modprobe").arg(module).output();
}

/// A device of the host's device mapper over a loop device, which can be made to fail. Dropping it
/// removes it.
pub struct MappedDevice {
    name: String,
    sectors: u64,
    under: LoopDevice,
}

impl MappedDevice {
    /// A device over this image. None if the host has none, which is printed.
    pub fn new(image: &Path) -> Option<Self> {
        load("dm-mod");
        let under = LoopDevice::on(image)?;
        let name = format!("rvm-test-{}-{}", std::process::id(), under.number().1);
        let sectors = image.metadata().unwrap().len() / 512;
        let this = Self {
            name,
            sectors,
            under,
        };
        let table = format!("0 {sectors} linear {} 0", this.under.path().display());
        create(&this.name, &table).then_some(this)
    }

    /// Its path on the host, by its number: no udev makes one with its name.
    pub fn path(&self) -> PathBuf {
        let columns = ["info", "--columns", "--noheadings", "-o", "minor"];
        let minor = String::from_utf8(dmsetup(&columns, &self.name).stdout).unwrap();
        format!("/dev/dm-{}", minor.trim()).into()
    }

    /// Everything that is asked of it is an error from now on.
    pub fn fail(&self) {
        self.become_another(&format!("0 {} error", self.sectors));
    }

    /// Every write is an error from now on; reads are none.
    pub fn fail_writes(&self) {
        load("dm-flakey");
        let under = self.under.path().display();
        // Never up, and down for hours.
        self.become_another(&format!(
            "0 {} flakey {under} 0 0 36000 1 error_writes",
            self.sectors
        ));
    }

    fn become_another(&self, table: &str) {
        for args in [
            &["suspend", "--noflush", "--nolockfs"][..],
            &["load", "--table", table],
            &["resume"],
        ] {
            let output = dmsetup(args, &self.name);
            assert!(output.status.success(), "{output:?}");
        }
    }
}

impl Drop for MappedDevice {
    fn drop(&mut self) {
        dmsetup(&["remove", "--force", "--retry"], &self.name);
    }
}

/// A pool of thin volumes for containerd's devmapper snapshotter. Dropping it removes the pool and
/// the volumes in it.
pub struct ThinPool {
    name: String,
    // Detached after the pool has gone.
    _devices: [LoopDevice; 2],
    _dir: TempDir,
}

impl ThinPool {
    /// A pool of so many bytes. None if the host has none, which is printed.
    pub fn new(bytes: u64) -> Option<Self> {
        load("dm-thin-pool");
        let dir = tempfile::tempdir().unwrap();
        let device = |name: &str, bytes| {
            let path = dir.path().join(name);
            File::create(&path).unwrap().set_len(bytes).unwrap();
            LoopDevice::on(&path)
        };
        // Zeroes are empty metadata.
        let devices = [device("metadata", 16 << 20)?, device("data", bytes)?];
        let [metadata, data] = devices
            .each_ref()
            .map(|one| one.path().display().to_string());
        // Blocks of 64 KiB; it says so when a tenth is left.
        let low = bytes / (64 << 10) / 10;
        let sectors = bytes / 512;
        let table =
            format!("0 {sectors} thin-pool {metadata} {data} 128 {low} 1 skip_block_zeroing");
        let name = format!("rvm-test-pool-{}", std::process::id());
        let this = Self {
            name,
            _devices: devices,
            _dir: dir,
        };
        create(&this.name, &table).then_some(this)
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for ThinPool {
    fn drop(&mut self) {
        let listed = Command::new("dmsetup").arg("ls").output();
        let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
        let names = listed
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        let inside = format!("{}-", self.name);
        for name in names.filter(|name| name.starts_with(&inside)) {
            dmsetup(&["remove", "--force", "--retry"], name);
        }
        dmsetup(&["remove", "--force", "--retry"], &self.name);
    }
}
