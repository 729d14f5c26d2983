//! What config.json says of disks: mounts whose source is a block device or an image file, and
//! block devices among `linux.devices`.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Mount, Spec};

use super::mounts::{is_of_mount, last_of, options, texts};
use crate::disk::{self, DeviceNumber, Disk, Place, Stack};

/// The major number of loop devices. The guest has its own by the same numbers; one that is
/// attached to a file is the host's disk.
const LOOP: u32 = 7;

/// Adds the block devices of the host that `linux.devices` gives to the container, each once. One
/// that the device rules do not allow to write cannot be written.
///
/// For a container that may use all devices, engines list every device of the host under its own
/// path. Those stay with the host.
pub(super) fn add_devices(spec: &Spec, disks: &mut Stack) {
    let Some(linux) = spec.linux() else { return };
    let resources = linux.resources().as_ref();
    let rules = resources.and_then(|resources| resources.devices().as_deref());
    let rules = rules.unwrap_or_default();
    let may_use_all = allows_all(rules);
    let mut added = Vec::new();
    for device in linux.devices().iter().flatten() {
        let Some(number) = number(device).filter(|number| is_disk(*number)) else {
            continue;
        };
        let is_listed_only = may_use_all && is_node(device.path(), number);
        if is_listed_only || added.contains(&number) {
            continue;
        }
        added.push(number);
        disks.add_disk(Disk {
            place: Place::Device {
                number,
                inside: device.path().clone(),
            },
            read_only: !may_write(rules, number),
        });
    }
}

fn number(device: &LinuxDevice) -> Option<DeviceNumber> {
    let number = |number| u32::try_from(number).ok();
    match device.typ() {
        LinuxDeviceType::B => Some((number(device.major())?, number(device.minor())?)),
        _ => None,
    }
}

/// Whether the host has the block device. The guest refuses any other that it does not have.
fn is_disk((major, minor): DeviceNumber) -> bool {
    let device = Path::new("/sys/dev/block").join(format!("{major}:{minor}"));
    match major {
        LOOP => device.join("loop/backing_file").exists(),
        _ => device.exists(),
    }
}

/// Whether a path of the host is a node of the block device.
fn is_node(path: &Path, (major, minor): DeviceNumber) -> bool {
    path.metadata().is_ok_and(|status| {
        let is_block_device = status.file_type().is_block_device();
        is_block_device && status.rdev() == rustix::fs::makedev(major, minor)
    })
}

/// Whether the last rule about all devices allows them.
fn allows_all(rules: &[LinuxDeviceCgroup]) -> bool {
    let last = rules.iter().rfind(|rule| kind(rule) == LinuxDeviceType::A);
    last.is_some_and(LinuxDeviceCgroup::allow)
}

/// Whether the last rule about writes to the block device allows them.
fn may_write(rules: &[LinuxDeviceCgroup], (major, minor): DeviceNumber) -> bool {
    let has = |wanted: Option<i64>, number: u32| match wanted {
        None | Some(-1) => true,
        Some(wanted) => wanted == i64::from(number),
    };
    let is_about_it = |rule: &&LinuxDeviceCgroup| match kind(rule) {
        LinuxDeviceType::A => true,
        LinuxDeviceType::B => {
            let access = rule.access().as_deref().unwrap_or_default();
            has(rule.major(), major) && has(rule.minor(), minor) && access.contains('w')
        }
        _ => false,
    };
    let last = rules.iter().rfind(is_about_it);
    last.is_some_and(LinuxDeviceCgroup::allow)
}

fn kind(rule: &LinuxDeviceCgroup) -> LinuxDeviceType {
    rule.typ().unwrap_or_default()
}

/// Adds a mount's disk to those of the container. The mount becomes a bind mount of its file
/// system, with the options that concern a mount alone; the file system gets the others.
pub(super) fn mount(mount: &mut Mount, path: &Path, id: &str, disks: &mut Stack) {
    let kind = mount.typ().clone().unwrap_or_default();
    let read_only = last_of(mount, "ro", "rw").unwrap_or(false);
    let (of_mount, own): (Vec<_>, Vec<_>) = options(mount).partition(is_of_mount);
    let own = own
        .into_iter()
        .filter(|option| !["loop", "defaults"].contains(option));
    let own = texts(own);
    let of_mount = texts(["bind"].into_iter().chain(of_mount));
    let disk = Disk::new(path.to_owned(), &kind, read_only);
    let file_system = disks.mount(disk, &kind, own);
    mount.set_typ(Some("bind".to_owned()));
    mount.set_options(Some(of_mount));
    _ = mount.set_source(Some(disk::place(id, file_system)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn rules(rules: Value) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_value(rules).unwrap()
    }

    #[test]
    fn a_device_is_written_only_if_the_last_rule_about_it_allows_that() {
        let of = |allow, access, major, minor| {
            json!({ "allow": allow, "type": "b", "access": access, "major": major,
                    "minor": minor })
        };
        let nothing = json!({ "allow": false, "access": "rwm" });
        for (list, expected) in [
            (json!([]), false),
            (json!([nothing]), false),
            (json!([nothing, of(true, "rwm", 8, 16)]), true),
            (json!([nothing, of(true, "r", 8, 16)]), false),
            (json!([nothing, of(true, "rwm", 8, 0)]), false),
            (json!([nothing, of(true, "w", 8, -1)]), true),
            (
                json!([of(true, "rwm", 8, 16), of(false, "w", 8, 16)]),
                false,
            ),
            (json!([of(true, "rwm", 8, 16), of(false, "m", 8, 16)]), true),
            (json!([of(true, "rwm", 8, 16), nothing]), false),
            (json!([{ "allow": true, "access": "rwm" }]), true),
            (
                json!([{ "allow": true, "type": "c", "access": "rwm" }]),
                false,
            ),
        ] {
            assert_eq!(may_write(&rules(list.clone()), (8, 16)), expected, "{list}");
        }
    }

    #[test]
    fn devices_that_the_host_does_not_have_are_no_disks() {
        let spec = json!({ "ociVersion": "1.2.0", "linux": { "devices": [
            { "path": "/dev/none", "type": "b", "major": 4000, "minor": 1 },
            { "path": "/dev/null", "type": "c", "major": 1, "minor": 3 },
            { "path": "/dev/wrong", "type": "b", "major": -1, "minor": 1 },
        ] } });
        let mut stack = Stack::default();
        add_devices(&serde_json::from_value(spec).unwrap(), &mut stack);
        assert!(stack.is_empty());
    }

    #[test]
    fn a_node_is_one_of_its_own_number_and_kind_alone() {
        assert!(!is_node(Path::new("/dev/null"), (1, 3)));
        assert!(!is_node(Path::new("/nonexistent"), (1, 3)));
    }

    #[test]
    fn the_guest_mounts_the_disk_and_binds_its_file_system() {
        let mount = json!({
            "destination": "/data", "type": "ext4", "source": "/srv/data.img",
            "options": ["loop", "nosuid,rslave", "ro", "data=journal"],
        });
        let mut mount: Mount = serde_json::from_value(mount).unwrap();
        let mut stack = Stack::default();
        stack.mount(
            Disk::new("/root.img".into(), "xfs", false),
            "xfs",
            Vec::new(),
        );
        super::mount(&mut mount, Path::new("/srv/data.img"), "box", &mut stack);
        assert_eq!(mount.typ().as_deref(), Some("bind"));
        assert_eq!(
            mount.source().as_deref(),
            Some(Path::new("/run/rvm/disks/box/1"))
        );
        let options = mount.options().clone().unwrap();
        assert_eq!(options, ["bind", "nosuid", "rslave", "ro"]);
        let made = &stack.file_systems()[1];
        assert_eq!((made.kind.as_str(), made.disk), ("ext4", 1));
        assert_eq!(made.options, ["data=journal"]);
        assert!(made.read_only && stack.disks()[1].read_only);
    }
}
