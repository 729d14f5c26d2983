//! Checks that the guest has the devices of a configuration.
//!
//! A number means the same device in guest and host only where the kernel's documentation
//! (admin-guide/devices.txt) assigns it. So a container gets nodes for those numbers alone, and
//! only where the guest has the device: with any other number it would get a different device, such
//! as a disk of the guest. A number that neither has leads nowhere, as on the host; in a user
//! namespace, where a node is bound and not made, it is refused. A block device of the host that is
//! a disk of the container has the guest's number of it.

use std::collections::HashSet;
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};
use rustix::fs::{Gid, Mode, Uid};
use rvm_protocol::agent::AbsentDevice;

use super::ContainerError;
use super::control::LaunchError;
use super::spec::SpecError;
use crate::disks::{DeviceMap, LOOP, MappedDevice, parse_number};
use crate::init::plan::{ContainerPlan, DevicePlan, MountPlan, MountSource};
use crate::sys::{Doing as _, OsError};

/// The minor numbers of miscellaneous devices that are assigned statically; see
/// `<linux/miscdevice.h>`.
const FIRST_STATIC_MISC: u32 = 128;
const FIRST_DYNAMIC_MISC: u32 = 255;

/// Where sysfs has block devices by their numbers; a bind mount of a device has such a source.
const BLOCK_DEVICES: &str = "/sys/dev/block/";

const MEMORY: u32 = 1;
const TERMINALS: u32 = 5;
const MISC: u32 = 10;
const UNIX98_TERMINALS: std::ops::RangeInclusive<u32> = 136..=143;

/// Devices that the host does not have, by kind (`S_IFBLK` or `S_IFCHR`) and number.
#[derive(Debug, Default)]
pub struct AbsentDevices(HashSet<(u32, u32, u32)>);

impl AbsentDevices {
    pub fn new(devices: &[AbsentDevice]) -> Self {
        let devices = devices.iter().map(|device| {
            let kind = match device.is_block {
                true => libc::S_IFBLK,
                false => libc::S_IFCHR,
            };
            (kind, device.number.major, device.number.minor)
        });
        Self(devices.collect())
    }

    /// Whether neither the host nor the guest has a device, so that its node leads nowhere.
    fn leads_nowhere(&self, device: &DevicePlan) -> bool {
        let kind = device.mode & libc::S_IFMT;
        self.0.contains(&(kind, device.major, device.minor)) && !exists(device)
    }
}

/// Gives the container its disks, and refuses devices of a plan that the guest does not have.
pub fn prepare(
    plan: &mut ContainerPlan,
    resources: Option<&LinuxResources>,
    (disks, absent): (&DeviceMap, &AbsentDevices),
) -> Result<(), ContainerError> {
    let all = std::mem::take(&mut plan.devices);
    let is_block = |device: &DevicePlan| device.mode & libc::S_IFMT == libc::S_IFBLK;
    let mut given = Vec::new();
    for mut device in all {
        match disks.find((device.major, device.minor)) {
            Some(disk) if is_block(&device) => {
                (device.major, device.minor) = disk.guest;
                set_owner(&disk.node, &device).map_err(LaunchError::from)?;
                given.push(device);
            }
            _ => plan.devices.push(device),
        }
    }
    check(plan, resources, absent)?;
    plan.devices.extend(given);
    Ok(bind_disks(&mut plan.mounts, disks)?)
}

/// Puts the guest's numbers into bind mounts of block devices, and refuses those that the guest
/// does not have.
fn bind_disks(mounts: &mut [MountPlan], disks: &DeviceMap) -> Result<(), SpecError> {
    for mount in mounts {
        let MountSource::Bind { path, .. } = &mut mount.source else {
            continue;
        };
        let Some(number) = path.strip_prefix(BLOCK_DEVICES) else {
            continue;
        };
        let host = parse_number(number);
        match host.and_then(|host| disks.find(host)) {
            Some(MappedDevice { guest, .. }) => {
                *path = format!("{BLOCK_DEVICES}{}:{}", guest.0, guest.1);
            }
            None if host.is_some_and(|(major, _)| major == LOOP) => {}
            None => {
                return Err(SpecError::Invalid {
                    field: format!("mounts: {}", mount.destination),
                    problem: format!("is block device {number}, which the guest does not have"),
                });
            }
        }
    }
    Ok(())
}

/// The guest's own node is the container's where it cannot have one of its own.
fn set_owner(node: &str, device: &DevicePlan) -> Result<(), OsError> {
    let mode = Mode::from_raw_mode(device.mode & 0o7777);
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    let set = rustix::fs::chown(node, Some(uid), Some(gid));
    set.and_then(|()| rustix::fs::chmod(node, mode))
        .doing(|| format!("set owner and mode of {}", device.path))
}

/// A container that may use every device gets those that exist: for it, engines list every device
/// of the host.
fn check(
    plan: &mut ContainerPlan,
    resources: Option<&LinuxResources>,
    absent: &AbsentDevices,
) -> Result<(), SpecError> {
    let may_use_all = allows_all(resources.and_then(|resources| resources.devices().as_deref()));
    // What is bound has to be there, and in a user namespace no node can be made.
    let is_bound = plan.bind_devices;
    let missing =
        |device: &DevicePlan| !is_there(device) && (is_bound || !absent.leads_nowhere(device));
    let refusal = |device: &DevicePlan| match is_bound && absent.leads_nowhere(device) {
        true => refusal(
            device,
            "which neither the host nor the guest has, and for which a container with a user \
             namespace of its own gets no node",
        ),
        false => refusal(device, "which the guest does not have"),
    };
    if !may_use_all {
        return match plan.devices.iter().find(|device| missing(device)) {
            Some(device) => Err(refusal(device)),
            None => Ok(()),
        };
    }
    for device in plan.devices.extract_if(.., |device| missing(device)) {
        log::warn!("{}", refusal(&device));
    }
    Ok(())
}

fn refusal(device: &DevicePlan, why: &str) -> SpecError {
    let kind = match device.mode & libc::S_IFMT {
        libc::S_IFBLK => "block",
        _ => "character",
    };
    let (major, minor) = (device.major, device.minor);
    SpecError::Invalid {
        field: format!("linux.devices: {}", device.path),
        problem: format!("is {kind} device {major}:{minor}, {why}"),
    }
}

/// Whether the guest has a device of the number.
fn exists(device: &DevicePlan) -> bool {
    let kind = match device.mode & libc::S_IFMT {
        libc::S_IFBLK => "block",
        _ => "char",
    };
    let path = format!("/sys/dev/{kind}/{}:{}", device.major, device.minor);
    Path::new(&path).exists()
}

fn is_there(device: &DevicePlan) -> bool {
    match (device.mode & libc::S_IFMT, device.major) {
        (libc::S_IFIFO, _) => true,
        // The kernel makes it when it is opened.
        (libc::S_IFBLK, LOOP) => true,
        (libc::S_IFCHR, major) if UNIX98_TERMINALS.contains(&major) => true,
        (libc::S_IFCHR, MEMORY | TERMINALS) => exists(device),
        (libc::S_IFCHR, MISC) => {
            (FIRST_STATIC_MISC..FIRST_DYNAMIC_MISC).contains(&device.minor) && exists(device)
        }
        _ => false,
    }
}

/// Whether the rules end with one that allows every access to every device.
fn allows_all(rules: Option<&[LinuxDeviceCgroup]>) -> bool {
    let is_about_all =
        |rule: &&LinuxDeviceCgroup| rule.typ().unwrap_or_default() == LinuxDeviceType::A;
    let last = rules.unwrap_or_default().iter().rfind(is_about_all);
    last.is_some_and(|rule| rule.allow())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn device(path: &str, kind: u32, major: u32, minor: u32) -> DevicePlan {
        DevicePlan {
            path: path.to_owned(),
            mode: kind | 0o666,
            major,
            minor,
            uid: 0,
            gid: 0,
        }
    }

    fn left(devices: Vec<DevicePlan>, rules: Value) -> Result<usize, String> {
        left_of(devices, rules, &AbsentDevices::default())
    }

    fn left_of(
        devices: Vec<DevicePlan>,
        rules: Value,
        absent: &AbsentDevices,
    ) -> Result<usize, String> {
        let resources = serde_json::from_value(json!({ "devices": rules })).unwrap();
        let mut plan = ContainerPlan {
            devices,
            ..ContainerPlan::default()
        };
        match check(&mut plan, Some(&resources), absent) {
            Ok(()) => Ok(plan.devices.len()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn devices_that_every_kernel_has_are_taken() {
        let devices = vec![
            device("/dev/null", libc::S_IFCHR, 1, 3),
            device("/dev/pipe", libc::S_IFIFO, 0, 0),
            device("/dev/loop9", libc::S_IFBLK, 7, 9),
        ];
        assert_eq!(left(devices, json!([])), Ok(3));
    }

    #[test]
    fn a_device_of_the_host_is_refused_by_name() {
        let disk = device("/dev/sda", libc::S_IFBLK, 8, 0);
        let rules =
            json!([{ "allow": true, "type": "b", "major": 8, "minor": 0, "access": "rwm" }]);
        let message = left(vec![disk], rules).unwrap_err();
        assert!(
            message.contains("linux.devices: /dev/sda is block device 8:0"),
            "{message}"
        );
    }

    #[test]
    fn a_device_that_nobody_has_is_a_node_that_leads_nowhere() {
        let absent = AbsentDevices(HashSet::from([
            (libc::S_IFCHR, 10, 65_000),
            (libc::S_IFCHR, 1, 3),
        ]));
        let left = |device| left_of(vec![device], json!([]), &absent);
        assert_eq!(left(device("/dev/x", libc::S_IFCHR, 10, 65_000)), Ok(1));
        assert!(left(device("/dev/x", libc::S_IFBLK, 10, 65_000)).is_err());
        let of_the_guest = device("/dev/x", libc::S_IFCHR, 1, 3);
        assert!(!absent.leads_nowhere(&of_the_guest));
    }

    #[test]
    fn one_that_nobody_has_is_refused_by_name_where_nodes_are_bound() {
        let absent = AbsentDevices(HashSet::from([(libc::S_IFCHR, 10, 65_000)]));
        let mut plan = ContainerPlan {
            devices: vec![device("/dev/x", libc::S_IFCHR, 10, 65_000)],
            bind_devices: true,
            ..ContainerPlan::default()
        };
        let message = check(&mut plan, None, &absent).unwrap_err().to_string();
        let words = "linux.devices: /dev/x is character device 10:65000, which neither the host";
        assert!(message.contains(words), "{message}");
    }

    fn bound(path: &str) -> Result<String, String> {
        let source = MountSource::Bind {
            path: path.to_owned(),
            recursive: false,
            prepared: None,
            may_be_missing: false,
        };
        let mut mounts = [MountPlan {
            destination: "/dev/xvda".to_owned(),
            source,
            ..MountPlan::default()
        }];
        let disks = DeviceMap::of([((8, 16), (254, 0))]);
        bind_disks(&mut mounts, &disks).map_err(|error| error.to_string())?;
        match &mounts[0].source {
            MountSource::Bind { path, .. } => Ok(path.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_bind_mount_of_a_disk_has_the_guests_number() {
        assert_eq!(
            bound("/sys/dev/block/8:16").unwrap(),
            "/sys/dev/block/254:0"
        );
        for same in [
            "/sys/dev/block/7:3",
            "/sys/dev/char/8:16",
            "/run/rvm/shared/x",
        ] {
            assert_eq!(bound(same).unwrap(), same);
        }
        for other in [
            "/sys/dev/block/254:0",
            "/sys/dev/block/8:17",
            "/sys/dev/block/x",
        ] {
            let message = bound(other).unwrap_err();
            assert!(
                message.contains("mounts: /dev/xvda is block device"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_container_that_may_use_all_gets_what_there_is() {
        let devices = vec![
            device("/dev/sda", libc::S_IFBLK, 8, 0),
            device("/dev/null", libc::S_IFCHR, 1, 3),
        ];
        let all = json!([{ "allow": false, "access": "rwm" }, { "allow": true, "access": "rwm" }]);
        assert_eq!(left(devices, all), Ok(1));
    }
}
