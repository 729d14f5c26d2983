//! Block devices of the host in `linux.devices`.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use rvm_tests::disk::LoopDevice;
use rvm_tests::{Bundle, Rvm};
use serde_json::json;

const MIB: u64 = 1 << 20;
const BLOCK: u32 = 4096;

fn device() -> Option<LoopDevice> {
    LoopDevice::new("before", 8 * MIB, BLOCK)
}

/// A bundle with the device at /dev/xvda, which rules allow this access.
fn with(device: &LoopDevice, bundle: Bundle, access: &str) -> Bundle {
    let (major, minor) = device.number();
    bundle.with(|config| {
        config["linux"]["devices"] = json!([{
            "path": "/dev/xvda", "type": "b", "major": major, "minor": minor,
            "fileMode": 0o640, "uid": 0, "gid": 6,
        }]);
        config["linux"]["resources"]["devices"] = json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "b", "major": major, "minor": minor, "access": access },
        ]);
    })
}

fn content(device: &LoopDevice, range: Range<usize>) -> Vec<u8> {
    fs::read(device.image()).unwrap()[range].to_vec()
}

fn is_kvm() -> bool {
    let is_kvm = rvm_tests::engine() == "kvm";
    if !is_kvm {
        println!("skipped: machines of this engine have no disks");
    }
    is_kvm
}

#[test]
fn a_block_device_of_the_host_is_the_containers() {
    let (true, Some(disk)) = (is_kvm(), device()) else {
        return;
    };
    let script = "stat -c '%a %u %g %F' /dev/xvda; blockdev --getsize64 /dev/xvda; \
                  blockdev --getss /dev/xvda; blockdev --getro /dev/xvda; \
                  head -c 6 /dev/xvda; echo; \
                  echo direct | dd of=/dev/xvda bs=4096 conv=sync oflag=direct 2>/dev/null; \
                  dd if=/dev/xvda bs=4096 count=1 iflag=direct 2>/dev/null | head -c 7; \
                  echo cached | dd of=/dev/xvda bs=4096 seek=1 conv=sync,fsync 2>/dev/null; \
                  echo kept | dd of=/dev/xvda bs=4096 seek=2 conv=sync 2>/dev/null; \
                  yes | dd of=/dev/xvda bs=4096 seek=3 count=1 conv=fsync 2>/dev/null; \
                  busybox blkdiscard -o 12288 -l 4096 /dev/xvda; \
                  cat /sys/block/vda/serial";
    let rvm = Rvm::new();
    for _ in 0..2 {
        let bundle = with(&disk, Bundle::shell(script), "rwm");
        let image = File::options().write(true).open(disk.image()).unwrap();
        image.write_all_at(b"before", 0).unwrap();
        let finished = rvm.run(&bundle, "box");
        let expected = format!(
            "640 0 6 block special file\n{}\n{BLOCK}\n0\nbefore\ndirect\nrvm-disk-6",
            8 * MIB
        );
        assert_eq!(finished.stdout.trim_end(), expected, "{}", finished.stderr);
        // What was not flushed was written when the device was closed.
        for (place, text) in [(0, "direct\n"), (4096, "cached\n"), (8192, "kept\n")] {
            assert_eq!(content(&disk, place..place + text.len()), text.as_bytes());
        }
        assert_eq!(content(&disk, 12288..16384), [0; 4096]);
    }
}

#[test]
fn a_block_device_without_the_right_to_write_stays_as_it_is() {
    let (true, Some(disk)) = (is_kvm(), device()) else {
        return;
    };
    // The device program refuses the container; the machine could not write either.
    let script = "head -c 6 /dev/xvda; echo; blockdev --getro /dev/xvda; echo x > /dev/xvda; \
                  mknod /dev/loop b 7 0; head -c 1 /dev/loop";
    let bundle = with(&disk, Bundle::shell(script), "r").capabilities(&["CAP_MKNOD"]);
    let finished = Rvm::new().run(&bundle, "box");
    assert_eq!(finished.stdout, "before\n1\n", "{}", finished.stderr);
    let refused = finished.stderr.matches("Operation not permitted").count();
    assert_eq!(refused, 2, "{}", finished.stderr);
    assert_eq!(content(&disk, 0..6), b"before");
}

#[test]
fn a_bind_mount_of_a_block_device_is_the_containers_disk() {
    let (true, Some(disk)) = (is_kvm(), device()) else {
        return;
    };
    let script = "head -c 6 /dev/bound; stat -c ' %a %g' /dev/bound";
    let mount = rvm_tests::bind(disk.path(), "/dev/bound", &["bind"]);
    let bundle = with(&disk, Bundle::shell(script).mount(mount), "r");
    let finished = Rvm::new().run(&bundle, "box");
    assert_eq!(finished.stdout, "before 640 6\n", "{}", finished.stderr);
}

#[test]
fn limits_of_io_hold_for_a_block_device() {
    let (true, Some(disk)) = (is_kvm(), device()) else {
        return;
    };
    let (major, minor) = disk.number();
    let script = "cut -d ' ' -f 2- /groups/io.max; start=$(cut -d . -f 1 /proc/uptime); \
                  dd if=/dev/zero of=/dev/xvda bs=64k count=64 oflag=direct 2>/dev/null; \
                  [ $(($(cut -d . -f 1 /proc/uptime) - start)) -ge 3 ] && echo slow";
    let groups = json!({ "destination": "/groups", "type": "cgroup", "source": "cgroup" });
    let bundle = Bundle::shell(script).mount(groups);
    let bundle = with(&disk, bundle, "rwm").with(|config| {
        config["linux"]["resources"]["blockIO"] = json!({
            "throttleWriteBpsDevice": [{ "major": major, "minor": minor, "rate": MIB }],
        });
    });
    let rvm = Rvm::new();
    let finished = rvm.run(&bundle, "box");
    let limits = format!("rbps=max wbps={MIB} riops=max wiops=max\nslow\n");
    assert_eq!(finished.stdout, limits, "{}", finished.stderr);
}

#[test]
fn limits_of_io_change_with_an_update() {
    let (true, Some(disk)) = (is_kvm(), device()) else {
        return;
    };
    let (major, minor) = disk.number();
    let groups = json!({ "destination": "/groups", "type": "cgroup", "source": "cgroup" });
    let bundle = with(&disk, Bundle::shell("sleep 1000").mount(groups), "rwm");
    let rvm = Rvm::new();
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    let limits = || rvm.call(&["exec", "box", "cat", "/groups/io.max"]).stdout;
    assert_eq!(limits(), "");
    let file = rvm.path("resources.json");
    for rate in [5000, 0] {
        let limit = json!([{ "major": major, "minor": minor, "rate": rate }]);
        let resources = json!({ "blockIO": { "throttleReadIOPSDevice": limit } });
        fs::write(&file, resources.to_string()).unwrap();
        rvm.ok(&["update", "--resources", file.to_str().unwrap(), "box"]);
        let limits = limits();
        assert_eq!(limits.contains("riops=5000"), rate > 0, "{limits}");
    }
    rvm.ok(&["delete", "--force", "box"]);
}

#[test]
fn a_block_device_that_the_host_uses_cannot_be_written() {
    let Some(disk) = device() else { return };
    // As a mount does.
    let mut options = File::options();
    let options = options.read(true).custom_flags(libc::O_EXCL);
    let _user = options.open(disk.path()).unwrap();
    let rvm = Rvm::new();
    let finished = rvm.run(&with(&disk, Bundle::shell("true"), "rw"), "box");
    let (major, minor) = disk.number();
    let words = format!("cannot open the disk /dev/xvda of linux.devices ({major}:{minor})");
    assert_eq!(finished.code, 1);
    assert!(finished.stderr.contains(&words), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("the host has it mounted"),
        "{}",
        finished.stderr
    );
    rvm.assert_nothing_left();
}

#[test]
fn an_engine_without_disks_refuses_a_block_device_by_name() {
    let Some(disk) = device() else { return };
    if rvm_tests::engine() == "kvm" {
        return;
    }
    let rvm = Rvm::new();
    let finished = rvm.run(&with(&disk, Bundle::shell("true"), "r"), "box");
    let (major, minor) = disk.number();
    let words =
        format!("the block device /dev/xvda of linux.devices ({major}:{minor}) cannot be used");
    assert_eq!(finished.code, 1);
    assert!(finished.stderr.contains(&words), "{}", finished.stderr);
    rvm.assert_nothing_left();
}

/// Engines list every device of the host for --privileged.
#[test]
fn devices_that_are_listed_for_a_privileged_container_stay_with_the_host() {
    let Some(disk) = device() else { return };
    let path = disk.path().display().to_string();
    let bundle = Bundle::shell("ls -d /sys/block/vd*; blockdev --getsize64 $LOOP").with(|config| {
        let (major, minor) = disk.number();
        config["linux"]["devices"] =
            json!([{ "path": path, "type": "b", "major": major, "minor": minor }]);
        config["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
        let env = config["process"]["env"].as_array_mut().unwrap();
        env.push(format!("LOOP={path}").into());
    });
    let finished = Rvm::new().run(&bundle, "box");
    assert_eq!(finished.stdout, "0\n", "{}", finished.stderr);
}
