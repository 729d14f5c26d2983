//! Devices of `linux.devices` that the host does not have.

use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use rvm_protocol::agent::{AbsentDevice, DeviceNumber};

/// Returns the devices of a configuration that do not exist on the host. A node for one leads
/// nowhere whatever the runtime; any other that the guest lacks is refused.
pub(crate) fn absent(spec: &Spec) -> Vec<AbsentDevice> {
    let devices = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.devices().as_ref());
    let devices = devices.into_iter().flatten();
    devices
        .filter_map(number)
        .filter(|device| !exists(device))
        .collect()
}

fn number(device: &LinuxDevice) -> Option<AbsentDevice> {
    let is_block = match device.typ() {
        LinuxDeviceType::B => true,
        LinuxDeviceType::C | LinuxDeviceType::U => false,
        _ => return None,
    };
    let number = DeviceNumber {
        major: u32::try_from(device.major()).ok()?,
        minor: u32::try_from(device.minor()).ok()?,
        ..Default::default()
    };
    Some(AbsentDevice {
        is_block,
        number: Some(number).into(),
        ..Default::default()
    })
}

fn exists(device: &AbsentDevice) -> bool {
    let kind = if device.is_block { "block" } else { "char" };
    let (major, minor) = (device.number.major, device.number.minor);
    Path::new(&format!("/sys/dev/{kind}/{major}:{minor}")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_device_that_the_host_has_is_not_absent() {
        let device = |path: &str, kind: &str, major: i64, minor: i64| json!({ "path": path, "type": kind, "major": major, "minor": minor });
        let spec = serde_json::from_value(json!({ "ociVersion": "1.2.0", "linux": { "devices": [
            device("/dev/null", "c", 1, 3),
            device("/dev/none", "c", 10, 65_000),
            device("/dev/disk", "b", 8, 65_000),
            device("/dev/fifo", "p", 0, 0),
        ] } }));
        let absent = absent(&spec.unwrap());
        let found = absent
            .iter()
            .map(|device| (device.is_block, device.number.major));
        assert_eq!(found.collect::<Vec<_>>(), [(false, 10), (true, 8)]);
    }
}
